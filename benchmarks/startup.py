"""`make bench`, start: seconds until ready, compared with an empty BentoML service; programs compiled afterwards.

    python benchmarks/startup.py [--cores 0,1] [--rounds 3]

It measures the time from the command to the first 200 of `/readyz`, in turns: an empty BentoML service, and abstain with two
models of 100 draws (784-64-64-10, every default score) and five buckets each, first without a compilation cache and then
with that of the previous start (`ABSTAIN_COMPILED`). Differences are computed within a round.

Then it reads `abstain_compiles_total` before and after many different requests: 1 to 300 rows, percentiles, coverages,
fields, and invalid requests.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import orjson
from servers import (
    PIXELS,
    abstain_command,
    bentoml_command,
    free_port,
    print_progress,
    publish_blobs,
    random_rows,
    restrict_to_cores,
    run_server,
    save_results,
)

MODELS = ("first", "second")
BOUNDS = {"cold": 20.0, "warm": 5.0}
REQUESTS = 400


def main() -> int:
    """Measures, prints, and writes `benchmarks/results/startup.json`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cores", default="0,1", help="cores of all servers; empty: any")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--requests", type=int, default=REQUESTS, help="the number of different requests")
    options = parser.parse_args()
    restrict_to_cores(options.cores)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        print_progress("publishing two models of 100 random draws of 784-64-64-10, with feature scores and thresholds")
        for seed, name in enumerate(MODELS):
            publish_blobs(folder / "store", name, seed=seed)
        seconds = measure_starts(folder, options.rounds)
        port = free_port()
        with run_server("ours", port, abstain_command(port, folder / "store"), folder) as server:
            before = read_compiles(server.url)
            statuses = send_requests(server.url, options.requests)
            after = read_compiles(server.url)
    results = {
        "cores": len(os.sched_getaffinity(0)),
        "seconds": seconds,
        "compiles": {"before": before, "after": after, "requests": sum(statuses.values()), "statuses": dict(statuses)},
    }
    print_results(results)
    save_results("startup", results)
    return 0


def measure_starts(folder: Path, rounds: int) -> dict[str, list[float]]:
    """Measures the seconds until ready, after one round that is not counted: it writes bytecode and fills the disk cache."""
    seconds: dict[str, list[float]] = {"empty": [], "cold": [], "warm": []}
    for number in range(rounds + 1):
        cache = folder / f"compiled-{number}"
        for name, values in seconds.items():
            port = free_port()
            command = bentoml_command(port, "Empty") if name == "empty" else abstain_command(port, folder / "store")
            with run_server(name, port, command, folder, ABSTAIN_COMPILED=str(cache)) as server:
                if number:
                    values.append(server.ready_seconds)
            print_progress(f"round {number} of {rounds}, {name}: {server.ready_seconds:.1f} s")
    return seconds


def read_compiles(url: str) -> float:
    """Reads the sum of `abstain_compiles_total`."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=30) as response:  # noqa: S310
        lines = response.read().decode().splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith("abstain_compiles_total"))


def send_requests(url: str, count: int) -> Counter[str]:
    """Sends different requests; returns the number of responses by status."""
    statuses: Counter[str] = Counter()
    for path, headers, body in make_requests(count):
        request = urllib.request.Request(f"{url}{path}", body, headers, method="POST")  # noqa: S310
        try:
            with urllib.request.urlopen(request, timeout=60) as response:  # noqa: S310
                response.read()
                statuses[str(response.status)] += 1
        except urllib.error.HTTPError as error:
            error.read()
            statuses[str(error.code)] += 1
        except (urllib.error.URLError, ConnectionError):
            # The server refused the request while the client was still writing its body.
            statuses["closed"] += 1
    return statuses


def make_requests(count: int) -> Iterator[tuple[str, dict[str, str], bytes]]:
    """Yields paths, headers and bodies: 1 to 300 rows, all parameters of a request, and invalid requests."""
    rng = random.Random(0)  # noqa: S311 - not a secret
    rows = random_rows(300)
    names = ["label", "probabilities", "std", "entropy", "reject", "reasons", "scores", "prediction_set"]
    json = {"Content-Type": "application/json"}
    for number in range(count):
        size = rng.choice([1, 2, 7, 8, 9, 31, 32, 33, 127, 128, 129, 255, 256, 257, 300, rng.randint(1, 300)])
        body: dict[str, Any] = {"inputs": rows[:size], "model": rng.choice(MODELS)}
        if rng.random() < 0.5:
            body["percentile"] = rng.choice([50.0, 90, 95.5, 99, 99.9, rng.uniform(40, 99)])
        if rng.random() < 0.5:
            body["coverage"] = rng.uniform(0.5, 0.99)
        if rng.random() < 0.5:
            body["fields"] = rng.sample(names, rng.randint(1, len(names)))
        if number % 4 == 3:
            body |= rng.choice(_INVALID)
        yield "/predict", json, orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY)
        if number % 4 == 1:
            yield _binary_request(rows[:size], rng)
        if number % 16 == 5:
            body = rng.choice([b"", b"{", b"[]", b'{"inputs": [[NaN]]}', b"\xff\xfe", b'{"inputs": [[1e999]]}'])
            yield "/predict", json, body


_INVALID: tuple[dict[str, Any], ...] = (
    {"inputs": []},
    {"inputs": [[]]},
    {"inputs": [[1.0] * (PIXELS - 1)]},
    {"inputs": [[1.0] * PIXELS, [1.0]]},
    {"inputs": [["1"] * PIXELS]},
    {"inputs": [[None] * PIXELS]},
    {"inputs": [[True] * PIXELS]},
    {"inputs": [[3e38] * PIXELS]},
    {"inputs": [[0] * PIXELS] * 3},
    {"percentile": 100},
    {"percentile": 99.99999},
    {"percentile": "99"},
    {"coverage": 0},
    {"fields": ["nothing"]},
    {"model": "none"},
    {"model": "first:9"},
    {"unknown": 1},
)


def _binary_request(rows: Any, rng: random.Random) -> tuple[str, dict[str, str], bytes]:
    """Makes a request of the v2 protocol with a binary tensor."""
    datatype = rng.choice(["FP32", "UINT8"])
    tensor = (rows if datatype == "FP32" else (255 * rows).astype("uint8")).tobytes()
    description = {
        "name": "inputs",
        "shape": list(rows.shape),
        "datatype": datatype,
        "parameters": {"binary_data_size": len(tensor)},
    }
    head = orjson.dumps({"inputs": [description], "parameters": {"binary_data_output": rng.random() < 0.5}})
    return (
        f"/v2/models/{rng.choice(MODELS)}/infer",
        {"Inference-Header-Content-Length": str(len(head))},
        head + tensor,
    )


def print_results(results: dict[str, Any]) -> None:
    """Prints the differences, the compiled programs, and the seconds."""
    seconds = results["seconds"]
    print(f"{results['cores']} cores, {len(seconds['empty'])} rounds: median (smallest–largest)\n")
    for name, bound in BOUNDS.items():
        differences = [ours - empty for ours, empty in zip(seconds[name], seconds["empty"], strict=True)]
        missed = "" if median(differences) <= bound else "   MISSED"
        print(f"ours − empty BentoML, {name}: {_spread(differences)} s   ≤ {bound:g}{missed}")
    compiled = results["compiles"]
    more = compiled["after"] - compiled["before"]
    responses = ", ".join(f"{count} × {status}" for status, count in sorted(compiled["statuses"].items()))
    print(f"programs compiled after ready: {more:g}   = 0{'' if more == 0 else '   MISSED'}")
    print(
        f"    {compiled['before']:g} before, {compiled['after']:g} after {compiled['requests']} requests: {responses}\n"
    )
    for name, values in seconds.items():
        print(f"{name:<6} {_spread(values)} s until ready")


def _spread(values: list[float]) -> str:
    return f"{median(values):.1f} ({min(values):.1f}–{max(values):.1f})"


if __name__ == "__main__":
    sys.exit(main())
