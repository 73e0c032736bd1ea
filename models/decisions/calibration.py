"""Calibration: the distribution of scores on calibration rows, which are neither training rows nor test rows.

A `Calibration` stores every score of every calibration row; `models/decisions/judging.py` compares new rows with it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from abstain.models.decisions.conformal import IntervalKind, SetKind, interval_scores, set_scores
from abstain.models.decisions.decision import COMBINED, Decision
from abstain.models.decisions.radii import Among
from abstain.models.decisions.ranks import coverage_rank, exact, percentile_rank, rows_needed
from abstain.models.decisions.records import STD, Calibration
from abstain.models.decisions.risk import RiskLimit, certify
from abstain.models.decisions.venn_abers import MAX_PROBABILITY
from abstain.models.errors import CalibrationError, convert, suggest
from abstain.models.prediction.feature_scores import FEATURE_SCORES
from abstain.models.prediction.predictive import Prediction
from abstain.models.prediction.scores import SCORES
from abstain.models.prediction.summaries import ClassificationSummary, PredictiveSummary, RegressionSummary
from abstain.models.tables.unseen import UNSEEN_SCORE

REQUESTED_ERRORS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2)
"""Errors of accepted rows that a request can choose, besides the calibration's own."""


class ErrorLimit(NamedTuple):
    """The largest error of accepted rows.

    Attributes:
        max_error: the largest share of wrong answers among accepted rows, strictly between 0 and 1.
        confidence: the probability, over calibration parts, that the share is not exceeded; strictly between 0 and 1.
        error_size: for numbers, the largest distance from the target of an answer that is not wrong; None for classes.
    """

    max_error: float
    confidence: float
    error_size: float | None = None


def calibrate(
    prediction: Prediction,
    targets: Shaped[np.ndarray, " rows"],
    *,
    decision: Decision = STD,
    ambiguity: str | None = None,
    novelty_share: float = 0.5,
    error_limit: ErrorLimit | None = None,
    percentile: float = 99.0,
    coverage: float = 0.9,
    coverage_per_class: bool = False,
    coverage_among: Among = "all",
    per_class: bool = False,
    sets: SetKind = "lac",
    intervals: IntervalKind = "normalised",
    reference: dict[str, Float[np.ndarray, " reference"]] | None = None,
    target_scale: float = 1.0,
    radius_rows: Int[np.ndarray, " radius"] | None = None,
    probability_intervals: bool = False,
) -> Calibration:
    """Calibrates a model from its predictions for the calibration part and the targets of this part.

    Args:
        targets: class indices, or numbers in the target's units.
        ambiguity: the score of the ambiguity part of the decision; None if `decision` decides alone.
        novelty_share: the share of the reject budget that `decision` has, strictly between 0 and 1.
        error_limit: the largest error of accepted rows, which limits the ambiguity in place of `novelty_share`.
        coverage_per_class: whether the coverage holds within each true class.
        coverage_among: the rows over which it holds: all, or the accepted ones.
        reference: each score's values on the reference rows; without them a combined decision rejects less than stated.
        target_scale: the target's standard deviation, for regression.
        radius_rows: the rows that set the radius of sets and intervals, ascending; None for all.
        probability_intervals: whether to keep the targets, of two classes, for probability intervals.

    Raises:
        CalibrationError: the decision names an unknown score, a score is not finite, the split (with `per_class`, the
            rows of a predicted class; with `coverage_per_class`, those of a true class) is too small for the percentile or
            coverage, or the coverage cannot hold among the accepted rows.
    """
    for key, name in [("decision", name) for name in decision.scores] + [("ambiguity", ambiguity)]:
        if name is not None and name not in prediction.scores:
            raise CalibrationError(
                key,
                expected=f"some of {', '.join(prediction.scores)}",
                found=name,
                fix=suggest(name, prediction.scores),
            )
    nonconformity = nonconformity_of(prediction, targets, sets, intervals)
    for name, values in {**prediction.scores, "nonconformity": nonconformity}.items():
        _check_finite(name, np.asarray(values), "calibration row")
    for name, values in (reference or {}).items():
        _check_finite(name, values, "reference row")
    calibration = Calibration(
        scores={name: np.asarray(values) for name, values in prediction.scores.items()},
        nonconformity=nonconformity,
        labels=predicted_labels(prediction.summary),
        decision=decision,
        ambiguity=ambiguity,
        novelty_share=novelty_share,
        percentile=percentile,
        coverage=coverage,
        per_class=per_class,
        coverage_among=coverage_among,
        true_classes=targets.astype(int) if coverage_per_class else None,
        sets=sets,
        intervals=intervals,
        reference=reference,
        target_scale=target_scale,
        radius_rows=radius_rows,
        targets=targets.astype(np.int32) if probability_intervals else None,
    )
    classes = prediction.summary.mean.shape[-1]
    check_sizes(calibration, classes, percentile)
    check_coverage(calibration, classes, limits_error=error_limit is not None)
    if error_limit is None:
        return calibration
    if ambiguity is None:
        raise CalibrationError("ambiguity", expected="a score, with a limit of the error", found="none")
    wrong = wrong_answers(prediction.summary, targets, error_limit.error_size)
    limits = limit_error(replace(calibration, ambiguity=None), ambiguity, wrong, error_limit)
    return replace(calibration, risk=limits[0], other_limits=limits[1:])


def wrong_answers(
    summary: PredictiveSummary, targets: Shaped[np.ndarray, " rows"], error_size: float | None
) -> Bool[np.ndarray, " rows"]:
    """Returns which rows have another class than the predicted one, or a target farther from the mean than `error_size`.

    Raises:
        CalibrationError: numbers without an `error_size`.
    """
    labels = predicted_labels(summary)
    if labels is not None:
        return labels != targets
    if error_size is None:
        raise CalibrationError("error_size", expected="the largest error of an answer that is not wrong", found="none")
    return np.abs(targets.astype(np.float64) - np.asarray(summary.mean, np.float64)) > error_size


def limit_error(
    calibration: Calibration, ambiguity: str, wrong: Bool[np.ndarray, " rows"], limit: ErrorLimit
) -> tuple[RiskLimit, ...]:
    """Finds the largest ambiguity of rows that are accepted, so that their error is limited.

    Returns the limit that is asked for, then those for the errors of `REQUESTED_ERRORS`. Each holds with the confidence alone.

    The rows from `Calibration.least_novel` on are left out: the rows below the novelty threshold are independent draws of
    the law below it, so those below a fixed function of it are, too.

    Args:
        calibration: of the novelty part alone.
        wrong: which calibration rows have a wrong answer.
    """
    novelty = calibration.all_scores[calibration.decision_name]
    novel = ~(novelty.astype(np.float64) < calibration.least_novel)
    errors = [limit.max_error, *(error for error in REQUESTED_ERRORS if error != limit.max_error)]
    return tuple(
        certify(calibration.scores[ambiguity], novel, wrong, max_error=error, confidence=limit.confidence)
        for error in errors
    )


def _check_finite(name: str, values: Float[np.ndarray, " rows"], row_kind: str) -> None:
    finite = np.isfinite(values)
    if not finite.all():
        row = int(np.argmin(finite))
        raise CalibrationError(name, where=f"{row_kind} {row}", expected="a finite score", found=values[row])


def check_sizes(calibration: Calibration, classes: int, percentile: float) -> None:
    """Refuses a split that is too small for a percentile.

    Args:
        classes: the number of classes; if the calibration is per class, each of them needs enough rows.

    Raises:
        CalibrationError: names the number of rows needed and, per class, the first class with too few rows.
    """
    if not calibration.per_class:
        percentile_rank(percentile, calibration.rows)
        return
    if calibration.ambiguity is not None:
        raise CalibrationError("per_class", expected="false for a decision of novelty and ambiguity", found="true")
    if calibration.labels is None:
        raise CalibrationError("per_class", expected="a model of classes", found="a regression")
    counts = np.bincount(calibration.labels, minlength=classes)
    for label in np.flatnonzero(counts < rows_needed(exact(percentile) / 100))[:1].tolist():
        try:
            percentile_rank(percentile, int(counts[label]))
        except CalibrationError as error:
            raise convert(error, CalibrationError, f"calibration rows predicted to be of class {label}") from error


def check_coverage(calibration: Calibration, classes: int, *, limits_error: bool) -> None:
    """Refuses a coverage that the calibration rows cannot give: there are too few, or the rows accepted depend on targets.

    Args:
        classes: the number of classes, ignored for regression.
        limits_error: whether the error of accepted rows is limited.

    Raises:
        CalibrationError: names the setting, or the number of rows needed.
    """
    if calibration.true_classes is not None and calibration.labels is None:
        raise CalibrationError("coverage_per_class", expected="a model of classes", found="a regression")
    if calibration.coverage_among == "accepted" and (limits_error or calibration.per_class):
        setting = "max_error" if limits_error else "per_class"
        raise CalibrationError("coverage_among", expected=f'"all" with {setting}', found='"accepted"')
    if (
        calibration.coverage_among == "accepted"
        and calibration.decision.name == COMBINED
        and calibration.reference is None
    ):
        expected = "reference rows, which make the combined score a fixed function of a row"
        raise CalibrationError("coverage_among", expected=expected, found='"accepted" without reference rows')
    if calibration.has_one_radius:
        coverage_rank(calibration.coverage, calibration.radius_count)
    else:
        calibration.radii(calibration.percentile, calibration.coverage, classes)


def predicted_labels(summary: PredictiveSummary) -> Int[np.ndarray, " rows"] | None:
    """Returns each row's most probable class; None for regression."""
    return np.asarray(summary.mean).argmax(axis=1) if isinstance(summary, ClassificationSummary) else None


def nonconformity_of(
    prediction: Prediction,
    targets: Shaped[np.ndarray, " rows"],
    sets: SetKind = "lac",
    intervals: IntervalKind = "normalised",
) -> Float[np.ndarray, " rows"]:
    """Returns how badly each target fits its prediction, as defined in `models/decisions/conformal.py`."""
    summary = prediction.summary
    if isinstance(summary, ClassificationSummary):
        return set_scores_of(sets, prediction)[np.arange(len(targets)), targets.astype(int)]
    return interval_scores(intervals, *interval_inputs(summary), targets)


def set_scores_of(kind: SetKind, prediction: Prediction) -> Float[np.ndarray, "rows classes"]:
    """Returns the nonconformity score of every class of every row, by which prediction sets are built."""
    mean = np.asarray(prediction.summary.mean)
    uniform = np.zeros(len(mean)) if prediction.uniform is None else np.asarray(prediction.uniform)
    return set_scores(kind, mean, uniform)


def interval_inputs(summary: RegressionSummary) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Returns mean, total standard deviation, and the lowest and the highest quantile."""
    total = np.sqrt(np.asarray(summary.aleatoric_variance) + np.asarray(summary.epistemic_variance))
    quantiles = np.asarray(summary.quantiles)
    return np.asarray(summary.mean), total, quantiles[:, 0], quantiles[:, -1]


def check_calibration(
    calibration: Calibration,
    task: str,
    feature_scores: tuple[str, ...],
    where: str,
    *,
    classes: int,
    rejects_unseen: bool = False,
) -> None:
    """Refuses a stored calibration that does not fit the model's task, is not finite, or is too small for its settings.

    Args:
        feature_scores: the names of the bundle's feature scores.
        classes: the number of classes; 0 for regression.
        rejects_unseen: whether the model has columns whose unseen categories reject a row, so that these must be counted.

    Raises:
        CalibrationError: names the wrong score or setting.
    """
    for name, value, limit in (("percentile", calibration.percentile, 100), ("coverage", calibration.coverage, 1)):
        if not 0 < value < limit:
            raise CalibrationError(name, where=where, expected=f"a number above 0 and below {limit}", found=value)
    counted = {UNSEEN_SCORE} if rejects_unseen else set[str]()
    known = {*SCORES["classification" if task == "classification" else "regression"], *feature_scores, *counted}
    if not set(calibration.scores) <= known or not set(feature_scores) <= set(FEATURE_SCORES):
        raise CalibrationError("scores", where=where, expected=sorted(known), found=sorted(calibration.scores))
    if not counted <= set(calibration.scores):
        expected = f"the score {UNSEEN_SCORE} too, which the model's columns need"
        raise CalibrationError("scores", where=where, expected=expected, found=sorted(calibration.scores))
    for name in calibration.decision.scores:
        if name not in set(calibration.scores) - counted:
            expected = sorted(set(calibration.scores) - counted)
            raise CalibrationError("decision", where=where, expected=expected, found=name)
    if (
        calibration.ambiguity is not None
        and calibration.ambiguity not in set(calibration.scores) - set(calibration.decision.scores) - counted
    ):
        expected = f"a score that the decision does not use, of {sorted(calibration.scores)}"
        raise CalibrationError("ambiguity", where=where, expected=expected, found=repr(calibration.ambiguity))
    if calibration.risk is not None and calibration.ambiguity is None:
        raise CalibrationError("ambiguity", where=where, expected="the score whose limit is in risk", found="none")
    if not 0 < calibration.novelty_share < 1:
        expected, found = "a number above 0 and below 1", calibration.novelty_share
        raise CalibrationError("novelty_share", where=where, expected=expected, found=found)
    _check_plain_scores(calibration, where)
    for name, values in {**calibration.scores, "nonconformity": calibration.nonconformity}.items():
        if values.shape != (calibration.rows,) or not calibration.rows or not np.isfinite(values).all():
            raise CalibrationError(
                name, where=where, expected=f"{calibration.rows} finite numbers", found=f"shape {values.shape}"
            )
    _check_reference(calibration, where)
    _check_radius_rows(calibration, where)
    _check_targets(calibration, where, classes)
    for key, labels in (("labels", calibration.labels), ("true_classes", calibration.true_classes)):
        if labels is not None and (
            labels.shape != (calibration.rows,)
            or labels.dtype.kind != "i"
            or not (labels >= 0).all() & (labels < classes).all()
        ):
            raise CalibrationError(
                key,
                where=where,
                expected=f"{calibration.rows} class indices below {classes}",
                found=f"{labels.dtype} {labels.shape} up to {labels.max(initial=0)}",
            )
    try:
        check_sizes(calibration, classes, calibration.percentile)
        check_coverage(calibration, classes, limits_error=calibration.risk is not None)
    except CalibrationError as error:
        raise convert(error, CalibrationError, where) from error


def _check_radius_rows(calibration: Calibration, where: str) -> None:
    found = calibration.radius_rows
    if found is None:
        return
    whole = found.ndim == 1 and found.dtype.kind == "i" and len(found) > 0
    # Differences of int32 could overflow.
    if not whole or found[0] < 0 or found[-1] >= calibration.rows or not (found[:-1] < found[1:]).all():
        raise CalibrationError(
            "radius_rows",
            where=where,
            expected=f"different whole numbers from 0 to {calibration.rows - 1}, ascending",
            found=f"{found.dtype} {found.shape}",
        )


def _check_targets(calibration: Calibration, where: str, classes: int) -> None:
    found = calibration.targets
    if found is None:
        return
    if classes != 2 or calibration.labels is None or MAX_PROBABILITY not in calibration.scores:
        expected = f"none without two classes, labels and the score {MAX_PROBABILITY}"
        raise CalibrationError("targets", where=where, expected=expected, found=f"{len(found)} rows, {classes} classes")
    if found.shape != (calibration.rows,) or found.dtype.kind != "i" or not ((found == 0) | (found == 1)).all():
        expected = f"{calibration.rows} numbers, each 0 or 1"
        raise CalibrationError("targets", where=where, expected=expected, found=f"{found.dtype} {found.shape}")


def _check_reference(calibration: Calibration, where: str) -> None:
    if calibration.reference is None:
        return
    shapes = {name: values.shape for name, values in calibration.reference.items()}
    if set(shapes) != set(calibration.scores) or len({*shapes.values()}) != 1 or 0 in next(iter(shapes.values())):
        raise CalibrationError(
            "reference", where=where, expected=f"as many rows of {sorted(calibration.scores)}", found=shapes
        )
    for name, values in calibration.reference.items():
        _check_finite(f"reference {name}", values, f"{where}, row")


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
