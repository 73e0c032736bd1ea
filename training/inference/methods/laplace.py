"""Laplace's approximation: a normal about the posterior mode (MacKay, 1992; Ritter et al., 2018; Daxberger et al., 2021).

    N(z*, H⁻¹),   H = G + τ P,   G = Σ_rows Jᵀ Λ J

z* is the mode that `map` finds with the same key and settings. J is the Jacobian of what the likelihood sees of a row,
the network's outputs and the noise, by the unconstrained parameters; Λ is the Fisher information of the likelihood in
these, which is the Hessian of KL(p(· | f₀) ‖ p(· | f)) at f = f₀. So G is the generalised Gauss-Newton matrix, never
negative, for the noise and inferred scales as for weights. It is taken over all training rows, those too that the
search for the mode held out.

last_layer   the full H over the parameters of the network's last layer, all others fixed at the mode, the noise among
             them (Kristiadi et al., 2020)
diagonal     the diagonal of H over all parameters; for regression only (`check_subset` says why)

P is the curvature −∂² log p(z) of the prior at the mode. For a normal prior that is 1 / s². Other priors may be flat
there, or curved upwards; so it is no less than the precision of the normal with the same central 90 % interval.

τ multiplies P for the network's parameters. `evidence` chooses the τ that maximises the marginal likelihood

    log p(D) ≈ log p(D | z*) + log p(z*; τ) + d/2 log 2π − ½ log det H(τ)

with z* held fixed (Immer et al., 2021). With λ the eigenvalues of P^(−½) G P^(−½), and the prior seen as the normal
that has its slope and curvature at the mode, the derivative vanishes where Σ λ / (λ + τ) = τ Σ (∂ log p)² / P: the
number of parameters that the data determine (MacKay, 1992, eq. 4.9). The left side falls with τ and the right one
rises, so there is one root.
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
from jaxtyping import Array, Bool, Float, PRNGKeyArray
from scipy import linalg, optimize

from abstain.models.errors import ConfigError, FitError
from abstain.models.prediction.likelihoods import Likelihood
from abstain.models.prediction.posterior import Model, Posterior
from abstain.models.prediction.preprocessing import transformed_shape
from abstain.training.config.methods import LaplaceConfig
from abstain.training.inference.bnn import Observations, as_draw
from abstain.training.inference.methods.map import find_modes
from abstain.training.inference.optimization import described
from abstain.training.inference.problem import Fitted, Problem
from abstain.training.inference.target import Parameters, Site, Target, Vector
from abstain.training.runs.journal import Journal

FULL_LIMIT = 3_000
"""Parameters of a last layer beyond which its covariance (72 MB at this size, and twice that to factor) is refused."""
CHUNK_ROWS = 512
CHUNK_BYTES = 32_000_000
"""Of the Jacobians of one chunk of rows."""
MULTIPLIERS = (1e-6, 1e6)
"""Where τ is looked for."""
JITTERS = (0.0, 1e-10, 1e-8, 1e-6, 1e-4)
"""Tried in turn where H, rounded, has a negative eigenvalue; in units of its mean diagonal element."""
PRIOR_DRAWS = 4_096

Parts = list[Array]
"""The unconstrained values of all sites, each in its shape."""
Root = Callable[[Parts, Array], Float[Array, " roots"]]
Matrix = Float[np.ndarray, " subset"] | Float[np.ndarray, "subset subset"]
"""A diagonal, or the whole."""


class Curvature(NamedTuple):
    """What the training rows say about the mode; sums over the first `rows` of them."""

    log_likelihood: Float[np.ndarray, ""]
    matrix: Matrix
    rows: Any


class LocalPrior(NamedTuple):
    """The prior of the subset about the mode: its log density (nats) there, its slope and its precision.

    Attributes:
        scaled: whether τ multiplies the precision: the network's parameters, not the noise and inferred scales.
    """

    log_density: float
    slope: Float[np.ndarray, " subset"]
    precision: Float[np.ndarray, " subset"]
    scaled: Bool[np.ndarray, " subset"]


class Evidence(NamedTuple):
    """The log marginal likelihood of the training rows (nats), and the multiplier τ that it is of."""

    multiplier: float
    log_evidence: float


class Spread(NamedTuple):
    """The normal about the mode.

    Attributes:
        root: the standard deviations, or the lower Cholesky factor of the precision.
        std: of every parameter.
        jitter: what had to be added to the precision's diagonal.
    """

    root: Matrix
    std: Float[np.ndarray, " subset"]
    jitter: float


def fit(key: PRNGKeyArray, problem: Problem, settings: LaplaceConfig, draws: int, journal: Journal) -> Fitted:
    """Draws from the normal; diagnostics hold the descent's loss curve and reports, τ and the log evidence.

    Raises:
        ConfigError: `last_layer` is asked of a network that has none, or too large a one; `diagonal` is asked of a
            likelihood of classes.
        FitError: the curvature at the mode is not finite, or not positive.
    """
    check_subset(problem.bnn.model, settings)
    sites = subset_sites(problem, settings)
    modes, traces = find_modes(key, problem, settings, 1, journal)
    mode = modes[0]
    curvature = sum_curvature(problem, mode, sites, settings, journal)
    prior = local_prior(problem.target, mode, sites)
    evidence = weigh(curvature, prior, choose=settings.prior_precision == "evidence")
    spread = spread_of(curvature, prior, evidence.multiplier)
    zs = sample(jax.random.fold_in(key, 1), mode, sites, spread, draws)
    facts = described(traces) | {
        "subset": settings.subset,
        "subset_size": len(spread.std),
        "prior_precision_multiplier": evidence.multiplier,
        "log_evidence": evidence.log_evidence,
        "log_evidence_unit": "all training rows, nats",
        "posterior_std_min": float(spread.std.min()),
        "posterior_std_max": float(spread.std.max()),
    }
    posterior = Posterior(problem.bnn.model, problem.bnn.draws(zs))
    return Fitted(posterior, facts, notes=notes_on(evidence, spread), mode=problem.bnn.draws(np.asarray(modes)))


def check_subset(model: Model, settings: LaplaceConfig) -> None:
    """Refuses `diagonal` for classes.

    The Gauss-Newton matrix is the curvature of the network linearised at the mode, and so are the draws' predictions
    (Immer et al., 2021). A bundle stores draws of parameters, and serving runs the network itself under each. Of the
    last layer the two are the same. Of all layers they are not: independent noise on every weight goes through the
    network's curvature, and the draws classify far worse than the mode.

    Raises:
        ConfigError: saying why, and what to use instead.
    """
    if settings.subset == "diagonal" and model.law.task == "classification":
        raise ConfigError(
            "method.subset",
            expected=f'"last_layer", for likelihood "{model.likelihood}"',
            found='"diagonal", whose draws classify well only by a network linearised at the mode, which is not served',
            fix=f"leave method.subset out, or {alternative(model)}",
        )


def alternative(model: Model) -> str:
    """What to use where `last_layer` cannot be."""
    if model.law.task == "classification":
        return 'use method.kind = "vi" or "ensemble"'
    return 'set method.subset = "diagonal"'


def subset_sites(problem: Problem, settings: LaplaceConfig) -> tuple[Site, ...]:
    """The sites that the normal is over, in the order of the vector.

    Raises:
        ConfigError: there is no last layer that all outputs come out of, or it is too large.
    """
    sites = problem.target.sites
    if settings.subset == "diagonal":
        return sites
    layer = ".".join(("network", *last_layer(problem.bnn.model)))
    # A layer is all arrays of one module; what lies deeper in it is another's.
    chosen = tuple(site for site in sites if site.path.rpartition(".")[0] == layer)
    size = sum(site.last - site.first for site in chosen)
    if size > FULL_LIMIT:
        raise ConfigError(
            "method.subset",
            expected=f"at most {FULL_LIMIT} parameters in the last layer, {layer}",
            found=size,
            fix=alternative(problem.bnn.model),
        )
    check_reach(problem, chosen, layer)
    return chosen


def last_layer(model: Model) -> tuple[str, ...]:
    """The path of the last layer: of the module, however deep, that is the last to make parameters in a forward pass.

    A pass makes them in the order in which it uses its modules, whatever they are called and wherever `setup` names
    them.

    Raises:
        ConfigError: the last to come is an array that a module with layers of its own keeps beside them.
    """
    shape = transformed_shape(model.preprocessing, model.feature_shape)
    found: list[tuple[str, ...]] = []

    def trace(key: Array) -> Array:
        # Seen from within, before JAX sorts the names.
        tree: Any = model.module.init(key, jnp.zeros(shape, jnp.float32))["params"]
        path: tuple[str, ...] = ()
        while isinstance(tree[list(tree)[-1]], dict):
            path, tree = (*path, list(tree)[-1]), tree[list(tree)[-1]]
        if any(isinstance(value, dict) for value in tree.values()):
            raise ConfigError(
                "method.subset",
                expected="a network whose last parameters are a layer's",
                found=f"{'.'.join((*path, list(tree)[-1]))}, which stands beside layers",
                fix=f"end the network in a layer, as in nn.Dense(outputs), or {alternative(model)}",
            )
        found.append(path)
        return key

    jax.eval_shape(trace, jax.random.key(0))
    return found[0]


def check_reach(problem: Problem, sites: Sequence[Site], layer: str) -> None:
    """Refuses a last layer that only some of the outputs come out of: the other head would be taken for certain."""
    model, target = problem.bnn.model, problem.target
    parts = split(target, problem.bnn.start(jax.random.key(0)))
    places = [target.sites.index(site) for site in sites]

    def outputs(chosen: Parts, x: Array) -> Array:
        return model.module.apply({"params": as_draw(joined(target, replaced(parts, places, chosen)))["network"]}, x)

    jacobian = jax.jit(jax.vmap(jax.jacrev(outputs), in_axes=(None, 0)))
    slopes = jacobian([parts[place] for place in places], problem.train.x[:16])
    reached = sum(np.abs(slope).reshape(*slope.shape[:2], -1).sum(axis=(0, 2)) for slope in slopes) > 0
    if not np.all(reached):
        raise ConfigError(
            "method.subset",
            expected=f"a last layer that all {len(reached)} outputs come out of",
            found=f"{layer}, which does not reach output {', '.join(map(str, np.flatnonzero(~reached)))}",
            fix=f"end the network in one layer, as in nn.Dense(outputs), or {alternative(model)}",
        )


def sum_curvature(
    problem: Problem, mode: Vector, sites: Sequence[Site], settings: LaplaceConfig, journal: Journal
) -> Curvature:
    """The log-likelihood and G at the mode, summed over the training rows chunk by chunk, in float64.

    Raises:
        FitError: a sum is not finite.
    """
    target, train = problem.target, problem.train
    places = [target.sites.index(site) for site in sites]
    subset = sum(site.last - site.first for site in sites)
    total, full = len(train.y), settings.subset == "last_layer"
    roots = max(2, len(problem.bnn.model.class_names))
    fitting = CHUNK_BYTES // (8 * roots * subset) if full else CHUNK_ROWS
    size = max(1, min(CHUNK_ROWS, fitting, math.ceil(total / settings.reports)))
    parts = split(target, mode)
    add = partial(outer_products if full else squares, fisher_root(problem), places)

    @jax.jit
    def of_chunk(parts: Parts, first: Array, end: Array, train: Observations) -> tuple[Array, Array]:
        rows = first + jnp.arange(size)
        chunk, weights = train.take(jnp.minimum(rows, total - 1)), (rows < end).astype(jnp.float32)
        log_probs = target.log_likelihood(joined(target, parts), chunk)
        return (weights * log_probs).sum(), add(parts, chunk.x, weights)

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

    # The search may be lengthened on resuming; the sums about its earlier end are then of no use, hence the name.
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
    """A function of the parameters and an input whose Jacobian D gives a row's share of G: Dᵀ D = Jᵀ Λ J."""
    target, model = problem.target, problem.bnn.model

    def root(parts: Parts, x: Array) -> Array:
        draw = as_draw(joined(target, parts))
        outputs = model.module.apply({"params": draw["network"]}, x)
        return root_of_law(model.law, outputs, draw.get("noise", jnp.float32(0)))

    return root


def root_of_law(law: Likelihood, outputs: Float[Array, " outputs"], noise: Float[Array, ""]) -> Float[Array, " roots"]:
    """Coordinates of what is predicted in which its Fisher information is the identity: R = ∂ root, Λ = Rᵀ R.

    For classes Λ = Σ p (∂ log p)(∂ log p)ᵀ = Σ (∂ 2√p)(∂ 2√p)ᵀ, and for a normal Λ = ∂m ∂mᵀ / v + ∂v ∂vᵀ / 2v².
    """
    parts = law.predict(outputs, noise)
    if law.task == "classification":
        return 2 * jnp.exp(parts / 2)
    mean, variance = parts
    return jnp.stack([mean / jnp.sqrt(jax.lax.stop_gradient(variance)), jnp.log(variance) / jnp.sqrt(2)])


def squares(root: Root, places: Sequence[int], parts: Parts, x: Array, weights: Array) -> Float[Array, " subset"]:
    """The diagonal of Σ Dᵀ D: one gradient after the other, squared as it is made, so that no Jacobian is kept."""
    chosen = [parts[place] for place in places]

    def of_row(sums: Parts, row: tuple[Array, Array]) -> tuple[Parts, None]:
        value, pull = jax.vjp(lambda chosen: root(replaced(parts, places, chosen), row[0]), chosen)

        def of_root(sums: Parts, unit: Array) -> tuple[Parts, None]:
            (gradient,) = pull(unit)
            return [total + row[1] * part**2 for total, part in zip(sums, gradient, strict=True)], None

        return jax.lax.scan(of_root, sums, jnp.eye(len(value)))

    sums, _ = jax.lax.scan(of_row, [jnp.zeros_like(part) for part in chosen], (x, weights))
    return jnp.concatenate([part.ravel() for part in sums])


def outer_products(
    root: Root, places: Sequence[int], parts: Parts, x: Array, weights: Array
) -> Float[Array, "subset subset"]:
    """Σ Dᵀ D over some rows."""

    def of_row(row: Array, weight: Array) -> Array:
        chosen = [parts[place] for place in places]
        jacobian = jax.jacrev(lambda chosen: root(replaced(parts, places, chosen), row))(chosen)
        return weight * jnp.concatenate([part.reshape(len(part), -1) for part in jacobian], axis=1)

    stacked = jax.vmap(of_row)(x, weights)
    flat = stacked.reshape(-1, stacked.shape[-1])
    return jnp.matmul(flat.T, flat, precision="highest")


def local_prior(target: Target, mode: Vector, sites: Sequence[Site]) -> LocalPrior:
    """The prior of some sites about the mode; it is taken to be independent over their numbers."""
    parts = [mode[site.first : site.last].reshape(site.shape) for site in sites]

    @jax.jit
    def look(parts: Parts) -> tuple[Array, Parts, Parts]:
        def density(parts: Parts) -> Array:
            return jnp.stack([site_log_prior(site, part) for site, part in zip(sites, parts, strict=True)]).sum()

        value, slope = jax.value_and_grad(density)(parts)
        _, bend = jax.jvp(jax.grad(density), (parts,), ([jnp.ones_like(part) for part in parts],))
        return value, slope, bend

    value, slope, bend = look(parts)
    laws = jax.tree.leaves(target.priors, is_leaf=lambda leaf: isinstance(leaf, dist.Distribution))
    floors = [least_precision(site, laws[target.sites.index(site)]) for site in sites]
    precisions = [np.maximum(-np.asarray(part), floor).ravel() for part, floor in zip(bend, floors, strict=True)]
    scaled = [np.full(site.last - site.first, site.path.startswith("network.")) for site in sites]
    return LocalPrior(
        float(value),
        np.concatenate([np.asarray(part, np.float64).ravel() for part in slope]),
        np.concatenate(precisions).astype(np.float64),
        np.concatenate(scaled),
    )


def site_log_prior(site: Site, unconstrained: Array) -> Float[Array, ""]:
    """Log prior density of one site's unconstrained values in nats."""
    parameter = site.bijection(unconstrained)
    density = site.prior.log_prob(parameter).sum()
    return density if site.is_real else density + site.bijection.log_abs_det_jacobian(unconstrained, parameter).sum()


def least_precision(site: Site, law: dist.Distribution) -> np.ndarray:
    """That of the normal with the prior's central 90 % interval; 0 for a normal, whose curvature is its precision.

    Args:
        law: the prior before it was expanded to the site's shape.
    """
    if site.is_real and isinstance(getattr(site.prior, "base_dist", site.prior), dist.Normal):
        return np.zeros(())
    values = site.bijection.inv(law.sample(jax.random.key(0), (PRIOR_DRAWS,)))
    low, high = np.quantile(np.asarray(values, np.float64), [0.05, 0.95], axis=0)
    return np.asarray((2 * 1.6449 / (high - low)) ** 2)


def weigh(curvature: Curvature, prior: LocalPrior, *, choose: bool) -> Evidence:
    """The log evidence, at the τ that maximises it or, where there is nothing to choose, at τ = 1."""
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
    """The root τ of Σ λ / (λ + τ) = τ · penalty, or the end of `MULTIPLIERS` beyond which it lies."""

    def excess(log_multiplier: float) -> float:
        multiplier = math.exp(log_multiplier)
        return float((ratios / (ratios + multiplier)).sum() - multiplier * penalty)

    low, high = map(math.log, MULTIPLIERS)
    if excess(low) <= 0:
        return MULTIPLIERS[0]
    if excess(high) >= 0:
        return MULTIPLIERS[1]
    return math.exp(float(optimize.brentq(excess, low, high, xtol=1e-10)))


def spread_of(curvature: Curvature, prior: LocalPrior, multiplier: float) -> Spread:
    """The normal whose precision is G + τ P.

    Raises:
        FitError: the precision is not positive definite, and no small jitter makes it so.
    """
    precision = np.where(prior.scaled, multiplier, 1.0) * prior.precision
    if curvature.matrix.ndim == 1:
        std = 1 / np.sqrt(curvature.matrix + precision)
        return Spread(std, std, 0.0)
    scale = float((curvature.matrix.diagonal() + precision).mean())
    for jitter in JITTERS:
        whole = curvature.matrix.copy()
        whole[np.diag_indices_from(whole)] += precision + jitter * scale
        try:
            factor = linalg.cholesky(whole.T, lower=True, overwrite_a=True, check_finite=False)
        except linalg.LinAlgError:
            continue
        # Var z = H⁻¹ = L⁻ᵀ L⁻¹, whose diagonal is the squared length of L⁻¹'s columns.
        inverse = linalg.solve_triangular(factor, np.eye(len(factor), order="F"), lower=True, overwrite_b=True)
        return Spread(factor, np.sqrt(np.einsum("ij,ij->j", inverse, inverse)), jitter * scale)
    raise FitError(
        "the precision of the last layer is not positive definite",
        where="method",
        expected="the mode to lie where the posterior is curved downwards",
        found=f"negative eigenvalues beyond {JITTERS[-1]:g} of the mean diagonal element, {scale:.3g}",
        fix="check the scale of the data, or narrow prior.scale",
    )


def sample(
    key: PRNGKeyArray, mode: Vector, sites: Sequence[Site], spread: Spread, draws: int
) -> Float[np.ndarray, "draws dim"]:
    """z* + L⁻ᵀ ε for the subset; the rest stays at the mode."""
    noise = np.array(jax.random.normal(key, (draws, len(spread.std))))
    if spread.root.ndim == 2:
        noise = linalg.solve_triangular(spread.root, noise.T.astype(np.float64), trans="T", lower=True).T
    else:
        noise *= spread.root
    zs = np.tile(np.asarray(mode), (draws, 1))
    first = 0
    for site in sites:
        zs[:, site.first : site.last] += noise[:, first : first + site.last - site.first]
        first += site.last - site.first
    return zs


def notes_on(evidence: Evidence, spread: Spread) -> tuple[str, ...]:
    """What a reader should know, in plain words."""
    said = []
    if evidence.multiplier in MULTIPLIERS:
        said.append(
            f"the marginal likelihood wants the prior's precision multiplied by {evidence.multiplier:g} or beyond, where "
            "the search ends; the prior's scale is far from what the data ask for, or the search for the mode was short"
        )
    if spread.jitter:
        said.append(f"the precision was singular to rounding; {spread.jitter:.2g} was added to its diagonal")
    return tuple(said)


def split(target: Target, z: Vector) -> Parts:
    """A vector's numbers by site."""
    return [z[site.first : site.last].reshape(site.shape) for site in target.sites]


def replaced(parts: Parts, places: Sequence[int], chosen: Parts) -> Parts:
    """The parts, those at some places exchanged."""
    after = list(parts)
    for place, part in zip(places, chosen, strict=True):
        after[place] = part
    return after


def joined(target: Target, parts: Parts) -> Parameters:
    """The parameters that the parts stand for; unlike `constrain`, no gradient is as long as the vector."""
    structure = jax.tree.structure(target.priors, is_leaf=lambda leaf: isinstance(leaf, dist.Distribution))
    return jax.tree.unflatten(structure, [site.bijection(part) for site, part in zip(target.sites, parts, strict=True)])
