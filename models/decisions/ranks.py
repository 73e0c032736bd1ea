"""Conformal ranks, in exact arithmetic: thresholds and p-values.

With n exchangeable calibration scores, the k-th smallest is exceeded by a new one with probability at most
1 − k/(n + 1) (Vovk et al., 2005). Ranks are products of decimals with whole numbers, and floats would miss some of
them by one; hence fractions.
"""

from __future__ import annotations

import math
from fractions import Fraction
from functools import lru_cache

import numpy as np
from jaxtyping import Float

from abstain.models.errors import CalibrationError

TOLERANCE = 1e-4
"""Of a score, as a fraction of its size: scores of equal rows differ by about 1e-6 between batch sizes and processors."""
LEAST_TOLERANCE = 1e-6
"""Of a score near 0, in the score's unit."""


@lru_cache(maxsize=1024)
def percentile_rank(percentile: float, rows: int) -> int:
    """The rank of the threshold at a percentile, strictly between 0 and 100; raises as `rank_of` does."""
    return rank_of(exact(percentile) / 100, rows, f"the {ordinal(percentile)} percentile")


@lru_cache(maxsize=1024)
def coverage_rank(coverage: float, rows: int) -> int:
    """The rank of the radius of sets and intervals, strictly between 0 and 1; raises as `rank_of` does."""
    return rank_of(coverage, rows, f"coverage {coverage!r}")


def exact(number: float | Fraction) -> Fraction:
    """The shortest decimal that reads back as this float, exactly: 99.9 means 999/10, which no float is."""
    return number if isinstance(number, Fraction) else Fraction(repr(float(number)))


def ordinal(percentile: float) -> str:
    """99 → "99th", 91 → "91st", 99.5 → "99.5th"."""
    text = repr(float(percentile)).removesuffix(".0")
    suffix = {"1": "st", "2": "nd", "3": "rd"}.get(text[-1], "th")
    return text + ("th" if "." in text or text in {"11", "12", "13"} else suffix)


def rank_of(level: float | Fraction, rows: int, what: str) -> int:
    """⌈(rows + 1)·level⌉, the conformal rank, in exact arithmetic.

    Raises:
        CalibrationError: that rank is beyond the last row; the message names the rows needed.
    """
    rank = math.ceil((rows + 1) * exact(level))
    if rank > rows:
        raise CalibrationError(
            f"{what} needs a larger calibration split",
            expected=f"at least {rows_needed(level)} rows",
            found=f"{rows} rows",
            fix="ask for less, or calibrate on more",
        )
    return rank


def rows_needed(level: float | Fraction) -> int:
    """The smallest calibration split for which `level`, between 0 and 1, has a threshold: ⌈level / (1 − level)⌉."""
    return math.ceil(exact(level) / (1 - exact(level)))


def threshold(ascending: Float[np.ndarray, " rows"], percentile: float) -> float:
    """The ⌈(n + 1)·P/100⌉-th smallest of the n calibration scores.

    Raises:
        CalibrationError: n is too small for P.
    """
    return float(ascending[percentile_rank(percentile, len(ascending)) - 1])


def less_tolerance(
    values: Float[np.ndarray, "..."], unit: float | Float[np.ndarray, "..."] = 1.0
) -> Float[np.ndarray, "..."]:
    """Each score s less its tolerance τ, in float64: calibration scores at or above s − τ count as at least s.

    τ = max(`TOLERANCE`·|s|, `LEAST_TOLERANCE`·unit) is fixed before any calibration row is seen, and s − τ grows with s.
    So a p-value can only grow by it, and stays valid, while rows that are equal but for rounding are ties.

    Args:
        values: scores.
        unit: what a score of ordinary size measures in: 1 for probabilities, nats and standardised distances.
    """
    wide = values.astype(np.float64)
    # Products, not differences: an infinite score stays one.
    relative = np.minimum(wide * (1 - TOLERANCE), wide * (1 + TOLERANCE))
    return np.minimum(relative, wide - LEAST_TOLERANCE * unit)


def share_at_least(
    ascending: Float[np.ndarray, " rows"], edges: Float[np.ndarray, " batch"]
) -> Float[np.ndarray, " batch"]:
    """(1 + #{calibration ≥ edge}) / (n + 1): the conformal p-value of the scores whose `less_tolerance` these edges are."""
    at_least = len(ascending) - np.searchsorted(ascending, edges, side="left")
    return (1 + at_least) / (len(ascending) + 1)
