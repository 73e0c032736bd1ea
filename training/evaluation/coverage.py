"""Conformal coverage of the accepted rows, of the rejected rows, and of the true class with the lowest coverage.

By default, a prediction set or interval contains the target with the stated probability over all rows, before any is
rejected. For accepted rows the coverage is then usually higher, for rejected rows lower, and for rare classes often far lower
(`models/decisions/radii.py` has guarantees for accepted rows and for each class).
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Int, Num

from abstain.models.bundles.guarantees import CoverageRecord
from abstain.models.decisions.radii import Among
from abstain.models.decisions.records import Judgement
from abstain.training.evaluation.bootstrap import proportion
from abstain.training.evaluation.quality import is_covered
from abstain.training.evaluation.results import ClassCoverage, CoverageByDecision, PartCoverage


def coverage_by_decision(
    judgement: Judgement, y: Num[np.ndarray, " rows"], class_names: tuple[str, ...], among: Among = "all"
) -> CoverageByDecision:
    """Returns how often prediction sets or intervals contain the target: of accepted and rejected rows, and of one class.

    Args:
        judgement: the judgement of the rows.
        y: the rows' targets: class indices, or numbers in the target's units.
        class_names: the names of the classes; empty for regression.
        among: the rows over which the coverage is requested, of which the class with the lowest coverage is found.
    """
    inside = is_covered(judgement, y)
    counted = ~judgement.reject if among == "accepted" else np.ones(len(y), bool)
    return CoverageByDecision(
        _part(inside[~judgement.reject]),
        _part(inside[judgement.reject]),
        _worst_class(inside[counted], y[counted].astype(int), class_names) if class_names and counted.any() else None,
    )


def describe_rows(record: CoverageRecord | None) -> str:
    """Returns the rows over which the coverage is requested, in words; empty if these are all rows."""
    if record is None:
        return ""
    kinds = (("accepted rows", record.among == "accepted"), ("each true class", record.per_class))
    return " ".join(f"of {name}" for name, holds in kinds if holds)


def _part(inside: Bool[np.ndarray, " part"]) -> PartCoverage | None:
    return PartCoverage(len(inside), proportion(inside)) if len(inside) else None


def _worst_class(
    inside: Bool[np.ndarray, " rows"], labels: Int[np.ndarray, " rows"], class_names: tuple[str, ...]
) -> ClassCoverage:
    rows = np.bincount(labels, minlength=len(class_names))
    hits = np.bincount(labels, weights=inside, minlength=len(class_names))
    worst = int(np.where(rows > 0, hits / np.maximum(rows, 1), np.inf).argmin())
    return ClassCoverage(class_names[worst], int(rows[worst]), proportion(inside[labels == worst]))
