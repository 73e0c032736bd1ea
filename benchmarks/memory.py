"""`make bench`, memory: the peak memory of a fit by every method, compared with a limit.

Each method fits 784-64-64-10 to as many random images as MNIST has, in a separate process, from the file to the bundle. The
peak resident set minus that after all imports is compared with the draws + 2 × the data in float32 + 300 MB.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import orjson

RESULTS = Path(__file__).resolve().parent / "results"
ROWS, PIXELS, DRAWS = 60_000, 784, 100
PARAMETERS = 784 * 64 + 64 + 64 * 64 + 64 + 64 * 10 + 10
DESCENT = {"steps": 400, "reports": 2}
SHORT = {"chains": 4, "warmup": 4, "samples": 25, "reports": 5, "start": "network"}
METHODS: dict[str, dict[str, Any]] = {
    "map": {"kind": "map", **DESCENT},
    "ensemble": {"kind": "ensemble", **DESCENT},
    "vi": {"kind": "vi", **DESCENT},
    "vi, low rank": {"kind": "vi", "family": "low_rank", **DESCENT},
    "laplace, last layer": {"kind": "laplace", **DESCENT},
    "hmc": {"kind": "hmc", "leapfrogs": 2, **SHORT},
    "nuts": {"kind": "nuts", "max_tree_depth": 2, **SHORT},
    "chees": {"kind": "chees", "max_leapfrogs": 4, **SHORT},
    "mile": {"kind": "mile", **SHORT, "thin": 1, "warmup": 20},
}


def main() -> int:
    """Measures every method, prints the table, and writes `benchmarks/results/memory.json`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--methods", help="some of the methods, separated by semicolons")
    options = parser.parse_args()
    if options.child:
        return child(options.child, options.folder)
    limit = DRAWS * PARAMETERS * 4 / 1e6 + 2 * ROWS * PIXELS * 4 / 1e6 + 300
    names = options.methods.split(";") if options.methods else list(METHODS)
    results = {}
    print(f"{'method':<22} {'peak over imports, MB':>22} {'limit':>8}")
    with tempfile.TemporaryDirectory() as folder:
        write_images(Path(folder) / "images.npz")
        for name in names:
            command = [sys.executable, __file__, "--child", name, "--folder", folder]
            process = subprocess.run(command, stdout=subprocess.PIPE, check=True, stderr=subprocess.DEVNULL)
            results[name] = json.loads(process.stdout.splitlines()[-1])
            over = results[name]["peak"] - results[name]["baseline"]
            print(f"{name:<22} {over:>22.0f} {limit:>8.0f}{'' if over <= limit else '   ABOVE'}", flush=True)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "memory.json").write_bytes(orjson.dumps({"limit": limit, "methods": results}))
    return 0


def write_images(path: Path) -> None:
    """Writes random images of ten classes that a network can distinguish, so that no fit diverges."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 10, ROWS + 1000)
    x = rng.integers(0, 200, (ROWS + 1000, 28, 28), dtype=np.uint8)
    x[np.arange(len(y)), y] += 50
    np.savez(path, x_train=x[:ROWS], y_train=y[:ROWS], x_test=x[ROWS:], y_test=y[ROWS:])


def child(name: str, folder: Path) -> int:
    """Runs one fit; prints the peak resident set before and after it, in MB."""
    import jax.numpy as jnp  # noqa: PLC0415

    from abstain.training import fit  # noqa: PLC0415 - its imports are the baseline
    from abstain.training.config.config import Config  # noqa: PLC0415

    jnp.zeros(1).block_until_ready()
    baseline = peak()
    config = Config.model_validate(
        {
            "name": "images",
            "draws": DRAWS,
            "data": {"source": str(folder / "images.npz"), "calibration_size": 1000, "inputs": "range"},
            "network": {"kind": "mlp", "hidden": [64, 64]},
            "prior": {"fan_in": True},
            "method": METHODS[name],
        }
    )
    fit.fit(config, None, folder / name.replace(",", "").replace(" ", "-"), lambda *_, **__: None)
    sys.stdout.write(json.dumps({"baseline": baseline, "peak": peak()}) + "\n")
    return 0


def peak() -> float:
    """Returns the largest resident set so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 * 1.048576


if __name__ == "__main__":
    sys.exit(main())
