"""The curvature of likelihood and prior at a mode, and the marginal likelihood.

Symbols are those of `training/inference/methods/laplace.py`: G the generalised Gauss-Newton matrix, P the curvature of
the prior, τ the multiplier of P.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, Bool, Float
from scipy import linalg, optimize

from abstain.models.errors import FitError
from abstain.models.prediction.likelihoods import Likelihood
from abstain.training.config.methods import LaplaceConfig
from abstain.training.inference.bnn import Observations, as_draw
from abstain.training.inference.problem import Problem
from abstain.training.inference.target import Parameters, Site, Target, Vector
from abstain.training.runs.journal import Journal

CHUNK_ROWS = 512
CHUNK_BYTES = 32_000_000
"""The largest size in bytes of the Jacobians of a chunk of rows."""
MULTIPLIERS = (1e-6, 1e6)
"""The search interval of τ."""
PRIOR_DRAWS = 4_096

Parts = list[Array]
"""The unconstrained values of each site, in its shape."""
Root = Callable[[Parts, Array], Float[Array, " roots"]]
Matrix = Float[np.ndarray, " subset"] | Float[np.ndarray, "subset subset"]
"""A diagonal, or a full matrix."""


class Curvature(NamedTuple):
    """Sums over the first `rows` training rows at the mode."""

    log_likelihood: Float[np.ndarray, ""]
    matrix: Matrix
    rows: Any


class LocalPrior(NamedTuple):
    """The prior of the subset at the mode: log density (nats), slope and precision.

    Attributes:
        scaled: whether τ multiplies the precision: true for the network's parameters, not for noise and scales.
    """

    log_density: float
    slope: Float[np.ndarray, " subset"]
    precision: Float[np.ndarray, " subset"]
    scaled: Bool[np.ndarray, " subset"]


class Evidence(NamedTuple):
    """The log marginal likelihood of the training rows (nats) at the multiplier τ."""

    multiplier: float
    log_evidence: float


def sum_curvature(
    problem: Problem, mode: Vector, sites: Sequence[Site], settings: LaplaceConfig, journal: Journal
) -> Curvature:
    """Returns the log-likelihood and G at the mode, summed over the training rows chunk by chunk, in float64.

    Raises:
        FitError: a sum is not finite.
    """
    target, train = problem.target, problem.train
    indices = [target.sites.index(site) for site in sites]
    subset = sum(site.last - site.first for site in sites)
    total, full = len(train.y), settings.subset == "last_layer"
    roots = max(2, len(problem.bnn.model.class_names))
    most_rows = CHUNK_BYTES // (8 * roots * subset) if full else CHUNK_ROWS
    size = max(1, min(CHUNK_ROWS, most_rows, math.ceil(total / settings.reports)))
    parts = split_by_site(target, mode)
    add = partial(outer_products if full else squares, fisher_root(problem), indices)

    @jax.jit
    def of_chunk(parts: Parts, first: Array, end: Array, train: Observations) -> tuple[Array, Array]:
        rows = first + jnp.arange(size)
        chunk, counted = train.take(jnp.minimum(rows, total - 1)), (rows < end).astype(jnp.float32)
        log_probs = target.log_likelihood(join_parts(target, parts), chunk)
        # The target weighs each row's log density by its class, and so is the row's curvature.
        weights = counted * problem.bnn.row_weights(chunk.y)
        return (counted * log_probs).sum(), add(parts, chunk.x, weights)

    def start() -> Curvature:
        return Curvature(np.zeros(()), np.zeros((subset,) * (2 if full else 1)), np.int64(0))

    def block(state: Curvature, count: int) -> tuple[Curvature, dict[str, np.ndarray], dict[str, float]]:
        done, matrix, log_likelihood = int(state.rows), state.matrix.copy(), float(state.log_likelihood)
        for first in range(done, done + count, size):
            fitted, products = of_chunk(parts, jnp.int32(first), jnp.int32(done + count), train)
            log_likelihood += float(fitted)
            matrix += np.asarray(products)
        after = Curvature(np.asarray(log_likelihood), matrix, np.int64(done + count))
        return after, {"rows": np.array([done + count])}, {"log_likelihood": log_likelihood / (done + count)}

    # The name contains the number of steps, because a longer search finds another mode, which needs new sums.
    sums = journal.run(f"curvature-{settings.steps}", start, block, total, settings.reports).state
    if not (np.isfinite(sums.log_likelihood) and np.isfinite(sums.matrix).all()):
        raise FitError(
            "the curvature at the mode is not finite",
            where="method",
            found=f"log-likelihood {float(sums.log_likelihood):.4g}",
            fix="lower method.learning_rate or set method.clip; check the data's scale",
        )
    return sums


def fisher_root(problem: Problem) -> Root:
    """Returns a function of parameters and input; its Jacobian D gives a row's term of G: Dᵀ D = Jᵀ Λ J."""
    target, model = problem.target, problem.bnn.model

    def root(parts: Parts, x: Array) -> Array:
        draw = as_draw(join_parts(target, parts))
        outputs: Any = model.module.apply({"params": draw["network"]}, x)
        return likelihood_root(model.likelihood_functions, outputs, draw.get("noise", jnp.float32(0)))

    return root


def likelihood_root(
    likelihood: Likelihood, outputs: Float[Array, " outputs"], noise: Float[Array, ""]
) -> Float[Array, " roots"]:
    """Transforms a prediction so that its Fisher information becomes the identity: R = ∂ root, Λ = Rᵀ R.

    For classes Λ = Σ p (∂ log p)(∂ log p)ᵀ = Σ (∂ 2√p)(∂ 2√p)ᵀ, and for a normal Λ = ∂m ∂mᵀ / v + ∂v ∂vᵀ / 2v².
    """
    parts = likelihood.predict(outputs, noise)
    if likelihood.task == "classification":
        return 2 * jnp.exp(parts / 2)
    mean, variance = parts
    return jnp.stack([mean / jnp.sqrt(jax.lax.stop_gradient(variance)), jnp.log(variance) / jnp.sqrt(2)])


def squares(root: Root, indices: Sequence[int], parts: Parts, x: Array, weights: Array) -> Float[Array, " subset"]:
    """Returns the diagonal of Σ w Dᵀ D over rows of weight w, summed gradient by gradient, so that no Jacobian is kept."""
    chosen = [parts[index] for index in indices]

    def of_row(sums: Parts, row: tuple[Array, Array]) -> tuple[Parts, None]:
        value, pull = jax.vjp(lambda chosen: root(replace_parts(parts, indices, chosen), row[0]), chosen)

        def of_root(sums: Parts, unit: Array) -> tuple[Parts, None]:
            (gradient,) = pull(unit)
            return [total + row[1] * part**2 for total, part in zip(sums, gradient, strict=True)], None

        return jax.lax.scan(of_root, sums, jnp.eye(len(value)))

    sums, _ = jax.lax.scan(of_row, [jnp.zeros_like(part) for part in chosen], (x, weights))
    return jnp.concatenate([part.ravel() for part in sums])


def outer_products(
    root: Root, indices: Sequence[int], parts: Parts, x: Array, weights: Array
) -> Float[Array, "subset subset"]:
    """Returns Σ w Dᵀ D over some rows of weight w."""

    def of_row(row: Array, weight: Array) -> Array:
        chosen = [parts[index] for index in indices]
        jacobian = jax.jacrev(lambda chosen: root(replace_parts(parts, indices, chosen), row))(chosen)
        # Each row's product has two of these factors.
        return jnp.sqrt(weight) * jnp.concatenate([part.reshape(len(part), -1) for part in jacobian], axis=1)

    stacked = jax.vmap(of_row)(x, weights)
    flat = stacked.reshape(-1, stacked.shape[-1])
    return jnp.matmul(flat.T, flat, precision="highest")


def local_prior(target: Target, mode: Vector, sites: Sequence[Site]) -> LocalPrior:
    """Returns the prior of some sites at the mode, assumed independent over their values."""
    parts = [mode[site.first : site.last].reshape(site.shape) for site in sites]

    @jax.jit
    def evaluate_prior(parts: Parts) -> tuple[Array, Parts, Parts]:
        def density(parts: Parts) -> Array:
            return jnp.stack([site.log_prior(part) for site, part in zip(sites, parts, strict=True)]).sum()

        value, slope = jax.value_and_grad(density)(parts)
        _, second_derivative = jax.jvp(jax.grad(density), (parts,), ([jnp.ones_like(part) for part in parts],))
        return value, slope, second_derivative

    value, slope, second_derivative = evaluate_prior(parts)
    priors = jax.tree.leaves(target.priors, is_leaf=lambda leaf: isinstance(leaf, dist.Distribution))
    floors = [least_precision(site, priors[target.sites.index(site)]) for site in sites]
    precisions = [
        np.maximum(-np.asarray(part), floor).ravel() for part, floor in zip(second_derivative, floors, strict=True)
    ]
    scaled = [np.full(site.last - site.first, site.path.startswith("network.")) for site in sites]
    return LocalPrior(
        float(value),
        np.concatenate([np.asarray(part, np.float64).ravel() for part in slope]),
        np.concatenate(precisions).astype(np.float64),
        np.concatenate(scaled),
    )


def least_precision(site: Site, prior: dist.Distribution) -> np.ndarray:
    """Returns the precision of the normal with the prior's central 90 % interval; 0 for a normal prior.

    Args:
        prior: the prior before it is expanded to the site's shape.
    """
    if site.is_real and isinstance(getattr(site.prior, "base_dist", site.prior), dist.Normal):
        return np.zeros(())
    values = site.bijection.inv(prior.sample(jax.random.key(0), (PRIOR_DRAWS,)))
    low, high = np.quantile(np.asarray(values, np.float64), [0.05, 0.95], axis=0)
    return np.asarray((2 * 1.6449 / (high - low)) ** 2)


def compute_evidence(curvature: Curvature, prior: LocalPrior, *, choose: bool) -> Evidence:
    """Returns the log evidence at the τ that maximises it, or at τ = 1 if `choose` is false."""
    scaled, precision = prior.scaled, prior.precision
    if curvature.matrix.ndim == 2:
        root = np.sqrt(precision)
        ratios = linalg.eigvalsh((curvature.matrix / root / root[:, None]).T, overwrite_a=True, check_finite=False)
        others = 0.0
    else:
        ratios = curvature.matrix[scaled] / precision[scaled]
        others = np.log(curvature.matrix[~scaled] + precision[~scaled]).sum()
    ratios = np.maximum(ratios, 0)
    penalty = float((prior.slope[scaled] ** 2 / precision[scaled]).sum())
    multiplier = best_multiplier(ratios, penalty) if choose else 1.0
    log_prior = prior.log_density + 0.5 * (len(ratios) * math.log(multiplier) - (multiplier - 1) * penalty)
    log_determinant = np.log(precision[scaled]).sum() + np.log(ratios + multiplier).sum() + others
    volume = 0.5 * (len(precision) * math.log(2 * math.pi) - log_determinant)
    return Evidence(multiplier, float(curvature.log_likelihood + log_prior + volume))


def best_multiplier(ratios: Float[np.ndarray, " subset"], penalty: float) -> float:
    """Returns the root τ of Σ λ / (λ + τ) = τ · penalty, or the nearer end of `MULTIPLIERS` if it lies outside."""

    def excess(log_multiplier: float) -> float:
        multiplier = math.exp(log_multiplier)
        return float((ratios / (ratios + multiplier)).sum() - multiplier * penalty)

    low, high = map(math.log, MULTIPLIERS)
    if excess(low) <= 0:
        return MULTIPLIERS[0]
    if excess(high) >= 0:
        return MULTIPLIERS[1]
    root: Any = optimize.brentq(excess, low, high, xtol=1e-10)
    return math.exp(float(root))


def split_by_site(target: Target, z: Vector) -> Parts:
    """Splits a vector into the values of each site."""
    return [z[site.first : site.last].reshape(site.shape) for site in target.sites]


def replace_parts(parts: Parts, indices: Sequence[int], chosen: Parts) -> Parts:
    """Replaces the parts at some indices."""
    after = list(parts)
    for index, part in zip(indices, chosen, strict=True):
        after[index] = part
    return after


def join_parts(target: Target, parts: Parts) -> Parameters:
    """Converts parts to parameters; unlike with `Target.constrain`, no gradient has the length of the vector."""
    structure = jax.tree.structure(target.priors, is_leaf=lambda leaf: isinstance(leaf, dist.Distribution))
    return jax.tree.unflatten(structure, [site.bijection(part) for site, part in zip(target.sites, parts, strict=True)])
