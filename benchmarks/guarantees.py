"""Checks the rates that calibration guarantees, over random splits of rows that the model was not fitted to.

    python benchmarks/guarantees.py [--splits 200] [--only LAW ...] [--no-http]
    python benchmarks/guarantees.py --model MODEL --store STORE --data DATA [--regression WAVE] [--splits 100]

Without a model: six laws of tables (`laws.py`), each with a small model. A pool of rows is scored in every batch size. It is
split at random into calibration rows, in the batch size of calibration, and new rows, in every batch size. At percentiles
90, 95 and 99, for the default decision, for the same with ambiguity (two parts), and for every single score, it prints: the mean reject rate over splits; its excess
over the stated rate in standard errors; the share of splits with a rate below the upper end of the exact 99 % band; and
the numbers of verdicts, and of answers (verdict, p-value or prediction set), that differ between batch sizes. One law is
also fitted, published and served, and its rows are sent to `/predict` and `/v2`, one at a time and together.

With a model: its calibration and test parts are pooled and split again into parts of the same sizes. It prints results for
the reject rate at percentiles 90, 95, 99 and 99.9, and at 90, 95 and 99 within every predicted class (Mondrian); for the
coverage of prediction sets at 80, 90 and 95 %; and for that of intervals if a regression is named: the mean, and the number
of splits with a rate on the test rows within the exact 95 % band. This band belongs to the beta-binomial distribution that
every split conformal rate has for every model. The share of splits within it should be the probability of the band, up to
its binomial error, which is printed next to it.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from guarantee_laws import measure_law, measure_served, print_laws, select_rows
from laws import LAWS
from scipy import stats

from abstain.models.bundles.bundle import Bundle, load
from abstain.models.bundles.store import resolve
from abstain.models.decisions.calibration import calibrate
from abstain.models.decisions.conformal import IntervalKind, SetKind
from abstain.models.decisions.judging import judge
from abstain.models.decisions.ranks import coverage_rank, percentile_rank
from abstain.models.prediction.predictive import Prediction
from abstain.training.config.data import DataConfig
from abstain.training.data.dataset import split
from abstain.training.data.rows import Rows
from abstain.training.data.sources import read_source

RESULTS = Path(__file__).resolve().parent / "results"
PERCENTILES = (90.0, 95.0, 99.0, 99.9)
CLASS_PERCENTILES = (90.0, 95.0, 99.0)
COVERAGES = (0.8, 0.9, 0.95)
SETS: tuple[SetKind, ...] = ("lac", "aps", "raps")
INTERVALS: tuple[IntervalKind, ...] = ("normalised", "quantiles")


@dataclass
class Tally:
    """The rate of each split, whether it is within its band, and the probability of the band."""

    rates: list[float]
    inside: list[bool]
    mass: list[float]

    def add(self, hits: int, rows: int, calibration_rows: int, rank: int) -> None:
        """Adds a split: `hits` of `rows` are above the rank-th smallest of the calibration rows."""
        law = stats.betabinom(rows, calibration_rows + 1 - rank, rank)
        low, high = int(law.ppf(0.025)), int(law.ppf(0.975))
        self.rates.append(hits / rows)
        self.inside.append(low <= hits <= high)
        self.mass.append(float(law.cdf(high) - law.cdf(low - 1)))

    def row(self) -> dict[str, float]:
        """Returns the figures for the table."""
        trials, mass = len(self.inside), float(np.mean(self.mass))
        low, high = stats.binom.ppf([0.005, 0.995], trials, mass) / trials
        return {
            "mean": float(np.mean(self.rates)),
            "inside": float(np.mean(self.inside)),
            "expected": mass,
            "low": float(low),
            "high": float(high),
            "trials": trials,
        }


def main() -> int:
    """Measures, prints, and writes `benchmarks/results/guarantees*.json`; returns 1 if a rate of a law is too high."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model")
    parser.add_argument("--store", type=Path)
    parser.add_argument("--data")
    parser.add_argument("--regression", help="a regression in the same store, with the name of its embedded data set")
    parser.add_argument("--splits", type=int, default=200)
    parser.add_argument("--pool", type=int, default=3_000, help="rows in the pool of each law")
    parser.add_argument("--only", nargs="+", choices=LAWS, default=list(LAWS))
    parser.add_argument("--no-http", dest="http", action="store_false")
    options = parser.parse_args()
    if options.model is None:
        return check_laws(options.only, options.splits, options.pool, http=options.http)
    tallies = tally_classes(options.store, options.model, options.data, options.splits)
    if options.regression:
        tallies |= tally_intervals(options.store, options.regression, options.splits)
    results = {name: tally.row() for name, tally in tallies.items()}
    print_results(results)
    write_results("guarantees", results)
    return 0


def check_laws(names: list[str], splits: int, pool: int, *, http: bool) -> int:
    """Measures and prints the laws, and one of them over HTTP; returns 1 if a rate is too high."""
    results = {name: measure_law(LAWS[name], splits, pool) for name in names}
    print_laws(results)
    served = measure_served(LAWS["ties"]) if http else {}
    for line, rate in served.items():
        print(f"{line:<40} {rate}")
    write_results("guarantees_laws", {"laws": results, "http": served})
    return int(any(row["above"] > 3 for law in results.values() for row in law["rates"]))


def write_results(name: str, results: Any) -> None:
    """Writes `benchmarks/results/NAME.json`."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_bytes(orjson.dumps(results, option=orjson.OPT_INDENT_2))


def tally_classes(store: Path, model: str, source: str, splits: int) -> dict[str, Tally]:
    """Tallies the reject rates, overall and per class, and the coverage of prediction sets."""
    bundle, prediction, y, calibration_rows = load_pool(store, model, source)
    decision, reference = bundle.calibration.decision, bundle.calibration.reference
    tallies: dict[str, Tally] = {}

    def tally(name: str) -> Tally:
        return tallies.setdefault(name, Tally([], [], []))

    for seed in range(splits):
        order = np.random.default_rng(seed).permutation(len(y))
        known, new = order[:calibration_rows], order[calibration_rows:]
        calibration = calibrate(
            select_rows(prediction, known), y[known], decision=decision, percentile=90.0, reference=reference
        )
        judged = select_rows(prediction, new)
        for percentile in PERCENTILES:
            rejected = judge(calibration, judged, percentile).reject
            rank = percentile_rank(percentile, calibration_rows)
            tally(f"reject at {percentile:g}").add(int(rejected.sum()), len(new), calibration_rows, rank)
        per_class = calibrate(
            select_rows(prediction, known),
            y[known],
            decision=decision,
            percentile=90.0,
            reference=reference,
            per_class=True,
        )
        labels = np.asarray(judged.summary.mean).argmax(axis=1)
        for percentile in CLASS_PERCENTILES:
            rejected = judge(per_class, judged, percentile).reject
            for label, label_rows in enumerate(np.bincount(per_class.labels).tolist()):
                has_label = labels == label
                rank = percentile_rank(percentile, label_rows)
                tally(f"reject at {percentile:g}, per class").add(
                    int(rejected[has_label].sum()), int(has_label.sum()), label_rows, rank
                )
        for kind in SETS:
            with_sets = calibrate(
                select_rows(prediction, known),
                y[known],
                decision=decision,
                percentile=90.0,
                reference=reference,
                sets=kind,
            )
            for coverage in COVERAGES:
                members = judge(with_sets, judged, coverage=coverage).members
                missed = int((~members[np.arange(len(new)), y[new]]).sum())
                rank = coverage_rank(coverage, calibration_rows)
                tally(f"{kind} missed at {coverage:.0%}").add(missed, len(new), calibration_rows, rank)
    return tallies


def tally_intervals(store: Path, model: str, splits: int) -> dict[str, Tally]:
    """Tallies the coverage of intervals."""
    _, prediction, y, calibration_rows = load_pool(store, model, model)
    tallies: dict[str, Tally] = {}
    for seed in range(splits):
        order = np.random.default_rng(seed).permutation(len(y))
        known, new = order[:calibration_rows], order[calibration_rows:]
        for kind in INTERVALS:
            with_intervals = calibrate(select_rows(prediction, known), y[known], percentile=90.0, intervals=kind)
            for coverage in COVERAGES:
                low, high = judge(with_intervals, select_rows(prediction, new), coverage=coverage).interval.T
                missed = int(((y[new] < low) | (y[new] > high)).sum())
                rank = coverage_rank(coverage, calibration_rows)
                name = f"{kind} interval missed at {coverage:.0%}"
                tallies.setdefault(name, Tally([], [], [])).add(missed, len(new), calibration_rows, rank)
    return tallies


def load_pool(store: Path, model: str, data: str) -> tuple[Bundle, Prediction, np.ndarray, int]:
    """Returns a version, its predictions and targets for both parts, and the number of calibration rows."""
    name, version = resolve(store, model)
    bundle = load(store / name / str(version))
    manifest = bundle.manifest
    config = DataConfig.model_validate(manifest.data.settings)
    source = read_source(data, config, manifest.model, classify=bool(manifest.model.class_names))
    dataset = split(source, config, manifest.seed)
    if dataset.fingerprint != manifest.data.fingerprint:
        sys.exit(f"{data}: expected the data that {name}:{version} was fitted to, found other data")
    pool = Rows(
        np.concatenate([dataset.calibration.x, dataset.test.x]), np.concatenate([dataset.calibration.y, dataset.test.y])
    )
    return bundle, bundle.predictor((256,))(pool.x), pool.y, len(dataset.calibration)


def print_results(results: dict[str, Any]) -> None:
    """Prints the table."""
    print(f"{'':<34} mean rate   within the exact 95 % band    of   99 % binomial limits of this share")
    for name, row in results.items():
        verdict = "as expected" if row["low"] <= row["inside"] <= row["high"] else "NOT as expected"
        print(
            f"{name:<34} {row['mean']:>8.2%} {row['inside']:>14.1%} (band holds {row['expected']:.1%}) {row['trials']:>5}"
            f"   {row['low']:.1%} … {row['high']:.1%}  {verdict}"
        )


if __name__ == "__main__":
    sys.exit(main())
