"""Radii of prediction sets and intervals: within each true class, among the accepted rows, or both.

A set or interval contains the targets with a nonconformity of at most the radius (`models/decisions/conformal.py`).

**Within each true class** (Mondrian by class; Vovk, Gammerman & Shafer, 2005, section 4.5; Sadinle, Lei & Wasserman, 2019):
the radius that decides whether a class is in the set is that of the calibration rows of this true class alone. A new row of
the class is exchangeable with them, so it is covered with the stated probability, however rare the class is.

**Among the accepted rows** (selection-conditional conformal prediction; Bao et al., 2024; Jin & Ren, 2024). Call the n
calibration rows and a new row the pool. At the percentile's rank k, T = n + 1 − k rows are taken in turns
(`models/decisions/budget.py`); a decision of one score takes the T highest. Each row of the pool is judged as if it were the
new one: it is accepted if its scores, lowered by their tolerance, are at most the limits after T turns of all others. Let A
be the accepted rows. A does not depend on which row of the pool is the new one. So the new row, if accepted, is each row of
A with the same probability, and its nonconformity is among the ⌈|A|·coverage⌉ smallest of A with at least the stated
probability. The radius is the ⌈(m + 1)·coverage⌉-th smallest of the m calibration rows in A.

Which calibration rows are in A? If another row joins, then in every turn the rows left are those before and one more: the
one that joined, or one that a turn would have taken before. So each limit stays or rises, at most to the value that its score
took in the turn before its last. It follows:

1. The k − 1 calibration rows that no turn takes are in A.
2. A row that is taken is in A only if its lowered value is at most the next value that its score could have taken in that
   turn: without this row, the limit is at most that. If no values tie within the tolerance, no such row is in A, and m = k − 1.
3. If the new row itself ties with a limit, taken rows may be in A whose lowered scores are at most the values before the last.

Rows with an unseen category are never in A: they are rejected, each as the new row in turn (`models/decisions/unseen.py`).

Rows by 2 or 3 *may* be in A. The radius is then the largest over all choices of them (`largest_radius`), so it is valid
whichever are. A new row clearly below the limits cannot be the next value of 2; for it only calibration rows count there.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from itertools import pairwise
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from abstain.models.decisions.ranks import exact, ordinal, percentile_rank, rows_needed
from abstain.models.errors import CalibrationError

Among = Literal["all", "accepted"]
"""The rows over which the coverage holds."""
MOST_RADII = 64
"""Most radii that a calibration keeps, each for a percentile and a coverage that were requested."""


class Turns(NamedTuple):
    """The turns in which the parts of a decision take the calibration rows.

    Attributes:
        values: the score of each part.
        edges: the same, lowered by its tolerance.
        turns: the turn in which each row is taken, a permutation of 1 … n.
        takers: the index of the part that takes it.
        tied: whether the row's edge is at most the value of a row that this part could have taken instead.
        unseen: which rows are never accepted, because of an unseen category; None for none.
    """

    values: Float[np.ndarray, "parts rows"]
    edges: Float[np.ndarray, "parts rows"]
    turns: Int[np.ndarray, " rows"]
    takers: Int[np.ndarray, " rows"]
    tied: Bool[np.ndarray, " rows"]
    unseen: Bool[np.ndarray, " rows"] | None = None


class Accepted(NamedTuple):
    """The calibration rows by whether they are exchangeable with an accepted new row.

    Attributes:
        surely: the rows that no turn takes.
        perhaps_clear: taken rows that may be accepted, as seen by a new row that is clearly below the limits.
        perhaps_near: the same, as seen by any other new row.
        borders: the values below which a new row is clearly below the limits, for each part.
    """

    surely: Bool[np.ndarray, " rows"]
    perhaps_clear: Bool[np.ndarray, " rows"]
    perhaps_near: Bool[np.ndarray, " rows"]
    borders: Float[np.ndarray, " parts"]


class Radii(NamedTuple):
    """The radius of each true class, or one for all rows.

    Attributes:
        clear: of new rows below all borders.
        near: of all other new rows; at least as large.
        borders: as in `Accepted`; infinite if the coverage is over all rows.
        rows: the number of calibration rows that are surely exchangeable with the new row.
    """

    clear: Float[np.ndarray, " groups"]
    near: Float[np.ndarray, " groups"]
    borders: Float[np.ndarray, " parts"]
    rows: tuple[int, ...]

    def of_rows(self, values: Float[np.ndarray, "parts batch"]) -> Float[np.ndarray, "batch groups"]:
        """Returns the radii of new rows with these scores; NaN is not clearly below a limit."""
        clear = np.all(values < self.borders[:, None], axis=0)
        return np.where(clear[:, None], self.clear, self.near)


class ByNonconformity(NamedTuple):
    """The calibration rows that set the radius, in groups, by true class or all in one, and ascending by nonconformity in each.

    Attributes:
        nonconformity: the ascending values, group by group.
        order: the index of each row.
        classes: the true class of each row; None for a single group.
    """

    nonconformity: Float[np.ndarray, " rows"]
    order: Int[np.ndarray, " rows"]
    classes: Int[np.ndarray, " rows"] | None


def sort_rows(
    nonconformity: Float[np.ndarray, " rows"],
    classes: Int[np.ndarray, " rows"] | None,
    radius_rows: Int[np.ndarray, " radius"] | None = None,
) -> ByNonconformity:
    """Sorts the calibration rows by true class, if given, and by nonconformity.

    Args:
        radius_rows: the rows that set the radius, if not all: given the others, they are exchangeable with a new row.
    """
    order = np.argsort(nonconformity) if classes is None else np.lexsort((nonconformity, classes))
    if radius_rows is not None:
        order = order[np.isin(order, radius_rows)]
    return ByNonconformity(nonconformity[order], order, None if classes is None else classes[order])


def take_turns(
    values: Float[np.ndarray, "parts rows"],
    edges: Float[np.ndarray, "parts rows"],
    turns: Int[np.ndarray, " rows"],
    takers: Int[np.ndarray, " rows"],
) -> Turns:
    """Finds the rows that tie with one that their part could have taken instead; arguments as in `Turns`."""
    rows = len(turns)
    order = np.argsort(turns)
    own = takers[order]
    left = np.maximum.accumulate(values[:, order[::-1]], axis=1)[:, ::-1]
    nearest = np.append(left[own[:-1], np.arange(1, rows)], -np.inf)
    tied = np.empty(rows, bool)
    tied[order] = edges[own, order] <= nearest
    return Turns(values, edges, turns, takers, tied)


def turns_of(values: Float[np.ndarray, " rows"]) -> Int[np.ndarray, " rows"]:
    """Returns the turns in which a single score takes the rows: the highest value first."""
    turns = np.empty(len(values), int)
    turns[np.argsort(-values, kind="stable")] = np.arange(1, len(values) + 1)
    return turns


def accepted_rows(turns: Turns, count: int) -> Accepted:
    """Returns the calibration rows that are, or may be, exchangeable with an accepted new row after so many turns."""
    taken = turns.turns <= count
    lowest = [np.sort(part[taken & (turns.takers == index)])[:2] for index, part in enumerate(turns.values)]
    limits, before_last = (
        np.array([own[place] if len(own) > place else np.inf for own in lowest], float)[:, None] for place in (0, 1)
    )
    seen = True if turns.unseen is None else ~turns.unseen
    within = taken & seen & (turns.edges <= limits).all(axis=0)
    apart = within & ~turns.tied
    nearest = [part[apart & (turns.takers == index)].min(initial=np.inf) for index, part in enumerate(turns.edges)]
    return Accepted(
        surely=~taken & seen,
        perhaps_clear=within & turns.tied,
        perhaps_near=taken & seen & (turns.edges <= before_last).all(axis=0),
        borders=np.minimum(nearest, limits[:, 0]),
    )


def find_radii(
    sorted_rows: ByNonconformity, turns: Turns | None, percentile: float, coverage: float, classes: int
) -> Radii:
    """Finds the radii for a coverage.

    Args:
        turns: the turns of the decision if the coverage holds among the accepted rows; None if it holds over all rows.
        percentile: the percentile of the decision.
        coverage: strictly between 0 and 1.
        classes: the number of classes if the coverage holds within each of them, else ignored.

    Raises:
        CalibrationError: there are too few rows; the text names the class and the number needed.
    """
    rows, order = len(sorted_rows.order), sorted_rows.order
    every = np.ones(rows, bool)
    parts = [every, ~every, ~every]
    borders, among = np.full(1, np.inf), ""
    if turns is not None:
        judged = len(turns.turns)
        accepted = accepted_rows(turns, judged + 1 - percentile_rank(percentile, judged))
        parts = [part[order] for part in accepted[:3]]
        borders, among = accepted.borders, f" that are accepted at the {ordinal(percentile)} percentile"
    starts = [0, rows]
    if sorted_rows.classes is not None:
        starts = np.searchsorted(sorted_rows.classes, np.arange(classes + 1)).tolist()
    radii: list[tuple[float, float, int]] = []
    for group, (start, end) in enumerate(pairwise(starts)):
        surely, clear, near = (part[start:end] for part in parts)
        count = int(surely.sum())
        needed = rows_needed(coverage)
        if count < needed:
            of_class = f" of the class with index {group}" if sorted_rows.classes is not None else ""
            higher = ", raise the percentile" if among else ""
            raise CalibrationError(
                f"{coverage!r} needs more calibration rows{of_class}{among}",
                where="coverage",
                expected=f"at least {needed} rows",
                found=f"{count} rows",
                fix=f"lower the coverage{higher}, or calibrate with more rows",
            )
        values = sorted_rows.nonconformity[start:end]
        found = [largest_radius(values, surely, perhaps, coverage) for perhaps in (clear, near)]
        radii.append((found[0], found[1], count))
    clear_radii, near_radii, counts = zip(*radii, strict=True)
    return Radii(np.array(clear_radii), np.array(near_radii), borders, counts)


def largest_radius(
    ascending: Float[np.ndarray, " rows"],
    surely: Bool[np.ndarray, " rows"],
    perhaps: Bool[np.ndarray, " rows"],
    coverage: float,
) -> float:
    """Returns the largest radius of the rows that surely count, and any choice of the rows that perhaps count.

    For a choice of x rows, the radius is the ⌈(m + x + 1)·coverage⌉-th smallest value, m rows being sure. A chosen row below
    the radius does not raise it, one above does not lower it. So a number is at least every radius if enough sure rows are
    at most this number, for the choice of all rows above it; the result is the smallest such number.

    Args:
        ascending: the nonconformity of all rows.
        surely: which rows count; enough for the coverage.
        perhaps: which rows may count.
    """
    below, above = np.cumsum(surely), perhaps.sum() - np.cumsum(perhaps)
    share, sure = exact(coverage), int(below[-1])
    places = range(len(ascending))
    first = bisect_left(
        places, True, key=lambda place: int(below[place]) >= math.ceil((sure + 1 + int(above[place])) * share)
    )
    return float(ascending[first])
