"""Conformal ranks, in exact arithmetic: thresholds, p-values, and how far a threshold may be off its level.

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

# Halvings of [0, 1]: what remains is 1e-15, and 1 − 2⁻⁵⁰ is still a float below 1.
_BISECTIONS = 50


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


def rank_of(level: float | Fraction, rows: int, asked: str) -> int:
    """⌈(rows + 1)·level⌉, the conformal rank, in exact arithmetic.

    Raises:
        CalibrationError: that rank is beyond the last row; the message names the rows needed.
    """
    rank = math.ceil((rows + 1) * exact(level))
    if rank > rows:
        raise CalibrationError(
            f"{asked} needs a larger calibration split",
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


def beta_bounds(level: float | Fraction, rows: int, confidence: float = 0.95) -> tuple[float, float]:
    """Between which shares the true share of scores at or below the threshold lies, over calibration splits.

    Given one split, that share is no longer `level`: over splits it is Beta(k, n + 1 − k), k the rank (Vovk, 2012;
    Angelopoulos & Bates, 2023, section 3.2). The interval is equal-tailed, and exact where scores do not tie; ties can
    only raise the share.

    Args:
        level: strictly between 0 and 1, a coverage or a percentile's hundredth.
        rows: n, the calibration split's.
        confidence: strictly between 0 and 1.

    Raises:
        CalibrationError: the split is too small for the level.
    """
    rank = rank_of(level, rows, f"level {float(level)!r}")
    tail = (1 - confidence) / 2
    return _beta_quantile(tail, rank, rows), _beta_quantile(1 - tail, rank, rows)


def reject_rate_bounds(percentile: float, rows: int, confidence: float = 0.95) -> tuple[float, float]:
    """Between which rates, of 1, the true reject rate at a percentile lies, over calibration splits (`beta_bounds`).

    Raises:
        CalibrationError: the split is too small for the percentile.
    """
    percentile_rank(percentile, rows)
    low, high = beta_bounds(exact(percentile) / 100, rows, confidence)
    return 1 - high, 1 - low


def _beta_quantile(mass: float, rank: int, rows: int) -> float:
    """Where Beta(rank, rows + 1 − rank) has this mass below it.

    Its distribution function at x is P(Binomial(rows, x) ≥ rank), which needs no special function.
    """
    counts = np.arange(rank, rows + 1)
    log_ways = _log_choose(rows, counts)
    low, high = 0.0, 1.0
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        below = np.exp(log_ways + counts * math.log(middle) + (rows - counts) * math.log1p(-middle)).sum()
        low, high = (middle, high) if below < mass else (low, middle)
    return (low + high) / 2


def _log_choose(rows: int, counts: np.ndarray) -> Float[np.ndarray, " counts"]:
    all_rows = math.lgamma(rows + 1)
    return np.array([all_rows - math.lgamma(count + 1) - math.lgamma(rows - count + 1) for count in counts.tolist()])


def threshold_bounds(
    ascending: Float[np.ndarray, " rows"], percentile: float, confidence: float = 0.95
) -> tuple[float | None, float | None]:
    """A confidence interval of the scores' true P-quantile: two of the scores, whatever their distribution.

    Of n scores Binomial(n, P/100) lie below the quantile. The ends are the innermost scores that are beyond it with at
    most (1 − confidence)/2 each (Conover, 1999, section 3.2); None is an end that lies beyond all n, which is no error.

    Args:
        ascending: the calibration scores.
        percentile: P, strictly between 0 and 100.
        confidence: strictly between 0 and 1.
    """
    rows, tail = len(ascending), (1 - confidence) / 2
    counts = np.arange(rows + 1)
    # The logarithm of the smallest percentiles' hundredth would be that of 0.
    log_share, log_rest = math.log(percentile) - math.log(100), math.log1p(-percentile / 100)
    masses = np.exp(_log_choose(rows, counts) + counts * log_share + (rows - counts) * log_rest)
    lower = int(np.searchsorted(np.cumsum(masses), tail, side="right"))  # ranks r with P(fewer than r below) ≤ tail
    upper = rows + 1 - int(np.searchsorted(np.cumsum(masses[::-1]), tail, side="right"))  # P(at least r below) ≤ tail
    return (
        float(ascending[lower - 1]) if lower >= 1 else None,
        float(ascending[upper - 1]) if upper <= rows else None,
    )
