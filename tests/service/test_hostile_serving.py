"""One store of hostile bundles and hostile labels beside one sound model, and a real server and commands on it.

The bundles are those of `hostile_bundles.py`, each a model of its own. In memory and time they may cost a server little, and
the sound model nothing.
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
"""By which a worker's largest resident memory may exceed that of one which serves the sound model alone."""
ORIGINAL, SOUND, LINKED = "digits", "b-sound", "linked"
ROUNDS = 3
"""How often each hostile bundle is there, but for bombs, so that they are still being read when the sound model answers."""
EARLY = 8
"""So many hostile models come before the sound one, in the order in which a server loads them; the others after it."""


# ---- the store -------------------------------------------------------------------------------------------------------


def copy(source: Path, scratch: Path, name: str) -> Path:
    """A copy of a sound version as another model's, signed; its folder."""
    folder = scratch / name / "1"
    shutil.copytree(source, folder)
    sign(folder, name=name)
    return folder


def share(folder: Path, source: Path) -> None:
    """Makes what the alteration left as it was one file on disk with the original."""
    for path in folder.rglob("*"):
        original = source / path.relative_to(folder)
        if not path.is_symlink() and path.is_file() and original.is_file() and filecmp.cmp(path, original, False):
            path.unlink()
            os.link(original, path)


@pytest.fixture(scope="module")
def hostile(store, tmp_path_factory) -> tuple[Path, dict[str, str]]:
    """The store, and of each hostile model what it must be refused with."""
    root, scratch = tmp_path_factory.mktemp("hostile") / "store", tmp_path_factory.mktemp("scratch")
    root.mkdir()
    source = store / ORIGINAL / "1"
    copy(store / "wave" / "1", root, SOUND)
    expected: dict[str, str] = {}

    def add(name: str, told: str) -> None:
        # Links that were made lead to the scratch folder, which stays.
        (scratch / name / name).rename(root / name)
        expected[name] = told.replace(f"{ORIGINAL}:", f"{name}:")

    # Only root can make a device; where it cannot, there are the others.
    once = [kind for kind in HOSTILE if kind != "a device" or os.geteuid() == 0]
    kinds = once[::2] + once[1::2] + [kind for kind in once if "grow" not in kind] * (ROUNDS - 1)
    for place, kind in enumerate(kinds):
        name = f"{'a' if place < EARLY else 'c'}{place:03}"
        folder = copy(source, scratch / name, name)
        HOSTILE[kind][0](folder)
        share(folder, source)
        add(name, HOSTILE[kind][1])
    for place, (make, told) in enumerate(HOSTILE_LABELS.values()):
        name = f"labels{place}"
        folder = copy(source, scratch / name, name)
        share(folder, source)
        make(folder.parent / LABELS)
        add(name, told)
    copy(source, scratch / "elsewhere", LINKED)
    (root / LINKED).symlink_to(scratch / "elsewhere" / LINKED)
    expected[LINKED] = "is a symbolic link"
    return root, expected


# ---- the server ------------------------------------------------------------------------------------------------------


@dataclass
class Watch:
    """What was seen of a server from its start until all was loaded, and a little longer."""

    answers: list[tuple[float, int, str]] = field(default_factory=list)
    """Of the sound model: seconds it took, code, and what was said where it is not 200; in order."""
    loaded_at: int = 0
    """How many answers there were when both workers served the sound model."""
    settled_at: int = 0
    """How many answers there were when both workers had loaded or refused all."""
    seconds: float = 0
    models: dict[str, dict] = field(default_factory=dict)
    listing: str = ""
    workers_before: set[int] = field(default_factory=set)
    workers_after: set[int] = field(default_factory=set)
    mebibytes: int = 0
    """Resident at most, of any worker."""


def peak(pid: int) -> int:
    """MiB that a process has had resident at most."""
    lines = Path(f"/proc/{pid}/status").read_text("ascii", "replace").splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) // 1024


def ask(server: Server) -> tuple[float, int, str]:
    """One prediction of the sound model, over a connection of its own, as another worker may take each."""
    body = {"inputs": [[0.5]], "model": SOUND, "fields": ["mean", "reject"]}
    began = time.monotonic()
    try:
        answer = httpx.post(f"{server.url}/predict", json=body, timeout=PATIENCE)
    except httpx.TransportError as error:
        return time.monotonic() - began, 0, repr(error)
    return time.monotonic() - began, answer.status_code, "" if answer.status_code == 200 else answer.json()["error"]


def loads(server: Server) -> dict[str, dict[str, float]]:
    """How often the workers have loaded and have refused each model."""
    found: dict[str, dict[str, float]] = {}
    for line in httpx.get(f"{server.url}/metrics", timeout=PATIENCE).text.splitlines():
        if line.startswith("abstain_model_loads_total{"):
            labels = dict(
                part.replace('"', "").split("=") for part in line[line.index("{") + 1 : -5].split("}")[0].split(",")
            )
            found.setdefault(labels["model"], {})[labels["outcome"]] = float(line.rsplit(" ", 1)[1])
    return found


def watch(store: Path, folder: Path, models: set[str]) -> Watch:
    """Starts a server of two workers, asks it for the sound model from its first answer on, and ends it."""
    seen, done = Watch(), threading.Event()
    began = time.monotonic()
    server = start_server(store, folder, workers=2, wait=False)

    def keep_asking() -> None:
        while not done.is_set():
            seen.answers.append(ask(server))

    asking = threading.Thread(target=keep_asking)
    try:
        assert until(lambda: ask(server)[1] == 200, SECONDS), server.log.read_text()[-3000:]
        seen.workers_before = children(server.process.pid)
        asking.start()
        assert until(lambda: loads(server).get(SOUND, {}).get("loaded") == 2, SECONDS), server.log.read_text()[-3000:]
        seen.loaded_at = len(seen.answers)
        assert until(
            lambda: {name for name, told in loads(server).items() if sum(told.values()) == 2} == models, SECONDS
        ), sorted(models - {name for name, told in loads(server).items() if sum(told.values()) == 2})
        seen.seconds, seen.settled_at = time.monotonic() - began, len(seen.answers)
        for _ in range(4):  # of either worker
            answer = httpx.get(f"{server.url}/models", timeout=PATIENCE)
            assert answer.status_code == 200, answer.text
        seen.listing = answer.text
        seen.models = {model["name"]: model["versions"][0] for model in answer.json()["models"]}
        assert until(lambda: len(seen.answers) > seen.settled_at + 50)
        seen.workers_after = children(server.process.pid)
        seen.mebibytes = max(peak(pid) for pid in seen.workers_after)
    finally:
        done.set()
        if asking.is_alive():
            asking.join()
        workers = children(server.process.pid)
        stop_server(server)
        kill_all(workers)
    return seen


@pytest.fixture(scope="module")
def alone(store, tmp_path_factory) -> Watch:
    """A server of the sound model alone."""
    root = tmp_path_factory.mktemp("alone")
    copy(store / "wave" / "1", root / "store", SOUND)
    return watch(root / "store", root, {SOUND})


@pytest.fixture(scope="module")
def seen(hostile, alone, tmp_path_factory) -> Watch:
    """The server on the hostile store.

    It starts after the other, whose compiled programs it finds, so that it answers long before it has seen all.
    """
    root, expected = hostile
    return watch(root, tmp_path_factory.mktemp("server"), {SOUND, *expected})


def test_every_hostile_model_is_named_with_its_reason(hostile, seen):
    """By `/models`; the sound one alone is ready."""
    _, expected = hostile
    assert len(expected) >= 40 + len(HOSTILE_LABELS)
    assert {name for name, version in seen.models.items() if version["state"] == "ready"} == {SOUND}
    assert set(seen.models) == {SOUND, *expected}
    wrong = {
        name: (seen.models[name]["state"], told, seen.models[name]["why"])
        for name, told in expected.items()
        if seen.models[name]["state"] != "failed" or told not in (seen.models[name]["why"] or "")
    }
    assert wrong == {}


def test_the_reasons_tell_no_path_of_this_machine(hostile, seen):
    """Neither of the store nor of what its links lead to nor of abstain itself."""
    root, _ = hostile
    for path in (root.parent, root.parents[1], PROJECT):
        assert f"{path}/" not in seen.listing
        assert f'{path}"' not in seen.listing


def test_the_sound_model_answers_all_the_while(seen):
    """Once a worker has loaded it, whatever else it loads; none of the answers fails or keeps one waiting."""
    before, after = seen.answers[: seen.loaded_at + 1], seen.answers[seen.loaded_at + 1 :]
    # Until the second worker has it too, that one says so.
    assert {(code, said) for _, code, said in before if code != 200} <= {
        (503, f"{SOUND}:1 is loading"),
        (503, "not ready: the store has not been read yet"),
    }
    assert {(code, said) for _, code, said in after} == {(200, "")}
    assert max(seconds for seconds, *_ in after) < 10


def test_all_is_loaded_or_refused_in_bounded_time(seen):
    """By both workers, from the start of the command on."""
    assert seen.seconds < SECONDS


def test_no_worker_ends(seen):
    """The processes are the same before and after."""
    assert len(seen.workers_before) == 2
    assert seen.workers_after == seen.workers_before


def test_hostile_models_take_little_memory(alone, seen):
    """Compared with a server of the sound model alone, though single ones promise up to 256 TB."""
    assert seen.mebibytes < alone.mebibytes + MEBIBYTES


# ---- commands --------------------------------------------------------------------------------------------------------


def test_abstain_models_lists_all_of_them(hostile):
    """Exit code 0, every model named, and hostile labels are the matter of their model alone."""
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
