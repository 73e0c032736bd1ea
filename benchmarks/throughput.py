"""`make bench`, HTTP: abstain compared with an empty BentoML service, BentoML with the same ensemble, and uvicorn alone.

    python benchmarks/throughput.py [--cores 0,1] [--rounds 3] [--seconds 3] [--only ours,empty]

A request is one row of 784 floats. abstain ("ours") returns every default score, p-value and prediction set of 100 draws of
784-64-64-10; the others return less (`benchmarks/http_services.py`). Each has one worker, and shares a few cores with the
load generator (`benchmarks/load.py`). All servers run, and are loaded in turns, one at a time; a round is every service at
every number of connections. Ratios are computed within a round; it prints their median, and the smallest and the largest in
brackets. At the end, abstain gets a steady rate of 70 % of its largest rate over 8 connections: evenly spaced requests,
and for information a Poisson process.
"""

from __future__ import annotations

import argparse
import operator
import os
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import orjson
from servers import (
    PIXELS,
    PYTHON,
    Server,
    abstain_command,
    bentoml_command,
    free_port,
    print_progress,
    publish_blobs,
    random_rows,
    restrict_to_cores,
    run_server,
    save_results,
    uvicorn_command,
)

CONNECTIONS = (1, 8, 32)
SHARE = 0.7
"""The steady rate, as a share of the largest rate."""
STEADY_CONNECTIONS = 8
"""The connections of both rates."""
CASES = {
    "ours, binary": "ours",
    "ours, JSON": "ours",
    "empty BentoML": "empty",
    "BentoML, vmap": "plain",
    "BentoML, batchable": "batchable",
    "bare uvicorn": "bare",
}
"""The measured cases, and the server of each."""
COMPARISONS: dict[str, Callable[[float, float], bool]] = {"≥": operator.ge, "≤": operator.le, "<": operator.lt}
GENERATOR = Path(__file__).with_name("load.py")

Rounds = list[dict[str, dict[str, Any]]]
"""The results of the load generator for each round, by case and by number of connections."""


def main() -> int:
    """Starts the servers, measures them in turns, prints, and writes `benchmarks/results/http.json`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cores", default="0,1", help="cores of all servers and the load generator; empty: any")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0, help="seconds of one measurement in one round")
    parser.add_argument(
        "--only", help=f"servers, separated by commas: some of {', '.join(dict.fromkeys(CASES.values()))}"
    )
    options = parser.parse_args()
    restrict_to_cores(options.cores)
    names = options.only.split(",") if options.only else list(CASES.values())
    with tempfile.TemporaryDirectory() as temporary, ExitStack() as stack:
        folder = Path(temporary)
        commands = commands_of(folder / "store", names)
        servers: dict[str, Server] = {}
        for name, command in commands.items():
            port = free_port()
            servers[name] = stack.enter_context(run_server(name, port, command(port), folder))
            print_progress(f"{name} is ready")
        requests = write_requests(folder, servers)
        loaders = {
            case: partial(run_load_generator, servers[CASES[case]].port, files) for case, files in requests.items()
        }
        rounds = [measure_round(loaders, options.seconds, number) for number in range(options.rounds)]
        paced = measure_steady(loaders["ours, JSON"], rounds, options) if "ours, JSON" in loaders else {}
        lengths = {case: files[0].stat().st_size for case, files in requests.items()}
    results = {
        "cores": len(os.sched_getaffinity(0)),
        "seconds": options.seconds,
        "request_bytes": lengths,
        "promises": required_ratios(rounds, paced),
        "rounds": rounds,
        "paced": paced,
    }
    print_results(results)
    save_results("http", results)
    return 0


def commands_of(store: Path, names: list[str]) -> dict[str, Callable[[int], list[str]]]:
    """Returns the commands of some servers by name; publishes the model that abstain serves."""
    commands: dict[str, Callable[[int], list[str]]] = {
        "ours": lambda port: abstain_command(port, store),
        "empty": lambda port: bentoml_command(port, "Empty"),
        "plain": lambda port: bentoml_command(port, "Plain"),
        "batchable": lambda port: bentoml_command(port, "Batchable"),
        "bare": uvicorn_command,
    }
    unknown = set(names) - set(commands)
    if unknown:
        sys.exit(f"--only: expected some of {', '.join(commands)}, found {', '.join(sorted(unknown))}")
    if "ours" in names:
        print_progress("publishing a model of 100 random draws of 784-64-64-10, with feature scores and thresholds")
        publish_blobs(store, "blobs")
    return {name: command for name, command in commands.items() if name in names}


def write_requests(folder: Path, servers: dict[str, Server], count: int = 16) -> dict[str, list[Path]]:
    """Writes files of whole HTTP requests for each case with a running server; all have the same rows."""
    rows = random_rows(count)
    files: dict[str, list[Path]] = {}
    for case, name in CASES.items():
        if name not in servers:
            continue
        if case == "ours, binary":
            shape = input_shape(servers[name])
            if shape is None:
                print_progress("ours, binary: skipped, the server does not have /v2/models/blobs")
                continue
            requests = [binary_request(row, shape) for row in rows]
        else:
            requests = [json_request(row) for row in rows]
        files[case] = [folder / f"{case.replace(' ', '-')}-{number}" for number in range(count)]
        for path, request in zip(files[case], requests, strict=True):
            path.write_bytes(request)
    return files


def input_shape(server: Server) -> list[int] | None:
    """Returns the shape of a row from the v2 protocol's metadata; None if the server does not have the protocol."""
    try:
        with urllib.request.urlopen(f"{server.url}/v2/models/blobs", timeout=10) as response:  # noqa: S310
            return orjson.loads(response.read())["inputs"][0]["shape"][1:]
    except urllib.error.HTTPError as error:
        if error.code == 404:
            return None
        raise


def json_request(row: Any) -> bytes:
    """Makes a request to `POST /predict`."""
    body = orjson.dumps({"inputs": row[None]}, option=orjson.OPT_SERIALIZE_NUMPY)
    return _request("/predict", {"Content-Type": "application/json"}, body)


def binary_request(row: Any, shape: list[int]) -> bytes:
    """Makes a request to `POST /v2/models/blobs/infer` with a binary tensor and all outputs as binary data."""
    tensor = row.tobytes()
    request = {
        "inputs": [
            {
                "name": "inputs",
                "shape": [1, *shape],
                "datatype": "FP32",
                "parameters": {"binary_data_size": len(tensor)},
            }
        ],
        "parameters": {"binary_data_output": True},
    }
    head = orjson.dumps(request)
    headers = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(len(head))}
    return _request("/v2/models/blobs/infer", headers, head + tensor)


def _request(path: str, headers: dict[str, str], body: bytes) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: 127.0.0.1", f"Content-Length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


def run_load_generator(port: int, files: list[Path], **task: Any) -> dict[str, Any]:
    """Runs the load generator in a separate process and returns its result."""
    content = orjson.dumps({"port": port, "requests": [str(path) for path in files], **task})
    process = subprocess.run([PYTHON, GENERATOR], input=content, stdout=subprocess.PIPE, timeout=300, check=True)
    return orjson.loads(process.stdout)


def measure_round(loaders: dict[str, Callable[..., dict[str, Any]]], seconds: float, number: int) -> Any:
    """Measures every case at every number of connections; each round starts with another case."""
    order = list(loaders)
    order = order[number % len(order) :] + order[: number % len(order)]
    results: dict[str, dict[str, Any]] = {case: {} for case in loaders}
    for connections in CONNECTIONS:
        for case in order:
            load = loaders[case](connections=connections, seconds=seconds)
            results[case][str(connections)] = load
            if case.startswith("ours") and (load["other"] or not load["answers"]):
                sys.exit(f"{case}, {connections} connections: expected only responses with 200, found {load['other']}")
        print_progress(f"round {number + 1}, {connections} connections")
    return results


def measure_steady(
    loader: Callable[..., dict[str, Any]], rounds: Rounds, options: argparse.Namespace
) -> dict[str, Any]:
    """Measures latencies at a steady rate, a share of the largest rate, in as many rounds."""
    largest = median(loads["ours, JSON"][str(STEADY_CONNECTIONS)]["per_second"] for loads in rounds)
    results: dict[str, Any] = {"rate": SHARE * largest}
    for arrivals in ("even", "poisson"):
        results[arrivals] = [
            loader(connections=STEADY_CONNECTIONS, seconds=options.seconds, rate=SHARE * largest, arrivals=arrivals)
            for _ in range(options.rounds)
        ]
    return results


def required_ratios(rounds: Rounds, paced: dict[str, Any]) -> list[dict[str, Any]]:
    """Computes the measured ratios within each round, and compares them with the required ones."""

    def rate(case: str, connections: int) -> Callable[[dict[str, Any]], float]:
        return lambda loads: loads[case][str(connections)]["per_second"]

    def median_latency(case: str) -> Callable[[dict[str, Any]], float]:
        return lambda loads: loads[case]["1"]["milliseconds"]["50"]

    lines: list[tuple[str, str, float, Callable[[Any], float], Callable[[Any], float]]] = []
    for connections in (8, 32):
        ours = rate("ours, JSON", connections)
        load = f"{connections} connections"
        lines += [
            (f"JSON ÷ empty BentoML, {load}", "≥", 3.0, ours, rate("empty BentoML", connections)),
            (f"JSON ÷ BentoML batchable, {load}", "≥", 5.0, ours, rate("BentoML, batchable", connections)),
            (f"binary ÷ JSON, {load}", "≥", 1.3, rate("ours, binary", connections), ours),
        ]
    lines += [
        ("JSON ÷ bare uvicorn, 32 connections", "≥", 0.3, rate("ours, JSON", 32), rate("bare uvicorn", 32)),
        (
            "p50 ÷ empty BentoML's, 1 connection",
            "<",
            1.0,
            median_latency("ours, JSON"),
            median_latency("empty BentoML"),
        ),
    ]
    results: list[dict[str, Any]] = []
    for text, sign, bound, numerator, denominator in lines:
        try:
            ratios = [numerator(loads) / denominator(loads) for loads in rounds]
        except (KeyError, ZeroDivisionError):
            continue
        results.append(_compare(text, sign, bound, ratios))
    for arrivals, note in (("even", ""), ("poisson", ", Poisson arrivals")):
        loads = paced.get(arrivals, [])
        ratios = [load["milliseconds"]["99"] / load["milliseconds"]["50"] for load in loads if load["milliseconds"]]
        if ratios:
            bound = 4.0 if arrivals == "even" else None
            results.append(_compare(f"p99 ÷ p50 at {SHARE:.0%} load{note}", "≤", bound, ratios))
    return results


def _compare(text: str, sign: str, bound: float | None, ratios: list[float]) -> dict[str, Any]:
    middle = median(ratios)
    kept = None if bound is None else COMPARISONS[sign](middle, bound)
    return {"what": text, "sign": sign, "bound": bound, "ratios": ratios, "median": middle, "kept": kept}


def print_results(results: dict[str, Any]) -> None:
    """Prints the ratios, then the rates and latencies."""
    print(
        f"one row of {PIXELS} floats per request; {results['cores']} cores for a server's one worker and the generator"
    )
    print(f"{len(results['rounds'])} rounds of {results['seconds']:g} s: median (smallest–largest)\n")
    print(f"{'ratio within a round':<42} {'median':>7} {'spread':>15}   required")
    for line in results["promises"]:
        low, high = min(line["ratios"]), max(line["ratios"])
        bound = (
            "" if line["bound"] is None else f"{line['sign']} {line['bound']:g}{'' if line['kept'] else '   MISSED'}"
        )
        print(f"{line['what']:<42} {line['median']:>7.2f} {f'({low:.2f}–{high:.2f})':>15}   {bound}")
    print(f"\n{'':<20} {'conn.':>5} {'requests/s':>22} {'p50 ms':>8} {'p99 ms':>8} {'generator':>17}   not 200")
    for case in results["rounds"][0]:
        for connections in CONNECTIONS:
            print(_line(case, connections, [loads[case][str(connections)] for loads in results["rounds"]]))
    for arrivals in ("even", "poisson"):
        if results["paced"]:
            print(_line(f"ours, JSON, {arrivals}", STEADY_CONNECTIONS, results["paced"][arrivals]))


def _line(name: str, connections: int, loads: list[dict[str, Any]]) -> str:
    rates = [load["per_second"] for load in loads]
    times = [load["milliseconds"] for load in loads if load["milliseconds"]]
    shown = f"{median(rates):.0f} ({min(rates):.0f}–{max(rates):.0f})"
    p50, p99 = (f"{median(time[p] for time in times):.2f}" if times else "–" for p in ("50", "99"))
    cpu = (
        f"{median(load['cpu_share'] for load in loads):.0%} {median(load['cpu_microseconds'] for load in loads):.0f} µs"
    )
    others = ", ".join(sorted({f"{status}: {count}" for load in loads for status, count in load["other"].items()}))
    return f"{name:<20} {connections:>5} {shown:>22} {p50:>8} {p99:>8} {cpu:>17}   {others}"


if __name__ == "__main__":
    sys.exit(main())
