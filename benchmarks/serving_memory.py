"""`make bench`, memory of a worker: its resident set when it is ready and after requests, compared with a limit.

    python benchmarks/serving_memory.py [--cores 0,1]

The limit is the resident set of a Python process with the same imports after jax's first operation, + 2 × the weights,
+ 25 MB for each compiled bucket, + 60 MB. It starts one server for each of two networks and one for both, with 100 draws,
every default score and five buckets, and sends 50 requests of 1 to 300 rows to each model. The weights are the bytes of the
draws; feature scores must fit into the rest.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import urllib.request
from itertools import pairwise
from pathlib import Path
from typing import Any

import orjson
from servers import (
    CLASSES,
    PIXELS,
    PYTHON,
    abstain_command,
    environment,
    free_port,
    print_progress,
    publish_blobs,
    random_rows,
    restrict_to_cores,
    run_server,
    save_results,
)

NETWORKS = {"784-64-64-10": (64, 64), "784-400-400-10": (400, 400)}
DRAWS, BUCKETS = 100, 5
BUCKET_MB, SPARE_MB = 25.0, 60.0
SIZES = (1, 3, 8, 20, 32, 100, 128, 200, 256, 300)
IMPORTS = {
    "jax alone": "import jax",
    "the same imports": "import bentoml, uvicorn, orbax.checkpoint, abstain.service.app, abstain.service.http, abstain.service.live_versions, jax",
}
BASELINE = "the same imports"
OPERATION = "; jax.block_until_ready(jax.numpy.ones(8) + 1); print(open('/proc/self/status').read())"


def main() -> int:
    """Measures, prints, and writes `benchmarks/results/serving_memory.json`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cores", default="0,1", help="cores of all processes; empty: any")
    options = parser.parse_args()
    restrict_to_cores(options.cores)
    os.environ["NPROC"] = str(len(os.sched_getaffinity(0)))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        baselines = {name: baseline(imports, folder) for name, imports in IMPORTS.items()}
        for name, hidden in NETWORKS.items():
            print_progress(f"publishing {name}")
            publish_blobs(folder / "published", f"net-{name}", hidden, DRAWS)
        served = [*([name] for name in NETWORKS), list(NETWORKS)]
        servers = [measure(folder, models, baselines[BASELINE]["VmRSS"]) for models in served]
    results = {"cores": len(os.sched_getaffinity(0)), "baselines_mb": baselines, "servers": servers}
    print_results(results)
    save_results("serving_memory", results)
    return 0


def baseline(imports: str, folder: Path) -> dict[str, float]:
    """Measures the resident set of a process after imports and one operation."""
    process = subprocess.run(
        [PYTHON, "-c", imports + OPERATION],
        stdout=subprocess.PIPE,
        env=environment(ABSTAIN_STORE=str(folder)),
        cwd=folder,
        text=True,
        check=True,
        timeout=120,
    )
    return in_mb(process.stdout)


def in_mb(status: str) -> dict[str, float]:
    """Returns the resident set and its peak, from a process's `status` file, in MB of a million bytes."""
    kilobytes_by_name = dict(re.findall(r"^(VmRSS|VmHWM):\s+(\d+) kB", status, re.MULTILINE))
    return {name: int(kilobytes) * 1024 / 1e6 for name, kilobytes in kilobytes_by_name.items()}


def measure(folder: Path, models: list[str], baseline_mb: float) -> dict[str, Any]:
    """Measures one server with some of the published models."""
    store = folder / "-and-".join(models)
    for name in models:
        shutil.copytree(folder / "published" / f"net-{name}", store / f"net-{name}")
    print_progress(f"serving {' and '.join(models)}")
    port = free_port()
    with run_server("ours", port, abstain_command(port, store), folder) as server:
        worker = largest_child(server.process.pid)
        ready = in_mb(Path(f"/proc/{worker}/status").read_text())
        for name in models:
            for size in SIZES * 5:
                send_request(server.url, f"net-{name}", size)
        after = in_mb(Path(f"/proc/{worker}/status").read_text())
    weights = sum(parameters(NETWORKS[name]) for name in models) * DRAWS * 4 / 1e6
    allowed = baseline_mb + 2 * weights + BUCKET_MB * BUCKETS * len(models) + SPARE_MB
    return {"models": models, "weights_mb": weights, "ready_mb": ready, "after_mb": after, "allowed_mb": allowed}


def largest_child(parent: int) -> int:
    """Returns the worker: the child process with the largest resident set."""
    children = [
        int(path.parent.name)
        for path in Path("/proc").glob("[0-9]*/stat")
        if (fields := _stat(path)) and int(fields[1]) == parent
    ]
    sizes = {child: in_mb(Path(f"/proc/{child}/status").read_text())["VmRSS"] for child in children}
    return max(sizes, key=lambda child: sizes[child])


def _stat(path: Path) -> list[str]:
    try:
        return path.read_text("ascii", "replace").rsplit(")", 1)[1].split()
    except OSError:
        return []


def send_request(url: str, model: str, size: int) -> None:
    """Sends one request and reads the whole response."""
    body = orjson.dumps({"inputs": random_rows(size), "model": model}, option=orjson.OPT_SERIALIZE_NUMPY)
    request = urllib.request.Request(f"{url}/predict", body, {"Content-Type": "application/json"})  # noqa: S310
    urllib.request.urlopen(request, timeout=60).read()  # noqa: S310


def parameters(hidden: tuple[int, ...]) -> int:
    """Returns the number of parameters of one network."""
    sizes = (PIXELS, *hidden, CLASSES)
    return sum((before + 1) * after for before, after in pairwise(sizes))


def print_results(results: dict[str, Any]) -> None:
    """Prints the ratios to the limit, and the baselines."""
    print("resident set of a worker in MB; required: ready ÷ limit ≤ 1\n")
    print(f"{'models':<32} {'÷ limit':>10} {'ready':>7} {'peak':>7} {'after':>9} {'limit':>8} {'weights':>8}")
    for line in results["servers"]:
        ratio = line["ready_mb"]["VmRSS"] / line["allowed_mb"]
        print(
            f"{', '.join(line['models']):<32} {ratio:>10.2f} {line['ready_mb']['VmRSS']:>7.0f} "
            f"{line['ready_mb']['VmHWM']:>7.0f} {line['after_mb']['VmRSS']:>9.0f} {line['allowed_mb']:>8.0f} "
            f"{line['weights_mb']:>8.0f}{'   MISSED' if ratio > 1 else ''}"
        )
    print("\nafter jax's first operation:")
    for name, sizes in results["baselines_mb"].items():
        print(f"    {name:<20} {sizes['VmRSS']:>6.0f}")


if __name__ == "__main__":
    sys.exit(main())
