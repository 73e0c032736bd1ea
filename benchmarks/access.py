"""The cost of API keys, and whether the time of a comparison reveals anything about them.

    python benchmarks/access.py [--cores 0,1] [--rounds 15] [--seconds 1] [--calls 100000] [--only cost,timing]

Cost: a server without keys, with 20 keys (requests use the last one), and with a rate limit; 8 connections, one row of 784
floats per request, in turns. Ratios are computed within a round.

Timing: `Keys.find` of 20 keys, called with keys of six kinds in random order, by the method of dudect (Reparaz, Balasch,
Verbauwhede, 2017): each call is timed, the slowest 5 % are left out, because the machine causes them, and each kind is
compared with random keys by Welch's t; |t| > 4.5 shows a difference. Valid keys may differ, because the result also shows
that they are valid.
"""

from __future__ import annotations

import argparse
import secrets
import sys
import tempfile
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from servers import (
    abstain_command,
    free_port,
    print_progress,
    publish_blobs,
    random_rows,
    restrict_to_cores,
    run_server,
    save_results,
)
from throughput import json_request, run_load_generator

CONNECTIONS = 8
KEYS = 20
MIN_RATIO = 0.97
MAX_T = 4.5
VALID = ("the first key", "the last key")


def main() -> int:
    """Measures, prints, and writes `benchmarks/results/access.json`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cores", default="0,1", help="cores of all servers and the load generator; empty: any")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=1.0, help="seconds of one measurement in one round")
    parser.add_argument("--calls", type=int, default=100_000, help="calls with each kind of key")
    parser.add_argument("--only", default="cost,timing")
    options = parser.parse_args()
    restrict_to_cores(options.cores)
    results: dict[str, Any] = {}
    if "timing" in options.only:
        results["timing"] = compare_times(options.calls)
    if "cost" in options.only:
        results["cost"] = measure_cost(options.rounds, options.seconds)
    save_results("access", results)
    return 0


def measure_cost(rounds: int, seconds: float) -> dict[str, Any]:
    """Measures the requests per second of each server in each round."""
    from abstain.service.access.api_keys import add_key  # noqa: PLC0415 - after `restrict_to_cores`

    with tempfile.TemporaryDirectory() as temporary, ExitStack() as stack:
        folder = Path(temporary)
        print_progress("publishing a model of 100 random draws of 784-64-64-10, with feature scores and thresholds")
        publish_blobs(folder / "store", "blobs")
        keys = folder / "keys.json"
        for number in range(KEYS - 2):
            add_key(keys, f"app-{number}", ("predict",))
        key_by_server = {
            "no keys": None,
            "keys, with a rate": add_key(keys, "limited", ("predict",), rate=1e6),
            "keys": add_key(keys, "app", ("predict",)),
        }
        loaders: dict[str, Any] = {}
        for index, (name, key) in enumerate(key_by_server.items()):
            variables = {"ABSTAIN_KEYS": str(keys)} if key else {}
            server = stack.enter_context(
                run_server(
                    f"server-{index}", port := free_port(), abstain_command(port, folder / "store"), folder, **variables
                )
            )
            files = [folder / f"{index}-{number}" for number in range(16)]
            for path, row in zip(files, random_rows(16), strict=True):
                path.write_bytes(with_key(json_request(row), key))
            loaders[name] = partial(run_load_generator, server.port, files, connections=CONNECTIONS, seconds=seconds)
            print_progress(f"{name} is ready")
        rates_by_round: list[dict[str, float]] = []
        for number in range(rounds):
            order = [*loaders][number % len(loaders) :] + [*loaders][: number % len(loaders)]
            loads = {name: loaders[name]() for name in order}
            for name, load in loads.items():
                if load["other"] or not load["answers"]:
                    sys.exit(f"{name}: expected only responses with 200, found {load['other']}")
            rates_by_round.append({name: loads[name]["per_second"] for name in key_by_server})
            print_progress(f"round {number + 1} of {rounds}")
    print(
        f"\n{rounds} rounds of {seconds:g} s, {CONNECTIONS} connections, one row per request: median (smallest–largest)"
    )
    for name in key_by_server:
        rates = [rates[name] for rates in rates_by_round]
        ratios = [rates[name] / rates["no keys"] for rates in rates_by_round]
        ratio = f"{median(ratios):.3f} ({min(ratios):.3f}–{max(ratios):.3f})"
        missed = "" if median(ratios) >= MIN_RATIO else "   MISSED"
        print(f"{name:<20} {median(rates):>7.0f} requests/s   ÷ no keys {ratio}   required ≥ {MIN_RATIO}{missed}")
    return {"rounds": rates_by_round}


def with_key(request: bytes, key: str | None) -> bytes:
    """Adds a key to the headers of a request."""
    return request.replace(b"\r\n\r\n", f"\r\nX-API-Key: {key}\r\n\r\n".encode(), 1) if key else request


def compare_times(calls: int) -> dict[str, Any]:
    """Compares the time of `Keys.find` for keys of each kind."""
    import numpy as np  # noqa: PLC0415 - after `restrict_to_cores`

    from abstain.service.access.api_keys import add_key, read_keys  # noqa: PLC0415

    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "keys.json"
        valid_keys = [add_key(path, f"app-{number}", ("predict",)) for number in range(KEYS)]
        keys = read_keys(path)
    length = len(valid_keys[0])

    def invalid_key(start: str) -> bytes:
        return (start + secrets.token_urlsafe(length))[:length].encode()

    keys_by_kind = {
        "random": lambda: invalid_key(""),
        "random, once more": lambda: invalid_key(""),
        "the first key": valid_keys[0].encode,
        "the last key": valid_keys[-1].encode,
        "all but its last letter": lambda: invalid_key(valid_keys[0][:-1]),
        "half of it": lambda: invalid_key(valid_keys[0][: length // 2]),
    }
    kinds = [*keys_by_kind]
    kind_of_call = np.random.default_rng(0).permutation(np.repeat(np.arange(len(kinds)), calls))
    times = np.empty(len(kind_of_call))
    # All copies are made before the first call, so that no key is in the processor's cache because it is new or was used.
    secrets_in_order = [bytes(bytearray(keys_by_kind[kinds[kind]]())) for kind in kind_of_call]
    for index, secret in enumerate(secrets_in_order):
        start = time.perf_counter_ns()
        keys.find(secret)
        times[index] = time.perf_counter_ns() - start
    is_fast = times < np.quantile(times, 0.95)
    samples = {name: times[is_fast & (kind_of_call == kind)] for kind, name in enumerate(kinds)}
    base = samples["random"]
    print(f"\n{calls:,} calls of each kind, {KEYS} keys: nanoseconds of a search")
    results: dict[str, Any] = {}
    for name, sample in samples.items():
        difference = sample.mean() - base.mean()
        t = (
            difference / np.sqrt(sample.var(ddof=1) / len(sample) + base.var(ddof=1) / len(base))
            if name != "random"
            else 0.0
        )
        results[name] = {"mean": float(sample.mean()), "t": float(t)}
        verdict = "   (valid)" if name in VALID else "" if abs(t) < MAX_T else "   DIFFERS"
        print(f"{name:<24} mean {sample.mean():>8.1f}   difference {difference:>+7.2f}   t {t:>+6.2f}{verdict}")
    return results


if __name__ == "__main__":
    sys.exit(main())
