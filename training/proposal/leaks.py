"""Finds columns that would tell the target, or repeat another column, and rows that occur several times.

A column leaks if it predicts the target of rows that it was not fitted to almost without error: a copy of the target, the
same class in other words, or a number computed from it. Such a column is rarely known before the target.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import stats

Values = Float[np.ndarray, " rows"]

REMAINING_ERROR = 0.01
"""The share of the error without the column that remains with it, below which a column leaks."""
LEAST_ERRORS = 20
"""The least number of rows that the most frequent class gets wrong, or of rows of a number, from which a leak is judged."""
BINS = 64
"""The number of ranges into which the values of a number are divided."""
SAMPLED = 40_000
"""The largest number of rows that are compared."""
COPIED_VALUES = 2
"""The least number of distinct values of columns that are compared with each other."""


def leaks(feature: Values, target: Values, *, classify: bool) -> bool:
    """Returns whether a column tells the target almost alone.

    The column's values are grouped (numbers with many values by ranges of equal size). Every second row of a group sets its
    most frequent class, or its mean, and the others are predicted. A number may also rise or fall with a target that is a
    number, without a value that occurs twice.

    Args:
        feature: numbers or codes; NaN is a value of its own.
        target: class codes, or numbers; rows with NaN are left out.
    """
    step = 1 + len(target) // SAMPLED
    known = ~np.isnan(target)
    feature, target = feature[known][::step], target[known][::step]
    if len(target) < 2 * LEAST_ERRORS:
        return False
    if not classify and _moves_together(feature, target):
        return True
    groups = _groups(feature)
    order = np.lexsort((np.arange(len(groups)), groups))
    learn = np.zeros(len(groups), bool)
    learn[order[::2]] = True
    # A group without a row to learn from says nothing.
    judged = ~learn & np.isin(groups, groups[learn])
    if judged.sum() < LEAST_ERRORS or judged.sum() < len(target) / 4:
        return False
    if classify:
        return _tells_class(groups, target, learn, judged)
    return _tells_number(groups, target, learn, judged)


def _groups(feature: Values) -> Int[np.ndarray, " rows"]:
    """Returns the group of each row: its value, or its range among `BINS` of equal numbers of rows."""
    distinct, codes = np.unique(feature, return_inverse=True)
    if len(distinct) <= max(BINS, len(feature) // 20):
        return codes
    edges = np.nanquantile(feature, np.linspace(0, 1, BINS + 1)[1:-1])
    return np.where(np.isnan(feature), BINS, np.searchsorted(edges, feature, "right"))


def _tells_class(
    groups: Int[np.ndarray, " rows"],
    target: Values,
    learn: Bool[np.ndarray, " rows"],
    judged: Bool[np.ndarray, " rows"],
) -> bool:
    classes = np.unique(target, return_inverse=True)[1]
    counts = np.zeros((groups.max() + 1, classes.max() + 1))
    np.add.at(counts, (groups[learn], classes[learn]), 1)
    wrong = int((counts.argmax(axis=1)[groups[judged]] != classes[judged]).sum())
    baseline = int((counts.sum(axis=0).argmax() != classes[judged]).sum())
    return baseline >= LEAST_ERRORS and wrong <= REMAINING_ERROR * baseline


def _tells_number(
    groups: Int[np.ndarray, " rows"],
    target: Values,
    learn: Bool[np.ndarray, " rows"],
    judged: Bool[np.ndarray, " rows"],
) -> bool:
    rows = np.bincount(groups[learn], minlength=groups.max() + 1)
    means = np.bincount(groups[learn], target[learn], minlength=len(rows)) / np.maximum(rows, 1)
    error = np.square(target[judged] - means[groups[judged]]).sum()
    # A variance: the standard deviation that remains is REMAINING_ERROR of the whole.
    return bool(error <= REMAINING_ERROR**2 * np.square(target[judged] - target[learn].mean()).sum())


def _moves_together(feature: Values, target: Values) -> bool:
    """Whether ranks of both numbers agree almost perfectly (Spearman's ρ)."""
    known = ~np.isnan(feature)
    if known.sum() < 2 * LEAST_ERRORS or len(np.unique(feature[known])) < LEAST_ERRORS:
        return False
    return _rank_correlation(feature[known], target[known]) > 1 - REMAINING_ERROR**2


def _rank_correlation(one: Values, other: Values) -> float:
    """Returns the size of Spearman's ρ: the correlation of the ranks."""
    return abs(float(np.corrcoef(stats.rankdata(one), stats.rankdata(other))[0, 1]))


def moves_with(feature: Values, time: Values) -> bool:
    """Returns whether a number rises or falls with the time, always or mostly (|ρ| > 0.9): later rows are outside its range."""
    known = ~np.isnan(feature) & ~np.isnan(time)
    step = 1 + int(known.sum()) // SAMPLED
    one, other = feature[known][::step], time[known][::step]
    if len(np.unique(one)) < COPIED_VALUES or len(np.unique(other)) < COPIED_VALUES:
        return False
    steps = np.diff(one[np.lexsort((one, other))])
    return bool((steps >= 0).all() or (steps <= 0).all() or _rank_correlation(one, other) > 0.9)


def find_copies(values: Mapping[str, Values]) -> dict[str, str]:
    """Returns the columns that say the same as an earlier one, by name: each value of one goes with one value of the other."""
    first: dict[bytes, str] = {}
    copies: dict[str, str] = {}
    for name, numbers in values.items():
        _, place, codes = np.unique(numbers, return_index=True, return_inverse=True)
        # Codes in the order in which the values first occur do not depend on what the values are.
        pattern = hashlib.sha256(np.argsort(np.argsort(place))[codes].astype(np.int32).tobytes()).digest()
        # Columns of values that do not repeat all have one pattern.
        if not COPIED_VALUES <= len(place) <= len(numbers) / 2:
            continue
        if pattern in first:
            copies[name] = first[pattern]
        first.setdefault(pattern, name)
    return copies


def count_repeated(values: Mapping[str, Values]) -> int:
    """Returns how many rows are equal to an earlier one in all of these columns."""
    if not values:
        return 0
    table = np.ascontiguousarray(np.column_stack([np.where(np.isnan(v), np.inf, v + 0.0) for v in values.values()]))
    return len(table) - len(np.unique(table.view([("", table.dtype)] * table.shape[1])))
