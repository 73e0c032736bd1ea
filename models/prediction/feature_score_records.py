"""The records of fitted arrays, one for each feature score, and of the values that a score is computed from."""

from __future__ import annotations

from typing import Any, NamedTuple

from jaxtyping import Array, Float, Int

Scalar = Float[Array, ""]


Leaf = Any
"""numpy on the host, JAX within a compiled call."""


class ScoreInputs(NamedTuple):
    """The values of ONE row that feature scores are computed from: raw, preprocessed, and from the members' networks."""

    row: Float[Array, " features"]
    inputs: Float[Array, " inputs"]
    features: Float[Array, "members width"]
    logits: Float[Array, "members outputs"]
    label: Int[Array, ""]
    """The predicted class; 0 for regression."""


class VirtualLogit(NamedTuple):
    """The arrays of virtual-logit matching.

    `origin` [members, width]; `residual` [members, width, left], an orthonormal basis of the complement of the principal
    subspace; `weight` [members].
    """

    origin: Leaf
    residual: Leaf
    weight: Leaf


class Mahalanobis(NamedTuple):
    """The arrays of Mahalanobis distances: unit-length features are projected to principal components and whitened.

    `components` [members, width, kept] are the principal components.
    `within` and `overall` [members, kept, kept] whiten by the covariance within classes and by that of all rows;
    `means` [members, kept, classes] and `mean` [members, kept] are the whitened means. Regression has one class.
    """

    components: Leaf
    within: Leaf
    overall: Leaf
    means: Leaf
    mean: Leaf


class Subspace(NamedTuple):
    """Principal subspaces of the classes' inputs, scaled to unit length if `unit` is 1.

    `means` [classes, inputs], orthonormal `basis` [inputs, classes, kept]. `centres` [classes, kept], the means within
    their own subspaces, are written but no longer read.
    """

    unit: Leaf
    means: Leaf
    basis: Leaf
    centres: Leaf


class LocalSubspaces(NamedTuple):
    """Clusters of projected training rows, `(x − mean) @ components` [kept], each with its own principal subspace.

    For each cluster, `labels` [clusters] is its class, `centres` [kept, clusters] its mean, `basis` [kept, local, clusters]
    its orthonormal directions, and `inside` [local, clusters] the mean along them. Clusters are the last axis, so that sums
    over the other axes are vectorised over clusters.
    """

    unit: Leaf
    mean: Leaf
    components: Leaf
    labels: Leaf
    centres: Leaf
    basis: Leaf
    inside: Leaf


class Neighbours(NamedTuple):
    """The `bank` [groups, kept] of means of groups of near training rows, projected by `(x − mean) @ components`.

    `half_squares` [groups] is half of each squared length. In older bundles the bank holds single training rows.
    """

    unit: Leaf
    mean: Leaf
    components: Leaf
    bank: Leaf
    half_squares: Leaf


class Range(NamedTuple):
    """The least and the largest value of each feature [features] in the training rows."""

    low: Leaf
    high: Leaf


class FeatureScores(NamedTuple):
    """Fitted feature scores: the indices of the member draws, and each score's record by its name."""

    members: Leaf
    records: dict[str, Any]
