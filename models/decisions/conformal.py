"""Conformal prediction sets and intervals: nonconformity scores, and the sets and intervals for a radius.

Both are split conformal: the radius is the ⌈(n + 1)·coverage⌉-th smallest score of the calibration part's true targets
(`models/decisions/ranks.py`), and a row's set or interval contains the targets with a score of at most the radius. So every
score below is valid on exchangeable rows; they differ in the sizes for easy and for hard rows.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from jaxtyping import Float, Int

SetKind = Literal["lac", "aps", "raps"]
IntervalKind = Literal["normalised", "quantiles"]

# From the tutorial by Angelopoulos & Bates (2023), for ImageNet's 1,000 classes: five classes have no penalty, and each
# further class costs a hundredth. Tuning them on the calibration part would break its exchangeability with new rows.
RAPS_PENALTY = 0.01
RAPS_FREE_RANKS = 5

TIE = 1e-5
"""Probabilities that differ by less than this may differ only by rounding in float32 sums over classes and draws."""
_SMALLEST_STD = float(np.finfo(np.float32).tiny)


def set_scores(
    kind: SetKind, probabilities: Float[np.ndarray, "rows classes"], uniform: Float[np.ndarray, " rows"]
) -> Float[np.ndarray, "rows classes"]:
    """Returns how badly every class fits its row. A set contains the classes with at most the radius; it may be empty.

    - "lac": 1 − p, the smallest sets on average (Sadinle et al., 2019).
    - "aps": the mass of the classes more probable than y, plus uniform · p_y: sets that grow with the row's difficulty
      (Romano, Sesia & Candès, 2020).
    - "raps": APS + `RAPS_PENALTY` · max(0, rank of y − `RAPS_FREE_RANKS`), which keeps the long tail of improbable
      classes out (Angelopoulos et al., 2021).

    Probabilities that differ by less than `TIE` count as equal: neither class is more probable, and they share a rank.
    Otherwise rounding would decide their order.

    APS must be randomised. If p_y counted in full, an accurate and confident model would give its true classes scores of
    nearly 1, so the radius would be nearly 1 too and the sets of uncertain rows would contain every class. If p_y did not
    count, these scores and the radius would be 0. With a share `uniform` of p_y, the scores of true classes are uniform on
    [0, 1] if the probabilities are right, and the coverage is the requested one, but some sets are empty.

    Args:
        kind: the score.
        probabilities: the probabilities of all classes, for each row.
        uniform: one number in [0, 1) for each row, independent of the label. Computed from the row's input alone, it gives
            the same set for the same row every time; "lac" ignores it.
    """
    exact = np.asarray(probabilities, np.float64)
    if kind == "lac":
        return 1 - exact
    counts, mass = more_probable(exact)
    scores = mass + np.asarray(uniform, np.float64)[:, None] * exact
    if kind == "raps":
        scores += RAPS_PENALTY * np.maximum(0, counts + 1 - RAPS_FREE_RANKS)
    return scores


def more_probable(
    probabilities: Float[np.ndarray, "rows classes"],
) -> tuple[Int[np.ndarray, "rows classes"], Float[np.ndarray, "rows classes"]]:
    """Returns for each class how many are more probable by more than `TIE`, and the sum of their probabilities."""
    rows, classes = probabilities.shape
    descending = -np.sort(-probabilities, axis=1)
    # One search for all rows: the values of row r are shifted to between 3r − 1 and 3r, so that all are ascending.
    offsets = np.arange(rows, dtype=np.float64).reshape(-1, 1) * 3
    first = np.arange(rows, dtype=np.int64).reshape(-1, 1) * classes
    ascending, targets = (offsets - descending).ravel(), (offsets - probabilities - TIE).ravel()
    counts = np.searchsorted(ascending, targets, side="left").reshape(rows, classes) - first
    sums = np.pad(np.cumsum(descending, axis=1), ((0, 0), (1, 0)))
    return counts, np.take_along_axis(sums, counts, axis=1)


def interval_scores(
    kind: IntervalKind,
    mean: Float[np.ndarray, " rows"],
    std: Float[np.ndarray, " rows"],
    low: Float[np.ndarray, " rows"],
    high: Float[np.ndarray, " rows"],
    targets: Float[np.ndarray, " rows"],
) -> Float[np.ndarray, " rows"]:
    """Returns how badly each target fits its prediction; finite if the arguments are.

    - "normalised": |y − mean| / std, without a unit (Lei et al., 2018, section 5.2).
    - "quantiles": max(low − y, y − high), in the target's units, negative inside (CQR; Romano, Patterson & Candès,
      2019).

    Args:
        kind: the score; each uses only some of the arguments.
        mean: the mean of the predictive distribution, in the target's units, like all following arguments.
        std: its standard deviation, at least 0; at least float32's smallest normal number is used.
        low: its lower quantile. Any level is valid; a level near (1 − coverage)/2 gives the narrowest intervals.
        high: its upper quantile.
        targets: the rows' true targets.
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
    radius: Float[np.ndarray, " #rows"] | float,
) -> Float[np.ndarray, "rows 2"]:
    """Returns the interval of the targets with a score of at most the radius: lower and upper end, in the target's units.

    It is mean ± radius · std, or [low − radius, high + radius]. With a negative radius the ends of the latter may cross;
    then both are the midpoint of low and high, which can only increase the coverage.

    Args:
        kind: the score of the radius; the other arguments are those of `interval_scores`.
        mean: the mean of the predictive distribution.
        std: its standard deviation.
        low: its lower quantile.
        high: its upper quantile.
        radius: the calibration's score at the rank of the coverage; one for all rows, or one for each.
    """
    if kind == "normalised":
        half = radius * _positive(std)
        return np.stack([mean - half, mean + half], axis=1)
    ends = np.stack([np.asarray(low, np.float64) - radius, np.asarray(high, np.float64) + radius], axis=1)
    crossed = ends[:, :1] > ends[:, 1:]
    return np.where(crossed, ends.mean(axis=1, keepdims=True), ends)


def _positive(std: Float[np.ndarray, " rows"]) -> Float[np.ndarray, " rows"]:
    """Returns the standard deviations, at least float32's smallest normal number, because a spread may be 0."""
    return np.maximum(np.asarray(std, np.float64), _SMALLEST_STD)
