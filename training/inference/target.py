"""A posterior from three ingredients: a tree of priors, a log-likelihood, and a tree of shapes.

    target = Target(priors={"slope": dist.Normal(), "noise": dist.LogNormal()}, log_likelihood=…, shapes={…})

Inference moves in ℝᵈ: a vector `z` of the unconstrained values of all parameters, one after the other. A parameter with
a bounded support is reached through the bijection of its prior's support, and the density of `z` carries the
bijection's Jacobian, as in Stan (Carpenter et al., 2017, §10). The trees may be nested, as a network's parameters are;
their leaves are matched by path.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, Float, PRNGKeyArray
from numpyro.distributions.transforms import IdentityTransform

from abstain.models.errors import ConfigError

Parameters = Any
"""A tree of arrays, one leaf for each prior."""
Data = Any
"""A tree of arrays, the rows as axis 0."""
Vector = Float[Array, " dim"]
CHUNK = 4096
"""The number of rows with activations in memory at the same time, for one gradient over all rows."""


class Site(NamedTuple):
    """One leaf of the trees: its position in the vector, and the bijection to its parameter."""

    path: str
    prior: dist.Distribution
    bijection: Any
    shape: tuple[int, ...]
    """The shape of the unconstrained values."""
    first: int
    last: int

    @property
    def is_real(self) -> bool:
        """Whether the parameter equals its unconstrained value."""
        return isinstance(self.bijection, IdentityTransform)

    def log_prior(self, unconstrained: Array) -> Float[Array, ""]:
        """Returns the log prior density of the site's unconstrained values in nats, with the bijection's log Jacobian."""
        values = unconstrained.reshape(self.shape)
        parameter = self.bijection(values)
        density = jnp.sum(self.prior.log_prob(parameter))
        return density if self.is_real else density + self.bijection.log_abs_det_jacobian(values, parameter).sum()


@dataclass(frozen=True, eq=False)
class Target:
    """The posterior density of a tree of parameters, up to a constant.

    Attributes:
        priors: a tree of NumPyro distributions; each is expanded to its leaf's shape.
        log_likelihood: `(parameters, data) -> [rows]`, the log density of each row in nats.
        shapes: the same tree, with the shape of every parameter (a tuple of integers, or anything with a `shape`).
    """

    priors: Any
    log_likelihood: Callable[[Parameters, Data], Float[Array, " rows"]]
    shapes: Any

    @cached_property
    def sites(self) -> tuple[Site, ...]:
        """The leaves in the order of the vector.

        Raises:
            ConfigError: the trees differ, or a prior does not fit its parameter's shape.
        """
        priors = _by_path(self.priors, lambda leaf: isinstance(leaf, dist.Distribution))
        shapes = _by_path(self.shapes, lambda leaf: isinstance(leaf, tuple))
        if list(priors) != list(shapes):
            raise ConfigError("priors and shapes differ as trees", expected=list(shapes), found=list(priors))
        sites, first = [], 0
        for path, prior in priors.items():
            shape = tuple(getattr(shapes[path], "shape", shapes[path]))
            whole = _expand_prior(path, prior, shape)
            bijection = _bijection(path, whole)
            unconstrained = tuple(bijection.inverse_shape(shape))
            last = first + math.prod(unconstrained)
            sites.append(Site(path, whole, bijection, unconstrained, first, last))
            first = last
        return tuple(sites)

    @property
    def dim(self) -> int:
        """The length of the vector."""
        return self.sites[-1].last

    def constrain(self, z: Vector) -> Parameters:
        """Converts a vector to parameters."""
        leaves = [site.bijection(z[site.first : site.last].reshape(site.shape)) for site in self.sites]
        return jax.tree.unflatten(self._structure, leaves)

    def unconstrain(self, parameters: Parameters) -> Vector:
        """Converts parameters to a vector."""
        leaves = jax.tree.leaves(parameters)
        parts = [site.bijection.inv(jnp.asarray(leaf)) for site, leaf in zip(self.sites, leaves, strict=True)]
        return jnp.concatenate([part.ravel() for part in parts])

    def log_prior(self, z: Vector) -> Float[Array, ""]:
        """Returns the log prior density of the vector in nats, with the bijections' Jacobians."""
        total = jnp.float32(0)
        for site in self.sites:
            unconstrained = z[site.first : site.last].reshape(site.shape)
            parameter = site.bijection(unconstrained)
            total += jnp.sum(site.prior.log_prob(parameter))
            if not site.is_real:
                total += site.bijection.log_abs_det_jacobian(unconstrained, parameter).sum()
        return total

    def log_density(self, z: Vector, data: Data) -> Float[Array, ""]:
        """Returns the log posterior density of the vector in nats, up to a constant."""
        return self.log_prior(z) + self.total_log_likelihood(self.constrain(z), data)

    def total_log_likelihood(self, parameters: Parameters, data: Data) -> Float[Array, ""]:
        """Returns the log-likelihood, summed over rows; the gradient recomputes chunks of many rows, to save memory."""
        rows = jax.tree.leaves(data)[0].shape[0]
        if rows <= CHUNK:
            return self.log_likelihood(parameters, data).sum()

        def of_rows(first: int | Array, count: int) -> Array:
            chunk = jax.tree.map(lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, first, count), data)
            return self.log_likelihood(parameters, chunk).sum()

        whole = jax.checkpoint(lambda first: of_rows(first, CHUNK))
        firsts = CHUNK * jnp.arange(rows // CHUNK)
        total, _ = jax.lax.scan(lambda total, first: (total + whole(first), None), jnp.float32(0), firsts)
        return total + (of_rows(rows - rows % CHUNK, rows % CHUNK) if rows % CHUNK else 0.0)

    def sample_prior(self, key: PRNGKeyArray) -> Vector:
        """Draws a vector from the prior."""
        keys = jax.random.split(key, len(self.sites))
        draws = [site.prior.sample(site_key) for site_key, site in zip(keys, self.sites, strict=True)]
        return self.unconstrain(jax.tree.unflatten(self._structure, draws))

    @property
    def _structure(self) -> Any:
        return jax.tree.structure(self.priors, is_leaf=lambda leaf: isinstance(leaf, dist.Distribution))


def _by_path(tree: Any, is_leaf: Callable[[Any], bool]) -> dict[str, Any]:
    leaves = jax.tree.leaves_with_path(tree, is_leaf=is_leaf)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def _bijection(path: str, prior: dist.Distribution) -> Any:
    try:
        return dist.biject_to(prior.support)
    except NotImplementedError as error:
        found = type(getattr(prior, "base_dist", prior)).__name__
        raise ConfigError(f"prior of {path}", expected="a continuous one", found=found) from error


def _expand_prior(path: str, prior: dist.Distribution, shape: tuple[int, ...]) -> dist.Distribution:
    """Returns the prior of one parameter, independent over its batch axes."""
    batch = shape[: len(shape) - prior.event_dim]
    if batch + tuple(prior.event_shape) != shape:
        raise ConfigError(f"prior of {path}", expected=f"a shape that ends in {prior.event_shape}", found=shape)
    try:
        return prior.expand(batch)
    except ValueError as error:
        found = f"a prior of shape {prior.shape()}"
        raise ConfigError(f"prior of {path}", expected=f"one that expands to {shape}", found=found) from error
