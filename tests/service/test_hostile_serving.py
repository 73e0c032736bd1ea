"""A store with hostile bundles, hostile labels and one sound model: a real server and commands read it.

The bundles are those of `hostile_bundles.py`, each as its own model. They may cost a server little memory and time, and must
not affect the sound model.
"""

import filecmp
import json
import os
import shutil
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from abstain.models.bundles.store import LABELS
from tests.helpers.commands import abstain
from tests.helpers.hostile_bundles import HOSTILE, HOSTILE_LABELS, sign
from tests.helpers.paths import PROJECT
from tests.helpers.processes import PATIENCE, children, kill_all, until
from tests.helpers.servers import Server, start_server, stop_server

SECONDS = 120
"""From the start of the server until every model is ready or refused; on two busy cores it took 35."""
MEBIBYTES = 300
"""How much more memory a worker may need than one that serves only the sound model."""
ORIGINAL, SOUND, LINKED = "digits", "b-sound", "linked"
ROUNDS = 3
"""How many copies of each hostile bundle there are, except bombs, so that loading continues while the sound model is served."""
EARLY = 8
"""The number of hostile models that a server loads before the sound one."""


# ---- the store -------------------------------------------------------------------------------------------------------


def copy(source: Path, scratch: Path, name: str) -> Path:
    """Copies a sound version to another model and signs it; returns its folder."""
    folder = scratch / name / "1"
    shutil.copytree(source, folder)
    sign(folder, name=name)
    return folder


def share(folder: Path, source: Path) -> None:
    """Replaces unchanged files by hard links to the original."""
    for path in folder.rglob("*"):
        original = source / path.relative_to(folder)
        if not path.is_symlink() and path.is_file() and original.is_file() and filecmp.cmp(path, original, False):
            path.unlink()
            os.link(original, path)


@pytest.fixture(scope="module")
def hostile(store, tmp_path_factory) -> tuple[Path, dict[str, str]]:
    """The store, and the expected reason of each hostile model."""
    root, scratch = tmp_path_factory.mktemp("hostile") / "store", tmp_path_factory.mktemp("scratch")
    root.mkdir()
    source = store / ORIGINAL / "1"
    copy(store / "wave" / "1", root, SOUND)
    expected: dict[str, str] = {}

    def add(name: str, reason: str) -> None:
        # Links point into the scratch folder, which stays.
        (scratch / name / name).rename(root / name)
        expected[name] = reason.replace(f"{ORIGINAL}:", f"{name}:")

    # Only root can make a device.
    once = [kind for kind in HOSTILE if kind != "a device" or os.geteuid() == 0]
    kinds = once[::2] + once[1::2] + [kind for kind in once if "grow" not in kind] * (ROUNDS - 1)
    for index, kind in enumerate(kinds):
        name = f"{'a' if index < EARLY else 'c'}{index:03}"
        folder = copy(source, scratch / name, name)
        HOSTILE[kind][0](folder)
        share(folder, source)
        add(name, HOSTILE[kind][1])
    for index, (make, reason) in enumerate(HOSTILE_LABELS.values()):
        name = f"labels{index}"
        folder = copy(source, scratch / name, name)
        share(folder, source)
        make(folder.parent / LABELS)
        add(name, reason)
    copy(source, scratch / "elsewhere", LINKED)
    (root / LINKED).symlink_to(scratch / "elsewhere" / LINKED)
    expected[LINKED] = "is a symbolic link"
    return root, expected


# ---- the server ------------------------------------------------------------------------------------------------------


@dataclass
class Observation:
    """The observed behaviour of a server from its start until all versions were loaded, and a little longer."""

    responses: list[tuple[float, int, str]] = field(default_factory=list)
    """Responses of the sound model, in order: seconds, status, and the error if the status is not 200."""
    loaded_at: int = 0
    """The number of responses when both workers served the sound model."""
    settled_at: int = 0
    """The number of responses when both workers had loaded or refused all versions."""
    seconds: float = 0
    models: dict[str, dict] = field(default_factory=dict)
    listing: str = ""
    workers_before: set[int] = field(default_factory=set)
    workers_after: set[int] = field(default_factory=set)
    mebibytes: int = 0
    """The peak of resident memory of any worker."""


def peak(pid: int) -> int:
    """The peak of resident memory of a process, in MiB."""
    lines = Path(f"/proc/{pid}/status").read_text("ascii", "replace").splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) // 1024


def predict_once(server: Server) -> tuple[float, int, str]:
    """One prediction of the sound model over a new connection, so that any worker may serve it."""
    body = {"inputs": [[0.5]], "model": SOUND, "fields": ["mean", "reject"]}
    began = time.monotonic()
    try:
        answer = httpx.post(f"{server.url}/predict", json=body, timeout=PATIENCE)
    except httpx.TransportError as error:
        return time.monotonic() - began, 0, repr(error)
    return time.monotonic() - began, answer.status_code, "" if answer.status_code == 200 else answer.json()["error"]


def loads(server: Server) -> dict[str, dict[str, float]]:
    """How often the workers have loaded and refused each model."""
    found: dict[str, dict[str, float]] = {}
    for line in httpx.get(f"{server.url}/metrics", timeout=PATIENCE).text.splitlines():
        if line.startswith("abstain_model_loads_total{"):
            labels = dict(
                part.replace('"', "").split("=") for part in line[line.index("{") + 1 : -5].split("}")[0].split(",")
            )
            found.setdefault(labels["model"], {})[labels["outcome"]] = float(line.rsplit(" ", 1)[1])
    return found


def observe(store: Path, folder: Path, models: set[str]) -> Observation:
    """Starts a server of two workers, sends requests for the sound model until all are loaded, and stops it."""
    observed, done = Observation(), threading.Event()
    began = time.monotonic()
    server = start_server(store, folder, workers=2, wait=False)

    def keep_predicting() -> None:
        while not done.is_set():
            observed.responses.append(predict_once(server))

    predicting = threading.Thread(target=keep_predicting)
    try:
        assert until(lambda: predict_once(server)[1] == 200, SECONDS), server.log.read_text()[-3000:]
        observed.workers_before = children(server.process.pid)
        predicting.start()
        assert until(lambda: loads(server).get(SOUND, {}).get("loaded") == 2, SECONDS), server.log.read_text()[-3000:]
        observed.loaded_at = len(observed.responses)
        assert until(
            lambda: {name for name, counts in loads(server).items() if sum(counts.values()) == 2} == models, SECONDS
        ), sorted(models - {name for name, counts in loads(server).items() if sum(counts.values()) == 2})
        observed.seconds, observed.settled_at = time.monotonic() - began, len(observed.responses)
        for _ in range(4):  # from either worker
            answer = httpx.get(f"{server.url}/models", timeout=PATIENCE)
            assert answer.status_code == 200, answer.text
        observed.listing = answer.text
        observed.models = {model["name"]: model["versions"][0] for model in answer.json()["models"]}
        assert until(lambda: len(observed.responses) > observed.settled_at + 50)
        observed.workers_after = children(server.process.pid)
        observed.mebibytes = max(peak(pid) for pid in observed.workers_after)
    finally:
        done.set()
        if predicting.is_alive():
            predicting.join()
        workers = children(server.process.pid)
        stop_server(server)
        kill_all(workers)
    return observed


@pytest.fixture(scope="module")
def alone(store, tmp_path_factory) -> Observation:
    """A server with only the sound model."""
    root = tmp_path_factory.mktemp("alone")
    copy(store / "wave" / "1", root / "store", SOUND)
    return observe(root / "store", root, {SOUND})


@pytest.fixture(scope="module")
def observed(hostile, alone, tmp_path_factory) -> Observation:
    """The server on the hostile store.

    It starts after the other server and finds its compiled programs, so that it serves long before all versions are read.
    """
    root, expected = hostile
    return observe(root, tmp_path_factory.mktemp("server"), {SOUND, *expected})


def test_every_hostile_model_is_named_with_its_reason(hostile, observed):
    """In `/models`; only the sound model is ready."""
    _, expected = hostile
    assert len(expected) >= 40 + len(HOSTILE_LABELS)
    assert {name for name, version in observed.models.items() if version["state"] == "ready"} == {SOUND}
    assert set(observed.models) == {SOUND, *expected}
    wrong = {
        name: (observed.models[name]["state"], reason, observed.models[name]["why"])
        for name, reason in expected.items()
        if observed.models[name]["state"] != "failed" or reason not in (observed.models[name]["why"] or "")
    }
    assert wrong == {}


def test_the_reasons_contain_no_path_of_this_machine(hostile, observed):
    """No path of the store, of the targets of its links, or of abstain itself."""
    root, _ = hostile
    for path in (root.parent, root.parents[1], PROJECT):
        assert f"{path}/" not in observed.listing
        assert f'{path}"' not in observed.listing


def test_the_sound_model_is_served_all_the_time(observed):
    """Once a worker has loaded it, no request fails or waits long, whatever else the worker loads."""
    before, after = observed.responses[: observed.loaded_at + 1], observed.responses[observed.loaded_at + 1 :]
    # The second worker may still be loading it.
    assert {(code, error) for _, code, error in before if code != 200} <= {
        (503, f"{SOUND}:1 is loading"),
        (503, "not ready: the store has not been read yet"),
    }
    assert {(code, error) for _, code, error in after} == {(200, "")}
    assert max(seconds for seconds, *_ in after) < 10


def test_all_versions_are_loaded_or_refused_in_limited_time(observed):
    """By both workers, counted from the start of the command."""
    assert observed.seconds < SECONDS


def test_no_worker_ends(observed):
    """The worker processes are the same before and after."""
    assert len(observed.workers_before) == 2
    assert observed.workers_after == observed.workers_before


def test_hostile_models_need_little_memory(alone, observed):
    """Compared with a server with only the sound model, although some bundles declare up to 256 TB."""
    assert observed.mebibytes < alone.mebibytes + MEBIBYTES


# ---- commands --------------------------------------------------------------------------------------------------------


def test_abstain_models_lists_all_hostile_models(hostile):
    """Exit code 0, every model named; hostile labels affect only their own model."""
    root, expected = hostile
    began = time.monotonic()
    result = abstain("models", "--store", root, "--json", timeout=SECONDS)
    assert (result.returncode, result.stderr) == (0, "")
    assert time.monotonic() - began < SECONDS
    listed = {model["name"]: model["versions"][0] for model in json.loads(result.stdout)["models"]}
    assert set(listed) == {SOUND, *expected}
    assert listed[SOUND]["why"] is None
    for name in expected:
        if "labels" in name or name == LINKED:
            assert expected[name] in listed[name]["why"]
