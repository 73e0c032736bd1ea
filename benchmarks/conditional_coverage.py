"""Coverage among the accepted rows and within each true class (`models/decisions/radii.py`). A few minutes.

    python benchmarks/conditional_coverage.py [--splits 400]

Each split draws n calibration rows and 500 new rows, calibrates and judges them with the code that serves. For each setting it
prints the coverage of the accepted new rows, with its standard error over splits: with `coverage_among = "accepted"`, and, for
contrast, with the default, whose coverage holds over all rows. Laws of numbers (residuals of a prediction of 0):

    spread     the residuals' scale grows with both scores: rejected rows are covered much worse
    falling    it falls with them: accepted rows are covered worse than all rows
    ties       as spread, but the scores have a dozen values, so many rows tie with the threshold

Decisions: one score; two scores that share the budget (novelty has 0.7 of it). It says whether each coverage is at least the
stated one − 3 s.e.; without ties also whether it is at most the stated one + 1/(m + 1) + 3 s.e., for m accepted
calibration rows.

Then classes: 2 % of the rows are of a class that the model hardly predicts, and its rows have higher scores. It prints the
coverage of this class, with `coverage_per_class`, of its accepted rows with both settings, and with the default. A class
has a random number of calibration rows, so the upper limit is the mean of stated + 1/(m + 1) over splits.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from servers import print_progress, save_results

from abstain.models.decisions.calibration import calibrate
from abstain.models.decisions.decision import Decision
from abstain.models.decisions.judging import judge
from abstain.models.decisions.ranks import percentile_rank, rows_needed
from abstain.models.errors import CalibrationError
from abstain.models.prediction.predictive import Prediction
from abstain.models.prediction.summaries import ClassificationSummary, RegressionSummary

LAWS = ("spread", "falling", "ties")
SIZES = (99, 300, 1000)
PERCENTILES = (80.0, 90.0, 95.0, 99.0)
COVERAGES = (0.8, 0.9, 0.95)
NEW_ROWS = 500
CLASS_SIZES = (1000, 3000)
RARE = 0.02
DEVIATIONS = 3.0
SINGLE = Decision(scores=("std",))
DECISIONS: dict[str, dict[str, Any]] = {
    "one score": {},
    "two parts": {"ambiguity": "total_std", "novelty_share": 0.7},
}


class Drawn(NamedTuple):
    """Predictions of rows, and their targets."""

    prediction: Prediction
    targets: Float[np.ndarray, " rows"] | Int[np.ndarray, " rows"]


def draw_numbers(law: str, rng: np.random.Generator, rows: int) -> Drawn:
    """Draws rows with two dependent scores, by which the scale of the residuals grows or falls."""
    novelty = rng.normal(size=rows)
    ambiguity = 0.5 * novelty + rng.normal(size=rows)
    if law == "ties":
        novelty, ambiguity = np.round(2 * novelty) / 2, np.round(2 * ambiguity) / 2
    sign = -1 if law == "falling" else 1
    targets = rng.normal(size=rows) * np.exp(sign * (0.6 * novelty + 0.4 * ambiguity))
    zeros, ones = np.zeros(rows, np.float32), np.ones(rows, np.float32)
    summary = RegressionSummary(zeros, ones, zeros, zeros, np.zeros((rows, 3), np.float32))
    scores = {"std": novelty.astype(np.float32), "total_std": ambiguity.astype(np.float32)}
    return Drawn(Prediction(summary, scores), targets)


def draw_classes(rng: np.random.Generator, rows: int) -> Drawn:
    """Draws rows of three classes; the last is rare, the model gives it a low probability, and its scores are higher."""
    targets = np.where(rng.random(rows) < RARE, 2, rng.integers(0, 2, rows))
    rare = targets == 2
    logits = rng.normal(size=(rows, 3)) + np.where(rare[:, None], [0, 0, 1.0], 2.5 * np.eye(3)[targets] - [0, 0, 1.5])
    mean = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    zeros = np.zeros(rows, np.float32)
    scores = {"std": (rng.normal(size=rows) + 0.7 * rare).astype(np.float32)}
    summary = ClassificationSummary(mean.astype(np.float32), np.zeros((rows, 3), np.float32), zeros, zeros, zeros)
    return Drawn(Prediction(summary, scores), targets)


def split(drawn: Drawn, rows: int) -> tuple[Drawn, Drawn]:
    """Splits rows into calibration rows and new rows."""
    return tuple(  # pyright: ignore[reportReturnType]
        Drawn(
            Prediction(
                type(drawn.prediction.summary)(*(part[chosen] for part in drawn.prediction.summary)),
                {name: values[chosen] for name, values in drawn.prediction.scores.items()},
            ),
            drawn.targets[chosen],
        )
        for chosen in (slice(None, rows), slice(rows, None))
    )


class Coverages:
    """Coverages of parts of the new rows, over splits; each split weighs as many rows as its part has."""

    def __init__(self) -> None:
        """Starts without splits."""
        self.hits: list[int] = []
        self.rows: list[int] = []
        self.most: list[float] = []

    def add(self, inside: Any, most: float) -> None:
        """Adds a split: which rows are covered, and the largest coverage that is expected."""
        self.hits.append(int(inside.sum()))
        self.rows.append(len(inside))
        self.most.append(most)

    def summary(self, stated: float, *, bounded_above: bool) -> dict[str, Any]:
        """Returns mean, standard error (of a ratio, over splits), and whether the limits hold."""
        hits, rows = np.array(self.hits), np.array(self.rows)
        mean = float(hits.sum() / rows.sum())
        error = float(np.sqrt(np.sum((hits - mean * rows) ** 2)) / rows.sum())
        most = float(np.mean(self.most)) + DEVIATIONS * error
        holds = mean >= stated - DEVIATIONS * error and (not bounded_above or mean <= most)
        return {"coverage": mean, "error": error, "most": float(np.mean(self.most)), "holds": bool(holds)}


def is_covered(judgement: Any, targets: Any) -> Any:
    """Returns whether each set or interval contains the target."""
    if judgement.members is not None:
        return judgement.members[np.arange(len(targets)), targets]
    return (judgement.interval[:, 0] <= targets) & (targets <= judgement.interval[:, 1])


def measure_numbers(law: str, name: str, rows: int, splits: int) -> Iterator[dict[str, Any]]:
    """Yields the coverage of accepted rows, for every percentile and coverage that so many rows have."""
    rng = np.random.default_rng([LAWS.index(law), list(DECISIONS).index(name), rows])
    found: defaultdict[tuple[float, float, str], Coverages] = defaultdict(Coverages)
    for _ in range(splits):
        known, new = split(draw_numbers(law, rng, rows + NEW_ROWS), rows)
        for among in ("accepted", "all"):
            calibration = calibrate(
                known.prediction,
                known.targets,
                decision=SINGLE,
                percentile=80.0,
                coverage_among=among,
                **DECISIONS[name],
            )
            for percentile in PERCENTILES:
                for coverage in COVERAGES:
                    accepted = percentile_rank(percentile, rows) - 1
                    judgement = judge(calibration, new.prediction, percentile, coverage)
                    inside = is_covered(judgement, new.targets)[~judgement.reject]
                    found[percentile, coverage, among].add(inside, coverage + 1 / (accepted + 1))
    for (percentile, coverage, among), coverages in found.items():
        if among == "accepted":
            default = found[percentile, coverage, "all"]
            yield {
                "law": law,
                "decision": name,
                "calibration_rows": rows,
                "percentile": percentile,
                "stated": coverage,
                **coverages.summary(coverage, bounded_above=law != "ties"),
                "default": default.summary(coverage, bounded_above=False)["coverage"],
            }


CLASS_SETTINGS: dict[str, dict[str, Any]] = {
    "per class": {"coverage_per_class": True},
    "per class, accepted": {"coverage_per_class": True, "coverage_among": "accepted"},
    "default": {},
}


def measure_classes(rows: int, coverage: float, splits: int) -> Iterator[dict[str, Any]]:
    """Yields the coverage of the rare class with each setting, in the splits in which it has enough calibration rows."""
    rng, found = np.random.default_rng([rows, int(100 * coverage)]), {name: Coverages() for name in CLASS_SETTINGS}
    skipped = 0
    for _ in range(splits):
        known, new = split(draw_classes(rng, rows + 4 * NEW_ROWS), rows)
        try:
            calibrations = {
                name: calibrate(
                    known.prediction, known.targets, decision=SINGLE, percentile=90.0, coverage=coverage, **terms
                )
                for name, terms in CLASS_SETTINGS.items()
            }
        except CalibrationError:
            skipped += 1
            continue
        for name, calibration in calibrations.items():
            judgement = judge(calibration, new.prediction)
            chosen = new.targets == 2
            if calibration.coverage_among == "accepted":
                chosen &= ~judgement.reject
            counted = 0 if calibration.has_one_radius else calibration.radii(90.0, coverage, 3).rows[2]
            found[name].add(is_covered(judgement, new.targets)[chosen], coverage + 1 / (counted + 1))
    for name in ("per class", "per class, accepted"):
        yield {
            "law": "rare class",
            "decision": name,
            "calibration_rows": rows,
            "percentile": 90.0,
            "stated": coverage,
            **found[name].summary(coverage, bounded_above=True),
            "default": found["default"].summary(coverage, bounded_above=False)["coverage"],
            "skipped": skipped,
        }


def print_row(row: dict[str, Any]) -> None:
    """Prints a line of the table."""
    print(
        f"{row['law']:>10} {row['decision']:>19} {row['calibration_rows']:>5} {row['percentile']:>4g} {row['stated']:>6g} "
        f"{row['coverage']:>8.4f} {row['error']:>7.4f} {row['most']:>7.4f} {row['default']:>8.4f}"
        f"{'' if row['holds'] else '  outside its limits'}",
        flush=True,
    )


def main() -> int:
    """Prints the table, writes `benchmarks/results/conditional_coverage.json`; 1 if a coverage is outside its limits."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--splits", type=int, default=400)
    splits = parser.parse_args().splits
    print(f"{splits} splits, {NEW_ROWS} new rows; of the rare class {4 * NEW_ROWS} new rows of all classes")
    print(
        f"{'law':>10} {'decision':>19} {'n':>5} {'P':>4} {'stated':>6} {'coverage':>8} {'s.e.':>7} {'most':>7} {'default':>8}"
    )
    results: list[dict[str, Any]] = []
    for law in LAWS:
        for name in DECISIONS:
            for rows in SIZES:
                for row in measure_numbers(law, name, rows, splits):
                    results.append(row)
                    print_row(row)
        print_progress(f"{law}: done")
    for rows in CLASS_SIZES:
        for coverage in COVERAGES:
            if RARE * 0.5 * rows >= rows_needed(coverage):
                for row in measure_classes(rows, coverage, splits):
                    results.append(row)
                    print_row(row)
    held = sum(row["holds"] for row in results)
    print(f"within the limits in {held} of {len(results)} settings")
    save_results("conditional_coverage", {"splits": splits, "rows": results})
    return int(held < len(results))


if __name__ == "__main__":
    sys.exit(main())
