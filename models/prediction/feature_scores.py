"""Feature scores: scores that are fitted to the training rows after inference, and stored in the bundle.

    vim                   virtual-logit matching of penultimate features (Wang et al., 2022)
    relative_mahalanobis  distance of penultimate features to the nearest class, minus that to all rows (Ren et al., 2021)
    mahalanobis           the same for regression: distance to all training rows (Lee et al., 2018, with one class)
    subspace              residual of the inputs from the predicted class's principal subspace
    local_subspace        residual of the inputs from many small subspaces of the class, one for each of its clusters
    feature_subspace      … of penultimate features (mixtures of local principal components; Kambhatla & Leen, 1997)
    knn                   distance of penultimate features to the nearest group of training rows (after Sun et al., 2022)
    input_knn             distance of the inputs to the nearest group of training rows
    range                 distance of the most extreme feature from its training range, in widths of the range

Each score is a record of arrays, which `training/calibration/feature_scores.py` fits, and a function of ONE row's
`ScoreInputs`. Features come from a few draws, the members; a score is the mean over them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from abstain.models.errors import BundleError, clip_repr
from abstain.models.prediction.feature_score_records import (
    FeatureScores,
    Leaf,
    LocalSubspaces,
    Mahalanobis,
    Neighbours,
    Range,
    Scalar,
    ScoreInputs,
    Subspace,
    VirtualLogit,
)

RANGE_TOLERANCE = 1e-4
"""A row that is outside a feature's range by up to this share of the range counts as inside: it may be rounding."""
RESIDUAL_TOLERANCE = 1e-4
"""Residuals up to this share of the vector's length count as 0: float32 would rank such rows by their rounding."""
SQUARED_TOLERANCE = 1e-6
"""The same for squared residuals that are a difference of squared lengths."""
NEGLIGIBLE = 1e-5
"""The share of the squared distance by which a neighbour must be nearer to change the score beyond its tolerance."""
SINGLE_NEIGHBOURS = 4
"""Number of distances that are computed one by one; after that, all distances are computed."""
INPUT_ROUNDING = 4 * float(np.finfo(np.float32).eps)
"""Rounding error of an input relative to its size; it is large after subtracting a mean far from zero."""


def virtual_logit(record: VirtualLogit, inputs: ScoreInputs) -> Scalar:
    """Returns α ‖residual‖ − log Σ exp(logit): the log-odds of the virtual class against all others."""

    def member_score(origin: Array, residual: Array, weight: Array, features: Array, logits: Array) -> Array:
        return weight * norm((features - origin) @ residual) - jax.nn.logsumexp(logits)

    logits = class_logits(inputs.logits)
    return jax.vmap(member_score)(record.origin, record.residual, record.weight, inputs.features, logits).mean()


def class_logits(outputs: Leaf) -> Leaf:
    """Returns a logit for each class, `[..., outputs]` → `[..., classes]`.

    The single logit z of `bernoulli` becomes (−z/2, z/2), which has the same probabilities as (0, z) but treats both
    classes alike.
    """
    if outputs.shape[-1] > 1:
        return outputs
    return outputs * np.array([-0.5, 0.5], np.float32)


def relative_mahalanobis(record: Mahalanobis, inputs: ScoreInputs) -> Scalar:
    """Returns the squared distance to the nearest class minus the squared distance to the mean of all rows."""
    whitened, overall = _whiten(record, inputs)
    # Differences first: the whitened means are far from zero compared with their distances.
    nearest = ((record.means - whitened[:, :, None]) ** 2).sum(axis=1).min(axis=-1)
    return (nearest - ((record.mean - overall) ** 2).sum(axis=-1)).mean()


def mahalanobis(record: Mahalanobis, inputs: ScoreInputs) -> Scalar:
    """Returns the distance to the mean of all rows."""
    _, overall = _whiten(record, inputs)
    return jnp.sqrt(((record.mean - overall) ** 2).sum(axis=-1)).mean()


def _whiten(record: Mahalanobis, inputs: ScoreInputs) -> tuple[Array, Array]:
    projected = jnp.einsum("mw,mwk->mk", unit_length(inputs.features), record.components)
    return jnp.einsum("mk,mkj->mj", projected, record.within), jnp.einsum("mk,mkj->mj", projected, record.overall)


def subspace(record: Subspace, inputs: ScoreInputs) -> Scalar:
    """Returns the norm of an input's residual from the principal subspace of its predicted class."""
    x = _scale(record.unit, inputs.inputs)
    centred = x - record.means[inputs.label]
    # Squares of large float32 numbers overflow.
    shrink = jnp.where(jnp.abs(centred).max() > 1e15, jnp.float32(1e-25), jnp.float32(1.0))
    # All classes at once are one matrix product; selecting the predicted class first would copy its basis for every row.
    inside = jnp.einsum("d,dck->ck", centred * shrink, record.basis)[inputs.label]
    whole = ((centred * shrink) ** 2).sum()
    left = whole - (inside**2).sum()
    rounding = SQUARED_TOLERANCE * whole + ((INPUT_ROUNDING * shrink * x) ** 2).sum()
    # NaN stays NaN: the comparison is False.
    return jnp.where(left <= rounding, 0.0, jnp.sqrt(left) / shrink)


def local_subspace(record: LocalSubspaces, inputs: ScoreInputs) -> Scalar:
    """Returns the least norm of an input's residual from the subspaces of the predicted class's clusters."""
    return _local_residual(record, _scale(record.unit, inputs.inputs), inputs.label)


def feature_subspace(record: LocalSubspaces, inputs: ScoreInputs) -> Scalar:
    """Returns the least residual norm of the members' concatenated features; for pixels, each member's have unit length."""
    return _local_residual(record, _scale(record.unit, inputs.features).ravel(), inputs.label)


def _local_residual(record: LocalSubspaces, x: Array, label: Array) -> Scalar:
    point = (x - record.mean) @ record.components
    inside = jnp.einsum("d,dkc->kc", point, record.basis) - record.inside
    left = _squared_distances(point, record.centres) - (inside**2).sum(axis=0)
    # A class without rows has no cluster: then all clusters are used.
    own = (record.labels == label) | ~(record.labels == label).any()
    size = (point**2).sum()
    # The rounding error of these differences of squares in float32.
    lost = SQUARED_TOLERANCE * (size + (record.centres**2).sum(axis=0))
    nothing = RESIDUAL_TOLERANCE**2 * size

    def may_improve(state: tuple[Array, Array]) -> Array:
        least, best = state
        return (least.min() < best) & (best > nothing)

    def improve(state: tuple[Array, Array]) -> tuple[Array, Array]:
        """Computes the residual of the cluster with the least bound, and removes that cluster."""
        least, best = state
        nearest = least.argmin()
        centred, basis = point - record.centres[:, nearest], record.basis[:, :, nearest]
        squared = ((centred - basis @ (centred @ basis)) ** 2).sum()
        return jnp.where(jnp.arange(least.size) == nearest, jnp.inf, least), jnp.minimum(best, squared)

    # Computes the exact residual of every cluster that may have the least, usually one. Otherwise rounding, which
    # depends on the batch size, would choose among clusters with small residuals.
    bounds = jnp.where(own, left - lost, jnp.inf)
    _, best = jax.lax.while_loop(may_improve, improve, (bounds, jnp.full((), jnp.inf, point.dtype)))
    return jnp.where(best <= nothing, 0.0, jnp.sqrt(best))


def _squared_distances(point: Float[Array, " kept"], others: Float[Array, "kept points"]) -> Float[Array, " points"]:
    """Returns squared distances by one matrix product, because the differences of all coordinates need much more memory."""
    return (point**2).sum() - 2 * point @ others + (others**2).sum(axis=0)


def features_knn(record: Neighbours, inputs: ScoreInputs) -> Scalar:
    """Returns the distance of the members' features, concatenated, to the nearest point of the bank.

    For pixels each member's features have unit length.
    """
    return _nearest_distance(record, _scale(record.unit, inputs.features).ravel())


def input_knn(record: Neighbours, inputs: ScoreInputs) -> Scalar:
    """Returns the distance of the preprocessed input to the nearest point of the bank."""
    return _nearest_distance(record, _scale(record.unit, inputs.inputs))


def _scale(unit: Leaf, x: Float[Array, "... width"]) -> Float[Array, "... width"]:
    return jnp.where(unit > 0, unit_length(x), x)


def _nearest_distance(record: Neighbours, x: Array) -> Scalar:
    """Returns the exact distance to the nearest point of the bank; a matrix product, which rounds, only searches for it."""
    point = (x - record.mean) @ record.components
    # Squares of large float32 numbers overflow.
    shrink = jnp.where(jnp.abs(point).max() > 1e15, jnp.float32(1e-25), jnp.float32(1.0))
    small = point * shrink
    sizes = (small**2).sum() + 2 * record.half_squares * shrink**2
    # Lower bounds of the squared distances, even with the product's rounding.
    bounds = (1 - SQUARED_TOLERANCE) * sizes - 2 * shrink * (record.bank @ small)
    order = jnp.arange(bounds.size)
    nothing = norm(RESIDUAL_TOLERANCE * point)

    def least_of_others(done: Array) -> Array:
        return jnp.where((order[:, None] == done).any(axis=1), jnp.inf, bounds).min()

    def distance_to(bound: Array) -> tuple[Array, Array]:
        # Finding the largest index is vectorised; finding the first one is not.
        nearest = jnp.where(bounds == bound, order, 0).max()
        return nearest, norm(jnp.asarray(record.bank)[nearest] - point)

    def may_be_nearer(best: Array, rest: Array) -> Array:
        return (rest < (1 - NEGLIGIBLE) * (best * shrink) ** 2) & (best > nothing)

    def compute_one(state: tuple[Array, Array, Array, Array]) -> tuple[Array, Array, Array, Array]:
        """Computes the distance to the neighbour with the least bound among the remaining ones."""
        best, rest, done, count = state
        nearest, distance = distance_to(rest)
        done = done.at[count].set(nearest)
        return jnp.minimum(best, distance), least_of_others(done), done, count + 1

    def compute_all(state: tuple[Array, Array]) -> tuple[Array, Array]:
        """Computes the distance to every neighbour by differences."""
        # The barrier ties them to the state; otherwise XLA would always compute them, before the loop.
        best, rest, own = jax.lax.optimization_barrier((*state, point))
        squared = (((record.bank - own) * shrink) ** 2).sum(axis=1)
        return jnp.minimum(best, jnp.sqrt(squared.min()) / shrink), jnp.full_like(rest, jnp.inf)

    # Usually one distance is computed. If rounding hides which of many neighbours is the nearest, as in tight clusters, all
    # are computed: otherwise rounding, which depends on the batch size, would choose among them.
    nearest, best = distance_to(bounds.min())
    done = jnp.full(SINGLE_NEIGHBOURS, nearest)
    state = (best, least_of_others(nearest[None]), done, jnp.ones((), jnp.int32))
    few = jax.lax.while_loop(
        lambda state: may_be_nearer(*state[:2]) & (state[3] < SINGLE_NEIGHBOURS), compute_one, state
    )
    distance, _ = jax.lax.while_loop(lambda state: may_be_nearer(*state), compute_all, few[:2])
    # A row that is in the bank has distance 0, not its rounding error; NaN stays NaN.
    return jnp.where(distance <= nothing, 0.0, distance)


def range_excess(record: Range, inputs: ScoreInputs) -> Scalar:
    """Returns the distance of the most extreme feature from its range, in widths of the range; 0 for a row inside."""
    return _outside(record, inputs).max()


def farthest_feature(record: Range, inputs: ScoreInputs) -> Int[Array, ""]:
    """Returns the index of the feature that is farthest outside its range; 0 for a row inside."""
    return _outside(record, inputs).argmax()


def _outside(record: Range, inputs: ScoreInputs) -> Float[Array, " features"]:
    """Returns each feature's distance from its range, in widths of the range; 0 for a missing value."""
    width = jnp.where(record.high > record.low, record.high - record.low, 1.0)
    outside = jnp.maximum(record.low - inputs.row, inputs.row - record.high) / width
    return jnp.where(outside > RANGE_TOLERANCE, outside, 0.0)


def norm(x: Float[Array, "... width"]) -> Float[Array, "..."]:
    """Returns the Euclidean norm over the last axis, scaled internally because squares may overflow float32."""
    largest = jnp.maximum(jnp.abs(x).max(axis=-1), np.finfo(np.float32).tiny)
    # XLA multiplies by the reciprocal, which is rounded to 0 for the largest numbers.
    shrink = jnp.where(largest > 1e30, jnp.float32(1e-10), jnp.float32(1.0))
    within = (x * shrink[..., None]) / (largest * shrink)[..., None]
    return largest * jnp.sqrt((within**2).sum(axis=-1))


def unit_length(x: Float[Array, "... width"]) -> Float[Array, "... width"]:
    """Returns `x` divided by its norm; zeros stay zeros."""
    largest = jnp.maximum(jnp.abs(x).max(axis=-1, keepdims=True), np.finfo(np.float32).tiny)
    # In two steps: the norm itself may be too large for float32.
    shrink = jnp.where(largest > 1e30, jnp.float32(1e-10), jnp.float32(1.0))
    within = (x * shrink) / (largest * shrink)
    return within / jnp.maximum(norm(within), np.finfo(np.float32).tiny)[..., None]


class FeatureScore(NamedTuple):
    """The record type and the function of a feature score."""

    record: type
    score: Callable[..., Scalar]


FEATURE_SCORES: dict[str, FeatureScore] = {
    "vim": FeatureScore(VirtualLogit, virtual_logit),
    "relative_mahalanobis": FeatureScore(Mahalanobis, relative_mahalanobis),
    "mahalanobis": FeatureScore(Mahalanobis, mahalanobis),
    "subspace": FeatureScore(Subspace, subspace),
    "local_subspace": FeatureScore(LocalSubspaces, local_subspace),
    "feature_subspace": FeatureScore(LocalSubspaces, feature_subspace),
    "knn": FeatureScore(Neighbours, features_knn),
    "input_knn": FeatureScore(Neighbours, input_knn),
    "range": FeatureScore(Range, range_excess),
}
FEATURE_SCORES_BY_TASK: dict[str, tuple[str, ...]] = {
    "classification": (
        "vim",
        "relative_mahalanobis",
        "subspace",
        "local_subspace",
        "feature_subspace",
        "knn",
        "range",
    ),
    "regression": ("mahalanobis", "subspace", "local_subspace", "feature_subspace", "knn", "input_knn", "range"),
}


def compute_feature_scores(feature_scores: FeatureScores, inputs: ScoreInputs) -> dict[str, Scalar]:
    """Computes every feature score of ONE row; NaN and infinity become the largest float32 number."""
    largest = float(np.finfo(np.float32).max)
    scores = {name: FEATURE_SCORES[name].score(record, inputs) for name, record in feature_scores.records.items()}
    return {name: jnp.nan_to_num(score, nan=largest, posinf=largest) for name, score in scores.items()}


def as_tree(feature_scores: FeatureScores) -> dict[str, Any]:
    """Returns the arrays as nested dicts, as a bundle stores them."""
    return {"members": feature_scores.members} | {
        name: {field: np.asarray(leaf) for field, leaf in record._asdict().items()}
        for name, record in feature_scores.records.items()
    }


def shapes_of(feature_scores: FeatureScores | None) -> dict[str, dict[str, tuple[int, ...]]]:
    """Returns the shape of every array, by score and field; empty without feature scores."""
    if feature_scores is None:
        return {}
    return {
        name: {field: tuple(np.shape(leaf)) for field, leaf in record._asdict().items()}
        for name, record in feature_scores.records.items()
    }


def check_shapes(tree: dict[str, Any], shapes: dict[str, dict[str, tuple[int, ...]]], draws: int, where: str) -> None:
    """Compares a bundle's arrays with the shapes in its manifest; leaves only need a shape and a dtype.

    Raises:
        BundleError: an array is missing, unexpected, or of another shape or dtype; or a feature score is unknown.
    """
    found = {
        name: sorted(cast("dict[str, Any]", fields)) if isinstance(fields, dict) else "an array"
        for name, fields in tree.items()
        if name != "members"
    }
    expected = {name: sorted(fields) for name, fields in shapes.items()}
    if found != expected or not {*found} <= {*FEATURE_SCORES} or "range" not in found:
        raise BundleError("densities", where=where, expected=clip_repr(expected, 2000), found=clip_repr(found, 2000))
    shape = None if isinstance(tree.get("members", {}), dict) else tree["members"].shape
    if shape is None or len(shape) != 1 or not 1 <= shape[0] <= draws:
        raise BundleError("members", where=where, expected=f"1 to {draws} draws", found=f"shape {shape}")
    for name, fields in shapes.items():
        for field, shape in fields.items():
            leaf = tree[name][field]
            if isinstance(leaf, dict) or leaf.shape != tuple(shape) or leaf.dtype != np.float32:
                raise _refused_leaf(name, field, shape, leaf, where)


def _refused_leaf(name: str, field: str, shape: tuple[int, ...], leaf: Any, where: str) -> BundleError:
    found = "a folder of arrays" if isinstance(leaf, dict) else f"{leaf.dtype} {leaf.shape}"
    return BundleError(f"{name}.{field}", where=where, expected=f"finite float32 {tuple(shape)}", found=found)


def from_tree(
    tree: dict[str, Any], shapes: dict[str, dict[str, tuple[int, ...]]], draws: int, where: str
) -> FeatureScores:
    """Makes the records of a bundle's arrays, after comparing them with the shapes in its manifest.

    Raises:
        BundleError: an array is missing, unexpected, of another shape, or not finite; or a feature score is unknown.
    """
    check_shapes(tree, shapes, draws, where)
    members = tree["members"]
    if members.dtype.kind != "i" or not (members >= 0).all() & (members < draws).all():
        raise BundleError("members", where=where, expected=f"draws from 0 to {draws - 1}", found=members)
    for name, fields in shapes.items():
        for field, shape in fields.items():
            if not np.isfinite(tree[name][field]).all():
                raise _refused_leaf(name, field, shape, tree[name][field], where)
    try:
        return FeatureScores(members, {name: FEATURE_SCORES[name].record(**tree[name]) for name in sorted(shapes)})
    except TypeError as error:
        raise BundleError("densities", where=where, found=str(error)) from error
