"""Discoveries: the rows of a file that are unlike the calibration rows, with a bound on the share of false ones.

A false discovery is a flagged row that is like the calibration rows. The false discovery rate (FDR) is the mean, over random
calibration parts and files, of the share of false ones among the flagged rows; it counts as 0 for a file without flagged rows.
The step-up rule of Benjamini and Hochberg (1995) keeps it at most at a chosen rate Q.

The rule needs p-values that are independent or positively dependent. Conformal p-values share one calibration part and are
positively dependent (Bates, Candès, Lei, Romano and Sesia, 2023, "Testing for outliers with conformal p-values"). With n
calibration rows they are k/(n + 1) for a whole number k, the *rank*. So the count of each rank holds all that the rule needs,
counts of several parts of a file can be added, and whole numbers decide without rounding errors.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Int

from abstain.models.decisions.ranks import exact, rows_needed


def ranks_of(p_values: Float[np.ndarray, " rows"], calibration_rows: int) -> Int[np.ndarray, " rows"]:
    """Returns the rank k of each conformal p-value k/(n + 1): 1 if no calibration score is as large, n + 1 if all are."""
    return np.rint(p_values * (calibration_rows + 1)).astype(np.int64)


def count_ranks(ranks: Int[np.ndarray, " rows"], calibration_rows: int) -> Int[np.ndarray, " ranks"]:
    """Counts the rows of each rank: n + 1 counts, those of rank 1 first."""
    return np.bincount(ranks, minlength=calibration_rows + 2)[1:]


def find_limit(counts: Int[np.ndarray, " ranks"], rate: float) -> int:
    """Returns the largest rank that is flagged, by Benjamini and Hochberg's step-up rule; 0 if none is.

    It is the largest rank k of a row with k/(n + 1) ≤ Q·(number of rows of rank ≤ k)/(number of rows).

    Args:
        counts: the number of rows of each rank, from 1 to n + 1.
        rate: Q, the bound of the false discovery rate, strictly between 0 and 1; read as a decimal, without rounding.
    """
    share, totals = exact(rate), np.cumsum(counts)
    # Python's whole numbers: those of numpy would overflow for a Q of many digits.
    scale = len(counts) * share.numerator
    for index in np.flatnonzero(counts)[::-1].tolist():
        if (index + 1) * int(totals[-1]) * share.denominator <= scale * int(totals[index]):
            return index + 1
    return 0


def flag_discoveries(
    p_values: Float[np.ndarray, " rows"], calibration_rows: int, rate: float
) -> Bool[np.ndarray, " rows"]:
    """Flags the rows that are unlike the calibration rows, at a false discovery rate of at most `rate`.

    Args:
        p_values: the conformal p-value of every row of the file.
        calibration_rows: n, the number of calibration rows that all p-values are ranked among.
        rate: as in `find_limit`.
    """
    ranks = ranks_of(p_values, calibration_rows)
    return ranks <= find_limit(count_ranks(ranks, calibration_rows), rate)


def least_calibration_rows(rate: float) -> int:
    """Returns the least n with 1/(n + 1) ≤ `rate`: with fewer calibration rows, no row of any file can be flagged."""
    return rows_needed(1 - exact(rate))
