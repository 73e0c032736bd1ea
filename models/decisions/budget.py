"""One reject budget for two reasons: joint thresholds of a novelty score and an ambiguity score.

A row may be rejected because it is unlike the training rows (novel), or because its answer is unsure (ambiguous). Two
separate tests at 1 % each would reject up to 2 % of familiar rows, and a correction for two tests would reject too little,
since both scores are often high for the same rows. Here both thresholds are found together:

1. Of the calibration rows, take the one with the highest novelty, and set it aside.
2. Of the rest, take the one with the highest ambiguity, and set it aside; and so on. `share` of the turns are novelty's.
3. After turn k, the rejected region is: novelty above that of the last row taken by novelty, or ambiguity above that of the
   last row taken by ambiguity.

Each turn adds one *statistically equivalent block* to the region (Tukey, 1947; Fraser, 1951). So the probability of the
region is distributed as Beta(k, n + 1 − k) over calibration parts, exactly as for one score, whatever the dependence of the
two scores: a new row falls into it with probability k/(n + 1). Ties can only lower it.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from fractions import Fraction
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from abstain.models.decisions.ranks import exact

INSIDE = 1e-9
"""Least distance of a row's level from the ends of its block: a row between two calibration rows ties with neither."""


class Cuts(NamedTuple):
    """The calibration rows that one score took, by ascending value.

    Attributes:
        values: the score of each row taken; infinite for rows that rank above all others.
        turns: the turn in which it was taken, 1 … n; descending.
        scale: the scale of the tail above the highest value, in the score's unit.
    """

    values: Float[np.ndarray, " taken"]
    turns: Float[np.ndarray, " taken"]
    scale: float


class Budget(NamedTuple):
    """The turns of both scores, and of each calibration row.

    Attributes:
        turns: the turn in which each calibration row was taken, a permutation of 1 … n.
    """

    novelty: Cuts
    ambiguity: Cuts
    turns: Int[np.ndarray, " rows"]


def spend_budget(novelty: Float[np.ndarray, " rows"], ambiguity: Float[np.ndarray, " rows"], share: float) -> Budget:
    """Takes all calibration rows in turns.

    Args:
        novelty: how unlike the training rows each calibration row is; infinite, as its ambiguity, if it ranks above all
            others.
        ambiguity: how unsure its answer is.
        share: the share of the turns that are novelty's, strictly between 0 and 1; the first turn is one of them.
    """
    rows, exact_share = len(novelty), exact(share)
    orders = (np.argsort(-ambiguity, kind="stable").tolist(), np.argsort(-novelty, kind="stable").tolist())
    turns, by_novelty = [0] * rows, np.zeros(rows, bool)
    places = [0, 0]
    for turn in range(1, rows + 1):
        which = int(is_turn_of_novelty(turn, exact_share))
        order, place = orders[which], places[which]
        while turns[order[place]]:
            place += 1
        turns[order[place]], by_novelty[order[place]] = turn, which
        places[which] = place + 1
    taken = np.array(turns)
    return Budget(
        _cuts(novelty[by_novelty], taken[by_novelty]), _cuts(ambiguity[~by_novelty], taken[~by_novelty]), taken
    )


def is_turn_of_novelty(turn: int, share: Fraction) -> bool:
    """Whether this turn, 1 … n, is novelty's: turns are spread evenly, and novelty has the first."""
    return math.ceil(share * turn) > math.ceil(share * (turn - 1))


def _cuts(values: Float[np.ndarray, " taken"], turns: Int[np.ndarray, " taken"]) -> Cuts:
    # By turn: each row has at most the score of the row before, so the values ascend.
    order = np.argsort(-turns)
    ascending = values[order].astype(np.float64)
    finite = ascending[np.isfinite(ascending)]
    spread = float(finite[-1] - np.median(finite)) if len(finite) else 0.0
    return Cuts(ascending, turns[order].astype(np.float64), spread or 1.0)


def nats_of(cuts: Cuts, values: Float[np.ndarray, " batch"], rows: int) -> Float[np.ndarray, " batch"]:
    """Returns the evidence of each value in nats: −ln of the share of the budget at which it is rejected.

    A value above that of the row taken in turn k, and at most that of the row taken before by this score, is rejected from
    k/(n + 1) on. Its evidence lies between those of turns k and k − 1, and grows with the value. Above the highest value it
    grows without a bound if the first turn was this score's.

    Args:
        rows: n, the number of calibration rows.
    """
    wide = values.astype(np.float64)
    if not len(cuts.values):
        return np.where(np.isnan(wide), np.nan, 0.0)
    below = np.searchsorted(cuts.values, wide, side="left")
    index = np.clip(below - 1, 0, len(cuts.values) - 1)
    turn, start = cuts.turns[index], cuts.values[index]
    end = cuts.values[np.minimum(index + 1, len(cuts.values) - 1)]
    highest = (below == len(cuts.values)) | np.isinf(end)
    excess = np.maximum(wide - start, 0.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        within = np.clip(np.where(end > start, excess / (end - start), 0.0), INSIDE, 1 - INSIDE)
        # A tail as that of `EvidenceMap`: ln(1 + excess / scale) nats above the first turn, or above the last finite score.
        left = np.where(highest, np.minimum(1 / (1 + excess / cuts.scale), 1 - INSIDE), 1 - within)
        nats = math.log(rows + 1) - np.log(turn - 1 + left)
    return np.where(np.isnan(wide), np.nan, np.where(below == 0, 0.0, nats))


def limit_of(cuts: Cuts, turns: int) -> float:
    """Returns the score above which a row is rejected after so many turns; infinite if this score had none of them."""
    # The turns descend, and this runs for every batch: no pass over all calibration rows.
    first = bisect_left(cuts.turns, -turns, key=lambda turn: -turn)
    return float(cuts.values[first]) if first < len(cuts.values) else math.inf


def nats_of_turns(budget: Budget) -> Float[np.ndarray, " rows"]:
    """Returns the evidence of each calibration row in nats: −ln(turn / (n + 1))."""
    return math.log(len(budget.turns) + 1) - np.log(budget.turns)
