"""The cost of API keys, and whether the time of a comparison reveals anything about them.

    python benchmarks/access.py [--cores 0,1] [--rounds 15] [--seconds 1] [--calls 100000] [--only cost,timing]

Cost: the server without keys, with 20 keys of which requests use the last, and with a rate limit;
over 8 connections, one row of 784 floats a request, in turns. Ratios are taken within a round.

Timing: `Keys.find` of 20 keys, called with keys of six kinds in random order. As dudect has it (Reparaz, Balasch, Verbauwhede,
2017): each call is timed, the slowest twentieth, which is the machine's, is left out, and each kind is compared with random
keys by Welch's t; beyond 4.5 a difference would be known. Of a right key the answer says that it is right, so only wrong ones must
not differ.
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

from servers import free_port, publish_blobs, random_rows, running, save, say, serve_ours, stay_on
from throughput import ask_generator, json_request

CONNECTIONS = 8
KEYS = 20
LEAST_SHARE = 0.97
MOST_T = 4.5
RIGHT = ("the first key", "the last key")


def main() -> int:
    """Measures, prints, and writes `benchmarks/results/access.json`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cores", default="0,1", help="of all servers and the load generator; empty: any")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=1.0, help="of one cell in one round")
    parser.add_argument("--calls", type=int, default=100_000, help="of each kind of key")
    parser.add_argument("--only", default="cost,timing")
    options = parser.parse_args()
    stay_on(options.cores)
    found: dict[str, Any] = {}
    if "timing" in options.only:
        found["timing"] = compare_times(options.calls)
    if "cost" in options.only:
        found["cost"] = measure_cost(options.rounds, options.seconds)
    save("access", found)
    return 0


def measure_cost(rounds: int, seconds: float) -> dict[str, Any]:
    """Requests a second of each server, round by round."""
    from abstain.service.access.api_keys import add_key  # noqa: PLC0415 - cores first

    with tempfile.TemporaryDirectory() as temporary, ExitStack() as stack:
        folder = Path(temporary)
        say("publishing a model of 100 random draws of 784-64-64-10, with feature scores and thresholds")
        publish_blobs(folder / "store", "blobs")
        keys = folder / "keys.json"
        for number in range(KEYS - 2):
            add_key(keys, f"app-{number}", ("predict",))
        held = {
            "no keys": None,
            "keys, with a rate": add_key(keys, "limited", ("predict",), rate=1e6),
            "keys": add_key(keys, "app", ("predict",)),
        }
        loaders: dict[str, Any] = {}
        for place, (way, key) in enumerate(held.items()):
            more = {"ABSTAIN_KEYS": str(keys)} if key else {}
            server = stack.enter_context(
                running(f"server-{place}", port := free_port(), serve_ours(port, folder / "store"), folder, **more)
            )
            files = [folder / f"{place}-{number}" for number in range(16)]
            for path, row in zip(files, random_rows(16), strict=True):
                path.write_bytes(with_key(json_request(row), key))
            loaders[way] = partial(ask_generator, server.port, files, connections=CONNECTIONS, seconds=seconds)
            say(f"{way} is ready")
        found: list[dict[str, float]] = []
        for number in range(rounds):
            order = [*loaders][number % len(loaders) :] + [*loaders][: number % len(loaders)]
            cells = {way: loaders[way]() for way in order}
            for way, cell in cells.items():
                if cell["other"] or not cell["answers"]:
                    sys.exit(f"{way}: expected 200 of every answer, found {cell['other']}")
            found.append({way: cells[way]["per_second"] for way in held})
            say(f"round {number + 1} of {rounds}")
    print(
        f"\n{rounds} rounds of {seconds:g} s a cell, {CONNECTIONS} connections, one row a request: median (least–greatest)"
    )
    for way in held:
        rates = [one[way] for one in found]
        shares = [one[way] / one["no keys"] for one in found]
        ratio = f"{median(shares):.3f} ({min(shares):.3f}–{max(shares):.3f})"
        missed = "" if median(shares) >= LEAST_SHARE else "   MISSED"
        print(f"{way:<20} {median(rates):>7.0f} requests/s   ÷ no keys {ratio}   required ≥ {LEAST_SHARE}{missed}")
    return {"rounds": found}


def with_key(request: bytes, key: str | None) -> bytes:
    """A request that has a key in its head."""
    return request.replace(b"\r\n\r\n", f"\r\nX-API-Key: {key}\r\n\r\n".encode(), 1) if key else request


def compare_times(calls: int) -> dict[str, Any]:
    """Times the search for keys of each kind."""
    import numpy as np  # noqa: PLC0415 - cores first

    from abstain.service.access.api_keys import add_key, read_keys  # noqa: PLC0415

    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "keys.json"
        held = [add_key(path, f"app-{number}", ("predict",)) for number in range(KEYS)]
        keys = read_keys(path)
    length = len(held[0])

    def wrong(start: str) -> bytes:
        return (start + secrets.token_urlsafe(length))[:length].encode()

    keys_by_kind = {
        "random": lambda: wrong(""),
        "random, once more": lambda: wrong(""),
        "the first key": held[0].encode,
        "the last key": held[-1].encode,
        "all but its last letter": lambda: wrong(held[0][:-1]),
        "half of it": lambda: wrong(held[0][: length // 2]),
    }
    kinds = [*keys_by_kind]
    chosen = np.random.default_rng(0).permutation(np.repeat(np.arange(len(kinds)), calls))
    times = np.empty(len(chosen))
    # Made before, and in the order of the calls: what was just made, or used before, would be in the processor's cache.
    made = [bytes(bytearray(keys_by_kind[kinds[kind]]())) for kind in chosen]
    for place, presented in enumerate(made):
        began = time.perf_counter_ns()
        keys.find(presented)
        times[place] = time.perf_counter_ns() - began
    kept = times < np.quantile(times, 0.95)
    samples = {name: times[kept & (chosen == number)] for number, name in enumerate(kinds)}
    base = samples["random"]
    print(f"\n{calls:,} calls of each kind, {KEYS} keys: nanoseconds of a search")
    found: dict[str, Any] = {}
    for name, sample in samples.items():
        apart = sample.mean() - base.mean()
        t = (
            apart / np.sqrt(sample.var(ddof=1) / len(sample) + base.var(ddof=1) / len(base))
            if name != "random"
            else 0.0
        )
        found[name] = {"mean": float(sample.mean()), "t": float(t)}
        verdict = "   (right)" if name in RIGHT else "" if abs(t) < MOST_T else "   DIFFERS"
        print(f"{name:<24} mean {sample.mean():>8.1f}   apart {apart:>+7.2f}   t {t:>+6.2f}{verdict}")
    return found


if __name__ == "__main__":
    sys.exit(main())
