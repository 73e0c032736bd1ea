"""Conformal prediction sets and intervals: what is counted as ill-fitting, and what follows from a radius.

Both are split conformal: the radius is the ⌈(n + 1)·coverage⌉-th smallest score of the calibration split's true
targets (`models.ranks`), and a target belongs to a row's set or interval if its score is at most the radius. Every
score below is thereby valid on exchangeable rows; they differ in how the size is spread over easy and hard rows.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from jaxtyping import Float, Int

SetKind = Literal["lac", "aps", "raps"]
IntervalKind = Literal["normalised", "quantiles"]

# Of the tutorial by Angelopoulos & Bates (2023), for ImageNet's 1,000 classes: five classes go free, and each one more
# costs a hundredth. Choosing them on the calibration split would break its exchangeability with new rows.
RAPS_PENALTY = 0.01
RAPS_FREE_RANKS = 5

TIE = 1e-5
"""Difference of two probabilities that may be rounding: they come from float32 sums over classes and draws."""
_SMALLEST_STD = float(np.finfo(np.float32).tiny)


def set_scores(
    kind: SetKind, probabilities: Float[np.ndarray, "rows classes"], uniform: Float[np.ndarray, " rows"]
) -> Float[np.ndarray, "rows classes"]:
    """How ill every class fits its row; a set holds the classes whose score is at most the radius, and may be empty.

    - "lac": 1 − p, the smallest sets on average (Sadinle et al., 2019).
    - "aps": the mass of the classes more probable than y, plus uniform · p_y: sets that grow with the row's difficulty
      (Romano, Sesia & Candès, 2020).
    - "raps": APS + `RAPS_PENALTY` · max(0, rank of y − `RAPS_FREE_RANKS`), which holds back the long tail of improbable
      classes (Angelopoulos et al., 2021).

    Probabilities that differ by less than `TIE` are equal: neither class is more probable, and they share a rank. Else
    rounding would decide which of them is counted first.

    APS must be randomised. Counting p_y in full, a model that is sure and right gives its true classes scores of nearly
    1, and so is the radius at every coverage: the sets of doubtful rows hold every class. Counting it not at all, those
    scores are all 0, and so is the radius. A share `uniform` of it makes the scores of true classes spread over [0, 1]
    evenly, as soon as the probabilities are right, and the coverage the one asked for, at the price of empty sets.

    Args:
        kind: the score.
        probabilities: each row's, of all classes.
        uniform: in [0, 1), one number a row, independent of the label. A function of the row's input alone keeps the
            answer to a row the same each time; "lac" ignores it.
    """
    exact = np.asarray(probabilities, np.float64)
    if kind == "lac":
        return 1 - exact
    places, mass = more_probable(exact)
    scores = mass + np.asarray(uniform, np.float64)[:, None] * exact
    if kind == "raps":
        scores += RAPS_PENALTY * np.maximum(0, places + 1 - RAPS_FREE_RANKS)
    return scores


def more_probable(
    probabilities: Float[np.ndarray, "rows classes"],
) -> tuple[Int[np.ndarray, "rows classes"], Float[np.ndarray, "rows classes"]]:
    """How many classes are more probable than each, by more than `TIE`, and the sum of their probabilities."""
    rows, classes = probabilities.shape
    falling = -np.sort(-probabilities, axis=1)
    # One search for all rows: row r's values lie between 3r − 1 and 3r, ascending.
    offsets = np.arange(rows, dtype=np.float64).reshape(-1, 1) * 3
    first = np.arange(rows, dtype=np.int64).reshape(-1, 1) * classes
    ascending, sought = (offsets - falling).ravel(), (offsets - probabilities - TIE).ravel()
    places = np.searchsorted(ascending, sought, side="left").reshape(rows, classes) - first
    sums = np.pad(np.cumsum(falling, axis=1), ((0, 0), (1, 0)))
    return places, np.take_along_axis(sums, places, axis=1)


def interval_scores(
    kind: IntervalKind,
    mean: Float[np.ndarray, " rows"],
    std: Float[np.ndarray, " rows"],
    low: Float[np.ndarray, " rows"],
    high: Float[np.ndarray, " rows"],
    targets: Float[np.ndarray, " rows"],
) -> Float[np.ndarray, " rows"]:
    """How ill each target fits its prediction; finite wherever the arguments are.

    - "normalised": |y − mean| / std, without a unit (Lei et al., 2018, section 5.2).
    - "quantiles": max(low − y, y − high), in the target's units, negative inside (CQR; Romano, Patterson & Candès,
      2019).

    Args:
        kind: the score; each reads only its own arguments.
        mean: of the predictive distribution, in the target's units, as all that follow.
        std: its standard deviation, at least 0; below float32's smallest normal number it counts as that.
        low: its lower quantile. Any level is valid, and one near (1 − coverage)/2 gives the narrowest intervals.
        high: its upper quantile.
        targets: the rows' true ones.
    """
    truth = np.asarray(targets, np.float64)
    if kind == "normalised":
        return np.abs(truth - mean) / _positive(std)
    return np.maximum(low - truth, truth - high)


def interval(
    kind: IntervalKind,
    mean: Float[np.ndarray, " rows"],
    std: Float[np.ndarray, " rows"],
    low: Float[np.ndarray, " rows"],
    high: Float[np.ndarray, " rows"],
    radius: float,
) -> Float[np.ndarray, "rows 2"]:
    """The targets whose score is at most the radius: lower and upper end, in the target's units.

    Mean ± radius · std, or [low − radius, high + radius]. A negative radius may leave nothing of the second; it is then
    the midpoint of low and high, which can only cover more.

    Args:
        kind: the score that the radius is one of; the other arguments are those of `interval_scores`.
        mean: of the predictive distribution.
        std: its standard deviation.
        low: its lower quantile.
        high: its upper quantile.
        radius: the calibration's score at the rank of the coverage.
    """
    if kind == "normalised":
        half = radius * _positive(std)
        return np.stack([mean - half, mean + half], axis=1)
    ends = np.stack([np.asarray(low, np.float64) - radius, np.asarray(high, np.float64) + radius], axis=1)
    crossed = ends[:, :1] > ends[:, 1:]
    return np.where(crossed, ends.mean(axis=1, keepdims=True), ends)


def _positive(std: Float[np.ndarray, " rows"]) -> Float[np.ndarray, " rows"]:
    """Two targets may be predicted without any spread, and hit."""
    return np.maximum(np.asarray(std, np.float64), _SMALLEST_STD)
