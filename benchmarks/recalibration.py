"""What `recalibrate = "auto"` gains and costs on new rows, with few calibration rows and with many. Some minutes.

    python benchmarks/recalibration.py --data FOLDER [--seeds 3] [--splits 20] [--only letter_recognition,wine]

Four sets of classes and two of numbers, two methods, and a fit for each seed. The rows that a fit does not use are split many
times at random into n calibration rows and test rows. The same posterior is calibrated with `recalibrate = "none"` and with
"auto". For each setting the table has means over all splits:

    applied    the share of splits in which "auto" recalibrates
    NLL        negative log-likelihood on the test rows, in nats per row, without → with "auto"
    worst      its largest increase in any split
    ECE        expected calibration error; of numbers, how far the central 95 % of a normal covers from 95 %
    coverage   of prediction sets and of intervals by quantiles, whose stated coverage is 90 %

At the end it gives the means by number of calibration rows, and says whether "auto" raises the NLL of classes, or of numbers, on
average, or by more than `MUCH` in more than one split of a hundred.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
from jaxtyping import Float, Int, Num
from scipy.stats import norm
from servers import print_progress, save_results
from sklearn.datasets import load_breast_cancer

from abstain.models.decisions.ranks import coverage_rank
from abstain.models.prediction.posterior import Model
from abstain.models.prediction.temperature import Recalibration
from abstain.training.calibration.recalibration import (
    draw_log_probabilities,
    is_significant,
    least_gain_of,
    set_aside,
)
from abstain.training.calibration.temperature import (
    Candidate,
    choose_temperature,
    deviation_of_numbers,
    fit_variance,
    variance_gain,
)
from abstain.training.config.calibration import CalibrationConfig
from abstain.training.config.config import Config
from abstain.training.data.dataset import split
from abstain.training.data.sources import read_source
from abstain.training.evaluation.metrics import expected_calibration_error
from abstain.training.evaluation.mixtures import draw_moments, mixture_log_density
from abstain.training.fit import build_model, build_problem, infer
from abstain.training.runs.journal import Journal

PROJECT = Path(__file__).resolve().parents[1]
CLASSES = ("digits", "breast_cancer", "letter_recognition", "gas_sensor_drift")
NUMBERS = ("concrete", "wine")
METHODS: dict[str, dict[str, Any]] = {
    "ensemble": {"kind": "ensemble", "members": 3, "steps": 1_000, "learning_rate": 5e-3, "reports": 1},
    "vi": {"kind": "vi", "steps": 1_500, "learning_rate": 1e-2, "reports": 1},
}
SIZES = (150, 300, 1_000, 3_000)
"""Numbers of calibration rows; those that leave less than `FEWEST_TEST` rows are left out."""
FEWEST_TEST = 50
SETTINGS = CalibrationConfig(recalibrate="auto", percentile=90.0, intervals="quantiles")
MUCH = 0.02
"""A loss in nats per row that a user would notice."""
MODES = ("none", "auto")


class Fitted(NamedTuple):
    """The predictions of all draws for the rows that the fit did not use.

    Attributes:
        draws: log probabilities `[draws, rows, classes]`; or means and variances, `[draws, rows, 2]`.
        y: class indices, or targets.
    """

    model: Model
    draws: Float[np.ndarray, "draws rows parts"]
    y: Num[np.ndarray, " rows"]


class Served(NamedTuple):
    """What a mode serves for some rows: NLL, nonconformity, and what the calibration error is computed from."""

    nll: Float[np.ndarray, " rows"]
    nonconformity: Float[np.ndarray, " rows"]
    certainty: Float[np.ndarray, " rows"]
    hit: Num[np.ndarray, " rows"]


def main() -> int:
    """Fits, measures, prints, and writes `benchmarks/results/recalibration.json`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=PROJECT.parent / "shared" / "data", help="folder of the sets")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--splits", type=int, default=20)
    parser.add_argument("--only", help="some of the sets, separated by commas")
    options = parser.parse_args()
    names = options.only.split(",") if options.only else (*CLASSES, *NUMBERS)
    results: list[dict[str, Any]] = []
    print(
        "| set | method | calibration rows | applied | NLL | worst | ECE | coverage |\n|---|---|---|---|---|---|---|---|"
    )
    with tempfile.TemporaryDirectory() as folder:
        for name, method in product(names, METHODS):
            found: list[dict[str, Any]] = []
            for seed in range(options.seeds):
                fitted = fit(source_of(name, options.data, Path(folder)), name, method, seed)
                print_progress(f"{name}, {method}, seed {seed}")
                for size in SIZES:
                    if len(fitted.y) >= size + FEWEST_TEST:
                        head = {"set": name, "method": method, "rows": size}
                        found += [head | measure(fitted, size, [seed, part]) for part in range(options.splits)]
            for size in sorted({figures["rows"] for figures in found}):
                print(line([figures for figures in found if figures["rows"] == size]), flush=True)
            results += found
    save_results("recalibration", results)
    return report(results)


def source_of(name: str, data: Path, folder: Path) -> str:
    """Returns the source of a set, which is written first if it comes with scikit-learn."""
    if name == "digits":
        return name
    if name == "breast_cancer":
        bunch = cast("Any", load_breast_cancer())
        np.savez(folder / "breast_cancer.npz", x=bunch.data, y=bunch.target)
        return str(folder / "breast_cancer.npz")
    return str(data / ("uci" if name in NUMBERS else "") / f"{name}.npz")


def fit(source: str, name: str, method: str, seed: int) -> Fitted:
    """Fits a posterior to half of the rows, and predicts the others."""
    numbers = name in NUMBERS
    config = Config.model_validate(
        {
            "name": "recalibration",
            "seed": seed,
            "draws": 3 if method == "ensemble" else 30,
            "likelihood": "normal" if numbers else "bernoulli" if name == "breast_cancer" else "categorical",
            "network": {"kind": "mlp", "hidden": [32]},
            "data": {"source": source, "inputs": "standardize", "test_size": 0.25, "calibration_size": 0.25},
            "method": METHODS[method],
        }
    )
    dataset = split(read_source(source, config.data, classify=not numbers), config.data, seed)
    posterior = infer(config, build_problem(config, build_model(config, dataset), dataset), Journal()).posterior
    x = np.concatenate([dataset.calibration.x, dataset.test.x])
    y = np.concatenate([dataset.calibration.y, dataset.test.y])
    if not numbers:
        return Fitted(posterior.model, draw_log_probabilities(posterior, x), y.astype(int))
    return Fitted(posterior.model, np.moveaxis(draw_moments(posterior, x), 1, 0), y.astype(float))


def measure(fitted: Fitted, size: int, seed: list[int]) -> dict[str, Any]:
    """Returns the quality on the test rows of one split by mode, and whether "auto" recalibrates."""
    order = np.random.default_rng(seed).permutation(len(fitted.y))
    known, test = order[:size], order[size:]
    own, others = set_aside(SETTINGS, fitted.model, size, seed[-1])
    kind, factor = choose(fitted, known[own]) if len(own) else ("none", 1.0)
    found: dict[str, Any] = {"applied": kind != "none", "kind": kind, "factor": factor}
    for mode in MODES:
        served = serve(fitted, *((kind, factor) if mode == "auto" else ("none", 1.0)))
        radius_rows = known if mode == "none" or others is None else known[others]
        radius = np.sort(served.nonconformity[radius_rows])[coverage_rank(0.9, len(radius_rows)) - 1]
        if fitted.y.dtype.kind == "i":
            ece = expected_calibration_error(served.certainty[test], served.hit[test] == 1)
        else:
            ece = abs(float(served.hit[test].mean()) - 0.95)
        found[mode] = {
            "nll": float(served.nll[test].mean()),
            "ece": float(ece),
            "coverage": float((served.nonconformity[test] <= radius).mean()),
        }
    return found


def choose(fitted: Fitted, own: Int[np.ndarray, " own"]) -> tuple[str, float]:
    """Returns the kind and the number of the recalibration that these rows choose."""
    draws, y = fitted.draws[:, own], fitted.y[own]
    if y.dtype.kind == "i":
        best = choose_temperature(draws, y)
    else:
        arguments = (*moments(draws), y)
        factor = fit_variance(*arguments)
        scaled = Recalibration(kind="variance", factor=factor)
        best = Candidate(scaled, variance_gain(*arguments, factor), deviation_of_numbers(*arguments))
    applied = is_significant(best, least_gain_of(fitted.model))
    return (best.recalibration.kind, best.recalibration.factor) if applied else ("none", 1.0)


def moments(
    draws: Float[np.ndarray, "draws rows 2"],
) -> tuple[Float[np.ndarray, " rows"], Float[np.ndarray, " rows"]]:
    """Returns mean and variance of the mixture."""
    return draws[..., 0].mean(axis=0), draws[..., 1].mean(axis=0) + draws[..., 0].var(axis=0)


def serve(fitted: Fitted, kind: str, factor: float) -> Served:
    """Computes what is served for all rows with a recalibration."""
    draws, y, index = fitted.draws, fitted.y, np.arange(len(fitted.y))
    if y.dtype.kind == "i":
        logs: np.ndarray = np.logaddexp.reduce(draws.astype(np.float64), axis=0) - np.log(len(draws))
        label = logs.argmax(axis=1)
        if kind == "pooled":
            logs = logs / factor
            logs -= np.logaddexp.reduce(logs, axis=1, keepdims=True)
        if kind == "draws":
            scaled = draws.astype(np.float64) / factor
            scaled -= np.logaddexp.reduce(scaled, axis=2, keepdims=True)
            tempered: np.ndarray = np.logaddexp.reduce(scaled, axis=0) - np.log(len(draws))
            logs = np.where((tempered.argmax(axis=1) == label)[:, None], tempered, logs)
        right = logs[index, y]
        return Served(-right, 1 - np.exp(right), np.exp(logs.max(axis=1)), label == y)
    mean, variance = moments(draws)
    own = mean + factor * (draws[..., 0] - mean)
    density = mixture_log_density(own.T, factor * np.sqrt(draws[..., 1]).T, y)
    width = factor * np.sqrt(variance)
    nonconformity = np.abs(y - mean) - norm.ppf(0.975) * width
    return Served(-density, nonconformity, width, nonconformity <= 0)


def line(found: list[dict[str, Any]]) -> str:
    """Makes a row of the table from the splits of one setting."""
    changes = np.array([figures["auto"]["nll"] - figures["none"]["nll"] for figures in found])
    cells = [
        " → ".join(f"{np.mean([figures[mode][name] for figures in found]):.{digits}f}" for mode in MODES)
        for name, digits in (("nll", 4), ("ece", 3), ("coverage", 3))
    ]
    first, applied = found[0], np.mean([figures["applied"] for figures in found])
    return (
        f"| {first['set']} | {first['method']} | {first['rows']:,} | {applied:.0%} | {cells[0]} | {changes.max():+.3f} | "
        f"{cells[1]} | {cells[2]} |"
    )


def report(results: list[dict[str, Any]]) -> int:
    """Prints the means of each task by number of calibration rows, and over all; returns 1 if "auto" loses."""
    print(
        "\n| task | calibration rows | splits | applied | change of NLL | a loss above .02 | worst | ECE | coverage |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    losing: list[str] = []
    for task, names in (("classes", CLASSES), ("numbers", NUMBERS)):
        whole = [figures for figures in results if figures["set"] in names]
        parts = {f"{size:,}": [figures for figures in whole if figures["rows"] == size] for size in SIZES}
        for label, part in {**parts, "all": whole}.items():
            if not part:
                continue
            changes = np.array([figures["auto"]["nll"] - figures["none"]["nll"] for figures in part])
            ece, coverage = (
                " → ".join(f"{np.mean([figures[mode][name] for figures in part]):.3f}" for mode in MODES)
                for name in ("ece", "coverage")
            )
            applied = np.mean([figures["applied"] for figures in part])
            print(
                f"| {task} | {label} | {len(part):,} | {applied:.0%} | {changes.mean():+.4f} | "
                f"{(changes > MUCH).mean():.1%} | {changes.max():+.3f} | {ece} | {coverage} |"
            )
            if label == "all" and (changes.mean() > 0 or (changes > MUCH).mean() > 0.01):
                losing.append(task)
    print(f"\n“auto” loses for {' and '.join(losing)}." if losing else "\n“auto” does not lose.")
    return int(bool(losing))


if __name__ == "__main__":
    sys.exit(main())
