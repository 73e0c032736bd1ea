"""Precision: finds features and targets that float32 cannot represent, so that the host must convert them.

Seconds since 1970 are about 1.7e9, where neighbouring float32 numbers differ by 128. The host standardises these features
in float64, before they enter the compiled program (`Preprocessing.origin`, `unit`), and converts predictions of these
targets back to their units. If this is not enough, the fit refuses the data.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Num

from abstain.models.errors import DataError
from abstain.models.prediction.preprocessing import Preprocessing, on_host

COARSE = 1e-4
"""The distance of neighbouring float32 numbers, in standard deviations of a feature, above which the host converts it."""
SMALL, LARGE = 1e-30, 1e30
"""The range of scales that float32 can square and divide by, without under- or overflow."""
VARIANCE_SMALL, VARIANCE_LARGE = 1e-15, 1e15
"""The range of a target's standard deviation, with variances that float32 can represent."""
CHECKED_ROWS = 5_000
"""The largest number of rows in which distinct values are counted."""
MERGED = 0.5
"""The share of a feature's distinct values that float32 may merge with others. Among millions of random numbers it merges
a few per cent, which loses no information."""


def too_coarse(
    largest: Float[np.ndarray, " features"], spread: Float[np.ndarray, " features"]
) -> Bool[np.ndarray, " features"]:
    """Returns which features float32 cannot represent: its spacing is too coarse for their spread, or the spread is out of range."""
    spacing = np.spacing(np.minimum(largest, np.finfo(np.float32).max).astype(np.float32)).astype(np.float64)
    return (spread > 0) & ((spacing > COARSE * spread) | (spread < SMALL) | (spread > LARGE))


def target_needs_float64(mean: float, std: float) -> bool:
    """Whether predictions are converted to the target's units on the host, in float64."""
    offset = bool(too_coarse(np.array([abs(mean)]), np.array([std]))[0])
    return offset or not VARIANCE_SMALL < std < VARIANCE_LARGE


def check_target(mean: float, std: float) -> None:
    """Refuses targets with a spread that even float64 cannot represent well.

    Raises:
        DataError: the spread is too small or too large, also compared with the mean; the text names both.
    """
    if not SMALL < std < LARGE:
        raise DataError(
            "targets",
            expected=f"a standard deviation from {SMALL:g} to {LARGE:g}",
            found=f"{std:.3g} about a mean of {mean:.6g}",
            fix="give the targets in another unit",
        )
    if abs(mean) > 1e10 * std:
        raise DataError(
            "targets",
            expected="a mean of at most 1e10 standard deviations",
            found=f"{mean:.17g} and a standard deviation of {std:.3g}",
            fix="subtract an offset from the targets in the file",
        )


def check_distinct(preprocessing: Preprocessing, x: Num[np.ndarray, "rows ..."], names: tuple[str, ...]) -> None:
    """Refuses features with distinct values that float32 merges, even after `on_host`.

    Raises:
        DataError: too few distinct values remain; the text names the feature and their number.
    """
    if x.dtype.itemsize <= 2 or (x.dtype.itemsize <= 4 and x.dtype.kind == "f"):
        return
    sample = x[:: 1 + len(x) // CHECKED_ROWS]
    flat, cast = (rows.reshape(len(sample), -1) for rows in (sample, on_host(preprocessing, sample).astype(np.float32)))
    for index in np.flatnonzero((flat != cast).any(axis=0)):
        exact = flat[:, index]
        distinct, remaining = (len(np.unique(values[~np.isnan(exact)])) for values in (exact, _normal(cast[:, index])))
        if remaining < (1 - MERGED) * distinct:
            raise DataError(
                f"feature {names[index]!r}" if names else f"feature {index}",
                expected="numbers that stay distinct in float32",
                found=f"{distinct} distinct values in {len(sample)} rows, of which float32 keeps {remaining}",
                fix="subtract an offset or change the unit in the file, split the feature in two, or leave gaps empty "
                "instead of marking them by a number",
            )


def _normal(values: Float[np.ndarray, " rows"]) -> Float[np.ndarray, " rows"]:
    """Sets subnormal float32 numbers to 0, as the compiled program does."""
    return np.where(np.abs(values) < np.finfo(np.float32).tiny, 0, values)
