"""`make bench`, over HTTP: ours compared with an empty BentoML endpoint, BentoML with the same ensemble, and bare uvicorn.

    python benchmarks/throughput.py [--cores 0,1] [--rounds 3] [--seconds 3] [--only ours,empty]

A request is one row of 784 floats. Ours answers in full, with every default score, p-value and prediction set of 100 draws
of 784-64-64-10; the others answer with less (`benchmarks/http_services.py`). All are one worker, and share a few cores
with the load generator (`benchmarks/load.py`). Servers are started together and loaded in turns, one at a time; a round
is every service at every number of connections. Ratios are taken within a round; printed are their median and, in
brackets, the least and the greatest. Last, ours at 70 % of the most that it answered over 8 connections, at a steady
rate: evenly spaced, and for information as a Poisson process.
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
"""Of the most that is answered, the load that latencies are judged at …"""
PACED = 8
"""… over as many connections."""
WAYS = {
    "ours, binary": "ours",
    "ours, JSON": "ours",
    "empty BentoML": "empty",
    "BentoML, vmap": "plain",
    "BentoML, batchable": "batchable",
    "bare uvicorn": "bare",
}
"""What is measured, and the server that answers it."""
HOLDS: dict[str, Callable[[float, float], bool]] = {"≥": operator.ge, "≤": operator.le, "<": operator.lt}
GENERATOR = Path(__file__).with_name("load.py")

Rounds = list[dict[str, dict[str, Any]]]
"""For each round and way, what the load generator found, by connections."""


def main() -> int:
    """Starts the servers, loads them in turns, prints, and writes `benchmarks/results/http.json`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cores", default="0,1", help="of all servers and the load generator; empty: any")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0, help="of one cell in one round")
    parser.add_argument("--only", help=f"servers, with commas: some of {', '.join(dict.fromkeys(WAYS.values()))}")
    options = parser.parse_args()
    restrict_to_cores(options.cores)
    wanted = options.only.split(",") if options.only else list(WAYS.values())
    with tempfile.TemporaryDirectory() as temporary, ExitStack() as stack:
        folder = Path(temporary)
        commands = commands_of(folder / "store", wanted)
        servers: dict[str, Server] = {}
        for name, command in commands.items():
            port = free_port()
            servers[name] = stack.enter_context(run_server(name, port, command(port), folder))
            print_progress(f"{name} is ready")
        requests = write_requests(folder, servers)
        loaders = {way: partial(run_load_generator, servers[WAYS[way]].port, files) for way, files in requests.items()}
        rounds = [one_round(loaders, options.seconds, number) for number in range(options.rounds)]
        paced = at_share(loaders["ours, JSON"], rounds, options) if "ours, JSON" in loaders else {}
        lengths = {way: files[0].stat().st_size for way, files in requests.items()}
    found = {
        "cores": len(os.sched_getaffinity(0)),
        "seconds": options.seconds,
        "request_bytes": lengths,
        "promises": promises(rounds, paced),
        "rounds": rounds,
        "paced": paced,
    }
    report(found)
    save_results("http", found)
    return 0


def commands_of(store: Path, wanted: list[str]) -> dict[str, Callable[[int], list[str]]]:
    """How each server that is wanted is started; ours is given a model to serve."""
    commands: dict[str, Callable[[int], list[str]]] = {
        "ours": lambda port: abstain_command(port, store),
        "empty": lambda port: bentoml_command(port, "Empty"),
        "plain": lambda port: bentoml_command(port, "Plain"),
        "batchable": lambda port: bentoml_command(port, "Batchable"),
        "bare": uvicorn_command,
    }
    unknown = set(wanted) - set(commands)
    if unknown:
        sys.exit(f"--only: expected some of {', '.join(commands)}, found {', '.join(sorted(unknown))}")
    if "ours" in wanted:
        print_progress("publishing a model of 100 random draws of 784-64-64-10, with feature scores and thresholds")
        publish_blobs(store, "blobs")
    return {name: command for name, command in commands.items() if name in wanted}


def write_requests(folder: Path, servers: dict[str, Server], count: int = 16) -> dict[str, list[Path]]:
    """Writes files of whole HTTP requests for each way that has a server; all have the same rows."""
    rows = random_rows(count)
    files: dict[str, list[Path]] = {}
    for way, name in WAYS.items():
        if name not in servers:
            continue
        if way == "ours, binary":
            shape = input_shape(servers[name])
            if shape is None:
                print_progress("ours, binary: skipped, the server does not answer /v2/models/blobs")
                continue
            requests = [binary_request(row, shape) for row in rows]
        else:
            requests = [json_request(row) for row in rows]
        files[way] = [folder / f"{way.replace(' ', '-')}-{place}" for place in range(count)]
        for path, request in zip(files[way], requests, strict=True):
            path.write_bytes(request)
    return files


def input_shape(server: Server) -> list[int] | None:
    """The shape of a row from the v2 protocol's metadata; None if the server does not speak it."""
    try:
        with urllib.request.urlopen(f"{server.url}/v2/models/blobs", timeout=10) as response:  # noqa: S310
            return orjson.loads(response.read())["inputs"][0]["shape"][1:]
    except urllib.error.HTTPError as error:
        if error.code == 404:
            return None
        raise


def json_request(row: Any) -> bytes:
    """`POST /predict`."""
    body = orjson.dumps({"inputs": row[None]}, option=orjson.OPT_SERIALIZE_NUMPY)
    return _request("/predict", {"Content-Type": "application/json"}, body)


def binary_request(row: Any, shape: list[int]) -> bytes:
    """`POST /v2/models/blobs/infer` with a binary tensor, all outputs requested in binary."""
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
    given = orjson.dumps({"port": port, "requests": [str(path) for path in files], **task})
    done = subprocess.run([PYTHON, GENERATOR], input=given, stdout=subprocess.PIPE, timeout=300, check=True)
    return orjson.loads(done.stdout)


def one_round(loaders: dict[str, Callable[..., dict[str, Any]]], seconds: float, number: int) -> Any:
    """Every way at every number of connections; the ways begin elsewhere each round."""
    order = list(loaders)
    order = order[number % len(order) :] + order[: number % len(order)]
    found: dict[str, dict[str, Any]] = {way: {} for way in loaders}
    for connections in CONNECTIONS:
        for way in order:
            cell = loaders[way](connections=connections, seconds=seconds)
            found[way][str(connections)] = cell
            if way.startswith("ours") and (cell["other"] or not cell["answers"]):
                sys.exit(f"{way}, {connections} connections: expected 200 of every answer, found {cell['other']}")
        print_progress(f"round {number + 1}, {connections} connections")
    return found


def at_share(loader: Callable[..., dict[str, Any]], rounds: Rounds, options: argparse.Namespace) -> dict[str, Any]:
    """Latencies at a share of the most that was answered; as many rounds."""
    most = median(one["ours, JSON"][str(PACED)]["per_second"] for one in rounds)
    found: dict[str, Any] = {"rate": SHARE * most}
    for arrivals in ("even", "poisson"):
        found[arrivals] = [
            loader(connections=PACED, seconds=options.seconds, rate=SHARE * most, arrivals=arrivals)
            for _ in range(options.rounds)
        ]
    return found


def promises(rounds: Rounds, paced: dict[str, Any]) -> list[dict[str, Any]]:
    """The required ratios within each round, as far as they were measured."""

    def answered(way: str, connections: int) -> Callable[[dict[str, Any]], float]:
        return lambda one: one[way][str(connections)]["per_second"]

    def half(way: str) -> Callable[[dict[str, Any]], float]:
        return lambda one: one[way]["1"]["milliseconds"]["50"]

    lines: list[tuple[str, str, float, Callable[[Any], float], Callable[[Any], float]]] = []
    for connections in (8, 32):
        ours = answered("ours, JSON", connections)
        at = f"{connections} connections"
        lines += [
            (f"JSON ÷ empty BentoML, {at}", "≥", 3.0, ours, answered("empty BentoML", connections)),
            (f"JSON ÷ BentoML batchable, {at}", "≥", 5.0, ours, answered("BentoML, batchable", connections)),
            (f"binary ÷ JSON, {at}", "≥", 1.3, answered("ours, binary", connections), ours),
        ]
    lines += [
        ("JSON ÷ bare uvicorn, 32 connections", "≥", 0.3, answered("ours, JSON", 32), answered("bare uvicorn", 32)),
        ("p50 ÷ empty BentoML's, 1 connection", "<", 1.0, half("ours, JSON"), half("empty BentoML")),
    ]
    found: list[dict[str, Any]] = []
    for text, sign, bound, above, below in lines:
        try:
            ratios = [above(one) / below(one) for one in rounds]
        except (KeyError, ZeroDivisionError):
            continue
        found.append(_promise(text, sign, bound, ratios))
    for arrivals, note in (("even", ""), ("poisson", ", Poisson arrivals")):
        cells = paced.get(arrivals, [])
        ratios = [cell["milliseconds"]["99"] / cell["milliseconds"]["50"] for cell in cells if cell["milliseconds"]]
        if ratios:
            bound = 4.0 if arrivals == "even" else None
            found.append(_promise(f"p99 ÷ p50 at {SHARE:.0%} load{note}", "≤", bound, ratios))
    return found


def _promise(text: str, sign: str, bound: float | None, ratios: list[float]) -> dict[str, Any]:
    middle = median(ratios)
    kept = None if bound is None else HOLDS[sign](middle, bound)
    return {"what": text, "sign": sign, "bound": bound, "ratios": ratios, "median": middle, "kept": kept}


def report(found: dict[str, Any]) -> None:
    """Ratios first, then what they are made of."""
    print(f"one row of {PIXELS} floats a request; {found['cores']} cores for a server's one worker and the generator")
    print(f"{len(found['rounds'])} rounds of {found['seconds']:g} s a cell: median (least–greatest)\n")
    print(f"{'ratio within a round':<42} {'median':>7} {'spread':>15}   required")
    for line in found["promises"]:
        low, high = min(line["ratios"]), max(line["ratios"])
        bound = (
            "" if line["bound"] is None else f"{line['sign']} {line['bound']:g}{'' if line['kept'] else '   MISSED'}"
        )
        print(f"{line['what']:<42} {line['median']:>7.2f} {f'({low:.2f}–{high:.2f})':>15}   {bound}")
    print(f"\n{'':<20} {'conn.':>5} {'requests/s':>22} {'p50 ms':>8} {'p99 ms':>8} {'generator':>17}   not 200")
    for way in found["rounds"][0]:
        for connections in CONNECTIONS:
            print(_line(way, connections, [one[way][str(connections)] for one in found["rounds"]]))
    for arrivals in ("even", "poisson"):
        if found["paced"]:
            print(_line(f"ours, JSON, {arrivals}", PACED, found["paced"][arrivals]))


def _line(name: str, connections: int, cells: list[dict[str, Any]]) -> str:
    rates = [cell["per_second"] for cell in cells]
    times = [cell["milliseconds"] for cell in cells if cell["milliseconds"]]
    shown = f"{median(rates):.0f} ({min(rates):.0f}–{max(rates):.0f})"
    half, most = (f"{median(time[p] for time in times):.2f}" if times else "–" for p in ("50", "99"))
    cpu = (
        f"{median(cell['cpu_share'] for cell in cells):.0%} {median(cell['cpu_microseconds'] for cell in cells):.0f} µs"
    )
    others = ", ".join(sorted({f"{status}: {count}" for cell in cells for status, count in cell["other"].items()}))
    return f"{name:<20} {connections:>5} {shown:>22} {half:>8} {most:>8} {cpu:>17}   {others}"


if __name__ == "__main__":
    sys.exit(main())
