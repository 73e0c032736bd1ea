"""`make bench-quality`, intervals: the coverage and the width of 95 % intervals on five UCI regressions.

It uses the standard splits. About a fifth of each training part is kept for calibration: n rows for which (n + 1) · 0.95 is
an integer, so that conformal intervals cover exactly 95 % in expectation, not up to 1/(n + 1) more. Four kinds of intervals
from one posterior:

    raw         the central 95 % of the posterior predictive
    scaled      mean ± 1.96 standard deviations, scaled by `recalibrate = "auto"`
    normalised  conformal, residuals over the standard deviation
    quantiles   conformal, distances from the posterior's quantiles (CQR)

The last two should cover 95 % on average over the splits for every posterior; the others may not. The coverage of a single
split is random: it has a Beta distribution.

    python benchmarks/intervals.py --data FOLDER [--splits 20] [--only boston,yacht]
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np
import orjson
from jaxtyping import Float

from abstain.models.decisions.calibration import calibrate
from abstain.models.decisions.judging import judge
from abstain.models.prediction.predictive import Predictor
from abstain.models.prediction.summaries import RegressionSummary
from abstain.training.calibration.recalibration import fit_recalibration
from abstain.training.config.config import Config
from abstain.training.data.dataset import Dataset, split
from abstain.training.data.rows import Rows
from abstain.training.data.sources import read_source
from abstain.training.fit import METHODS, build_model
from abstain.training.inference.bnn import BNN, observe
from abstain.training.inference.problem import Problem
from abstain.training.runs.journal import Journal

PROJECT = Path(__file__).resolve().parents[1]
RESULTS = PROJECT / "benchmarks" / "results"
UCI = ("boston", "concrete", "energy", "wine", "yacht")
COVERAGE = 0.95
WITHIN_95 = 1.959964
"""Half the width of the central 95 % of a normal distribution, in standard deviations."""
KINDS = ("raw", "scaled", "normalised", "quantiles")
CONFIG: dict[str, Any] = {
    "name": "uci",
    "likelihood": "normal",
    "draws": 200,
    "network": {"kind": "mlp", "hidden": [50], "activation": "tanh"},
    "prior": {"scale": 1.0, "fan_in": True, "hierarchical": True},
    "method": {
        "kind": "hmc",
        "chains": 2,
        "warmup": 250,
        "samples": 100,
        "leapfrogs": 40,
        "jitter": 0.5,
        "chain_method": "sequential",
        "reports": 2,
    },
}
"""One config for all five sets: `hmc` of `benchmarks/methods.py` with fewer and shorter chains."""


def main() -> int:
    """Fits, measures, prints, and writes `benchmarks/results/intervals.json`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shared = PROJECT.parent / "shared" / "data"
    parser.add_argument("--data", type=Path, default=shared, help="folder of uci/*.npz")
    parser.add_argument("--splits", type=int, default=20, help="the first of the 20 splits")
    parser.add_argument("--only", help="some of the sets, separated by commas")
    options = parser.parse_args()
    chosen = options.only.split(",") if options.only else UCI
    results: dict[str, Any] = {}
    print(
        f"{options.splits} splits, 95 % intervals: mean coverage ± its standard error · mean width in the target's units\n"
    )
    print(f"| set | test rows | {' | '.join(KINDS)} | s per fit |\n|---|---|{'---|' * len(KINDS)}---|")
    for name in chosen:
        path = options.data / "uci" / f"{name}.npz"
        if not path.is_file():
            sys.exit(f"missing: {path}; name the folder of uci/ with --data")
        results[name] = splits = [measure(path, index) for index in range(options.splits)]
        cells = [cell([figures[kind] for figures in splits]) for kind in KINDS]
        seconds = np.mean([figures["seconds"] for figures in splits])
        print(f"| {name} | {splits[0]['rows']} | {' | '.join(cells)} | {seconds:.0f} |", flush=True)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "intervals.json").write_bytes(orjson.dumps(results, option=orjson.OPT_INDENT_2))
    return 0


def calibration_rows(train: int) -> int:
    """Returns the number of 19, 39, 59, … that is nearest to a fifth of the rows: (n + 1) · 0.95 is then an integer."""
    return 20 * max(1, round((train / 5 + 1) / 20)) - 1


def measure(path: Path, index: int) -> dict[str, Any]:
    """Fits one split and returns the coverage and width of each kind on its test part."""
    with np.load(path) as file:
        rows = calibration_rows(file["train_idx"].shape[1])
    data = {"source": str(path), "split_index": index, "calibration_size": rows}
    config = Config.model_validate(CONFIG | {"seed": index, "data": data})
    dataset = split(read_source(str(path), config.data, classify=False), config.data, config.seed)
    model = build_model(config, dataset)
    start_time = time.perf_counter()
    problem = Problem(BNN(model, config.prior), observe(model, dataset.train), observe(model, dataset.test))
    key = jax.random.key(config.seed)
    posterior = METHODS[config.method.kind](key, problem, config.method, config.draws, Journal()).posterior
    seconds = time.perf_counter() - start_time
    predictor = Predictor(posterior, (256,))
    factor = fit_recalibration(posterior, dataset.calibration).recalibration.factor
    figures = {
        kind: measure_interval(ends, dataset.test) for kind, ends in intervals(predictor, dataset, factor).items()
    }
    return {**figures, "factor": factor, "rows": len(dataset.test), "seconds": seconds}


def intervals(predictor: Predictor, dataset: Dataset, factor: float) -> dict[str, Float[np.ndarray, "rows 2"]]:
    """Returns the lower and upper ends for the test part, by kind."""
    calibration_prediction, test_prediction = predictor(dataset.calibration.x), predictor(dataset.test.x)
    summary = cast("RegressionSummary", test_prediction.summary)
    mean, quantiles = np.asarray(summary.mean), np.asarray(summary.quantiles)
    half = WITHIN_95 * factor * np.sqrt(np.asarray(summary.aleatoric_variance) + np.asarray(summary.epistemic_variance))
    ends = {
        "raw": np.stack([quantiles[:, 0], quantiles[:, -1]], axis=1),
        "scaled": np.stack([mean - half, mean + half], axis=1),
    }
    for kind in ("normalised", "quantiles"):
        # No threshold is used; the smallest calibration part has enough rows for percentile 90.
        calibration = calibrate(
            calibration_prediction, dataset.calibration.y, percentile=90.0, coverage=COVERAGE, intervals=kind
        )
        ends[kind] = cast("np.ndarray", judge(calibration, test_prediction).interval)
    return ends


def measure_interval(ends: Float[np.ndarray, "rows 2"], rows: Rows) -> dict[str, float]:
    """Returns the share of targets within their intervals, and the mean width."""
    within = (ends[:, 0] <= rows.y) & (rows.y <= ends[:, 1])
    return {"coverage": float(within.mean()), "width": float((ends[:, 1] - ends[:, 0]).mean())}


def cell(splits: list[dict[str, float]]) -> str:
    """Formats the mean coverage of a kind over the splits with its standard error, and the mean width."""
    coverage = [figures["coverage"] for figures in splits]
    error = np.std(coverage, ddof=1) / len(coverage) ** 0.5 if len(coverage) > 1 else 0.0
    return f"{np.mean(coverage):.3f} ± {error:.3f} · {np.mean([figures['width'] for figures in splits]):.2f}"


if __name__ == "__main__":
    sys.exit(main())
