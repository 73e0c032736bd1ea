"""Precision: which features and targets float32 cannot hold as they are, and what is done on the host instead.

Seconds since 1970 are 1.7e9 and a bit; float32 has a number every 128 there. Such a feature is standardised on the host, in
float64, before it is given to the compiled program (`Preprocessing.origin`, `unit`); such a target is put back into its
units there. What even this does not save is refused before the fit.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Num

from abstain.models.errors import DataError
from abstain.models.prediction.preprocessing import Preprocessing, on_host

COARSE = 1e-4
"""Distance of neighbouring float32 numbers, in standard deviations of the feature, above which the host standardises it."""
SMALL, LARGE = 1e-30, 1e30
"""Sizes of what float32 can square and divide by at least once: beyond them a scale under- or overflows."""
VARIANCE_SMALL, VARIANCE_LARGE = 1e-15, 1e15
"""Standard deviations of a target whose variance float32 holds with room to spare."""
LOOKED_AT = 5_000
"""Rows whose values are counted."""
MERGED = 0.5
"""Share of a feature's distinct values that float32 may round to another one of them. Millions of random numbers lose a
few per cent of themselves, and no information."""


def too_coarse(
    largest: Float[np.ndarray, " features"], spread: Float[np.ndarray, " features"]
) -> Bool[np.ndarray, " features"]:
    """Which features float32 cannot hold: too coarse for their spread, or a spread out of its range; constants it can."""
    spacing = np.spacing(np.minimum(largest, np.finfo(np.float32).max).astype(np.float32)).astype(np.float64)
    return (spread > 0) & ((spacing > COARSE * spread) | (spread < SMALL) | (spread > LARGE))


def target_needs_float64(mean: float, std: float) -> bool:
    """Whether predictions are put back into a target's units on the host, in float64."""
    offset = bool(too_coarse(np.array([abs(mean)]), np.array([std]))[0])
    return offset or not VARIANCE_SMALL < std < VARIANCE_LARGE


def check_target(mean: float, std: float) -> None:
    """Refuses targets whose spread even float64 cannot be trusted with.

    Raises:
        DataError: with the remedy.
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
    """Refuses features that float32 merges the values of, even after `on_host`.

    Raises:
        DataError: naming the feature, and how many values are left of how many.
    """
    if x.dtype.itemsize <= 2 or (x.dtype.itemsize <= 4 and x.dtype.kind == "f"):
        return
    some = x[:: 1 + len(x) // LOOKED_AT]
    flat, cast = (rows.reshape(len(some), -1) for rows in (some, on_host(preprocessing, some).astype(np.float32)))
    for place in np.flatnonzero((flat != cast).any(axis=0)):
        own = flat[:, place]
        distinct, left = (len(np.unique(values[~np.isnan(own)])) for values in (own, _normal(cast[:, place])))
        if left < (1 - MERGED) * distinct:
            raise DataError(
                f"feature {names[place]!r}" if names else f"feature {place}",
                expected="numbers that float32 can tell apart",
                found=f"{distinct} distinct values in {len(some)} rows, of which {left} are left",
                fix="subtract an offset or change the unit in the file, split the feature in two, or leave gaps empty "
                "instead of marking them by a number",
            )


def _normal(values: Float[np.ndarray, " rows"]) -> Float[np.ndarray, " rows"]:
    """Numbers as the compiled program sees them: what is below float32's normal range is 0 to it."""
    return np.where(np.abs(values) < np.finfo(np.float32).tiny, 0, values)
