"""Compiled programs on disk: reused by the next process, only from a folder of the same user, and only unchanged."""

import json
import logging
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from abstain.models.errors import ConfigError
from abstain.service import compilation
from abstain.service.compilation import MARK, Programs, keep_compiled, read_program, write_program
from abstain.service.settings import read_settings
from tests.helpers.paths import PROJECT

COMPILE = """
import sys, pathlib, jax, jax.numpy as jnp
from abstain.service.compilation import keep_compiled
folder = pathlib.Path(sys.argv[1])
keep_compiled(folder)
print(float(jax.jit(lambda x: jnp.sin(x).sum())(jnp.ones(8))), *sorted(p.name for p in folder.rglob("*-cache")))
"""

# One process for all faults, because JAX has one cache per process; it runs the same program after each fault.
FAULTS = """
import json, logging, os, pathlib, shutil, sys
import jax, jax.numpy as jnp
from abstain.service.compilation import keep_compiled, read_program

folder, elsewhere = map(pathlib.Path, sys.argv[1:3])
messages = []
handler = logging.Handler()
handler.emit = lambda record: messages.append(record.getMessage())
logging.getLogger("abstain").addHandler(handler)
compiles = []
jax.monitoring.register_event_listener(lambda event, **_: compiles.append(event) if event.endswith("cache_misses") else None)

def run():
    jax.clear_caches()
    messages.clear(), compiles.clear()
    return float(jax.jit(lambda x: jnp.sin(x).sum())(rows))

keep_compiled(folder)
rows = jnp.asarray([1.0, 2.0, 3.0])
right = run()
(entry,) = folder.glob("jit__lambda*")
key = entry.name.removesuffix("-cache")
good = entry.read_bytes()
others = next(path for path in folder.glob("*-cache") if path != entry).read_bytes()
uids = [65534] if os.getuid() == 0 else []

def flip(position):
    def put():
        spoiled = bytearray(good)
        spoiled[position] ^= 1 << position % 8
        entry.write_bytes(spoiled)
    return put

def link():
    (elsewhere / "entry").write_bytes(good)
    entry.symlink_to(elsewhere / "entry")

faults = {f"flip {position}": flip(position) for position in range(0, len(good), len(good) // 23)}
faults |= {f"flip {position}": flip(position) for position in (17, 18, 49, 50, len(good) - 1)}
faults |= {
    "truncated": lambda: entry.write_bytes(good[: len(good) // 2]),
    "empty": lambda: entry.write_bytes(b""),
    "longer": lambda: entry.write_bytes(good + b"x"),
    "another program": lambda: entry.write_bytes(others),
    "JAX's own": lambda: entry.write_bytes(good[50:]),
    "mode 0666": lambda: (entry.write_bytes(good), entry.chmod(0o666)),
    "mode 0620": lambda: (entry.write_bytes(good), entry.chmod(0o620)),
    "symbolic link": link,
    "named pipe": lambda: os.mkfifo(entry),
    "folder": lambda: entry.mkdir(),
}
faults |= {f"owner {uid}": lambda uid=uid: (entry.write_bytes(good), os.chown(entry, uid, uid)) for uid in uids}
results = {}
for name, put in faults.items():
    entry.unlink()
    put()
    results[name] = {"value": run(), "messages": [*messages], "compiled": len(compiles)}
    if entry.is_dir():
        entry.rmdir()
        run()
    read_program(entry, key)
    results[name]["again"] = [run(), len(compiles), *messages]
print(json.dumps({"right": right, "entry": str(entry), "results": results, "left": sorted(os.listdir(folder))}))
"""


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """The messages and results of one process for each fault; a read that hangs fails it."""
    folder, elsewhere = tmp_path_factory.mktemp("compiled"), tmp_path_factory.mktemp("elsewhere")
    folder.chmod(0o700)
    command = [sys.executable, "-c", FAULTS, str(folder), str(elsewhere)]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_changed_entry_is_reported_and_compiled_again(report):
    """A flipped bit, a truncated file, a link, a pipe: the result is right, and the entry is replaced by a valid one."""
    assert sum(name.startswith("flip") for name in report["results"]) >= 20
    for name, after in report["results"].items():
        assert after["value"] == report["right"], name
        assert after["compiled"] == 1, name
        message = f"a kept program is not run but compiled again: {report['entry']}: "
        assert after["messages"][0].startswith(message), name
        assert len(after["messages"]) == (2 if name == "folder" else 1), name
        assert after["again"] == [report["right"], 0], name
    assert "a compiled program is not kept" in report["results"]["folder"]["messages"][1]
    assert not [name for name in report["left"] if not name.endswith("-cache")]


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("flip 50", "is not as it was written"),
        ("another program", "is not as it was written"),
        ("empty", "an empty file"),
        ("JAX's own", "is not one of abstain's programs"),
        ("mode 0666", "-rw-rw-rw-"),
        ("symbolic link", "a symbolic link"),
        ("named pipe", "a named pipe"),
        ("folder", "found a folder"),
    ],
)
def test_the_log_gives_the_reason_why_an_entry_is_not_run(fault, reason, report):
    """The reason distinguishes a failing disk from a file of somebody else."""
    assert reason in report["results"][fault]["messages"][0]


@pytest.mark.skipif(os.getuid() != 0, reason="only root may give a file to another user")
def test_an_entry_of_another_user_is_not_run(report):
    """Although its bytes are unchanged."""
    assert "found owner 65534" in report["results"]["owner 65534"]["messages"][0]


def test_only_its_owner_can_access_an_entry_with_any_umask(tmp_path):
    """Otherwise every entry would be refused with a umask of 0."""
    path = tmp_path / "key-cache"
    before = os.umask(0)
    try:
        write_program(path, "key", b"program")
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o600
    assert read_program(path, "key") == b"program"
    with pytest.raises(ConfigError, match="is not as it was written"):
        read_program(path.rename(tmp_path / "other-cache"), "other")


def test_an_entry_too_large_is_neither_written_nor_read(tmp_path, monkeypatch, caplog):
    """It is compiled again at every start; a file of a terabyte must not be read into memory."""
    programs = Programs(tmp_path)
    programs.put("key", bytes(100))
    monkeypatch.setattr(compilation, "MAX_ENTRY_BYTES", 120)
    assert programs.get("key") is None
    programs.put("other", bytes(100))
    assert [path.name for path in tmp_path.iterdir()] == ["key-cache"]
    assert all("is too large: expected at most 120 bytes" in message for message in caplog.messages)
    assert len(caplog.messages) == 2


def test_concurrent_writers_of_an_entry_never_show_half_of_it(tmp_path, caplog):
    """Readers find the whole entry or none."""
    programs, value = Programs(tmp_path), os.urandom(2**20)

    def put_and_get(_) -> bytes | None:
        programs.put("key", value)
        return programs.get("key")

    with ThreadPoolExecutor(8) as threads:
        assert set(threads.map(put_and_get, range(100))) == {value}
    assert caplog.messages == []
    assert (tmp_path / "key-cache").read_bytes().startswith(MARK)
    assert len(list(tmp_path.iterdir())) == 1


def test_the_next_process_reuses_compiled_programs(tmp_path):
    """Only the owner can access the folder; a second process adds nothing to it."""
    folder = tmp_path / "deep" / "compiled"
    command = [sys.executable, "-c", COMPILE, str(folder)]
    first, second = (
        subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=True).stdout for _ in range(2)
    )
    assert first == second
    assert len(first.split()) >= 2
    assert folder.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("fault", ["others may write", "a file", "another's"])
def test_a_folder_of_others_is_not_used(fault, tmp_path, caplog, monkeypatch):
    """The server continues without it, and its log has the reason and the fix."""
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
    assert set_to == [("jax_compilation_cache_dir", None)]  # nor the one that the environment names
    assert caplog.messages[0].startswith(
        f"compiled programs are not kept: {folder}: ABSTAIN_COMPILED: expected a folder"
    )


def test_a_user_without_a_home_has_a_default_folder(monkeypatch):
    """For example an unknown user in a container."""
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr("pathlib.Path.home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    assert str(os.getuid()) in str(read_settings({}).compiled)
    monkeypatch.setenv("XDG_CACHE_HOME", "/elsewhere")
    assert str(read_settings({}).compiled) == "/elsewhere/abstain/compiled"
