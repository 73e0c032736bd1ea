"""Probability intervals for two classes: the inductive Venn–Abers predictor (Vovk & Petej, 2014).

For a new row, isotonic regression of the calibration labels on the model's probability is fitted twice: with the row added
to the calibration rows with label 0, and with label 1. Its values at the row, p0 ≤ p1, are the ends of the interval.

With exchangeable rows and no other assumption, the one of p0 and p1 that belongs to the row's true label Y is perfectly
calibrated: P(Y = 1 | p_Y) = p_Y (Vovk & Petej, 2014, theorem 1). The interval is narrow where many calibration rows have
similar probabilities. Isotonic regression depends on the order of the rows alone, so no recalibration of the model that keeps
their order changes the interval.

Both values are computed in advance for every calibration value, from the greatest convex minorant of the cumulative sum diagram
(Vovk, Petej & Fedorova, 2015). After sorting, this takes linear time; each row is then a binary search. Let
Pᵢ = (rows, positive rows) among the i lowest values, in increasing order. With a row of label 1 added at the i-th value, the
diagram has the points P₀ … Pᵢ₋₁, Pᵢ + (1, 1) … P_k + (1, 1). Its minorant's slope between the two groups is p1. Equivalently,
the first group may be moved by (−1, −1).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from abstain.models.decisions.conformal import TIE

MAX_PROBABILITY = "max_probability"
"""The score by which the probability is known before recalibration."""


class VennAbers(NamedTuple):
    """The ends of the interval at each calibration value.

    Attributes:
        values: the different probabilities of the calibration rows, ascending.
        lower: p0 of a row with this probability.
        upper: p1 of such a row.
    """

    values: Float[np.ndarray, " distinct"]
    lower: Float[np.ndarray, " distinct"]
    upper: Float[np.ndarray, " distinct"]


def fit_venn_abers(values: Float[np.ndarray, " rows"], positive: Bool[np.ndarray, " rows"]) -> VennAbers:
    """Computes the ends of the interval at each calibration value.

    Args:
        values: the probability of the second class, or any number that grows with it; at least one row.
        positive: whether the row is of this class.
    """
    known, places = np.unique(np.asarray(values, np.float64), return_inverse=True)
    rows = np.bincount(places)
    positives = np.bincount(places, weights=positive).astype(np.int64)
    rises, runs = _slopes_with_positive(rows, positives)
    # A row of label 0 is a row of label 1 after both classes and the order are exchanged.
    mirrored_rises, mirrored_runs = _slopes_with_positive(rows[::-1], (rows - positives)[::-1])
    lower = (mirrored_runs - mirrored_rises) / mirrored_runs
    return VennAbers(known, lower[::-1], rises / runs)


def _slopes_with_positive(
    rows: Int[np.ndarray, " distinct"], positives: Int[np.ndarray, " distinct"]
) -> tuple[Int[np.ndarray, " distinct"], Int[np.ndarray, " distinct"]]:
    """Returns rise and run of the minorant at each value, with a row of label 1 added there; exact in whole numbers.

    `corners` has the corners of the minorant from right to left, down to the last one of the first group. Its last two
    points bound the wanted segment. From one value to the next, Pᵢ moves by (−1, −1) into the first group. If it comes to lie
    below the segment, it is the new left end, and hides corners next to it. Otherwise the segment stays. The slope of the
    segment only grows, so corners left of it are never needed again.
    """
    points = list(zip(np.cumsum(rows).tolist(), np.cumsum(positives).tolist(), strict=True))
    corners: list[tuple[int, int]] = []
    for point in (*reversed(points), (-1, -1)):
        _add_corner(corners, point)
    rises, runs = np.empty(len(points), np.int64), np.empty(len(points), np.int64)
    for index, (x, y) in enumerate(points):
        left, right = corners[-1], corners[-2]
        rises[index], runs[index] = right[1] - left[1], right[0] - left[0]
        moved = (x - 1, y - 1)
        if _turn(left, moved, right) > 0:
            corners.pop()
            _add_corner(corners, moved)
    return rises, runs


def _add_corner(corners: list[tuple[int, int]], point: tuple[int, int]) -> None:
    """Adds a point left of all corners, and removes those that then lie on or above the minorant."""
    while len(corners) > 1 and _turn(point, corners[-1], corners[-2]) <= 0:
        corners.pop()
    corners.append(point)


def _turn(a: tuple[int, int], b: tuple[int, int], c: tuple[int, int]) -> int:
    """Returns a number above 0 if the path a, b, c turns left: b lies below the line from a to c."""
    return (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])


def probability_intervals(fitted: VennAbers, values: Float[np.ndarray, " batch"]) -> Float[np.ndarray, "batch 2"]:
    """Returns p0 and p1 of each row.

    A row of label 1 between two calibration values is pooled with the upper one, and one of label 0 with the lower one, so p1
    is that of the next value above, and p0 that of the next value below. A value that differs from a calibration value by
    less than `TIE` may be the same up to rounding, and gets the interval of the nearest calibration value.
    """
    wide = np.asarray(values, np.float64)
    known, last = fitted.values, len(fitted.values) - 1
    above = np.searchsorted(known, wide)
    below = above - 1
    to_above = np.where(above <= last, known[np.minimum(above, last)] - wide, np.inf)
    to_below = np.where(below >= 0, wide - known[np.maximum(below, 0)], np.inf)
    tied = np.minimum(to_above, to_below) < TIE
    nearest = np.where(to_above < to_below, above, below)
    low, high = np.where(tied, nearest, below), np.where(tied, nearest, above)
    lower = np.where(low >= 0, fitted.lower[np.maximum(low, 0)], 0.0)
    upper = np.where(high <= last, fitted.upper[np.minimum(high, last)], 1.0)
    return np.stack([lower, upper], axis=1)


def second_class_probability(
    uncertainty: Float[np.ndarray, " rows"], labels: Int[np.ndarray, " rows"]
) -> Float[np.ndarray, " rows"]:
    """Returns the probability of the second of two classes, before recalibration.

    Args:
        uncertainty: the score `max_probability`: 1 − the largest probability.
        labels: the most probable class.
    """
    wide = np.asarray(uncertainty, np.float64)
    return np.where(labels == 1, 1 - wide, wide)
