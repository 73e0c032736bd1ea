"""Conformal coverage among the rows that are accepted and among those that are rejected.

A prediction set or interval holds the target with the stated probability over all rows, before any is rejected. Among
the accepted it usually holds it more often, among the rejected less often: the guarantee is of neither part alone.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Num

from abstain.models.decisions.records import Judgement
from abstain.training.evaluation.bootstrap import proportion
from abstain.training.evaluation.quality import covered
from abstain.training.evaluation.results import CoverageByDecision, Proportion


def coverage_by_decision(judgement: Judgement, y: Num[np.ndarray, " rows"]) -> CoverageByDecision:
    """How often the prediction set, or interval, holds the target, among accepted and among rejected rows apart.

    Args:
        judgement: of the rows.
        y: their targets: class indices, or numbers in the target's units.
    """
    inside = covered(judgement, y)
    return CoverageByDecision(_share(inside[~judgement.reject]), _share(inside[judgement.reject]))


def _share(inside: Bool[np.ndarray, " part"]) -> Proportion | None:
    return proportion(inside) if len(inside) else None
