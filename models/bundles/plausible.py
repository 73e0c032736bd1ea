"""Plausibility checks of a manifest's numbers.

Pydantic has checked their types. Numbers that depend on the arrays are checked when these are read.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

from abstain.models.errors import BundleError, clip_repr
from abstain.models.files.regular import RESTORE
from abstain.models.networks.specs import LeNetSpec, MLPSpec
from abstain.models.prediction.posterior import Model
from abstain.models.prediction.predictive import BUCKETS
from abstain.models.prediction.preprocessing import Preprocessing, transformed_shape

WIDEST = 2**24
"""Most units of a layer, features in a row, or items along an axis."""
MOST_AXES = 8
BATCH_BYTES = 4 * 2**30
"""Most memory for computing a batch; few machines have more for each worker. A hundred draws of layers of 4,096 units take
about 10 MB, 500 draws of 1,000 classes 2.6 GB. Without a limit, kilobytes on disk could require terabytes of memory."""
_COPIES = 5
"""Number of arrays of every draw's outputs that exist at once while a summary and its scores are computed."""
_FEATURE_SCORE_AXES: dict[str, tuple[tuple[str, tuple[int, ...]], ...]] = {
    "vim": (("residual", (0, 2)),),
    "relative_mahalanobis": (("within", (0, 2)), ("means", (0, 2))),
    "mahalanobis": (("within", (0, 2)),),
    "subspace": (("basis", (1, 2)),),
    "local_subspace": (("basis", (1, 2)),),
    "feature_subspace": (("basis", (1, 2)),),
    "knn": (("bank", (0,)),),
    "input_knn": (("bank", (0,)),),
}
"""The fields, and their axes, along which each feature score computes numbers for every row."""


class Claim(NamedTuple):
    """A check of the manifest: a field, whether its value is plausible, the expected value, and the value."""

    field: str
    holds: bool
    expected: str
    found: Any


def refuse_implausible(claims: Iterable[Claim], where: str) -> None:
    """Refuses the first claim that does not hold.

    Raises:
        BundleError: names its field.
    """
    for claim in claims:
        if not claim.holds:
            found = clip_repr(claim.found)
            raise BundleError(claim.field, where=where, expected=claim.expected, found=found, fix=RESTORE)


def model_claims(model: Model) -> Iterator[Claim]:
    """Yields the checks of a network's sizes and of preprocessing."""
    # First, because the other checks multiply the sizes of the shape.
    yield shape_claim("model.feature_shape", model.feature_shape)
    yield from _network_claims(model)
    yield from _preprocessing_claims(model.preprocessing, model.features)


def shape_claim(field: str, shape: tuple[int, ...]) -> Claim:
    """Checks that a shape has few axes, none of them empty or too long."""
    sound = len(shape) <= MOST_AXES and all(1 <= size <= WIDEST for size in shape)
    return Claim(field, sound, f"at most {MOST_AXES} sizes from 1 to {WIDEST:,}", shape)


def batch_memory_claim(model: Model, draws: int, feature_scores: dict[str, dict[str, tuple[int, ...]]]) -> Claim:
    """Checks the memory for computing the largest batch.

    Draws are computed in chunks small enough for a processor's cache, or one by one if a single draw is larger. So at most
    one large draw's activations exist at a time, but the outputs of all draws.

    Args:
        feature_scores: the shapes of the feature scores' arrays, by score and field.
    """
    parts = len(model.class_names) or 2
    widest, answers, kept = _widest(model), _COPIES * draws * parts, _numbers_of(feature_scores)
    taken = 4 * BUCKETS[-1] * (widest + answers + kept)
    return Claim(
        "model, the memory that a batch takes",
        taken <= BATCH_BYTES,
        f"at most {BATCH_BYTES:,} bytes",
        f"{taken:,} = {BUCKETS[-1]} rows x 4 bytes x ({widest:,} for the widest layer + {answers:,} for the outputs of all "
        f"draws + {kept:,} for the feature scores)",
    )


def member_memory_claim(model: Model, members: int) -> Claim:
    """Checks the memory for the features of the member draws, which all exist at once."""
    taken = 4 * BUCKETS[-1] * members * _feature_width(model)
    return Claim(
        "densities, the memory that the features of a batch take",
        taken <= BATCH_BYTES,
        f"at most {BATCH_BYTES:,} bytes",
        f"{taken:,}, of {members:,} members",
    )


def within(field: str, value: int, least: int, most: int) -> Claim:
    """Checks that a whole number is in its range."""
    return Claim(field, least <= value <= most, f"from {least:,} to {most:,}", value)


def _network_claims(model: Model) -> Iterator[Claim]:
    network = model.network
    if isinstance(network, MLPSpec | LeNetSpec):
        channels = network.channels if isinstance(network, LeNetSpec) else ()
        yield within("model.network, its widest layer", max((*network.hidden, *channels), default=1), 1, WIDEST)
    names = len(model.feature_names)
    yield Claim("model.feature_names", names in {0, model.features}, f"0 or {model.features} names", names)


def _widest(model: Model) -> int:
    """Returns the most numbers of a row in any layer, including input and convolutions; without layers of a user's module."""
    network, prepared = model.network, transformed_shape(model.preprocessing, model.feature_shape)
    inputs = max(model.features, math.prod(prepared))
    if isinstance(network, LeNetSpec):
        # The second convolution's input is the image after pooling, with half the height and width.
        first, second = network.channels
        pixels = math.prod(prepared[:2])
        return max(inputs, pixels * first, pixels // 4 * second, *network.hidden)
    return max(inputs, *network.hidden) if isinstance(network, MLPSpec) and network.hidden else inputs


def _feature_width(model: Model) -> int:
    """Returns the largest possible width of the last layer's input."""
    network = model.network
    hidden = network.hidden if isinstance(network, MLPSpec | LeNetSpec) else ()
    return hidden[-1] if hidden else _widest(model)


def _numbers_of(feature_scores: dict[str, dict[str, tuple[int, ...]]]) -> int:
    """Returns how many numbers the feature scores compute for a row; other code refuses unknown arrays."""
    shapes = [
        [feature_scores[name][field][axis] for axis in axes if axis < len(feature_scores[name][field])]
        for name, fields in _FEATURE_SCORE_AXES.items()
        for field, axes in fields
        if field in feature_scores.get(name, {})
    ]
    return sum(map(math.prod, shapes))


def _preprocessing_claims(preprocessing: Preprocessing, features: int) -> Iterator[Claim]:
    prefix = "model.preprocessing"
    for field in ("shift", "scale", "origin", "unit"):
        values: tuple[float, ...] = getattr(preprocessing, field)
        enough = len(values) in {1, features} or (field in {"origin", "unit"} and not values)
        yield Claim(f"{prefix}.{field}", enough, f"one number, or {features}", len(values))
        for value in values:
            yield Claim(f"{prefix}.{field}", math.isfinite(value), "finite numbers", value)
    yield Claim(
        f"{prefix}.unit",
        len(preprocessing.unit) == len(preprocessing.origin),
        f"{len(preprocessing.origin)} numbers, as in origin",
        len(preprocessing.unit),
    )
    for value in preprocessing.scale:
        yield _divisor(f"{prefix}.scale", value, in_float32=True)
    for value in preprocessing.unit:
        yield _divisor(f"{prefix}.unit", value, in_float32=False)
    yield _divisor(f"{prefix}.target_scale", preprocessing.target_scale, in_float32=not preprocessing.float64_target)
    shift = preprocessing.target_shift
    yield Claim(f"{prefix}.target_shift", math.isfinite(shift), "a finite number", shift)
    columns = len(preprocessing.columns)
    yield Claim(f"{prefix}.columns", columns in {0, features}, f"0 or {features} columns", columns)


def _divisor(field: str, value: float, *, in_float32: bool) -> Claim:
    """Checks a divisor in its dtype: in float32 the smallest numbers of float64 are 0, the largest infinite."""
    limits = np.finfo(np.float32 if in_float32 else np.float64)
    holds = float(limits.smallest_subnormal) <= value <= float(limits.max)
    return Claim(field, holds, f"a number above 0{' in float32' if in_float32 else ''}", value)
