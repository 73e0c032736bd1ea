"""The shares of rows that the parts of a decision are expected to reject."""

from __future__ import annotations

import math

import numpy as np

from abstain.models.decisions.records import PARTS, Calibration
from abstain.models.decisions.risk import is_ambiguous


def expected_part_rates(calibration: Calibration) -> dict[str, float]:
    """Returns the expected share of rows like the calibration rows, 0 … 1, that each part of the decision rejects.

    It is (1 + #{calibration rows above the limit}) / (n + 1), which is the expectation without ties; they only lower it. A row
    that is novel and ambiguous counts for both. Empty for a decision of one part.
    """
    if calibration.ambiguity is None:
        return {}
    novelty, ambiguity = (
        calibration.novelty_scores[calibration.novelty_name],
        calibration.scores[calibration.ambiguity],
    )
    if calibration.budget is None:
        novel = novelty.astype(np.float64) >= calibration.least_novel
        risk = calibration.risk
        unsure = np.ones(calibration.rows, bool) if risk is None else is_ambiguous(risk, ambiguity)
    else:
        limits = calibration.part_limits
        novel = novelty > limits.get(calibration.novelty_name, math.inf)
        unsure = ambiguity > limits.get(calibration.ambiguity, math.inf)
    counts = (int((novel | calibration.unseen).sum()), int(unsure.sum()))
    return {part: (1 + count) / (calibration.rows + 1) for part, count in zip(PARTS, counts, strict=True)}
