"""Densities: scores fitted to the training rows once the posterior is there, and stored in the bundle.

    vim                   virtual-logit matching of penultimate features (Wang et al., 2022)
    relative_mahalanobis  of penultimate features: to the nearest class, less that to all classes (Ren et al., 2021)
    mahalanobis           its regression counterpart: to all training rows (Lee et al., 2018, with one class)
    subspace              what the predicted class's principal subspace of the inputs leaves over
    local_subspace        the same by many small subspaces of each class, one for each of its clusters: of the inputs
    feature_subspace      … and of penultimate features (mixtures of local principal components; Kambhatla & Leen, 1997)
    knn                   distance to the nearest group of training rows, by penultimate features (after Sun et al., 2022)
    input_knn             the same by inputs
    range                 how far the worst feature lies outside its training range, in widths of it

Each is a record of arrays, fitted by `training/calibration/feature_scores.py`, and a function of ONE row's `View`. Features are those of
a few draws, the members; a score is the mean over them.
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
    Densities,
    Leaf,
    LocalSubspaces,
    Mahalanobis,
    Neighbours,
    Range,
    Scalar,
    Subspace,
    View,
    VirtualLogit,
)

ROUNDING = 1e-4
"""Of a feature's range, that a row may lie outside without being told so: another way to the same number."""
NOTHING = 1e-4
"""Of a vector's length, that its residual may have and count as none: float32 would rank rows there by their rounding."""
NOTHING_OF_SQUARES = 1e-6
"""The same of squared lengths, where the residual's is their difference."""
NEGLIGIBLE = 1e-5
"""Of a squared distance, by which a nearer neighbour would not change the score beyond its tolerance."""
LOOKED_AT = 4
"""How many neighbours are looked at one by one before all of them are."""
ROUNDED = 4 * float(np.finfo(np.float32).eps)
"""Of an input's size, what may be its rounding: what is left of it once a mean far from zero is taken off."""


def virtual_logit(record: VirtualLogit, view: View) -> Scalar:
    """α ‖residual‖ − log Σ exp(logit): the log-odds of the virtual class against all others."""

    def of_member(origin: Array, residual: Array, weight: Array, features: Array, logits: Array) -> Array:
        return weight * norm((features - origin) @ residual) - jax.nn.logsumexp(logits)

    logits = class_logits(view.logits)
    return jax.vmap(of_member)(record.origin, record.residual, record.weight, view.features, logits).mean()


def class_logits(outputs: Leaf) -> Leaf:
    """`[..., outputs]` → `[..., classes]`: the single logit z of `bernoulli` becomes the pair (−z/2, z/2).

    The pair has the same probabilities as (0, z), and treats both classes alike.
    """
    if outputs.shape[-1] > 1:
        return outputs
    return outputs * np.array([-0.5, 0.5], np.float32)


def relative_mahalanobis(record: Mahalanobis, view: View) -> Scalar:
    """The squared distance to the nearest class, less the squared distance to all rows."""
    whitened, overall = _whitened(record, view)
    # Differences first: the whitened means lie far from zero beside their distances.
    nearest = ((record.means - whitened[:, :, None]) ** 2).sum(axis=1).min(axis=-1)
    return (nearest - ((record.mean - overall) ** 2).sum(axis=-1)).mean()


def mahalanobis(record: Mahalanobis, view: View) -> Scalar:
    """The distance to all rows."""
    _, overall = _whitened(record, view)
    return jnp.sqrt(((record.mean - overall) ** 2).sum(axis=-1)).mean()


def _whitened(record: Mahalanobis, view: View) -> tuple[Array, Array]:
    projected = jnp.einsum("mw,mwk->mk", unit_length(view.features), record.components)
    return jnp.einsum("mk,mkj->mj", projected, record.within), jnp.einsum("mk,mkj->mj", projected, record.overall)


def subspace(record: Subspace, view: View) -> Scalar:
    """The norm of what is left of an input when its predicted class's principal subspace is taken out."""
    x = _scaled(record.unit, view.inputs)
    centred = x - record.means[view.label]
    # Squares of what float32 holds may overflow.
    shrink = jnp.where(jnp.abs(centred).max() > 1e15, jnp.float32(1e-25), jnp.float32(1.0))
    # All classes at once is one matrix product; the predicted one's basis would be copied for every row.
    inside = jnp.einsum("d,dck->ck", centred * shrink, record.basis)[view.label]
    whole = ((centred * shrink) ** 2).sum()
    left = whole - (inside**2).sum()
    rounding = NOTHING_OF_SQUARES * whole + ((ROUNDED * shrink * x) ** 2).sum()
    # What is no number is not nothing.
    return jnp.where(left <= rounding, 0.0, jnp.sqrt(left) / shrink)


def local_subspace(record: LocalSubspaces, view: View) -> Scalar:
    """The least norm that a cluster of the predicted class leaves over of an input."""
    return _local_residual(record, _scaled(record.unit, view.inputs), view.label)


def feature_subspace(record: LocalSubspaces, view: View) -> Scalar:
    """The same of the members' features, side by side; of unit length each, for pixels."""
    return _local_residual(record, _scaled(record.unit, view.features).ravel(), view.label)


def _local_residual(record: LocalSubspaces, x: Array, label: Array) -> Scalar:
    place = (x - record.mean) @ record.components
    inside = jnp.einsum("d,dkc->kc", place, record.basis) - record.inside
    left = _squared_distances(place, record.centres) - (inside**2).sum(axis=0)
    # A class without rows has no cluster: then any will do.
    own = (record.labels == label) | ~(record.labels == label).any()
    size = (place**2).sum()
    # What these differences of squares may have lost in float32.
    lost = NOTHING_OF_SQUARES * (size + (record.centres**2).sum(axis=0))
    nothing = NOTHING**2 * size

    def may_improve(state: tuple[Array, Array]) -> Array:
        least, best = state
        return (least.min() < best) & (best > nothing)

    def improve(state: tuple[Array, Array]) -> tuple[Array, Array]:
        """Computes the residual of the cluster with the least bound, and leaves that cluster out from then on."""
        least, best = state
        nearest = least.argmin()
        centred, basis = place - record.centres[:, nearest], record.basis[:, :, nearest]
        squared = ((centred - basis @ (centred @ basis)) ** 2).sum()
        return jnp.where(jnp.arange(least.size) == nearest, jnp.inf, least), jnp.minimum(best, squared)

    # The residual itself of every cluster that may leave the least: mostly of one. Else rounding would choose among those
    # that leave little, and another batch size another.
    bounds = jnp.where(own, left - lost, jnp.inf)
    _, best = jax.lax.while_loop(may_improve, improve, (bounds, jnp.full((), jnp.inf, place.dtype)))
    return jnp.where(best <= nothing, 0.0, jnp.sqrt(best))


def _squared_distances(place: Float[Array, " kept"], points: Float[Array, "kept points"]) -> Float[Array, " points"]:
    """By one product: differences of every coordinate to every point would be many more numbers than the answer."""
    return (place**2).sum() - 2 * place @ points + (points**2).sum(axis=0)


def features_knn(record: Neighbours, view: View) -> Scalar:
    """The distance of the members' features, side by side, to the nearest of the bank; of unit length each, for pixels."""
    return _nearest_distance(record, _scaled(record.unit, view.features).ravel())


def input_knn(record: Neighbours, view: View) -> Scalar:
    """The distance of the preprocessed input to the nearest of the bank."""
    return _nearest_distance(record, _scaled(record.unit, view.inputs))


def _scaled(unit: Leaf, x: Float[Array, "... width"]) -> Float[Array, "... width"]:
    return jnp.where(unit > 0, unit_length(x), x)


def _nearest_distance(record: Neighbours, x: Array) -> Scalar:
    """The distance to the nearest of the bank: exact, though one matrix product looks for it and rounds small ones off."""
    place = (x - record.mean) @ record.components
    # Squares of what float32 holds may overflow.
    shrink = jnp.where(jnp.abs(place).max() > 1e15, jnp.float32(1e-25), jnp.float32(1.0))
    small = place * shrink
    sizes = (small**2).sum() + 2 * record.half_squares * shrink**2
    # No square of a distance is less, whatever the product's rounding.
    bounds = (1 - NOTHING_OF_SQUARES) * sizes - 2 * shrink * (record.bank @ small)
    order = jnp.arange(bounds.size)
    nothing = norm(NOTHING * place)

    def least_of_others(looked_at: Array) -> Array:
        return jnp.where((order[:, None] == looked_at).any(axis=1), jnp.inf, bounds).min()

    def distance_to(bound: Array) -> tuple[Array, Array]:
        # The largest place is found many at a time, the first one not.
        nearest = jnp.where(bounds == bound, order, 0).max()
        return nearest, norm(jnp.asarray(record.bank)[nearest] - place)

    def may_be_nearer(best: Array, rest: Array) -> Array:
        return (rest < (1 - NEGLIGIBLE) * (best * shrink) ** 2) & (best > nothing)

    def look_at_one(state: tuple[Array, Array, Array, Array]) -> tuple[Array, Array, Array, Array]:
        """Computes the distance to the neighbour with the least bound of those not looked at."""
        best, rest, looked_at, count = state
        nearest, distance = distance_to(rest)
        looked_at = looked_at.at[count].set(nearest)
        return jnp.minimum(best, distance), least_of_others(looked_at), looked_at, count + 1

    def look_at_all(state: tuple[Array, Array]) -> tuple[Array, Array]:
        """Computes the distance to every neighbour by differences."""
        # Tied to the state, lest XLA compute the differences ahead of the loop, needed or not.
        best, rest, own = jax.lax.optimization_barrier((*state, place))
        squared = (((record.bank - own) * shrink) ** 2).sum(axis=1)
        return jnp.minimum(best, jnp.sqrt(squared.min()) / shrink), jnp.full_like(rest, jnp.inf)

    # Mostly one is looked at. Where many are as near as rounding can tell, as in tight clusters, all differences are taken:
    # else rounding would choose among them, and another batch size another.
    nearest, best = distance_to(bounds.min())
    looked_at = jnp.full(LOOKED_AT, nearest)
    state = (best, least_of_others(nearest[None]), looked_at, jnp.ones((), jnp.int32))
    few = jax.lax.while_loop(lambda state: may_be_nearer(*state[:2]) & (state[3] < LOOKED_AT), look_at_one, state)
    distance, _ = jax.lax.while_loop(lambda state: may_be_nearer(*state), look_at_all, few[:2])
    # A row that is in the bank is at distance 0, not at that of its rounding; what is no number is not near.
    return jnp.where(distance <= nothing, 0.0, distance)


def range_excess(record: Range, view: View) -> Scalar:
    """How far outside its range the worst feature is; 0 for a row within."""
    return _outside(record, view).max()


def farthest_feature(record: Range, view: View) -> Int[Array, ""]:
    """Which feature that is; the first, for a row within."""
    return _outside(record, view).argmax()


def _outside(record: Range, view: View) -> Float[Array, " features"]:
    """Each feature's distance from its range, in widths of it. A gap is within."""
    width = jnp.where(record.high > record.low, record.high - record.low, 1.0)
    outside = jnp.maximum(record.low - view.row, view.row - record.high) / width
    return jnp.where(outside > ROUNDING, outside, 0.0)


def norm(x: Float[Array, "... width"]) -> Float[Array, "..."]:
    """The Euclidean norm over the last axis; squares of what float32 holds may overflow, hence the scale."""
    largest = jnp.maximum(jnp.abs(x).max(axis=-1), np.finfo(np.float32).tiny)
    # XLA divides by its reciprocal, and that of the largest numbers is rounded to 0.
    shrink = jnp.where(largest > 1e30, jnp.float32(1e-10), jnp.float32(1.0))
    within = (x * shrink[..., None]) / (largest * shrink)[..., None]
    return largest * jnp.sqrt((within**2).sum(axis=-1))


def unit_length(x: Float[Array, "... width"]) -> Float[Array, "... width"]:
    """`x` divided by its norm; zeros stay zeros."""
    largest = jnp.maximum(jnp.abs(x).max(axis=-1, keepdims=True), np.finfo(np.float32).tiny)
    # In two steps: the norm itself may be too large for float32.
    shrink = jnp.where(largest > 1e30, jnp.float32(1e-10), jnp.float32(1.0))
    within = (x * shrink) / (largest * shrink)
    return within / jnp.maximum(norm(within), np.finfo(np.float32).tiny)[..., None]


class Density(NamedTuple):
    """A score's record and function."""

    record: type
    score: Callable[..., Scalar]


DENSITIES: dict[str, Density] = {
    "vim": Density(VirtualLogit, virtual_logit),
    "relative_mahalanobis": Density(Mahalanobis, relative_mahalanobis),
    "mahalanobis": Density(Mahalanobis, mahalanobis),
    "subspace": Density(Subspace, subspace),
    "local_subspace": Density(LocalSubspaces, local_subspace),
    "feature_subspace": Density(LocalSubspaces, feature_subspace),
    "knn": Density(Neighbours, features_knn),
    "input_knn": Density(Neighbours, input_knn),
    "range": Density(Range, range_excess),
}
OF_TASK: dict[str, tuple[str, ...]] = {
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


def density_scores(densities: Densities, view: View) -> dict[str, Scalar]:
    """Every density's score of ONE row; what float32 cannot hold is as strange as can be."""
    largest = float(np.finfo(np.float32).max)
    scores = {name: DENSITIES[name].score(record, view) for name, record in densities.records.items()}
    return {name: jnp.nan_to_num(score, nan=largest, posinf=largest) for name, score in scores.items()}


def as_tree(densities: Densities) -> dict[str, Any]:
    """The arrays as nested dicts, as they lie in a bundle."""
    return {"members": densities.members} | {
        name: {field: np.asarray(leaf) for field, leaf in record._asdict().items()}
        for name, record in densities.records.items()
    }


def shapes_of(densities: Densities) -> dict[str, dict[str, tuple[int, ...]]]:
    """The shape of every array, by score and field."""
    return {
        name: {field: tuple(np.shape(leaf)) for field, leaf in record._asdict().items()}
        for name, record in densities.records.items()
    }


def check_shapes(tree: dict[str, Any], shapes: dict[str, dict[str, tuple[int, ...]]], draws: int, where: str) -> None:
    """Holds the arrays of a bundle against the shapes that its manifest gives; leaves need not be arrays.

    Raises:
        BundleError: an array is missing, superfluous, or of another shape or dtype; or an unknown density.
    """
    found = {
        name: sorted(cast("dict[str, Any]", fields)) if isinstance(fields, dict) else "an array"
        for name, fields in tree.items()
        if name != "members"
    }
    expected = {name: sorted(fields) for name, fields in shapes.items()}
    if found != expected or not {*found} <= {*DENSITIES} or "range" not in found:
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


def from_tree(tree: dict[str, Any], shapes: dict[str, dict[str, tuple[int, ...]]], draws: int, where: str) -> Densities:
    """The records of a bundle, held against the shapes that its manifest gives.

    Raises:
        BundleError: an array is missing, superfluous, of another shape, or not finite; or an unknown density.
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
        return Densities(members, {name: DENSITIES[name].record(**tree[name]) for name in sorted(shapes)})
    except TypeError as error:
        raise BundleError("densities", where=where, found=str(error)) from error
