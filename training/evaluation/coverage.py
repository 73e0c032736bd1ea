"""Conformal coverage of the accepted rows and of the rejected rows.

A prediction set or interval contains the target with the stated probability over all rows, before any is rejected. For
accepted rows the coverage is usually higher, for rejected rows lower; neither part has a guarantee.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Num

from abstain.models.decisions.records import Judgement
from abstain.training.evaluation.bootstrap import proportion
from abstain.training.evaluation.quality import is_covered
from abstain.training.evaluation.results import CoverageByDecision, Proportion


def coverage_by_decision(judgement: Judgement, y: Num[np.ndarray, " rows"]) -> CoverageByDecision:
    """Returns how often prediction sets or intervals contain the target, separately for accepted and rejected rows.

    Args:
        judgement: the judgement of the rows.
        y: the rows' targets: class indices, or numbers in the target's units.
    """
    inside = is_covered(judgement, y)
    return CoverageByDecision(_share(inside[~judgement.reject]), _share(inside[judgement.reject]))


def _share(inside: Bool[np.ndarray, " part"]) -> Proportion | None:
    return proportion(inside) if len(inside) else None
