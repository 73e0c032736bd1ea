"""Kills writers of a store, workers and the main process of a server with SIGKILL at random moments, and checks what is left.

    python -m tests.faults.kills [--moments 100] [--workers 10] [--mains 5] [--seed 0]

Of the moments, `--workers` kill a worker and `--mains` the main process of a real server, while a label has just moved and a
version is being published; all others kill a process that publishes, labels, rolls back, prunes, rolls out, or exports and unpacks. After each:

    whole       every listed version has all files of its manifest, unaltered; a rollout and its evidence can be read
    labels      every label points to a version that exists
    writable    the next writer gets the lock at once, and removes what was left
    served      both workers of the server answer by the labelled version; after a kill of its main process, those of the next start
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import httpx
import numpy as np
import psutil

from abstain.models.bundles import store
from abstain.models.bundles.archive import export_version, unpack_version
from abstain.models.bundles.bundle import read_published
from abstain.models.bundles.manifest import read_manifest, verify_files, write_manifest
from abstain.models.bundles.retention import prune
from abstain.models.bundles.rollout_evidence import ServerEvidence, StoredEvidence, read_status, write_evidence
from abstain.models.bundles.rollouts import EVIDENCE, Options, end_rollout, now, read_rollout, start_rollout
from abstain.models.decisions.comparison import NO_EVIDENCE
from abstain.models.errors import AbstainError
from tests.helpers.golden_versions import GOLDEN
from tests.helpers.processes import alive, children, until
from tests.helpers.servers import Server, start_server, stop_server

NAME = "golden"
FEW, MANY = 4, 10
"""Between how many versions the store has before a moment."""
LOCK_SECONDS = 5.0
"""The longest time that the next writer may take."""
SERVER_SECONDS = 120.0
"""The longest time until a server serves the labelled version again."""
ASKED = 20
"""How many connections must get the labelled version."""


def publish_copy(root: Path) -> int:
    """Publishes a copy of the golden bundle, which takes 15 ms."""
    manifest = read_manifest(GOLDEN)

    def write(folder: Path) -> None:
        shutil.copytree(GOLDEN, folder, dirs_exist_ok=True)

    def seal(folder: Path, version: int) -> None:
        write_manifest(folder, manifest.model_copy(update={"name": NAME, "version": version}))

    return store.publish(root, NAME, write, seal)


def move_label(root: Path, randomness: np.random.Generator) -> int:
    """Points `stable` at another version; returns it."""
    current = store.read_labels(root, NAME).labels.get("stable")
    version = int(randomness.choice([each for each in store.versions(root, NAME) if each != current]))
    store.set_label(root, NAME, version, "stable")
    return version


def publish_some(root: Path, _randomness: np.random.Generator) -> None:
    """Publishes three versions."""
    for _ in range(3):
        publish_copy(root)


def label_some(root: Path, randomness: np.random.Generator) -> None:
    """Moves `stable` ten times."""
    for _ in range(10):
        move_label(root, randomness)


def roll_back(root: Path, randomness: np.random.Generator) -> None:
    """Moves `stable` five times and takes each move back."""
    for _ in range(5):
        move_label(root, randomness)
        store.rollback(root, NAME)


def prune_some(root: Path, _randomness: np.random.Generator) -> None:
    """Removes all versions but three and the labelled ones."""
    prune(root, NAME, 3)


def archive_some(root: Path, _randomness: np.random.Generator) -> None:
    """Exports the newest version, removes it and takes it back from its archive."""
    version = store.versions(root, NAME)[-1]
    archive = root.parent / "version.tar"
    export_version(root, NAME, version, archive, force=True)
    with store.lock_model(root / NAME):
        (root / NAME / str(version)).rename(root / NAME / f"{store.REMOVED}moved")
    unpack_version(root, archive)


def roll_out_some(root: Path, _randomness: np.random.Generator) -> None:
    """Starts a rollout of the newest version with evidence, and promotes it, twice."""
    for _ in range(2):
        baseline, candidate = store.resolve(root, NAME)[1], store.versions(root, NAME)[-1]
        if candidate == baseline:
            candidate = store.versions(root, NAME)[-2]
        rollout = read_rollout(root, NAME)
        if rollout is None or rollout.outcome:
            manifests = read_published(root, NAME, baseline), read_published(root, NAME, candidate)
            rollout = start_rollout(root, manifests, Options("canary", 0.1))
        evidence = ServerEvidence(rejects=StoredEvidence.of(NO_EVIDENCE), updated=now())
        write_evidence(root, NAME, rollout, f"{os.getpid():032x}", evidence)
        verdict = "promote" if rollout.baseline == baseline else "abort"
        end_rollout(root, NAME, verdict, by="command", own_id=rollout.id)


WRITERS: dict[str, Callable[[Path, np.random.Generator], None]] = {
    "publish": publish_some,
    "label": label_some,
    "rollback": roll_back,
    "prune": prune_some,
    "archive": archive_some,
    "rollout": roll_out_some,
}


def start_writer(name: str, root: Path, seed: int) -> int:
    """Forks a process that begins a writer's work; returns its pid when it begins."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(writing, b".")
            WRITERS[name](root, np.random.default_rng(seed))
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    os.close(writing)
    os.read(reading, 1)
    os.close(reading)
    return pid


def end_of(pid: int) -> int:
    """Waits for a writer; returns the signal that ended it, 0 if it has done its work."""
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code > 0:
        raise SystemExit("a writer failed before it was killed")
    return -code


def faults_of(root: Path) -> list[str]:
    """Returns what is wrong with a store."""
    found: list[str] = []
    try:
        present = store.versions(root, NAME)
        for version in present:
            verify_files(root / NAME / str(version), read_published(root, NAME, version))
        labels = store.read_labels(root, NAME).labels
        found += [f"{label} points to {version}" for label, version in labels.items() if version not in present]
        if read_rollout(root, NAME):
            read_status(root, NAME)
    except AbstainError as error:
        found.append(str(error))
    return found


def faults_of_next_writer(root: Path, randomness: np.random.Generator) -> list[str]:
    """Lets the next writer work; returns what is wrong with it."""
    started = time.monotonic()
    move_label(root, randomness)
    seconds = time.monotonic() - started
    kept = {store.LOCK, EVIDENCE}
    left = [path.name for path in (root / NAME).iterdir() if path.name.startswith(".") and path.name not in kept]
    slow = [f"the next writer took {seconds:.1f} s"] if seconds > LOCK_SECONDS else []
    return slow + [f"{name} was left" for name in left]


class Moment(NamedTuple):
    """A kill: of which process, whether it was at work, and what was wrong afterwards."""

    of: str
    at_work: bool
    faults: list[str]


def kill_writers(root: Path, moments: int, randomness: np.random.Generator) -> list[Moment]:
    """Kills writers at random moments of their work."""
    seconds: dict[str, float] = {}
    results: list[Moment] = []
    for number in range(-len(WRITERS), moments):
        name = [*WRITERS][number % len(WRITERS)]
        while len(store.versions(root, NAME)) < FEW + 3:
            publish_copy(root)
        if len(store.versions(root, NAME)) > MANY:
            prune(root, NAME, FEW + 3)
        if name == "archive":  # It moves the newest version, which must have no label meanwhile.
            store.set_label(root, NAME, store.versions(root, NAME)[0], "stable")
        pid = start_writer(name, root, int(randomness.integers(2**32)))
        started = time.monotonic()
        if number < 0:  # The first of each kind is not killed: it shows how long the work takes.
            end_of(pid)
            seconds[name] = time.monotonic() - started
            continue
        time.sleep(randomness.uniform(0, seconds[name]))
        os.kill(pid, signal.SIGKILL)  # It is a child until it is waited for, so no other process has its number.
        at_work = end_of(pid) == signal.SIGKILL
        results.append(Moment(name, at_work, faults_of(root) + faults_of_next_writer(root, randomness)))
    return results


def workers_of(server: Server) -> list[int]:
    """Returns the workers of a server, without the process that tries versions."""
    found: list[int] = []
    for pid in sorted(children(server.process.pid)):
        with suppress(psutil.Error):
            if not any("preparing" in word for word in psutil.Process(pid).cmdline()):
                found.append(pid)
    return found


def serves(server: Server, version: int) -> bool:
    """Whether the server is ready, and many new connections get this version by the model's name."""
    try:
        if httpx.get(f"{server.url}/readyz").status_code != 200:
            return False
        body = {"inputs": [[0.5]], "model": NAME, "fields": ["mean"]}
        answers = [httpx.post(f"{server.url}/predict", json=body).json() for _ in range(ASKED)]
    except (httpx.HTTPError, ValueError):
        return False
    return all(answer.get("model", {}).get("version") == version for answer in answers)


def faults_of_server(server: Server, root: Path) -> list[str]:
    """Waits until the server serves the labelled version; returns what is wrong."""
    wanted = store.read_labels(root, NAME).labels["stable"]
    if not until(lambda: len(workers_of(server)) == 2 and serves(server, wanted), SERVER_SECONDS):
        return [f"the server does not serve version {wanted}: {server.log.read_text()[-2_000:]}"]
    return faults_of(root)


def kill_servers(root: Path, folder: Path, workers: int, mains: int, randomness: np.random.Generator) -> list[Moment]:
    """Kills workers and main processes at random moments after a label was moved, while a version is published."""
    environment = {"ABSTAIN_REFRESH_SECONDS": "0.2", "ABSTAIN_COMPILED": str(folder / "compiled")}
    server = start_server(root, folder, workers=2, **environment)
    results: list[Moment] = []
    try:
        for number in range(workers + mains):
            move_label(root, randomness)
            writer = start_writer("publish", root, 0)
            time.sleep(randomness.uniform(0, 2))
            if number < workers:
                os.kill(int(randomness.choice(workers_of(server))), signal.SIGKILL)
            else:
                left = children(server.process.pid)
                server.process.kill()
                server.process.wait()
                orphans = [] if until(lambda left=left: not alive(left), SERVER_SECONDS) else ["workers were left"]
            end_of(writer)
            if number >= workers:
                server = start_server(root, folder, workers=2, **environment)
                results.append(Moment("main", True, orphans + faults_of_server(server, root)))
            else:
                results.append(Moment("worker", True, faults_of_server(server, root)))
            print(f"  {results[-1].of} {number + 1} of {workers + mains}", flush=True)
    finally:
        stop_server(server)
    return results


def run(arguments: argparse.Namespace, folder: Path) -> int:
    """Kills everything; returns the number of faults."""
    root, randomness = folder / "store", np.random.default_rng(arguments.seed)
    for _ in range(FEW):
        publish_copy(root)
    store.set_label(root, NAME, 1, "stable")
    started = time.monotonic()
    results = kill_writers(root, arguments.moments - arguments.workers - arguments.mains, randomness)
    print(f"  {len(results)} writers killed in {time.monotonic() - started:.0f} s", flush=True)
    results += kill_servers(root, folder, arguments.workers, arguments.mains, randomness)
    print(f"{'killed':12}{'moments':>8}{'at work':>9}{'faults':>8}")
    moments, at_work = Counter(each.of for each in results), Counter(each.of for each in results if each.at_work)
    for name, count in moments.items():
        faults = [fault for each in results if each.of == name for fault in each.faults]
        print(f"{name:12}{count:8}{at_work[name]:9}{len(faults):8}")
        for fault in faults:
            print(f"  {fault}", file=sys.stderr)
    total = sum(len(each.faults) for each in results)
    print(f"moments {len(results)}: faults {total}, after {time.monotonic() - started:.0f} s")
    return total


def main() -> None:
    """Runs in a temporary folder; the exit status is 1 if there was a fault."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--moments", type=int, default=100)
    parser.add_argument("--workers", type=int, default=10)
    parser.add_argument("--mains", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    with tempfile.TemporaryDirectory(prefix="abstain-kills-") as folder:
        sys.exit(1 if run(parser.parse_args(), Path(folder)) else 0)


if __name__ == "__main__":
    main()
