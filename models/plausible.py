"""Plausible: whether the numbers of a manifest can be those of a model at all.

Pydantic has checked their types. What depends on the arrays is checked where these are read.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

from abstain.models.errors import BundleError, clip_repr
from abstain.models.networks import LeNetSpec, MLPSpec
from abstain.models.posterior import Model
from abstain.models.preprocessing import Preprocessing
from abstain.models.regular import RESTORE

WIDEST = 2**24
"""Units of a layer, features in a row, or the size of an axis."""
MOST_DRAWS = 10**7
MOST_ROWS = 10**9
MOST_AXES = 8


class Claim(NamedTuple):
    """A field of the manifest: whether it is plausible, and what it should have been."""

    field: str
    holds: bool
    expected: str
    found: Any


def refuse_implausible(claims: Iterable[Claim], where: str) -> None:
    """Refuses the first claim that does not hold.

    Raises:
        BundleError: naming its field.
    """
    for claim in claims:
        if not claim.holds:
            found = clip_repr(claim.found)
            raise BundleError(claim.field, where=where, expected=claim.expected, found=found, fix=RESTORE)


def of_model(model: Model) -> Iterator[Claim]:
    """What must hold of a network's sizes and of preprocessing, whatever the network."""
    # What follows multiplies the sizes of the shape.
    yield of_shape("model.feature_shape", model.feature_shape)
    yield from _of_network(model)
    yield from _of_preprocessing(model.preprocessing, model.features)


def of_shape(field: str, shape: tuple[int, ...]) -> Claim:
    """A shape has few axes, none empty, none too long."""
    sound = len(shape) <= MOST_AXES and all(1 <= size <= WIDEST for size in shape)
    return Claim(field, sound, f"at most {MOST_AXES} sizes from 1 to {WIDEST:,}", shape)


def within(field: str, value: int, least: int, most: int) -> Claim:
    """A whole number is in its range."""
    return Claim(field, least <= value <= most, f"from {least:,} to {most:,}", value)


def _of_network(model: Model) -> Iterator[Claim]:
    network = model.network
    if isinstance(network, MLPSpec | LeNetSpec):
        channels = network.channels if isinstance(network, LeNetSpec) else ()
        yield within("model.network, its widest layer", max((*network.hidden, *channels), default=1), 1, WIDEST)
    named = len(model.feature_names)
    yield Claim("model.feature_names", named in {0, model.features}, f"0 or {model.features} names", named)


def _of_preprocessing(preprocessing: Preprocessing, features: int) -> Iterator[Claim]:
    place = "model.preprocessing"
    for field in ("shift", "scale", "origin", "unit"):
        values: tuple[float, ...] = getattr(preprocessing, field)
        enough = len(values) in {1, features} or (field in {"origin", "unit"} and not values)
        yield Claim(f"{place}.{field}", enough, f"one number, or {features}", len(values))
        for value in values:
            yield Claim(f"{place}.{field}", math.isfinite(value), "finite numbers", value)
    yield Claim(
        f"{place}.unit",
        len(preprocessing.unit) == len(preprocessing.origin),
        f"{len(preprocessing.origin)} numbers, as in origin",
        len(preprocessing.unit),
    )
    for value in preprocessing.scale:
        yield _divisor(f"{place}.scale", value, in_float32=True)
    for value in preprocessing.unit:
        yield _divisor(f"{place}.unit", value, in_float32=False)
    yield _divisor(f"{place}.target_scale", preprocessing.target_scale, in_float32=not preprocessing.float64_target)
    shift = preprocessing.target_shift
    yield Claim(f"{place}.target_shift", math.isfinite(shift), "a finite number", shift)
    columns = len(preprocessing.columns)
    yield Claim(f"{place}.columns", columns in {0, features}, f"0 or {features} columns", columns)


def _divisor(field: str, value: float, *, in_float32: bool) -> Claim:
    """The compiled program divides in float32, where the smallest numbers of float64 are 0 and the largest infinite."""
    limits = np.finfo(np.float32 if in_float32 else np.float64)
    holds = float(limits.smallest_subnormal) <= value <= float(limits.max)
    return Claim(field, holds, f"a number above 0{' in float32' if in_float32 else ''}", value)
