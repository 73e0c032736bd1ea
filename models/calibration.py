"""Calibration: what a score means, learned from rows that were neither trained on nor are reported on.

A `Calibration` keeps every score of the calibration split in ascending order: its empirical distribution function.
From it come, at any percentile, the threshold above which a row is strange, a conformal p-value for any score, and
prediction sets and intervals. With exchangeable rows a threshold at percentile P rejects at most 100 − P percent,
and at least that minus 1/(n + 1), on average over calibration splits (Vovk et al., 2005).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from models.errors import CalibrationError
from models.predictive import Prediction
from models.scores import SCORES
from models.summaries import ClassificationSummary, PredictiveSummary, RegressionSummary


@dataclass(frozen=True)
class Calibration:
    """The calibration split's scores, and what is asked of them unless a request says otherwise.

    Attributes:
        scores: each score's values on the split, ascending.
        nonconformity: how ill each true target fits its prediction, ascending (`nonconformity_of`).
        decision: the score whose threshold `reject` compares with.
        percentile: of the decision, strictly between 0 and 100.
        coverage: of prediction sets and intervals, strictly between 0 and 1.
    """

    scores: dict[str, Float[np.ndarray, " rows"]]
    nonconformity: Float[np.ndarray, " rows"]
    decision: str
    percentile: float
    coverage: float

    @property
    def rows(self) -> int:
        """How many rows the split has."""
        return len(self.nonconformity)


class ScoreJudgement(NamedTuple):
    """One score of a batch, and where it lies among the calibration split's."""

    value: Float[np.ndarray, " batch"]
    percentile: Float[np.ndarray, " batch"]
    threshold: float
    p_value: Float[np.ndarray, " batch"]


class Judgement(NamedTuple):
    """What calibration says of a batch: the decision, each score, and a prediction set or interval.

    Attributes:
        members: `[batch, classes]`, the classes in each row's prediction set; None for regression.
        interval: `[batch, 2]`, lower and upper end in the target's units; None for classification.
    """

    percentile: float
    coverage: float
    decision: str
    reject: Bool[np.ndarray, " batch"]
    scores: dict[str, ScoreJudgement]
    members: Bool[np.ndarray, "batch classes"] | None
    interval: Float[np.ndarray, "batch 2"] | None


def calibrate(
    prediction: Prediction,
    targets: Int[np.ndarray, " rows"] | Float[np.ndarray, " rows"],
    *,
    decision: str = "std",
    percentile: float = 99.0,
    coverage: float = 0.9,
) -> Calibration:
    """The calibration of a model from its predictions for the calibration split and that split's targets.

    Raises:
        CalibrationError: the decision names no score, or the split is too small for the percentile or coverage.
    """
    if decision not in prediction.scores:
        raise CalibrationError("decision", expected=f"one of {', '.join(prediction.scores)}", found=decision)
    nonconformity = nonconformity_of(prediction.summary, targets)
    for name, values in {**prediction.scores, "nonconformity": nonconformity}.items():
        finite = np.isfinite(values)
        if not finite.all():
            row = int(np.argmin(finite))
            raise CalibrationError(name, where=f"calibration row {row}", expected="a finite score", found=values[row])
    calibration = Calibration(
        scores={name: np.sort(np.asarray(values)) for name, values in prediction.scores.items()},
        nonconformity=np.sort(nonconformity),
        decision=decision,
        percentile=percentile,
        coverage=coverage,
    )
    percentile_rank(percentile, calibration.rows)
    coverage_rank(coverage, calibration.rows)
    return calibration


def percentile_rank(percentile: float, rows: int) -> int:
    """The rank of the threshold at a percentile, strictly between 0 and 100; raises as `rank_of` does."""
    return rank_of(exact(percentile) / 100, rows, f"the {ordinal(percentile)} percentile")


def coverage_rank(coverage: float, rows: int) -> int:
    """The rank of the radius of sets and intervals, strictly between 0 and 1; raises as `rank_of` does."""
    return rank_of(coverage, rows, f"coverage {coverage!r}")


def exact(number: float | Fraction) -> Fraction:
    """The shortest decimal that reads back as this float, exactly: 99.9 means 999/10, which no float is."""
    return number if isinstance(number, Fraction) else Fraction(repr(float(number)))


def ordinal(percentile: float) -> str:
    """99 → "99th", 91 → "91st", 99.5 → "99.5th"."""
    text = repr(float(percentile)).removesuffix(".0")
    suffix = {"1": "st", "2": "nd", "3": "rd"}.get(text[-1], "th")
    return text + ("th" if "." in text or text in {"11", "12", "13"} else suffix)


def rank_of(level: float | Fraction, rows: int, asked: str) -> int:
    """⌈(rows + 1)·level⌉, the conformal rank, in exact arithmetic.

    Raises:
        CalibrationError: that rank is beyond the last row; the message names the rows needed.
    """
    rank = math.ceil((rows + 1) * exact(level))
    if rank > rows:
        raise CalibrationError(
            f"{asked} needs a larger calibration split",
            expected=f"at least {rows_needed(level)} rows",
            found=f"{rows} rows",
            fix="ask for less, or calibrate on more",
        )
    return rank


def rows_needed(level: float | Fraction) -> int:
    """The smallest calibration split for which `level`, between 0 and 1, has a threshold: ⌈level / (1 − level)⌉."""
    return math.ceil(exact(level) / (1 - exact(level)))


def threshold(ascending: Float[np.ndarray, " rows"], percentile: float) -> float:
    """The ⌈(n + 1)·P/100⌉-th smallest of the n calibration scores.

    Raises:
        CalibrationError: n is too small for P.
    """
    return float(ascending[percentile_rank(percentile, len(ascending)) - 1])


def p_value(ascending: Float[np.ndarray, " rows"], values: Float[np.ndarray, " batch"]) -> Float[np.ndarray, " batch"]:
    """The conformal p-value (1 + #{calibration ≥ s}) / (n + 1) of each score s."""
    at_least = len(ascending) - np.searchsorted(ascending, values, side="left")
    return (1 + at_least) / (len(ascending) + 1)


def judge(
    calibration: Calibration, prediction: Prediction, percentile: float | None = None, coverage: float | None = None
) -> Judgement:
    """The decision, the scores' places, and the conformal sets or intervals of a batch.

    Args:
        percentile: instead of the calibration's own, strictly between 0 and 100.
        coverage: instead of the calibration's own, strictly between 0 and 1.

    Raises:
        CalibrationError: the calibration split is too small for what is asked.
    """
    percentile = calibration.percentile if percentile is None else percentile
    coverage = calibration.coverage if coverage is None else coverage
    scores = {
        name: _judge_score(calibration.scores[name], np.asarray(values), percentile)
        for name, values in prediction.scores.items()
    }
    members, interval = _conformal(calibration, prediction.summary, coverage)
    decided = scores[calibration.decision]
    reject = ~(decided.value <= np.float32(decided.threshold))  # a score that is no number is strange, too
    return Judgement(percentile, coverage, calibration.decision, reject, scores, members, interval)


def _judge_score(
    ascending: Float[np.ndarray, " rows"], values: Float[np.ndarray, " batch"], percentile: float
) -> ScoreJudgement:
    p_values = p_value(ascending, values)
    return ScoreJudgement(values, 100 * (1 - p_values), threshold(ascending, percentile), p_values)


def nonconformity_of(summary: PredictiveSummary, targets: np.ndarray) -> Float[np.ndarray, " rows"]:
    """How ill targets fit: 1 − the true class's probability (LAC; Sadinle et al., 2019), or |y − mean| / std.

    The second is split conformal on residuals normalised by the total std (Lei et al., 2018).
    """
    if isinstance(summary, ClassificationSummary):
        return 1 - np.asarray(summary.mean)[np.arange(len(targets)), targets]
    return np.abs(targets - np.asarray(summary.mean)) / _total_std(summary)


def _conformal(
    calibration: Calibration, summary: PredictiveSummary, coverage: float
) -> tuple[Bool[np.ndarray, "batch classes"] | None, Float[np.ndarray, "batch 2"] | None]:
    radius = calibration.nonconformity[coverage_rank(coverage, calibration.rows) - 1]
    if isinstance(summary, ClassificationSummary):
        return 1 - np.asarray(summary.mean) <= radius, None
    mean, half = np.asarray(summary.mean), radius * _total_std(summary)
    return None, np.stack([mean - half, mean + half], axis=1)


def _total_std(summary: RegressionSummary) -> Float[np.ndarray, " rows"]:
    return np.sqrt(np.asarray(summary.aleatoric_variance) + np.asarray(summary.epistemic_variance))


def check_calibration(calibration: Calibration, task: str, where: str) -> None:
    """Refuses a stored calibration that does not fit the model's task, is unordered or not finite.

    Raises:
        CalibrationError: naming the score at fault.
    """
    expected = SCORES["classification" if task == "classification" else "regression"]
    if set(calibration.scores) != set(expected):
        raise CalibrationError("scores", where=where, expected=sorted(expected), found=sorted(calibration.scores))
    if calibration.decision not in expected:
        raise CalibrationError("decision", where=where, expected=sorted(expected), found=calibration.decision)
    for name, values in {**calibration.scores, "nonconformity": calibration.nonconformity}.items():
        if values.shape != (calibration.rows,) or not np.isfinite(values).all() or np.any(np.diff(values) < 0):
            raise CalibrationError(
                name,
                where=where,
                expected=f"{calibration.rows} finite numbers, ascending",
                found=f"shape {values.shape}",
            )
