"""Calibration: what a score means, learned from rows that were neither trained on nor are reported on.

A `Calibration` keeps every score of every calibration row: the scores' empirical distribution functions. From them come,
at any percentile, the threshold above which a row is strange, a conformal p-value for any score, the one decision, and
prediction sets and intervals. With exchangeable rows a threshold at percentile P rejects at most 100 − P percent, and at
least that minus 1/(n + 1), on average over calibration splits (Vovk et al., 2005); per predicted class, where the
calibration is asked to be (Mondrian; Vovk et al., 2003), the same holds within each of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from models.conformal import IntervalKind, SetKind, interval, interval_scores, set_scores
from models.decision import COMBINED, Decision, Ladder, combine, contributions, evidence, ladder, leave_one_out, loudest
from models.densities import DENSITIES
from models.errors import CalibrationError
from models.predictive import Prediction
from models.ranks import coverage_rank, p_value, percentile_rank
from models.scores import SCORES
from models.summaries import ClassificationSummary, PredictiveSummary, RegressionSummary

STD = Decision(scores=("std",))


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """The calibration split's scores, and what is asked of them unless a request says otherwise.

    Attributes:
        scores: each score's values, one for every row of the split, in the split's order.
        nonconformity: how ill each row's true target fits its prediction.
        labels: each row's predicted class; None for regression, and in bundles of before.
        decision: the score, or the combination of scores, whose threshold `reject` compares with.
        percentile: of the decision, strictly between 0 and 100.
        coverage: of prediction sets and intervals, strictly between 0 and 1.
        per_class: whether a row is ranked among the calibration rows of its own predicted class alone.
        sets: how prediction sets are made.
        intervals: how intervals are made.
        plain_scores: where the calibration rows were augmented, each score's values of the rows as they came; drift is
            watched against these. None where nothing was augmented, and in older bundles.
    """

    scores: dict[str, Float[np.ndarray, " rows"]]
    nonconformity: Float[np.ndarray, " rows"]
    labels: Int[np.ndarray, " rows"] | None = None
    decision: Decision = STD
    percentile: float = 99.0
    coverage: float = 0.9
    per_class: bool = False
    sets: SetKind = "lac"
    intervals: IntervalKind = "normalised"
    plain_scores: dict[str, Float[np.ndarray, " rows"]] | None = None

    @property
    def rows(self) -> int:
        """How many rows the split has."""
        return len(self.nonconformity)

    @cached_property
    def all_scores(self) -> dict[str, Float[np.ndarray, " rows"]]:
        """The scores, and the decision's combination of them, if it is one."""
        if self.decision.name != COMBINED:
            return self.scores
        parts = np.stack([leave_one_out(self.scores[name]) for name in self.decision.scores])
        return self.scores | {COMBINED: combine(self.decision, parts)}

    @cached_property
    def plain_all_scores(self) -> dict[str, Float[np.ndarray, " rows"]]:
        """Every score of the calibration rows before augmentation, the decision's combination included."""
        if self.plain_scores is None:
            return self.all_scores
        if self.decision.name != COMBINED:
            return self.plain_scores
        parts = np.stack([evidence(self.ladders[name], self.plain_scores[name]) for name in self.decision.scores])
        return self.plain_scores | {COMBINED: combine(self.decision, parts)}

    @cached_property
    def ascending(self) -> dict[str, Float[np.ndarray, " rows"]]:
        """Every score's values, ascending."""
        return {name: np.sort(values) for name, values in self.all_scores.items()}

    @cached_property
    def ladders(self) -> dict[str, Ladder]:
        """The decision's scores, made ready to say how much a new row's are worth."""
        return {name: ladder(self.ascending[name]) for name in self.decision.scores}

    @cached_property
    def by_class(self) -> dict[str, dict[int, Float[np.ndarray, " own"]]]:
        """Every score's values among the rows of each predicted class, ascending."""
        labels = np.zeros(self.rows, int) if self.labels is None else self.labels
        return {
            name: {label: np.sort(values[labels == label]) for label in np.unique(labels).tolist()}
            for name, values in self.all_scores.items()
        }

    @cached_property
    def ascending_nonconformity(self) -> Float[np.ndarray, " rows"]:
        """The nonconformity, ascending."""
        return np.sort(self.nonconformity)


class ScoreJudgement(NamedTuple):
    """One score of a batch, and where it lies among the calibration split's."""

    value: Float[np.ndarray, " batch"]
    percentile: Float[np.ndarray, " batch"]
    threshold: Float[np.ndarray, " batch"]
    p_value: Float[np.ndarray, " batch"]

    @property
    def above(self) -> Bool[np.ndarray, " batch"]:
        """Whether each value is above its threshold; one that is no number is."""
        return ~(self.value <= self.threshold)


class Judgement(NamedTuple):
    """What calibration says of a batch: the decision, each score, and a prediction set or interval.

    Attributes:
        decision: the name of the decision score among `scores`.
        reject: whether the decision score is above its threshold.
        evidence: −ln p of each score of a combination, in nats; empty where one score decides.
        contributions: what each score of a combination adds to it, weighed; empty where one score decides.
        loudest: for each row, the score that adds most.
        members: `[batch, classes]`, the classes in each row's prediction set; None for regression.
        interval: `[batch, 2]`, lower and upper end in the target's units; None for classification.
    """

    percentile: float
    coverage: float
    decision: str
    reject: Bool[np.ndarray, " batch"]
    scores: dict[str, ScoreJudgement]
    evidence: dict[str, Float[np.ndarray, " batch"]]
    contributions: dict[str, Float[np.ndarray, " batch"]]
    loudest: list[str]
    members: Bool[np.ndarray, "batch classes"] | None
    interval: Float[np.ndarray, "batch 2"] | None


def calibrate(
    prediction: Prediction,
    targets: Shaped[np.ndarray, " rows"],
    *,
    decision: Decision = STD,
    percentile: float = 99.0,
    coverage: float = 0.9,
    per_class: bool = False,
    sets: SetKind = "lac",
    intervals: IntervalKind = "normalised",
) -> Calibration:
    """The calibration of a model from its predictions for the calibration split and that split's targets.

    Args:
        targets: class indices, or numbers in the target's units.

    Raises:
        CalibrationError: the decision names no score, or the split (or, `per_class`, the rows of some predicted class)
            is too small for the percentile or coverage.
    """
    for name in decision.scores:
        if name not in prediction.scores:
            raise CalibrationError("decision", expected=f"some of {', '.join(prediction.scores)}", found=name)
    nonconformity = nonconformity_of(prediction, targets, sets, intervals)
    for name, values in {**prediction.scores, "nonconformity": nonconformity}.items():
        finite = np.isfinite(values)
        if not finite.all():
            row = int(np.argmin(finite))
            raise CalibrationError(name, where=f"calibration row {row}", expected="a finite score", found=values[row])
    calibration = Calibration(
        scores={name: np.asarray(values) for name, values in prediction.scores.items()},
        nonconformity=nonconformity,
        labels=predicted_labels(prediction.summary),
        decision=decision,
        percentile=percentile,
        coverage=coverage,
        per_class=per_class,
        sets=sets,
        intervals=intervals,
    )
    check_sizes(calibration, prediction.summary.mean.shape[-1], percentile)
    coverage_rank(coverage, calibration.rows)
    return calibration


def check_sizes(calibration: Calibration, classes: int, percentile: float) -> None:
    """Refuses a split that is too small for a percentile.

    Args:
        classes: that the model knows; where the calibration is per class, each of them needs enough rows.

    Raises:
        CalibrationError: naming the rows needed and, per class, the first class that has too few.
    """
    if not calibration.per_class:
        percentile_rank(percentile, calibration.rows)
        return
    if calibration.labels is None:
        raise CalibrationError("per_class", expected="a model of classes", found="a regression")
    for label, rows in enumerate(np.bincount(calibration.labels, minlength=classes).tolist()):
        try:
            percentile_rank(percentile, rows)
        except CalibrationError as error:
            raise CalibrationError(str(error), where=f"calibration rows predicted to be of class {label}") from error


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
    check_sizes(calibration, prediction.summary.mean.shape[-1], percentile)
    decision = calibration.decision
    # A bundle of before knows fewer scores than are computed now; what was not calibrated says nothing.
    values = {name: np.asarray(prediction.scores[name]) for name in calibration.scores}
    heard, added = {}, {}
    if decision.name == COMBINED:
        heard = {name: evidence(calibration.ladders[name], values[name]) for name in decision.scores}
        parts = np.stack(list(heard.values()))
        values[COMBINED] = combine(decision, parts)
        added = dict(zip(decision.scores, contributions(decision, parts), strict=True))
    labels = predicted_labels(prediction.summary) if calibration.per_class else None
    scores = {name: _judge_score(calibration, name, value, labels, percentile) for name, value in values.items()}
    members, ends = _conformal(calibration, prediction, coverage)
    return Judgement(
        percentile=percentile,
        coverage=coverage,
        decision=decision.name,
        reject=scores[decision.name].above,
        scores=scores,
        evidence=heard,
        contributions=added,
        loudest=loudest(added) if added else [decision.name] * len(prediction.summary.mean),
        members=members,
        interval=ends,
    )


def _judge_score(
    calibration: Calibration,
    name: str,
    values: Float[np.ndarray, " batch"],
    labels: Int[np.ndarray, " batch"] | None,
    percentile: float,
) -> ScoreJudgement:
    if labels is None:
        return _ranked(calibration.ascending[name], values, percentile)
    whole = ScoreJudgement(np.empty_like(values), *(np.empty(len(values)) for _ in range(3)))
    for label in np.unique(labels).tolist():
        own = labels == label
        part = _ranked(calibration.by_class[name][label], values[own], percentile)
        for into, found in zip(whole, part, strict=True):
            into[own] = found
    return whole


def _ranked(
    ascending: Float[np.ndarray, " rows"], values: Float[np.ndarray, " batch"], percentile: float
) -> ScoreJudgement:
    p_values = p_value(ascending, values)
    limit = ascending[percentile_rank(percentile, len(ascending)) - 1]
    return ScoreJudgement(values, 100 * (1 - p_values), np.full(len(values), limit), p_values)


def predicted_labels(summary: PredictiveSummary) -> Int[np.ndarray, " rows"] | None:
    """Each row's most probable class; None for regression."""
    return np.asarray(summary.mean).argmax(axis=1) if isinstance(summary, ClassificationSummary) else None


def nonconformity_of(
    prediction: Prediction,
    targets: Shaped[np.ndarray, " rows"],
    sets: SetKind = "lac",
    intervals: IntervalKind = "normalised",
) -> Float[np.ndarray, " rows"]:
    """How ill each target fits its prediction, as `models/conformal.py` measures it."""
    summary = prediction.summary
    if isinstance(summary, ClassificationSummary):
        return _set_scores(sets, prediction)[np.arange(len(targets)), targets.astype(int)]
    return interval_scores(intervals, *_interval_terms(summary), targets)


def _conformal(
    calibration: Calibration, prediction: Prediction, coverage: float
) -> tuple[Bool[np.ndarray, "batch classes"] | None, Float[np.ndarray, "batch 2"] | None]:
    radius = float(calibration.ascending_nonconformity[coverage_rank(coverage, calibration.rows) - 1])
    if isinstance(prediction.summary, ClassificationSummary):
        return _set_scores(calibration.sets, prediction) <= radius, None
    return None, interval(calibration.intervals, *_interval_terms(prediction.summary), radius)


def _set_scores(kind: SetKind, prediction: Prediction) -> Float[np.ndarray, "rows classes"]:
    mean = np.asarray(prediction.summary.mean)
    uniform = np.zeros(len(mean)) if prediction.uniform is None else np.asarray(prediction.uniform)
    return set_scores(kind, mean, uniform)


def _interval_terms(summary: RegressionSummary) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Mean, total standard deviation, and the outer quantiles."""
    total = np.sqrt(np.asarray(summary.aleatoric_variance) + np.asarray(summary.epistemic_variance))
    quantiles = np.asarray(summary.quantiles)
    return np.asarray(summary.mean), total, quantiles[:, 0], quantiles[:, -1]


def check_calibration(
    calibration: Calibration, task: str, densities: tuple[str, ...], where: str, *, classes: int
) -> None:
    """Refuses a stored calibration that does not fit the model's task, is not finite, or is too small for its terms.

    Args:
        densities: those that the bundle has.
        classes: how many the model tells apart; 0 for regression.

    Raises:
        CalibrationError: naming the score or the term at fault.
    """
    for name, value, limit in (("percentile", calibration.percentile, 100), ("coverage", calibration.coverage, 1)):
        if not 0 < value < limit:
            raise CalibrationError(name, where=where, expected=f"a number above 0 and below {limit}", found=value)
    known = {*SCORES["classification" if task == "classification" else "regression"], *densities}
    if not set(calibration.scores) <= known or not set(densities) <= set(DENSITIES):
        raise CalibrationError("scores", where=where, expected=sorted(known), found=sorted(calibration.scores))
    for name in calibration.decision.scores:
        if name not in calibration.scores:
            raise CalibrationError("decision", where=where, expected=sorted(calibration.scores), found=name)
    _check_plain_scores(calibration, where)
    for name, values in {**calibration.scores, "nonconformity": calibration.nonconformity}.items():
        if values.shape != (calibration.rows,) or not calibration.rows or not np.isfinite(values).all():
            raise CalibrationError(
                name, where=where, expected=f"{calibration.rows} finite numbers", found=f"shape {values.shape}"
            )
    labels = calibration.labels
    if labels is not None and (
        labels.shape != (calibration.rows,)
        or labels.dtype.kind != "i"
        or not (labels >= 0).all() & (labels < classes).all()
    ):
        raise CalibrationError(
            "labels",
            where=where,
            expected=f"{calibration.rows} class indices below {classes}",
            found=f"{labels.dtype} {labels.shape} up to {labels.max(initial=0)}",
        )
    try:
        check_sizes(calibration, classes, calibration.percentile)
        coverage_rank(calibration.coverage, calibration.rows)
    except CalibrationError as error:
        raise CalibrationError(str(error), where=where) from error


def _check_plain_scores(calibration: Calibration, where: str) -> None:
    plain = calibration.plain_scores
    if plain is None:
        return
    if plain.keys() != calibration.scores.keys():
        raise CalibrationError("plain", where=where, expected=sorted(calibration.scores), found=sorted(plain))
    for name, values in plain.items():
        if values.shape != (calibration.rows,) or not np.isfinite(values).all():
            raise CalibrationError(
                f"plain.{name}",
                where=where,
                expected=f"{calibration.rows} finite numbers",
                found=f"shape {values.shape}",
            )
