"""Conformal ranks, in exact arithmetic: thresholds and p-values.

With n exchangeable calibration scores, a new score exceeds the k-th smallest one with probability at most 1 − k/(n + 1)
(Vovk et al., 2005). Ranks are products of decimals and whole numbers; floats would be wrong by one for some of them, so
fractions are used.
"""

from __future__ import annotations

import math
from fractions import Fraction
from functools import lru_cache

import numpy as np
from jaxtyping import Float

from abstain.models.errors import CalibrationError

TOLERANCE = 1e-4
"""Tolerance of a score relative to its size; scores of equal rows differ by about 1e-6 between batch sizes and processors."""
LEAST_TOLERANCE = 1e-6
"""Tolerance of a score near 0, in the score's unit."""


@lru_cache(maxsize=1024)
def percentile_rank(percentile: float, rows: int) -> int:
    """Returns the rank of the threshold at a percentile, strictly between 0 and 100; raises like `rank_of`."""
    return rank_of(exact(percentile) / 100, rows, f"the {ordinal(percentile)} percentile")


@lru_cache(maxsize=1024)
def coverage_rank(coverage: float, rows: int) -> int:
    """Returns the rank of the radius for a coverage, strictly between 0 and 1; raises like `rank_of`."""
    return rank_of(coverage, rows, f"coverage {coverage!r}")


def exact(number: float | Fraction) -> Fraction:
    """Returns exactly the shortest decimal that reads back as this float: 99.9 becomes 999/10, which no float equals."""
    return number if isinstance(number, Fraction) else Fraction(repr(float(number)))


def ordinal(percentile: float) -> str:
    """Returns the ordinal in words of digits: 99 → "99th", 91 → "91st", 99.5 → "99.5th"."""
    text = repr(float(percentile)).removesuffix(".0")
    suffix = {"1": "st", "2": "nd", "3": "rd"}.get(text[-1], "th")
    return text + ("th" if "." in text or text in {"11", "12", "13"} else suffix)


def rank_of(level: float | Fraction, rows: int, what: str) -> int:
    """Returns the conformal rank ⌈(rows + 1)·level⌉, in exact arithmetic.

    Raises:
        CalibrationError: the rank is beyond the last row; the text names the number of rows needed.
    """
    rank = math.ceil((rows + 1) * exact(level))
    if rank > rows:
        raise CalibrationError(
            f"{what} needs a larger calibration part",
            expected=f"at least {rows_needed(level)} rows",
            found=f"{rows} rows",
            fix="request a lower value, or calibrate with more rows",
        )
    return rank


def rows_needed(level: float | Fraction) -> int:
    """Returns the size of the smallest calibration part that has a threshold at `level`: ⌈level / (1 − level)⌉."""
    return math.ceil(exact(level) / (1 - exact(level)))


def threshold(ascending: Float[np.ndarray, " rows"], percentile: float) -> float:
    """Returns the ⌈(n + 1)·P/100⌉-th smallest of the n calibration scores.

    Raises:
        CalibrationError: n is too small for P.
    """
    return float(ascending[percentile_rank(percentile, len(ascending)) - 1])


def less_tolerance(
    values: Float[np.ndarray, "..."], unit: float | Float[np.ndarray, "..."] = 1.0
) -> Float[np.ndarray, "..."]:
    """Returns each score s minus its tolerance τ, in float64: calibration scores of at least s − τ count as at least s.

    τ = max(`TOLERANCE`·|s|, `LEAST_TOLERANCE`·unit) does not depend on the calibration rows, and s − τ grows with s. So
    the tolerance can only increase a p-value, which stays valid, and rows that differ only by rounding are ties.

    Args:
        values: scores.
        unit: the scores' unit: 1 for probabilities, nats and standardised distances.
    """
    wide = values.astype(np.float64)
    # Products, not differences, so that an infinite score stays infinite.
    relative = np.minimum(wide * (1 - TOLERANCE), wide * (1 + TOLERANCE))
    return np.minimum(relative, wide - LEAST_TOLERANCE * unit)


def share_at_least(
    ascending: Float[np.ndarray, " rows"], edges: Float[np.ndarray, " batch"]
) -> Float[np.ndarray, " batch"]:
    """Returns the conformal p-values (1 + #{calibration ≥ edge}) / (n + 1).

    Args:
        ascending: the calibration scores.
        edges: the new scores after `less_tolerance`.
    """
    at_least = len(ascending) - np.searchsorted(ascending, edges, side="left")
    return (1 + at_least) / (len(ascending) + 1)
