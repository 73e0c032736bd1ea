"""The metrics that `fit` records and `evaluate` reports for test rows and OOD sets.

A metric uses the served predictions (`models.prediction.predictive.Predictor`) if they contain all that it needs. No
metric is NaN: a metric without rows is left out.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Num
from scipy import stats

from abstain.models.decisions.judging import judge
from abstain.models.decisions.records import PARTS, Calibration, Judgement, ScoreJudgement
from abstain.models.errors import DataError
from abstain.models.prediction.posterior import Posterior
from abstain.models.prediction.predictive import Prediction
from abstain.models.prediction.summaries import ClassificationSummary, RegressionSummary
from abstain.training.data.rows import Rows
from abstain.training.evaluation import metrics
from abstain.training.evaluation.bootstrap import (
    LEVEL,
    PROPORTIONS,
    auroc_interval,
    calibrated_ece,
    classification_intervals,
    mean_intervals,
    proportion,
    share_interval,
)
from abstain.training.evaluation.metrics import Terms
from abstain.training.evaluation.mixtures import regression_terms, squared_errors_and_nll
from abstain.training.evaluation.records import JudgedRows
from abstain.training.evaluation.reliability import CalibrationErrors
from abstain.training.evaluation.results import (
    ClassQuality,
    ConformalQuality,
    Detection,
    Interval,
    PartQuality,
    Separation,
    SetDetection,
)

TWIN_SCORES = ("max_probability", "entropy", "total_std")
"""The scores that exist for a single network."""


# ---- how good predictions are ----------------------------------------------------------------------------------------


def prediction_quality(posterior: Posterior, prediction: Prediction, rows: Rows) -> dict[str, float]:
    """Computes `accuracy nll brier ece aurc`, or `rmse nll crps coverage_95 interval_width` in the target's units."""
    if isinstance(prediction.summary, ClassificationSummary):
        return metrics.classification_quality(np.asarray(prediction.summary.mean), rows.y)
    return metrics.average_metrics(regression_terms(posterior, prediction.summary, rows))


def metric_terms(posterior: Posterior, prediction: Prediction, rows: Rows) -> Terms:
    """Returns the terms of the metrics that are means over rows."""
    if isinstance(prediction.summary, ClassificationSummary):
        return metrics.classification_terms(np.asarray(prediction.summary.mean), rows.y)
    return regression_terms(posterior, prediction.summary, rows)


def proper_terms(posterior: Posterior, prediction: Prediction, rows: Rows) -> Terms:
    """Returns the terms of the proper scores in `checks.py`: `nll` and `brier`, for a regression `nll` and `squared_error`."""
    if isinstance(prediction.summary, ClassificationSummary):
        terms = metrics.classification_terms(np.asarray(prediction.summary.mean), rows.y)
        return {name: terms[name] for name in ("nll", "brier")}
    return squared_errors_and_nll(posterior, prediction.summary, rows)


def average_terms(prediction: Prediction, y: Num[np.ndarray, " rows"]) -> Terms:
    """Returns the terms of `proper_terms` for one prediction for all rows: the average of the model's predictions.

    For a regression it is the normal with the mean and variance of the predictive distributions pooled over rows.
    """
    summary = prediction.summary
    if isinstance(summary, ClassificationSummary):
        same = np.broadcast_to(np.asarray(summary.mean, np.float64).mean(axis=0), summary.mean.shape)
        terms = metrics.classification_terms(same, y)
        return {name: terms[name] for name in ("nll", "brier")}
    means = np.asarray(summary.mean, np.float64)
    centre, variance = means.mean(), total_variance(summary).mean() + means.var()
    return {"nll": -stats.norm.logpdf(y, centre, np.sqrt(variance)), "squared_error": (y - centre) ** 2}


def metrics_with_intervals(prediction: Prediction, terms: Terms) -> tuple[dict[str, float], dict[str, Interval]]:
    """Computes the metrics of `prediction_quality` from their terms, and their 95 % intervals."""
    if not isinstance(prediction.summary, ClassificationSummary):
        return metrics.average_metrics(terms), mean_intervals(terms)
    certain, correct = confidence(prediction), terms["accuracy"] == 1
    figures = metrics.average_metrics(terms) | {
        "ece": metrics.expected_calibration_error(certain, correct),
        "aurc": metrics.area_under_risk_coverage(certain, correct),
    }
    return figures, classification_intervals(terms, certain)


def calibration_errors(prediction: Prediction, rows: Rows) -> CalibrationErrors | None:
    """Returns the calibration errors apart from the ECE; None for a regression."""
    if not isinstance(prediction.summary, ClassificationSummary):
        return None
    probabilities = np.asarray(prediction.summary.mean)
    reference = calibrated_ece(confidence(prediction))
    return CalibrationErrors(
        ece_if_calibrated=float(reference.mean()),
        ece_if_calibrated_95=float(np.quantile(reference, LEVEL)),
        ace=metrics.adaptive_calibration_error(probabilities, rows.y),
        classwise_ece=metrics.classwise_calibration_error(probabilities, rows.y),
    )


def selective_risk(prediction: Prediction, terms: Terms) -> dict[str, float]:
    """Returns the error or RMSE of the most confident rows, by the share of rows that are kept."""
    certain = confidence(prediction)
    if isinstance(prediction.summary, ClassificationSummary):
        return metrics.risk_at_coverage(certain, 1 - terms["accuracy"])
    risks = metrics.risk_at_coverage(certain, terms["squared_error"])
    return {coverage: float(np.sqrt(risk)) for coverage, risk in risks.items()}


def confidence(prediction: Prediction) -> Float[np.ndarray, " rows"]:
    """Returns the confidence of each prediction: the largest probability, or the negative total standard deviation."""
    summary = prediction.summary
    if isinstance(summary, ClassificationSummary):
        return np.asarray(summary.mean).max(axis=1).astype(np.float64)
    return -np.sqrt(total_variance(summary))


def total_variance(summary: RegressionSummary) -> Float[np.ndarray, " rows"]:
    """Returns the predictive variance, in the target's units squared."""
    return np.asarray(summary.aleatoric_variance, np.float64) + np.asarray(summary.epistemic_variance, np.float64)


def check_finite_predictions(prediction: Prediction, where: str) -> None:
    """Refuses predictions that are not finite, because they have no mean and no rank.

    Raises:
        DataError: a prediction is not finite; the text names the first row.
    """
    leaves = prediction.summary._asdict() | prediction.scores
    finite = {name: _finite_rows(np.asarray(values)) for name, values in leaves.items()}
    every = np.logical_and.reduce(list(finite.values()))
    if not every.all():
        row = int(np.argmin(every))
        name = next(name for name, rows in finite.items() if not rows[row])
        raise DataError(
            f"row {row}",
            where=where,
            expected="a finite prediction",
            found=f"{name} {np.asarray(leaves[name])[row]}",
            fix="its inputs may lie too far from those the model was fitted on for float32",
        )


def _finite_rows(values: Float[np.ndarray, "rows ..."]) -> Bool[np.ndarray, " rows"]:
    return np.asarray(np.isfinite(values).reshape(len(values), -1).all(axis=1))


# ---- calibration's guarantees ---------------------------------------------------------------------------------------


def conformal_quality(judgement: Judgement, y: Num[np.ndarray, " rows"]) -> ConformalQuality:
    """Returns the coverage of prediction sets or intervals with its exact interval, and their mean size or width."""
    stated, inside = judgement.coverage, proportion(is_covered(judgement, y))
    if judgement.members is not None:
        return ConformalQuality(stated, inside, mean_size=float(judgement.members.sum(axis=1).mean()))
    assert judgement.interval is not None  # noqa: S101 - a judgement has one or the other
    return ConformalQuality(stated, inside, mean_width=float(np.diff(judgement.interval, axis=1).mean()))


def is_covered(judgement: Judgement, y: Num[np.ndarray, " rows"]) -> Bool[np.ndarray, " rows"]:
    """Whether each row's prediction set or interval contains the target."""
    if judgement.members is not None:
        return judgement.members[np.arange(len(y)), y]
    assert judgement.interval is not None  # noqa: S101 - a judgement has one or the other
    return (judgement.interval[:, 0] <= y) & (y <= judgement.interval[:, 1])


def part_quality(terms: Terms, chosen: Bool[np.ndarray, " rows"]) -> PartQuality:
    """Returns the number of chosen rows and, if there are any, their metrics with exact intervals of proportions."""
    rows = int(chosen.sum())
    if not rows:
        return PartQuality(0, {}, {})
    own = {name: part[chosen] for name, part in terms.items()}
    exact = {name: share_interval(int(part.sum()), rows) for name, part in own.items() if name in PROPORTIONS}
    return PartQuality(rows, metrics.average_metrics(own), exact)


def class_quality(
    names: tuple[str, ...], prediction: Prediction, judgement: Judgement, y: Num[np.ndarray, " rows"]
) -> dict[str, ClassQuality]:
    """Returns the quality of each class that has rows."""
    inside, predicted = is_covered(judgement, y), np.asarray(prediction.summary.mean).argmax(axis=1)
    classes: dict[str, ClassQuality] = {}
    for label in np.unique(y).tolist():
        own, answered = y == label, predicted == label
        classes[names[label]] = ClassQuality(
            rows=int(own.sum()),
            accuracy=proportion(answered[own]),
            reject_rate=proportion(judgement.reject[own]),
            set_coverage=proportion(inside[own]),
            predicted=int(answered.sum()),
            precision=proportion(own[answered]) if answered.any() else None,
        )
    return classes


# ---- separating OOD rows from test rows ---------------------------------------------------------------------------


def reject_rates(calibration: Calibration, prediction: Prediction, percentile: float | None = None) -> dict[str, float]:
    """Returns the share of rows above each score's threshold, and under `reject` the share that the decision rejects.

    For a decision of two parts, also the shares that are novel and ambiguous.
    """
    return rates_of(judge(calibration, prediction, percentile))


def rates_of(judgement: Judgement) -> dict[str, float]:
    """Returns the `reject_rates` of rows that are judged already."""
    rates = {name: float(score.above.mean()) for name, score in judgement.scores.items()}
    if judgement.parts is not None:
        rates |= {name: float(getattr(judgement.parts, name).mean()) for name in PARTS}
    return rates | {"reject": float(judgement.reject.mean())}


def ood_detection(familiar: JudgedRows, strange: JudgedRows) -> SetDetection:
    """Measures how well each score and the decision separate an OOD set from the test rows; OOD is positive.

    The result has `metrics.separation` of the deciding ranks (`deciding_ranks`), the AUROC's interval, and the share of OOD
    rows above the calibrated threshold.
    """
    scores = {
        name: score_detection(*deciding_ranks(familiar.judgement.scores[name], score), score.above)
        for name, score in strange.judgement.scores.items()
    }
    decided = score_detection(*deciding_ranks(familiar.decision, strange.decision), strange.judgement.reject)
    return SetDetection(len(strange.x), scores, decided)


def deciding_ranks(
    familiar: ScoreJudgement, strange: ScoreJudgement
) -> tuple[Float[np.ndarray, " test"], Float[np.ndarray, " ood"]]:
    """Ranks the rows of two sets in the order in which they are rejected: by p-value, then by excess over the threshold.

    With one threshold for all rows this is the order of the score. With a threshold for each predicted class a row is
    rejected by its p-value within its class, because scores of different classes cannot be compared.
    """
    value, threshold, p_value = (
        np.concatenate([getattr(part, field) for part in (familiar, strange)]).astype(np.float64)
        for field in ("value", "threshold", "p_value")
    )
    keys = np.stack([-p_value, value - threshold], axis=1)
    _, ranks = np.unique(keys, axis=0, return_inverse=True)
    ranks = ranks.reshape(-1).astype(np.float64)
    return ranks[: len(familiar.value)], ranks[len(familiar.value) :]


def score_detection(
    familiar: Float[np.ndarray, " test"], strange: Float[np.ndarray, " ood"], detected: Bool[np.ndarray, " ood"]
) -> Detection:
    """Measures the separation by one score, from its values, and from flags of the OOD rows above its threshold."""
    separation = metrics.separation(familiar, strange)
    return Detection(separation, auroc_interval(familiar, strange), proportion(detected))


def twin_detection(familiar: Prediction, strange: Prediction) -> dict[str, Separation]:
    """Measures how well the scores of a single network separate the sets; it has no threshold without calibration."""
    return {
        name: metrics.separation(np.asarray(familiar.scores[name]), np.asarray(strange.scores[name]))
        for name in TWIN_SCORES
        if name in familiar.scores
    }
