"""Plausible: whether the numbers of a manifest can be those of a model at all.

Pydantic has checked their types. What depends on the arrays is checked where these are read.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

from abstain.models.errors import BundleError, clip_repr
from abstain.models.files.regular import RESTORE
from abstain.models.networks.architectures import LeNetSpec, MLPSpec
from abstain.models.prediction.posterior import Model
from abstain.models.prediction.predictive import BUCKETS
from abstain.models.prediction.preprocessing import Preprocessing, transformed_shape

WIDEST = 2**24
"""Units of a layer, features in a row, or the size of an axis."""
MOST_DRAWS = 10**7
MOST_ROWS = 10**9
MOST_AXES = 8
BATCH_BYTES = 4 * 2**30
"""Of what is alive at once while a batch is computed: few machines can give more to each of their workers. A hundred draws
of layers of 4,096 take some 10 MB, 500 draws of 1,000 classes 2.6 GB; without a bound, kilobytes on disk could ask for
terabytes."""
_COPIES = 5
"""Arrays of every draw's answers that a summary and its scores are made of, alive at once."""
_DENSITY_AXES: dict[str, tuple[tuple[str, tuple[int, ...]], ...]] = {
    "vim": (("residual", (0, 2)),),
    "relative_mahalanobis": (("within", (0, 2)), ("means", (0, 2))),
    "mahalanobis": (("within", (0, 2)),),
    "subspace": (("basis", (1, 2)),),
    "local_subspace": (("basis", (1, 2)),),
    "feature_subspace": (("basis", (1, 2)),),
    "knn": (("bank", (0,)),),
    "input_knn": (("bank", (0,)),),
}
"""Of each density, the fields and their axes along which it computes numbers for every row."""


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


def of_batch(model: Model, draws: int, densities: dict[str, dict[str, tuple[int, ...]]]) -> Claim:
    """The largest batch is computed in bounded memory.

    Draws are computed in chunks whose activations stay in a processor's cache, or one by one where one is larger. So there
    are one draw's activations at a time, but the answers of all draws.

    Args:
        densities: the shapes of their arrays, by score and field.
    """
    parts = len(model.class_names) or 2
    widest, answers, kept = _widest(model), _COPIES * draws * parts, _numbers_of(densities)
    taken = 4 * BUCKETS[-1] * (widest + answers + kept)
    return Claim(
        "model, the memory that a batch takes",
        taken <= BATCH_BYTES,
        f"at most {BATCH_BYTES:,} bytes",
        f"{taken:,} = {BUCKETS[-1]} rows x 4 bytes x ({widest:,} of the widest layer + {answers:,} of the answers of all "
        f"draws + {kept:,} of the densities)",
    )


def of_members(model: Model, members: int) -> Claim:
    """So it is with the features of the draws that the densities see, all of which are kept."""
    taken = 4 * BUCKETS[-1] * members * _feature_width(model)
    return Claim(
        "densities, the memory that the features of a batch take",
        taken <= BATCH_BYTES,
        f"at most {BATCH_BYTES:,} bytes",
        f"{taken:,}, of {members:,} members",
    )


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


def _widest(model: Model) -> int:
    """The most numbers that one row is at any layer, input and convolutions included; your own layers are not known."""
    network, prepared = model.network, transformed_shape(model.preprocessing, model.feature_shape)
    inputs = max(model.features, math.prod(prepared))
    if isinstance(network, LeNetSpec):
        # The second convolution sees the image after pooling, of half its height and width.
        first, second = network.channels
        pixels = math.prod(prepared[:2])
        return max(inputs, pixels * first, pixels // 4 * second, *network.hidden)
    return max(inputs, *network.hidden) if isinstance(network, MLPSpec) and network.hidden else inputs


def _feature_width(model: Model) -> int:
    """Numbers that the last layer is given, at most."""
    network = model.network
    hidden = network.hidden if isinstance(network, MLPSpec | LeNetSpec) else ()
    return hidden[-1] if hidden else _widest(model)


def _numbers_of(densities: dict[str, dict[str, tuple[int, ...]]]) -> int:
    """How many numbers the densities compute for a row; arrays that they do not have are refused elsewhere."""
    shapes = [
        [densities[name][field][axis] for axis in axes if axis < len(densities[name][field])]
        for name, fields in _DENSITY_AXES.items()
        for field, axes in fields
        if field in densities.get(name, {})
    ]
    return sum(map(math.prod, shapes))


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
