"""The data of a report: predictions by the serving code for the test part, OOD sets and a curve along one input.

A part that cannot be computed is left out, and a sentence gives the reason; the fit is still published.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Num

from abstain.models.decisions.judging import judge
from abstain.models.errors import DataError
from abstain.models.prediction.posterior import Model, Posterior
from abstain.models.prediction.predictive import Prediction
from abstain.models.prediction.summaries import ClassificationSummary
from abstain.training.calibration.pipeline import Calibrated
from abstain.training.data.rows import Rows
from abstain.training.evaluation import metrics
from abstain.training.evaluation.baselines import Baseline
from abstain.training.evaluation.quality import (
    check_finite_predictions,
    confidence,
    ood_detection,
    prediction_quality,
    rates_of,
)
from abstain.training.evaluation.records import Curve, JudgedRows, ReportView
from abstain.training.evaluation.reliability import ReliabilityBins
from abstain.training.evaluation.results import ClassColumns
from abstain.training.evaluation.served_quality import ServedQuality

POINTS = 256
"""The number of points of a curve, one bucket of the predictor."""
BEYOND = 0.25
"""The extension of a curve beyond the training rows on each side, as a share of their range."""
MOST_CLASSES = 100
"""The largest number of classes of which a manifest and a report have a table."""
Inputs = Num[np.ndarray, "rows ..."]


def predict_test_part(
    name: str, posterior: Posterior, calibrated: Calibrated, rows: Rows, sets: dict[str, Inputs]
) -> tuple[ReportView | None, dict[str, str]]:
    """Predicts and judges the test rows and OOD sets; returns also the reason for each missing part.

    If a test row has no finite prediction, there is no view, because no curve could be drawn.
    """
    absent: dict[str, str] = {}
    familiar = _judge_rows(calibrated, rows.x, "the test part")
    if isinstance(familiar, str):
        return None, {"test": f"Not drawn: {familiar}.", **_no_comparison(sets)}
    strange: dict[str, JudgedRows] = {}
    failures: list[str] = []
    for label, x in sets.items():
        judged = _judge_rows(calibrated, x, label)
        if isinstance(judged, str):
            failures.append(judged)
        else:
            strange[label] = judged
    if failures:
        absent["ood"] = f"Left out: {'; '.join(failures)}."
    return ReportView(name, posterior, rows, familiar, strange, None), absent


def _no_comparison(sets: dict[str, Inputs]) -> dict[str, str]:
    return {"ood": "OOD sets are compared with the test part."} if sets else {}


def _judge_rows(calibrated: Calibrated, x: Inputs, where: str) -> JudgedRows | str:
    """Predicts and judges inputs; or returns a sentence if a prediction is not finite."""
    prediction = calibrated.predictor(x)
    try:
        check_finite_predictions(prediction, where)
    except DataError as error:
        return str(error)
    return JudgedRows(x, prediction, judge(calibrated.calibration, prediction))


def served_quality(view: ReportView, baseline: Baseline | None = None) -> ServedQuality:
    """Computes the metrics that a manifest keeps: quality, reject rates, reliability diagram, and separation of OOD sets.

    Args:
        baseline: that of the training part, whose metrics stand beside.
    """
    prediction = view.familiar.prediction
    return ServedQuality(
        metrics=prediction_quality(view.posterior, prediction, view.rows),
        reject_rates=rates_of(view.familiar.judgement),
        reliability=reliability(prediction, view.rows)
        if isinstance(prediction.summary, ClassificationSummary)
        else None,
        ood={label: ood_detection(view.familiar, judged) for label, judged in view.strange.items()},
        baseline=baseline.quality(view.rows.y) if baseline else None,
        classes=class_columns(prediction.summary, view.rows)
        if isinstance(prediction.summary, ClassificationSummary)
        else None,
    )


def served_quality_without_view(
    posterior: Posterior, calibrated: Calibrated, rows: Rows, baseline: Baseline | None = None
) -> ServedQuality:
    """Computes the metrics without reliability diagram and OOD sets, for test rows without finite predictions."""
    prediction = calibrated.predictor(rows.x)
    return ServedQuality(
        metrics=prediction_quality(posterior, prediction, rows),
        reject_rates=rates_of(judge(calibrated.calibration, prediction)),
        reliability=None,
        ood={},
        baseline=baseline.quality(rows.y) if baseline else None,
    )


def reliability(prediction: Prediction, rows: Rows) -> ReliabilityBins:
    """Returns the bins of the reliability diagram."""
    correct = np.asarray(prediction.summary.mean).argmax(axis=1) == rows.y
    return metrics.reliability_bins(confidence(prediction), correct)


def class_columns(summary: ClassificationSummary, rows: Rows) -> ClassColumns | None:
    """Counts the rows, predictions and right answers of each class; None for more than `MOST_CLASSES`."""
    predicted = np.asarray(summary.mean).argmax(axis=1)
    classes = summary.mean.shape[1]
    if classes > MOST_CLASSES:
        return None
    own, answered, right = (
        np.bincount(labels, minlength=classes).tolist() for labels in (rows.y, predicted, rows.y[rows.y == predicted])
    )
    return ClassColumns(
        rows=tuple(own),
        predicted=tuple(answered),
        accuracy=tuple(hits / count if count else None for hits, count in zip(right, own, strict=True)),
        precision=tuple(hits / count if count else None for hits, count in zip(right, answered, strict=True)),
    )


def predict_curve(model: Model, calibrated: Calibrated, train: Rows) -> tuple[Curve | None, dict[str, str]]:
    """Predicts along the input of a regression; None without a reason for several inputs or a categorical one."""
    columns = model.preprocessing.columns
    if model.likelihood_functions.task != "regression" or model.features != 1 or (columns and columns[0].categories):
        return None, {}
    along = _judge_rows(calibrated, curve_points(train.x).reshape(-1, *model.feature_shape), "the curve")
    if isinstance(along, str):
        return None, {"curve": f"Not drawn: {along}."}
    return Curve(along, train), {}


def curve_points(x: Inputs) -> Float[np.ndarray, " points"]:
    """Returns evenly spaced points over the range of one input, extended by `BEYOND`; missing values are ignored."""
    low, high = float(np.nanmin(x)), float(np.nanmax(x))
    room = BEYOND * ((high - low) or abs(low) or 1.0)
    return np.linspace(low - room, high + room, POINTS)
