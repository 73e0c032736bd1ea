"""Programs kept on disk: found again by the next process, and never where others could put some."""

import logging
import os
import subprocess
import sys

import pytest

from service import compilation
from service.compilation import keep_compiled
from service.settings import read_settings
from tests.conftest import PROJECT

COMPILE = """
import sys, pathlib, jax, jax.numpy as jnp
from service.compilation import keep_compiled
folder = pathlib.Path(sys.argv[1])
keep_compiled(folder)
print(float(jax.jit(lambda x: jnp.sin(x).sum())(jnp.ones(8))), *sorted(p.name for p in folder.rglob("*-cache")))
"""


def test_the_next_process_finds_what_one_has_compiled(tmp_path):
    """The folder is made for its owner alone; a second process adds nothing to it."""
    folder = tmp_path / "deep" / "compiled"
    command = [sys.executable, "-c", COMPILE, str(folder)]
    told = [subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=True).stdout for _ in range(2)]
    assert told[0] == told[1]
    assert len(told[0].split()) >= 2
    assert folder.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("fault", ["others may write", "a file", "another's"])
def test_a_folder_that_is_not_ones_own_is_left_alone(fault, tmp_path, caplog, monkeypatch):
    """A server goes on without it, and its log says why and what to do."""
    set_to = []
    monkeypatch.setattr(compilation.jax.config, "update", lambda *setting: set_to.append(setting))
    folder = tmp_path / "compiled"
    if fault == "a file":
        folder.write_text("")
    else:
        folder.mkdir()
        folder.chmod(0o777 if fault == "others may write" else 0o700)
    if fault == "another's":
        monkeypatch.setattr(os, "getuid", lambda: folder.stat().st_uid + 1)
    with caplog.at_level(logging.WARNING):
        keep_compiled(folder)
    assert set_to == []
    assert caplog.messages[0].startswith(
        f"compiled programs are not kept: {folder}: ABSTAIN_COMPILED: expected a folder"
    )


def test_a_user_without_a_home_has_a_folder_of_his_own(monkeypatch):
    """In a container whose user is not known there is no home; the setting still has a default."""
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr("pathlib.Path.home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    assert str(os.getuid()) in str(read_settings({}).compiled)
    monkeypatch.setenv("XDG_CACHE_HOME", "/elsewhere")
    assert str(read_settings({}).compiled) == "/elsewhere/abstain/compiled"
