"""A test of the decision with rows far outside every training range, which it must reject.

The rows are made from the ranges of the training rows; no fit or choice uses them. A decision that
accepts one is a shortfall of the fit (`training/evaluation/checks.py`), or a note if no score measures distance.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from abstain.models.bundles.shortfalls import Shortfall
from abstain.models.decisions.judging import judge
from abstain.models.prediction.feature_score_records import Range
from abstain.models.prediction.feature_scores import FEATURE_SCORES
from abstain.models.prediction.posterior import Model
from abstain.models.prediction.preprocessing import in_data_units
from abstain.training.calibration.pipeline import Calibrated
from abstain.training.notes import write_note

WIDTHS = (10.0, 1e3, 1e6)
"""Distances from the range, in widths of each feature's range."""
"""The beginning of the note, which a new calibration replaces."""


def far_rows(model: Model, ranges: Range) -> Float[np.ndarray, "rows features"]:
    """Makes rows with all numeric features far outside their training range, below it or above it.

    Categories keep the first code, because no code is outside. Without numeric features there are no far rows.

    Returns:
        float64, in the units of the data.
    """
    low, high = np.asarray(ranges.low, np.float64), np.asarray(ranges.high, np.float64)
    numeric = np.array([not column.categories for column in model.preprocessing.columns] or [True] * len(low))
    if not numeric.any():
        return np.empty((0, len(low)))
    width = np.where(numeric & (high > low), high - low, 1.0)
    rows = [edge + sign * far * width for far in WIDTHS for edge, sign in ((low, -1), (high, 1))]
    largest = float(np.finfo(np.float32).max)
    return in_data_units(model.preprocessing, np.where(numeric, np.clip(rows, -largest, largest), 0.0))


def accepted_far_rows(calibrated: Calibrated) -> tuple[int, int]:
    """Returns the number of far rows that the decision accepts at the calibration's percentile, and that of all far rows."""
    model, feature_scores = calibrated.predictor.model, calibrated.feature_scores
    if feature_scores is None:  # Then no training range is known.
        return 0, 0
    rows = far_rows(model, feature_scores.records["range"])
    if not len(rows):
        return 0, 0
    prediction = calibrated.predictor(rows.reshape(-1, *model.feature_shape))
    return int((~judge(calibrated.calibration, prediction).reject).sum()), len(rows)


class FarRows(NamedTuple):
    """The result of the test: shortfalls of the fit, or notes."""

    shortfalls: tuple[Shortfall, ...] = ()
    notes: tuple[str, ...] = ()


def try_far_rows(calibrated: Calibrated) -> FarRows:
    """Returns a shortfall or a note if the decision accepts far rows.

    A decision with a feature score must reject them, so accepting one is a shortfall. A decision by predictions alone need
    not, because all draws may agree about an absurd row; then it is a note.
    """
    accepted, rows = accepted_far_rows(calibrated)
    if not accepted:
        return FarRows()
    decision = calibrated.calibration.decision
    text = write_note(
        "accepts_far_rows",
        f"{accepted} of {rows} rows with all features {WIDTHS[0]:g} or more widths outside their "
        f"training range; the decision uses {', '.join(decision.scores)}; add range to calibration.decision",
    )
    if set(decision.scores) & set(FEATURE_SCORES):
        return FarRows(shortfalls=(Shortfall("accepts_far_rows", text),))
    return FarRows(notes=(text,))
