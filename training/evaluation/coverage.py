"""Conformal coverage among the rows that are accepted and among those that are rejected.

A prediction set or interval holds the target with the stated probability over all rows, before any is rejected. Among
the accepted it usually holds it more often, among the rejected less often: the guarantee is of neither part alone.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Bool, Num

from abstain.models.decisions.records import Judgement
from abstain.training.evaluation.bootstrap import share_interval
from abstain.training.evaluation.quality import covered


def coverage_by_decision(judgement: Judgement, y: Num[np.ndarray, " rows"]) -> dict[str, Any]:
    """How often the prediction set, or interval, holds the target, among accepted and among rejected rows apart.

    Args:
        judgement: of the rows.
        y: their targets: class indices, or numbers in the target's units.

    Returns:
        `coverage_accepted` and `coverage_rejected`, shares in [0, 1], each with `…_interval`, its exact 95 % limits
        (Clopper & Pearson, 1934). A part without rows is left out.
    """
    inside = covered(judgement, y)
    return _share("coverage_accepted", inside[~judgement.reject]) | _share(
        "coverage_rejected", inside[judgement.reject]
    )


def _share(key: str, inside: Bool[np.ndarray, " part"]) -> dict[str, Any]:
    if not len(inside):
        return {}
    hits = int(inside.sum())
    return {key: hits / len(inside), f"{key}_interval": share_interval(hits, len(inside))}
