"""Rows with an unseen category in a decision: they rank above all other rows, and are always rejected.

Rows are ordered by whether they have a category that the training part lacks, then by the usual score. This is a fixed
function of a row, so calibration rows and a new row are exchangeable in this order, as in that of the score alone: of n
calibration rows and a new one, T = ⌊(n + 1)·(100 − P)/100⌋ turns reject the first rows at percentile P, unseen ones first, and
this region has the probability B ~ Beta(T, n + 1 − T) over calibration parts. In a decision of two parts both scores rank such
a row first, so their turns take these rows first, and then alternate as ever.

To reject every unseen row adds nothing to the region if its limit is at a row without an unseen category, and is the whole
region if not. So the reject rate of a calibration is exactly max(B, q), q being the share of unseen rows, and of n + 1 rows of
which m are unseen, max(T, m) are rejected when each is the new row in turn: the stated rate holds while unseen rows are fewer,
and otherwise all rejected rows are unseen.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from abstain.models.tables.unseen import UNSEEN_SCORE

TOP = float(np.finfo(np.float32).max)
"""The decision score at which unseen rows rank, as a finite number: it may be a threshold, which JSON holds."""


def unseen_rows(scores: Mapping[str, Shaped[np.ndarray, " rows"]], rows: int) -> Bool[np.ndarray, " rows"]:
    """Returns which rows have an unseen category; none if the scores do not count them."""
    counts = scores.get(UNSEEN_SCORE)
    return np.zeros(rows, bool) if counts is None else counts > 0


def raise_unseen(
    values: Float[np.ndarray, "*parts rows"], unseen: Bool[np.ndarray, " rows"], level: float = np.inf
) -> Float[np.ndarray, "*parts rows"]:
    """Returns the scores, in float64 with those of unseen rows at `level`; unchanged if no row is unseen."""
    return np.where(unseen, level, values.astype(np.float64)) if unseen.any() else values


def below_top(ascending: Float[np.ndarray, " rows"]) -> Float[np.ndarray, " seen"]:
    """Returns the ascending scores without those of unseen rows, for pictures; all if every row is unseen."""
    seen = ascending[ascending < TOP]
    return seen if len(seen) else ascending


def expected_rate(
    stated: float, unseen: Bool[np.ndarray, " rows"], groups: Int[np.ndarray, " rows"] | None = None
) -> float:
    """Returns the expected reject rate: the stated one or, where more calibration rows than that are unseen, their share.

    Args:
        stated: the rate at the percentile, 0 … 1.
        groups: the predicted class of each row, if the stated rate holds within each.
    """
    if not unseen.any():
        return stated
    groups = np.zeros(len(unseen), int) if groups is None else groups
    own, total = np.bincount(groups, weights=unseen), np.bincount(groups)
    return float(np.maximum(own, stated * total).sum() / total.sum())
