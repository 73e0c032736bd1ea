"""Trying a version in a process of its own: what it says, and how it ends."""

import os
import subprocess
import sys
import threading
import time

import orjson
import pytest

from abstain.service.following import preparing
from abstain.service.following.preparing import try_version
from abstain.service.plans import Key
from tests.helpers.golden_versions import damage_version, publish_golden
from tests.helpers.processes import PATIENCE

PRINTING = "import sys\nprint('a line of a network')\nsys.stdout.flush()\n"


@pytest.fixture
def environment(tmp_path):
    """That of a worker whose store is `store`; every Python that it starts prints a line, as a network of a user may."""
    (tmp_path / "prints").mkdir()
    (tmp_path / "prints" / "sitecustomize.py").write_text(PRINTING)
    return {
        **os.environ,
        "ABSTAIN_STORE": str(tmp_path / "store"),
        "ABSTAIN_COMPILED": str(tmp_path / "compiled"),
        "ABSTAIN_MEMORY_BYTES": "1000000",
    }


def test_versions_are_read_verified_and_compiled(tmp_path, environment, monkeypatch):
    """A sound one fills the cache of programs; of another it says why. Lines that a network prints are no answer."""
    monkeypatch.syspath_prepend(str(tmp_path / "prints"))
    for scale in (1.0, 1.1):
        publish_golden(tmp_path / "store", scale)
    damage_version(tmp_path / "store", 2)
    served = [Key("golden", 1, "")]
    assert try_version(served[0], (), threading.Event(), environment) is None
    assert list((tmp_path / "compiled").iterdir())
    damaged = try_version(Key("golden", 2, ""), served, threading.Event(), environment)
    assert (damaged.state, "is damaged or was altered" in damaged.why) == ("failed", True)
    full = try_version(Key("golden", 1, ""), served, threading.Event(), environment | {"ABSTAIN_MEMORY_BYTES": "10"})
    assert (full.state, full.why[:42]) == ("refused", "ABSTAIN_MEMORY_BYTES: does not fit into th")


def test_a_trial_that_nobody_wants_ends(environment, monkeypatch):
    """Within a second; and a process that is killed fails its version, not the server."""
    monkeypatch.setattr(preparing, "_LOOK_SECONDS", 0.05)
    cancelled = threading.Event()
    cancelled.set()
    start = time.monotonic()
    failure = try_version(Key("golden", 1, ""), (), cancelled, environment)
    assert failure.why == "the store does not ask for it any more"
    assert time.monotonic() - start < PATIENCE
    assert preparing._describe_end(-11, threading.Event()).startswith(
        "the process that read and compiled it was ended by signal 11"
    )


def test_the_process_ends_with_the_one_that_started_it(environment):
    """Also if that ended before the process looked."""
    command = [sys.executable, "-m", "abstain.service.following.preparing"]
    task = orjson.dumps({"new": "golden:1", "served": [], "parent": 1})
    process = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    output, _ = process.communicate(task, timeout=PATIENCE)
    assert (process.returncode, output) == (1, b"")
