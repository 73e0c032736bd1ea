"""Rolls out versions on a real server: the share of a canary, a promotion by verdict, and what a shadow costs.

    python -m tests.faults.rollouts [--requests 10000] [--seconds 20] [--workers 2]

Checked, and printed:

    canary   the share of callers that get the candidate, within its binomial band; no caller gets both versions; every answer has
             the numbers of the version that it names
    auto     the time until a candidate that equals the baseline is promoted by the server itself, and one with other labels aborted
    shadow   the median latency with a shadow of all requests, at half of the capacity, relative to that without (rounds in turn)
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from scipy import stats

from abstain.models.bundles.bundle import read_published
from abstain.models.bundles.rollouts import Options, end_rollout, read_rollout, start_rollout
from abstain.models.bundles.store import set_label
from tests.faults.swaps import expected_means
from tests.helpers.golden_versions import publish_golden
from tests.helpers.servers import Server, start_server, stop_server

SHARE = 0.05
HEADER = "X-User-Id"
FOLLOW_SECONDS = 60.0


def start(root: Path, candidate: int, baseline: int, **changes: Any) -> str:
    """Starts a rollout of `golden`, as `abstain rollout start` does; returns its id."""
    manifests = read_published(root, "golden", baseline), read_published(root, "golden", candidate)
    return start_rollout(root, manifests, Options("canary", SHARE)._replace(**changes)).id


def wait_until_followed(server: Server, own_id: str | None) -> None:
    """Waits until the server follows a rollout; until it follows none for None."""
    deadline = time.monotonic() + FOLLOW_SECONDS
    while time.monotonic() < deadline:
        models = httpx.get(f"{server.url}/models").json()["models"]
        rollout = next(model["rollout"] for model in models if model["name"] == "golden")
        if (rollout["id"] if rollout else None) == own_id:
            return
        time.sleep(0.1)
    raise SystemExit("the server does not follow the rollout")


def run_canary(server: Server, root: Path, means: dict[int, np.ndarray], rows: np.ndarray, requests: int) -> int:
    """Sends one request for each of many callers, and some again; returns the number of faults."""
    own_id = start(root, 2, 1)
    wait_until_followed(server, own_id)
    got: dict[str, set[int]] = {}
    wrong = 0

    def ask(numbers: range) -> None:
        nonlocal wrong
        with httpx.Client(timeout=60) as client:
            for number in numbers:
                caller = f"caller {number if number % 10 else number // 10}"
                row = rows[number % len(rows)]
                body = {"inputs": [row.tolist()], "model": "golden", "fields": ["mean"]}
                answer = client.post(f"{server.url}/predict", json=body, headers={HEADER: caller}).json()
                version = answer["model"]["version"]
                got.setdefault(caller, set()).add(version)
                right = np.isclose(answer["predictions"][0]["mean"], means[version][number % len(rows)], rtol=1e-4)
                wrong += not right

    threads = [threading.Thread(target=ask, args=(range(part, requests, 8),)) for part in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    end_rollout(root, "golden", "abort", by="command", own_id=own_id)
    wait_until_followed(server, None)
    callers, both = len(got), sum(len(versions) > 1 for versions in got.values())
    candidate = sum(versions == {2} for versions in got.values())
    low, high = stats.binom.interval(0.999, callers, SHARE)
    print(
        f"canary: {requests:,} requests of {callers:,} callers, {candidate} got the candidate "
        f"({candidate / callers:.2%}; binomial band {low / callers:.2%} to {high / callers:.2%}), {both} got both, {wrong} wrong"
    )
    return both + wrong + (not low <= candidate <= high)


def run_auto(server: Server, root: Path, rows: np.ndarray) -> int:
    """Lets the server decide on a candidate that equals the baseline, and on one that rejects what the other accepts."""
    faults = 0
    for candidate, expected, shadow in ((3, "promote", True), (2, "abort", True), (3, "promote", False)):
        set_label(root, "golden", 1, "stable")
        time.sleep(1)
        options = {"mode": "shadow", "share": 1.0} if shadow else {"share": 0.5}
        own_id = start(root, candidate, 1, auto=True, margin=0.1, **options)
        wait_until_followed(server, own_id)
        started, requests = time.monotonic(), 0
        with httpx.Client(timeout=60) as client:
            while time.monotonic() < started + FOLLOW_SECONDS:
                body = {"inputs": [rows[requests % len(rows)].tolist()], "model": "golden"}
                client.post(f"{server.url}/predict", json=body).raise_for_status()
                requests += 1
                if requests % 100 == 0 and (found := read_rollout(root, "golden")) and found.outcome:
                    break
        outcome = (found := read_rollout(root, "golden")) and found.outcome and found.outcome.verdict
        seconds = time.monotonic() - started
        print(
            f"auto, {'shadow' if shadow else 'canary'}: {outcome} after {requests:,} requests and {seconds:.0f} s (expected {expected})"
        )
        faults += outcome != expected
        if not outcome:
            end_rollout(root, "golden", "abort", by="command", own_id=own_id)
        wait_until_followed(server, None)
    set_label(root, "golden", 1, "stable")
    return faults


def run_shadow(server: Server, root: Path, rows: np.ndarray, seconds: float) -> int:
    """Compares the median latency with and without a shadow, in rounds that take turns."""
    body = {"inputs": [rows[0].tolist()], "model": "golden"}

    def latencies(rate: float | None, lasting: float) -> np.ndarray:
        """Sends requests by four connections, at a rate or as fast as the server answers; milliseconds."""
        found: list[float] = []

        def ask(number: int) -> None:
            with httpx.Client(timeout=60) as client:
                begin = due = time.perf_counter() + number * (0 if rate is None else 1 / rate)
                while due < begin + lasting:
                    time.sleep(max(0.0, due - time.perf_counter()))
                    sent = time.perf_counter()
                    client.post(f"{server.url}/predict", json=body).raise_for_status()
                    found.append(time.perf_counter() - sent)
                    due = time.perf_counter() if rate is None else due + 4 / rate

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return 1_000 * np.array(found)

    capacity = len(latencies(None, 5.0)) / 5
    without, shadowed = list[float](), list[float]()
    for _ in range(4):
        without.append(float(np.median(latencies(capacity / 2, seconds / 8))))
        own_id = start(root, 3, 1, mode="shadow", share=1.0)
        wait_until_followed(server, own_id)
        shadowed.append(float(np.median(latencies(capacity / 2, seconds / 8))))
        time.sleep(3)
        state = httpx.get(f"{server.url}/models/golden/rollout").json()
        end_rollout(root, "golden", "abort", by="command", own_id=own_id)
        wait_until_followed(server, None)
    ratio = np.median(shadowed) / np.median(without)
    print(
        f"shadow: p50 {np.median(shadowed):.2f} ms with, {np.median(without):.2f} ms without ({ratio:.2f} ×) at "
        f"{capacity / 2:.0f} requests/s, half of the capacity; in the last round {state['rows']:,} rows compared, "
        f"{state['dropped']:,} requests dropped"
    )
    return int(ratio > 1.1)


def run(arguments: argparse.Namespace, folder: Path) -> int:
    """Runs the three parts; returns the number of faults."""
    root = folder / "store"
    for scale in (1.0, 1.5, 1.0):
        publish_golden(root, scale)
    set_label(root, "golden", 1, "stable")
    rows = np.random.default_rng(0).uniform(-3, 3, (64, 1)).astype(np.float32)
    means = {version: expected_means(root, version, rows) for version in (1, 2)}
    server = start_server(
        root,
        folder,
        workers=arguments.workers,
        ABSTAIN_REFRESH_SECONDS="0.2",
        ABSTAIN_CALLER_HEADER=HEADER,
        ABSTAIN_COMPILED=str(folder / "compiled"),
    )
    try:
        return (
            run_canary(server, root, means, rows, arguments.requests)
            + run_auto(server, root, rows)
            + run_shadow(server, root, rows, arguments.seconds)
        )
    finally:
        stop_server(server)


def main() -> None:
    """Runs the parts in a temporary folder; the exit status is 1 if there was a fault."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=40.0)
    parser.add_argument("--workers", type=int, default=2)
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    with tempfile.TemporaryDirectory(prefix="abstain-rollouts-") as folder:
        sys.exit(1 if run(parser.parse_args(), Path(folder)) else 0)


if __name__ == "__main__":
    main()
