"""`make bench-quality`, methods: every inference method on MNIST and on five UCI regressions.

UCI: the standard splits, fits to all training rows, one hidden layer of 50 tanh units, inferred noise, and one
configuration of each method for all sets; the published results also have one hidden layer of 50 units. MNIST:
784-64-64-10. Test rows are used once, after the fit. Seconds are those of the fit, including compilation.

    python benchmarks/methods.py --data FOLDER [--splits 2] [--only uci|mnist] [--methods vi,hmc]
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orjson

from abstain.models.prediction.predictive import Predictor
from abstain.training.config.config import Config
from abstain.training.data.dataset import Dataset
from abstain.training.data.sources import read_source
from abstain.training.evaluate import prediction_quality
from abstain.training.fit import METHODS, build_model
from abstain.training.inference.bnn import BNN, observe
from abstain.training.inference.problem import Problem
from abstain.training.runs.journal import Journal

PROJECT = Path(__file__).resolve().parents[1]
RESULTS = PROJECT / "benchmarks" / "results"
UCI = ("boston", "concrete", "energy", "wine", "yacht")

DESCENT = {"steps": 10_000, "batch_size": 64, "learning_rate": 3e-3, "reports": 10}
MODES = DESCENT | {"steps": 4_000, "reports": 20, "held_out": 0.1}
REGRESSIONS: dict[str, dict[str, Any]] = {
    "map": {"kind": "map", **MODES},
    "ensemble": {"kind": "ensemble", "members": 10, "chain_method": "vectorized", **MODES},
    "vi": {"kind": "vi", "starts": 4, "chain_method": "vectorized", **DESCENT},
    "vi low rank": {
        "kind": "vi",
        "family": "low_rank",
        "rank": 10,
        "starts": 4,
        "chain_method": "vectorized",
        **DESCENT,
    },
    "vi full rank": {"kind": "vi", "family": "full_rank", **DESCENT},
    "laplace last": {"kind": "laplace", "subset": "last_layer", **MODES},
    "laplace diagonal": {"kind": "laplace", "subset": "diagonal", **MODES},
    "hmc": {
        "kind": "hmc",
        "warmup": 500,
        "samples": 500,
        "leapfrogs": 50,
        "jitter": 0.5,
        "chain_method": "parallel",
    },
    "nuts": {"kind": "nuts", "warmup": 300, "samples": 200, "max_tree_depth": 7, "chain_method": "parallel"},
    "chees": {"kind": "chees", "chains": 8, "warmup": 500, "samples": 300, "max_leapfrogs": 128},
    "mile": {"kind": "mile", "chains": 8, "warmup": 5_000, "samples": 500, "thin": 20, "map": MODES},
}
"""One configuration of each method, for all five sets."""
REGRESSION: dict[str, Any] = {
    "name": "uci",
    "likelihood": "normal",
    "draws": 400,
    "network": {"kind": "mlp", "hidden": [50], "activation": "tanh"},
    "prior": {"scale": 1.0, "fan_in": True, "hierarchical": True},
}

IMAGES: dict[str, dict[str, Any]] = {
    "map": {"kind": "map", "steps": 8_000, "batch_size": 256, "learning_rate": 2e-3},
    "ensemble": {"kind": "ensemble", "members": 5, "steps": 8_000, "batch_size": 256, "learning_rate": 2e-3},
    "vi": {"kind": "vi", "steps": 10_000, "batch_size": 256, "learning_rate": 3e-3, "kl_weight": 0.1},
    "vi, 5 starts": {
        "kind": "vi",
        "steps": 10_000,
        "batch_size": 256,
        "learning_rate": 3e-3,
        "kl_weight": 0.1,
        "starts": 5,
    },
    "laplace last": {"kind": "laplace", "steps": 8_000, "batch_size": 256, "learning_rate": 2e-3},
}
"""Without `hmc`, `nuts`, `chees` and `mile`, which need a GPU, or hours, for all training images of MNIST."""
IMAGE: dict[str, Any] = {
    "name": "mnist",
    "likelihood": "categorical",
    "draws": 100,
    "network": {"kind": "mlp", "hidden": [64, 64], "activation": "relu"},
    "prior": {"scale": 1.0, "fan_in": True},
}

PUBLISHED: dict[str, dict[str, tuple[float | None, float | None]]] = {
    "MC dropout, 100 × epochs": {
        "boston": (2.90, -2.40),
        "concrete": (4.83, -2.94),
        "energy": (0.539, -1.21),
        "wine": (0.622, -0.928),
        "yacht": (0.666, -1.25),
    },
    "deep ensemble, 5": {
        "boston": (3.28, -2.41),
        "concrete": (6.03, -3.06),
        "energy": (2.09, -1.38),
        "wine": (0.64, -0.94),
        "yacht": (1.58, -1.18),
    },
    "PBP": {
        "boston": (3.01, -2.57),
        "concrete": (5.67, -3.16),
        "energy": (1.80, -2.04),
        "wine": (0.64, -0.97),
        "yacht": (1.02, -1.63),
    },
    "subspace, PCA + ESS": {
        "boston": (3.45, -2.719),
        "concrete": (5.19, -3.007),
        "energy": (1.60, -1.563),
        "yacht": (0.972, -0.225),
    },
}
"""RMSE and test log-likelihood from the publications; all over the same 20 splits."""
REFERENCE = "MC dropout, 100 × epochs"


def main() -> int:
    """Fits, prints the tables, and writes `benchmarks/results/methods.json`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shared = PROJECT.parent / "shared" / "data"
    parser.add_argument("--data", type=Path, default=shared, help="folder of mnist.npz and uci/*.npz")
    parser.add_argument("--splits", type=int, default=2, help="the number of splits, from the first of the 20")
    parser.add_argument("--only", choices=("uci", "mnist"))
    parser.add_argument("--methods", help="names of some methods, separated by commas")
    options = parser.parse_args()
    results: dict[str, Any] = {"splits": options.splits, "uci": {}, "mnist": {}}
    chosen = options.methods.split(",") if options.methods else None
    if options.only != "mnist":
        for name in [name for name in REGRESSIONS if chosen is None or name in chosen]:
            results["uci"][name] = {
                data: [regress(options.data, data, split, REGRESSIONS[name]) for split in range(options.splits)]
                for data in UCI
            }
            print_regression(name, results["uci"][name], header=len(results["uci"]) == 1)
        print_published()
    if options.only != "uci":
        print(
            "\nMNIST, 784-64-64-10, 60,000 training images; published LeNet-5: VI .985, ECE .010; ensemble of ten .994, .005"
        )
        print(f"{'method':<18} {'accuracy':>9} {'log-lik.':>9} {'ECE':>7} {'fit s':>7}")
        for name in [name for name in IMAGES if chosen is None or name in chosen]:
            results["mnist"][name] = figures = classify(options.data, IMAGES[name])
            print(
                f"{name:<18} {figures['accuracy']:>9.4f} {-figures['nll']:>9.4f} {figures['ece']:>7.4f} "
                f"{figures['seconds']:>7.1f}",
                flush=True,
            )
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "methods.json").write_bytes(orjson.dumps(results, option=orjson.OPT_INDENT_2))
    return 0


def regress(folder: Path, data: str, split: int, method: dict[str, Any]) -> dict[str, float]:
    """Fits and measures one split of a UCI set."""
    source = {"source": str(folder / "uci" / f"{data}.npz"), "split_index": split}
    return measure(REGRESSION | {"seed": split, "data": source, "method": method})


def classify(folder: Path, method: dict[str, Any]) -> dict[str, float]:
    """Fits and measures MNIST."""
    source = {"source": str(folder / "mnist.npz"), "inputs": "range"}
    return measure(IMAGE | {"data": source, "method": method})


def measure(settings: dict[str, Any]) -> dict[str, float]:
    """Fits to all training rows, and returns the figures of the test rows."""
    config = Config.model_validate(settings)
    source = read_source(config.data.source or "", config.data, classify=config.likelihood == "categorical")
    if source.train is None or source.test is None:
        raise SystemExit(f"{source.where} has no training and test part")
    # The published results are fits to all training rows. No calibration is used here, so one row is enough for its part.
    dataset = Dataset(source, source.train, source.train.take(np.arange(1)), source.test)
    model = build_model(config, dataset)
    start_time = time.perf_counter()
    problem = Problem(BNN(model, config.prior), observe(model, dataset.train), observe(model, dataset.test))
    method = METHODS[config.method.kind]
    fitted = method(jax.random.key(config.seed), problem, config.method, config.draws, Journal())
    seconds = time.perf_counter() - start_time
    figures = prediction_quality(fitted.posterior, Predictor(fitted.posterior, (256,))(dataset.test.x), dataset.test)
    function = fitted.diagnostics.to_json().get("function", {})
    return {**figures, "seconds": seconds, "rhat": function.get("rhat"), "ess": function.get("ess_bulk")}


def print_regression(name: str, results: dict[str, list[dict[str, float]]], *, header: bool) -> None:
    """Prints the lines of a method: log-likelihood, RMSE, coverage of 95 % intervals and seconds, by set."""
    if header:
        print(
            f"{'test log-likelihood':<26}" + "".join(f"{data:>16}" for data in UCI) + f"{'at or above MC dropout':>24}"
        )
    means = {data: np.mean([-row["nll"] for row in rows]) for data, rows in results.items()}
    errors = {data: np.std([-row["nll"] for row in rows]) / len(rows) ** 0.5 for data, rows in results.items()}
    above = sum(means[data] >= (PUBLISHED[REFERENCE][data][1] or 0) for data in UCI)
    print(f"{name:<26}" + "".join(f"{means[data]:>9.3f} ± {errors[data]:.2f}" for data in UCI) + f"{above:>16} of 5")
    for label, key, form in (
        ("RMSE", "rmse", ".3f"),
        ("95 % coverage", "coverage_95", ".3f"),
        ("seconds", "seconds", ".1f"),
    ):
        values = [np.mean([row[key] for row in results[data]]) for data in UCI]
        print(f"    {label:<22}" + "".join(f"{value:>16{form}}" for value in values))
    sys.stdout.flush()


def print_published() -> None:
    """Prints the published results."""
    print("\npublished, over all 20 splits")
    for name, rows in PUBLISHED.items():
        for index, label in ((1, "log-likelihood"), (0, "RMSE")):
            cells = [rows.get(data, (None, None))[index] for data in UCI]
            print(f"{name:<25} {label:<15}" + "".join(f"{'–' if cell is None else cell:>10}" for cell in cells))


if __name__ == "__main__":
    sys.exit(main())
