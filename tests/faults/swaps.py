"""Moves labels and publishes versions under load, and checks every answer.

    python -m tests.faults.swaps [--moves 200] [--versions 50] [--connections 8] [--workers 2]

Checked, and printed as counts:

    failed      requests without status 200
    wrong       answers whose numbers are not those of the version that they name (recomputed from its draws)
    late        answers by another version than the label's, to requests that were sent after an answer by the label's
    memory      resident bytes of the workers after the last move, relative to after the tenth
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import NamedTuple

import httpx
import numpy as np
import psutil

from abstain.models.bundles.bundle import load
from abstain.models.bundles.store import set_label
from tests.helpers.golden_versions import publish_golden
from tests.helpers.processes import children
from tests.helpers.servers import Server, start_server, stop_server

ROWS = {"one row": 1, "64 rows": 64}
SETTLE_SECONDS = 120.0
"""The longest time until a move must be seen."""
HOLD_SECONDS = 0.15
"""How long a label stays after the first answer by it, at least."""


class Answer(NamedTuple):
    """One answer: when its request was sent and when it came, its status and version, and whether its numbers are right."""

    sent: float
    received: float
    status: int
    version: int
    right: bool


class Load:
    """Connections that send requests of one and of 64 rows to a model, until they are stopped."""

    def __init__(
        self, url: str, expected: dict[int, np.ndarray], rows: np.ndarray, connections: int, model: str = "golden"
    ) -> None:
        self.answers: list[Answer] = []
        self._model = model
        self._url, self._expected, self._rows = url, expected, rows
        self._done = threading.Event()
        sizes = itertools.cycle(ROWS.values())
        self._threads = [threading.Thread(target=self._ask, args=(next(sizes),)) for _ in range(connections)]
        for thread in self._threads:
            thread.start()

    def _ask(self, size: int) -> None:
        body = {"inputs": self._rows[:size].tolist(), "model": self._model, "fields": ["mean"]}
        with httpx.Client(timeout=60) as client:
            while not self._done.is_set():
                sent = time.monotonic()
                try:
                    response = client.post(f"{self._url}/predict", json=body)
                except httpx.HTTPError as error:
                    print(f"  {error!r}", file=sys.stderr)
                    self.answers.append(Answer(sent, time.monotonic(), 0, 0, right=False))
                    continue
                received = time.monotonic()
                self.answers.append(self._check(sent, received, response, size))
                time.sleep(0.002)

    def _check(self, sent: float, received: float, response: httpx.Response, size: int) -> Answer:
        if response.status_code != 200:
            print(f"  {response.status_code} {response.text[:300]}", file=sys.stderr)
            return Answer(sent, received, response.status_code, 0, right=False)
        content = response.json()
        version = content["model"]["version"]
        means = np.array([row["mean"] for row in content["predictions"]])
        right = bool(np.allclose(means, self._expected[version][:size], rtol=1e-4, atol=1e-5))
        return Answer(sent, received, 200, version, right)

    def stop(self) -> None:
        """Ends all connections."""
        self._done.set()
        for thread in self._threads:
            thread.join()


class Move(NamedTuple):
    """A label's move: when it was made, and when the first answer by its version came."""

    version: int
    made: float
    seen: float


def resident_bytes(server: Server) -> int:
    """Returns the resident bytes of the two largest processes below the server: its workers."""
    sizes = sorted(psutil.Process(pid).memory_info().rss for pid in children(server.process.pid))
    return sum(sizes[-2:])


def expected_means(root: Path, version: int, rows: np.ndarray) -> np.ndarray:
    """Computes a version's means from its draws, as `abstain predict` does."""
    bundle = load(root / "golden" / str(version))
    return np.asarray(bundle.predictor((1, 64))(rows).summary.mean)


def run(arguments: argparse.Namespace, folder: Path) -> int:
    """Runs the moves; returns the number of faults."""
    root = folder / "store"
    rows = np.random.default_rng(0).uniform(-3, 3, (64, 1)).astype(np.float32)
    expected: dict[int, np.ndarray] = {}

    def publish(scale: float) -> int:
        # Computed before it is served: the load needs the numbers at its first answer.
        version = max(expected, default=0) + 1
        beside = folder / "beside"
        publish_golden(beside, scale)
        expected[version] = expected_means(beside, version, rows)
        return publish_golden(root, scale)

    set_label(root, "golden", publish(1.0), "stable")
    server = start_server(
        root,
        folder,
        workers=arguments.workers,
        ABSTAIN_REFRESH_SECONDS="0.2",
        ABSTAIN_COMPILED=str(folder / "compiled"),
    )
    load_ = Load(server.url, expected, rows, arguments.connections)
    moves, memory = [Move(1, time.monotonic(), time.monotonic())], list[int]()
    every = max(1, arguments.moves // arguments.versions)
    try:
        time.sleep(2)
        for number in range(arguments.moves):
            version = publish(1 + 0.02 * number) if number % every == 0 else max(1, moves[-1].version - 1)
            made = time.monotonic()
            set_label(root, "golden", version, "stable")
            moves.append(Move(version, made, _first_answer(load_, version, made)))
            time.sleep(HOLD_SECONDS)
            memory.append(resident_bytes(server))
            if number % 10 == 9:
                print(f"  {number + 1} moves, {len(load_.answers):,} answers, {memory[-1] / 2**20:.0f} MiB", flush=True)
    finally:
        load_.stop()
        stop_server(server)
    return _report(load_.answers, moves, memory)


def _first_answer(load_: Load, version: int, made: float) -> float:
    """Waits for the first answer by a version to a request sent after its move; returns when it came."""
    position = len(load_.answers)
    while time.monotonic() < made + SETTLE_SECONDS:
        answers = load_.answers[position:]
        position += len(answers)
        for answer in answers:
            if answer.sent > made and answer.version == version:
                return answer.received
        time.sleep(0.01)
    raise SystemExit(f"no answer by version {version} within {SETTLE_SECONDS:g} s")


def _report(answers: list[Answer], moves: list[Move], memory: list[int]) -> int:
    failed = sum(answer.status != 200 for answer in answers)
    wrong = sum(answer.status == 200 and not answer.right for answer in answers)
    late = 0
    for move, following in itertools.pairwise(moves):
        during = [answer for answer in answers if move.seen < answer.sent and answer.received < following.made]
        late += sum(answer.version != move.version for answer in during if answer.status == 200)
    growth = memory[-1] / memory[min(9, len(memory) - 1)] - 1
    seconds = np.array([move.seen - move.made for move in moves[1:]])
    print(f"answers {len(answers):,}: failed {failed}, wrong {wrong}, late {late}")
    print(f"moves {len(moves) - 1}: seen after {np.median(seconds):.2f} s (median), {seconds.max():.2f} s (longest)")
    during, between = _milliseconds(answers, moves)
    print(
        f"latency p99 {np.percentile(during, 99):.1f} ms during changes, {np.percentile(between, 99):.1f} ms between them; "
        f"median {np.median(during):.1f} and {np.median(between):.1f} ms"
    )
    print(f"memory {growth:+.1%} since the tenth move ({memory[-1] / 2**20:.0f} MiB)")
    return failed + wrong + late + (growth > 0.05)


def _milliseconds(answers: list[Answer], moves: list[Move]) -> tuple[np.ndarray, np.ndarray]:
    """Returns the latencies of answers during changes, and of those between them."""
    sent = np.array([answer.sent for answer in answers])
    taken = 1_000 * np.array([answer.received - answer.sent for answer in answers])
    during = np.zeros(len(answers), bool)
    for move in moves[1:]:
        during |= (sent > move.made) & (sent < move.seen)
    return taken[during], taken[~during]


def main() -> None:
    """Runs the moves in a temporary folder; the exit status is 1 if there was a fault."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--moves", type=int, default=200)
    parser.add_argument("--versions", type=int, default=50)
    parser.add_argument("--connections", type=int, default=8)
    parser.add_argument("--workers", type=int, default=2)
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    with tempfile.TemporaryDirectory(prefix="abstain-swaps-") as folder:
        sys.exit(1 if run(parser.parse_args(), Path(folder)) else 0)


if __name__ == "__main__":
    main()
