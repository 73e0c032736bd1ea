"""What a report is made from: the test part, OOD sets and the one input's course, as the served code sees them.

Nothing here decides anything. What cannot be shown is left out with a sentence that says why; a fit is not lost by it.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Num

from abstain.models.decisions.calibration import judge
from abstain.models.errors import DataError
from abstain.models.prediction.posterior import Model, Posterior
from abstain.models.prediction.predictive import Prediction
from abstain.models.prediction.summaries import ClassificationSummary
from abstain.training.calibration.pipeline import Calibrated
from abstain.training.data.rows import Rows
from abstain.training.evaluation import metrics
from abstain.training.evaluation.quality import check_finite, confidence, quality, rates_of, seen_detection
from abstain.training.evaluation.records import Curve, Seen, View
from abstain.training.evaluation.results import ReliabilityBins, ServedQuality

POINTS = 256
"""Of a curve: one bucket of the predictor."""
BEYOND = 0.25
"""How far a curve goes on beyond the training rows, in their range."""
Inputs = Num[np.ndarray, "rows ..."]


def look(
    name: str, posterior: Posterior, calibrated: Calibrated, rows: Rows, sets: dict[str, Inputs]
) -> tuple[View | None, dict[str, str]]:
    """The test rows and OOD sets, predicted and judged; and what is absent, with the reason.

    Without a finite prediction for every test row there is nothing that curves could be drawn of.
    """
    absent: dict[str, str] = {}
    familiar = _seen(calibrated, rows.x, "the test part")
    if isinstance(familiar, str):
        return None, {"test": f"Not drawn: {familiar}.", **_without_rows(sets)}
    strange: dict[str, Seen] = {}
    unseen: list[str] = []
    for label, x in sets.items():
        found = _seen(calibrated, x, label)
        if isinstance(found, str):
            unseen.append(found)
        else:
            strange[label] = found
    if unseen:
        absent["ood"] = f"Left out: {'; '.join(unseen)}."
    return View(name, posterior, rows, familiar, strange, None), absent


def _without_rows(sets: dict[str, Inputs]) -> dict[str, str]:
    return {"ood": "OOD sets are compared with the test part."} if sets else {}


def _seen(calibrated: Calibrated, x: Inputs, where: str) -> Seen | str:
    """What is predicted and judged; or in words, why it cannot be used."""
    prediction = calibrated.predictor(x)
    try:
        check_finite(prediction, where)
    except DataError as error:
        return str(error)
    return Seen(x, prediction, judge(calibrated.calibration, prediction))


def metrics_of(view: View) -> ServedQuality:
    """What a manifest keeps: quality, reject rates, the reliability diagram, and by OOD set how well it is told apart."""
    prediction = view.familiar.prediction
    return ServedQuality(
        metrics=quality(view.posterior, prediction, view.rows),
        reject_rates=rates_of(view.familiar.judgement),
        reliability=reliability(prediction, view.rows)
        if isinstance(prediction.summary, ClassificationSummary)
        else None,
        ood={label: seen_detection(view.familiar, seen) for label, seen in view.strange.items()},
    )


def metrics_without_view(posterior: Posterior, calibrated: Calibrated, rows: Rows) -> ServedQuality:
    """The same where a test row has no finite prediction, so that there is no view: neither diagram nor OOD sets."""
    prediction = calibrated.predictor(rows.x)
    return ServedQuality(
        metrics=quality(posterior, prediction, rows),
        reject_rates=rates_of(judge(calibrated.calibration, prediction)),
        reliability=None,
        ood={},
    )


def reliability(prediction: Prediction, rows: Rows) -> ReliabilityBins:
    """The bins of the reliability diagram."""
    correct = np.asarray(prediction.summary.mean).argmax(axis=1) == rows.y
    return metrics.reliability_bins(confidence(prediction), correct)


def look_along(model: Model, calibrated: Calibrated, train: Rows) -> tuple[Curve | None, dict[str, str]]:
    """What a regression says along its one input; None, and no reason, where it has several, or one of categories."""
    columns = model.preprocessing.columns
    if model.likelihood_functions.task != "regression" or model.features != 1 or (columns and columns[0].categories):
        return None, {}
    along = _seen(calibrated, stretched(train.x).reshape(-1, *model.feature_shape), "the curve")
    if isinstance(along, str):
        return None, {"curve": f"Not drawn: {along}."}
    return Curve(along, train), {}


def stretched(x: Inputs) -> Float[np.ndarray, " points"]:
    """Points at even distances over the range of one input, and `BEYOND` it on both sides; gaps in tables do not count."""
    low, high = float(np.nanmin(x)), float(np.nanmax(x))
    room = BEYOND * ((high - low) or abs(low) or 1.0)
    return np.linspace(low - room, high + room, POINTS)
