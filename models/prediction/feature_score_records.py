"""The fitted arrays of each feature score, and what a score is computed from."""

from __future__ import annotations

from typing import Any, NamedTuple

from jaxtyping import Array, Float, Int

Scalar = Float[Array, ""]


Leaf = Any
"""numpy on the host, JAX within a compiled call."""


class View(NamedTuple):
    """What a density sees of ONE row: the row as it came, preprocessed, and through the members' networks."""

    row: Float[Array, " features"]
    inputs: Float[Array, " inputs"]
    features: Float[Array, "members width"]
    logits: Float[Array, "members outputs"]
    label: Int[Array, ""]
    """The predicted class; 0 for regression."""


class VirtualLogit(NamedTuple):
    """`origin` [members, width]; `residual` [members, width, left], an orthonormal basis of what is not principal; `weight` [members]."""

    origin: Leaf
    residual: Leaf
    weight: Leaf


class Mahalanobis(NamedTuple):
    """Features of unit length to principal components, [members, width, kept], and whitened there.

    `within` and `overall` [members, kept, kept] whiten by the covariance within classes and by that of all rows;
    `means` [members, kept, classes] and `mean` [members, kept] are the whitened means. Regression has one class.
    """

    components: Leaf
    within: Leaf
    overall: Leaf
    means: Leaf
    mean: Leaf


class Subspace(NamedTuple):
    """Inputs, of unit length where `unit` is 1: `means` [classes, inputs], orthonormal `basis` [inputs, classes, kept].

    `centres` [classes, kept], the means within their own subspaces, are written and no longer read.
    """

    unit: Leaf
    means: Leaf
    basis: Leaf
    centres: Leaf


class LocalSubspaces(NamedTuple):
    """Clusters of projected training rows, `(x − mean) @ components` [kept], each with a principal subspace of its own.

    `labels` [clusters] is each one's class, `centres` [kept, clusters] its mean, `basis` [kept, local, clusters] its
    orthonormal directions, and `inside` [local, clusters] the mean along them. Clusters are last, for sums over the other
    axes are then taken many clusters at a time.
    """

    unit: Leaf
    mean: Leaf
    components: Leaf
    labels: Leaf
    centres: Leaf
    basis: Leaf
    inside: Leaf


class Neighbours(NamedTuple):
    """A bank [groups, kept] of means of near training rows, `(x − mean) @ components`, and half of each squared length.

    In bundles from before groups the bank holds single training rows.
    """

    unit: Leaf
    mean: Leaf
    components: Leaf
    bank: Leaf
    half_squares: Leaf


class Range(NamedTuple):
    """Least and largest value of each feature [features] of the training rows."""

    low: Leaf
    high: Leaf


class Densities(NamedTuple):
    """Which draws are the members, and the fitted records by the score's name."""

    members: Leaf
    records: dict[str, Any]
