"""The rates that calibration promises, over random splits of rows that the model has not learned from.

    python benchmarks/guarantees.py [--splits 200] [--only LAW ...] [--no-http]
    python benchmarks/guarantees.py --model MODEL --store STORE --data DATA [--regression WAVE] [--splits 100]

Without a model: six laws of tables (`laws.py`), each with a small model. A pool of rows is scored in every batch size. It
is split at random into calibration rows, scored as calibration scores them, and new rows, as the service scores them in
each batch size. Printed are, at percentiles 90, 95 and 99, for the default decision and for every single score: the mean
reject rate over splits, how far it is above the stated one in standard errors, the share of splits whose rate is below
the upper end of the exact 99 % band, and how many verdicts, and answers (verdict, p-value or prediction set), differ
between batch sizes. One law is also fitted, published and served, and its rows are sent to `/predict` and `/v2` one at a
time and together.

With a model: its calibration and test part are pooled and split anew into as many calibration and as many test rows.
Printed are, for the reject rate at percentiles 90, 95, 99 and 99.9 overall, at 90, 95 and 99 within every predicted class
(Mondrian), and for the coverage of prediction sets at 80, 90 and 95 %, and of intervals where a regression is named: the
mean, and in how many splits the rate on the test rows lies within the exact 95 % band. That band is of the beta-binomial
law which every split conformal rate has, whatever the model; the share of splits within it should be what the band's own
mass says, but for its binomial error, which is printed next to it.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orjson
from guarantee_laws import measure_law, measure_served, print_laws
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
    """Rates found, how many lay within their band, and the mass of each band."""

    rates: list[float]
    inside: list[bool]
    mass: list[float]

    def add(self, hits: int, rows: int, calibration_rows: int, rank: int) -> None:
        """`hits` of `rows` lay above the rank-th smallest of the calibration rows."""
        law = stats.betabinom(rows, calibration_rows + 1 - rank, rank)
        low, high = int(law.ppf(0.025)), int(law.ppf(0.975))
        self.rates.append(hits / rows)
        self.inside.append(low <= hits <= high)
        self.mass.append(float(law.cdf(high) - law.cdf(low - 1)))

    def row(self) -> dict[str, float]:
        """Its line of the table."""
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
    """Measures, prints, and writes `benchmarks/results/guarantees*.json`; 1 where a rate is above the stated one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model")
    parser.add_argument("--store", type=Path)
    parser.add_argument("--data")
    parser.add_argument("--regression", help="a regression of the same store, and of an embedded set of its name")
    parser.add_argument("--splits", type=int, default=200)
    parser.add_argument("--pool", type=int, default=3_000, help="rows of each law that are split")
    parser.add_argument("--only", nargs="+", choices=LAWS, default=list(LAWS))
    parser.add_argument("--no-http", dest="http", action="store_false")
    options = parser.parse_args()
    if options.model is None:
        return of_laws(options.only, options.splits, options.pool, http=options.http)
    tallies = of_classes(options.store, options.model, options.data, options.splits)
    if options.regression:
        tallies |= of_numbers(options.store, options.regression, options.splits)
    found = {name: tally.row() for name, tally in tallies.items()}
    report(found)
    write_results("guarantees", found)
    return 0


def of_laws(names: list[str], splits: int, pool: int, *, http: bool) -> int:
    """The six laws, and one of them over HTTP."""
    found = {name: measure_law(LAWS[name], splits, pool) for name in names}
    print_laws(found)
    served = measure_served(LAWS["ties"]) if http else {}
    for line, rate in served.items():
        print(f"{line:<40} {rate}")
    write_results("guarantees_laws", {"laws": found, "http": served})
    return int(any(row["above"] > 3 for law in found.values() for row in law["rates"]))


def write_results(name: str, found: Any) -> None:
    """Writes `benchmarks/results/NAME.json`."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_bytes(orjson.dumps(found, option=orjson.OPT_INDENT_2))


def of_classes(store: Path, model: str, where: str, splits: int) -> dict[str, Tally]:
    """Reject rates, overall and per class, and the coverage of sets."""
    bundle, prediction, y, calibration_rows = pooled(store, model, where)
    decision, reference = bundle.calibration.decision, bundle.calibration.reference
    tallies: dict[str, Tally] = {}

    def tally(name: str) -> Tally:
        return tallies.setdefault(name, Tally([], [], []))

    for seed in range(splits):
        places = np.random.default_rng(seed).permutation(len(y))
        known, fresh = places[:calibration_rows], places[calibration_rows:]
        calibration = calibrate(
            taken(prediction, known), y[known], decision=decision, percentile=90.0, reference=reference
        )
        judged = taken(prediction, fresh)
        for percentile in PERCENTILES:
            rejected = judge(calibration, judged, percentile).reject
            rank = percentile_rank(percentile, calibration_rows)
            tally(f"reject at {percentile:g}").add(int(rejected.sum()), len(fresh), calibration_rows, rank)
        per_class = calibrate(
            taken(prediction, known), y[known], decision=decision, percentile=90.0, reference=reference, per_class=True
        )
        labels = np.asarray(judged.summary.mean).argmax(axis=1)
        for percentile in CLASS_PERCENTILES:
            rejected = judge(per_class, judged, percentile).reject
            for label, of_label in enumerate(np.bincount(per_class.labels).tolist()):
                own = labels == label
                rank = percentile_rank(percentile, of_label)
                tally(f"reject at {percentile:g}, per class").add(
                    int(rejected[own].sum()), int(own.sum()), of_label, rank
                )
        for kind in SETS:
            held = calibrate(
                taken(prediction, known), y[known], decision=decision, percentile=90.0, reference=reference, sets=kind
            )
            for coverage in COVERAGES:
                members = judge(held, judged, coverage=coverage).members
                missed = int((~members[np.arange(len(fresh)), y[fresh]]).sum())
                rank = coverage_rank(coverage, calibration_rows)
                tally(f"{kind} missed at {coverage:.0%}").add(missed, len(fresh), calibration_rows, rank)
    return tallies


def of_numbers(store: Path, model: str, splits: int) -> dict[str, Tally]:
    """The coverage of intervals."""
    _, prediction, y, calibration_rows = pooled(store, model, model)
    tallies: dict[str, Tally] = {}
    for seed in range(splits):
        places = np.random.default_rng(seed).permutation(len(y))
        known, fresh = places[:calibration_rows], places[calibration_rows:]
        for kind in INTERVALS:
            held = calibrate(taken(prediction, known), y[known], percentile=90.0, intervals=kind)
            for coverage in COVERAGES:
                low, high = judge(held, taken(prediction, fresh), coverage=coverage).interval.T
                missed = int(((y[fresh] < low) | (y[fresh] > high)).sum())
                rank = coverage_rank(coverage, calibration_rows)
                name = f"{kind} interval missed at {coverage:.0%}"
                tallies.setdefault(name, Tally([], [], [])).add(missed, len(fresh), calibration_rows, rank)
    return tallies


def pooled(store: Path, model: str, where: str) -> tuple[Bundle, Prediction, np.ndarray, int]:
    """A version, its predictions for the calibration and the test part of its data, and how many were the former."""
    name, version = resolve(store, model)
    bundle = load(store / name / str(version))
    manifest = bundle.manifest
    config = DataConfig.model_validate(manifest.data.settings)
    source = read_source(where, config, manifest.model, classify=bool(manifest.model.class_names))
    dataset = split(source, config, manifest.seed)
    if dataset.fingerprint != manifest.data.fingerprint:
        sys.exit(f"{where} is not what {name}:{version} was fitted with")
    both = Rows(
        np.concatenate([dataset.calibration.x, dataset.test.x]), np.concatenate([dataset.calibration.y, dataset.test.y])
    )
    return bundle, bundle.predictor((256,))(both.x), both.y, len(dataset.calibration)


def taken(prediction: Prediction, places: np.ndarray) -> Prediction:
    """The prediction of some of the rows."""
    return jax.tree.map(lambda leaf: leaf[places], prediction)


def report(found: dict[str, Any]) -> None:
    """The table."""
    print(f"{'':<34} mean rate   within the exact 95 % band    of   99 % binomial limits of that share")
    for name, row in found.items():
        verdict = "as it should be" if row["low"] <= row["inside"] <= row["high"] else "NOT as it should be"
        print(
            f"{name:<34} {row['mean']:>8.2%} {row['inside']:>14.1%} (band holds {row['expected']:.1%}) {row['trials']:>5}"
            f"   {row['low']:.1%} … {row['high']:.1%}  {verdict}"
        )


if __name__ == "__main__":
    sys.exit(main())
