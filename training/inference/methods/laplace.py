"""Laplace's approximation: a normal about the posterior mode (MacKay, 1992; Ritter et al., 2018; Daxberger et al., 2021).

    N(z*, H⁻¹),   H = G + τ P,   G = Σ_rows Jᵀ Λ J

z* is the mode that `map` finds with the same key and settings. J is the Jacobian of the likelihood's inputs for a row,
the network's outputs and the noise, by the unconstrained parameters; Λ is the Fisher information of the likelihood in
these, which is the Hessian of KL(p(· | f₀) ‖ p(· | f)) at f = f₀. So G is the generalised Gauss-Newton matrix. It is never
negative, not even for the noise and inferred scales. It is summed over all training rows, including those that the search
for the mode held out.

last_layer   the full H over the parameters of the network's last layer; all others, and the noise, are fixed at the mode
             (Kristiadi et al., 2020)
diagonal     the diagonal of H over all parameters; for regression only (`check_subset` gives the reason)

P is the curvature −∂² log p(z) of the prior at the mode. For a normal prior that is 1 / s². Other priors may be flat
there, or curved upwards; so P is at least the precision of the normal with the same central 90 % interval.

τ multiplies P for the network's parameters. `evidence` chooses the τ that maximises the marginal likelihood

    log p(D) ≈ log p(D | z*) + log p(z*; τ) + d/2 log 2π − ½ log det H(τ)

with fixed z* (Immer et al., 2021). Let λ be the eigenvalues of P^(−½) G P^(−½), and replace the prior by the normal with
its slope and curvature at the mode. Then the derivative is 0 where Σ λ / (λ + τ), the number of parameters that the data
determine, equals τ Σ (∂ log p)² / P (MacKay, 1992, eq. 4.9). The left side falls with τ and the right one rises, so there
is one root.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray
from scipy import linalg

from abstain.models.errors import ConfigError, FitError
from abstain.models.prediction.features import last_layer
from abstain.models.prediction.posterior import Model, Posterior
from abstain.models.prediction.preprocessing import transformed_shape
from abstain.training.config.methods import LaplaceConfig
from abstain.training.inference.bnn import as_draw
from abstain.training.inference.curvature import (
    MULTIPLIERS,
    Curvature,
    Evidence,
    LocalPrior,
    Matrix,
    Parts,
    compute_evidence,
    join_parts,
    local_prior,
    replace_parts,
    split_by_site,
    sum_curvature,
)
from abstain.training.inference.mode_search import find_modes
from abstain.training.inference.optimization import summarize_descent
from abstain.training.inference.problem import Fitted, Problem
from abstain.training.inference.records import LaplaceDiagnostics
from abstain.training.inference.target import Site, Vector
from abstain.training.runs.journal import Journal

FULL_LIMIT = 3_000
"""The largest number of parameters of a last layer: its covariance takes 72 MB at this size, and twice that to factor."""
JITTERS = (0.0, 1e-10, 1e-8, 1e-6, 1e-4)
"""Added to H's diagonal, one after the other, until no rounded eigenvalue is negative; in units of its mean element."""


class Spread(NamedTuple):
    """The normal around the mode.

    Attributes:
        root: the standard deviations, or the lower Cholesky factor of the precision.
        std: standard deviation of every parameter.
        jitter: the number added to the precision's diagonal.
    """

    root: Matrix
    std: Float[np.ndarray, " subset"]
    jitter: float


def fit(key: PRNGKeyArray, problem: Problem, settings: LaplaceConfig, draws: int, journal: Journal) -> Fitted:
    """Fits the normal and draws from it; diagnostics hold loss curve, reports, τ and the log evidence.

    Raises:
        ConfigError: `last_layer` for a network that has no last layer or too large a one; `diagonal` for classes.
        FitError: the curvature at the mode is not finite, or not positive.
    """
    check_subset(problem.bnn.model, settings)
    sites = subset_sites(problem, settings)
    modes, traces = find_modes(key, problem, settings, 1, journal)
    mode = modes[0]
    curvature = sum_curvature(problem, mode, sites, settings, journal)
    prior = local_prior(problem.target, mode, sites)
    evidence = compute_evidence(curvature, prior, choose=settings.prior_precision == "evidence")
    spread = fit_spread(curvature, prior, evidence.multiplier)
    # This key equals `key_rows` of `find_modes`, which only seeds numpy's generator: the numbers are unrelated.
    zs = sample(jax.random.fold_in(key, 1), mode, sites, spread, draws)
    diagnostics = LaplaceDiagnostics(
        descent=summarize_descent(traces),
        subset=settings.subset,
        subset_size=len(spread.std),
        prior_precision_multiplier=evidence.multiplier,
        log_evidence=evidence.log_evidence,
        posterior_std=(float(spread.std.min()), float(spread.std.max())),
    )
    posterior = Posterior(problem.bnn.model, problem.bnn.draws(zs))
    return Fitted(
        posterior, diagnostics, notes=evidence_notes(evidence, spread), mode=problem.bnn.draws(np.asarray(modes))
    )


def check_subset(model: Model, settings: LaplaceConfig) -> None:
    """Refuses `diagonal` for classes.

    The Gauss-Newton matrix belongs to the network linearised at the mode, so the linearised network must also predict
    (Immer et al., 2021). A bundle stores draws of parameters, and serving runs the network itself. For the last layer
    both are the same. For all layers they are not: with independent noise on every weight the draws classify far worse
    than the mode.

    Raises:
        ConfigError: `diagonal` for classes; the text names the reason and the alternative.
    """
    if settings.subset == "diagonal" and model.likelihood_functions.task == "classification":
        raise ConfigError(
            "method.subset",
            expected=f'"last_layer", for likelihood "{model.likelihood}"',
            found='"diagonal": its draws classify well only with a network linearised at the mode, which is not served',
            fix=f"leave method.subset out, or {alternative(model)}",
        )


def alternative(model: Model) -> str:
    """Returns the advice if `last_layer` cannot be used."""
    if model.likelihood_functions.task == "classification":
        return 'use method.kind = "vi" or "ensemble"'
    return 'set method.subset = "diagonal"'


def subset_sites(problem: Problem, settings: LaplaceConfig) -> tuple[Site, ...]:
    """Returns the sites of the normal, in the order of the vector.

    Raises:
        ConfigError: there is no last layer that computes all outputs, or it is too large.
    """
    sites = problem.target.sites
    if settings.subset == "diagonal":
        return sites
    layer = ".".join(("network", *layer_of_outputs(problem.bnn.model)))
    # A layer has the arrays directly in one module, not those of its submodules.
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


def layer_of_outputs(model: Model) -> tuple[str, ...]:
    """Returns the path of the last layer.

    Raises:
        ConfigError: the last parameter is an array of a module that has layers of its own.
    """
    shape = transformed_shape(model.preprocessing, model.feature_shape)
    created = last_created_module(model, shape)
    layer = last_layer(model.module, shape)
    return layer.path if layer else created


def last_created_module(model: Model, shape: tuple[int, ...]) -> tuple[str, ...]:
    """Returns the path of the module with the parameters created last; parameters are created at their first use.

    Raises:
        ConfigError: that module has layers of its own, and its array is used after them.
    """
    paths: list[tuple[str, ...]] = []

    def trace(key: Array) -> Array:
        # Within the trace, because JAX sorts the names afterwards.
        tree: Any = model.module.init(key, jnp.zeros(shape, jnp.float32))["params"]
        path: tuple[str, ...] = ()
        while isinstance(tree[list(tree)[-1]], dict):
            path, tree = (*path, list(tree)[-1]), tree[list(tree)[-1]]
        if any(isinstance(value, dict) for value in tree.values()):
            raise ConfigError(
                "method.subset",
                expected="a network that ends in a layer",
                found=f"{'.'.join((*path, list(tree)[-1]))}, which is not in a layer",
                fix=f"end the network in a layer, as in nn.Dense(outputs), or {alternative(model)}",
            )
        paths.append(path)
        return key

    jax.eval_shape(trace, jax.random.key(0))
    return paths[0]


def check_reach(problem: Problem, sites: Sequence[Site], layer: str) -> None:
    """Refuses a last layer that computes only some outputs, because the others would have no uncertainty."""
    model, target = problem.bnn.model, problem.target
    parts = split_by_site(target, problem.bnn.start(jax.random.key(0)))
    indices = [target.sites.index(site) for site in sites]

    def outputs(chosen: Parts, x: Array) -> Array:
        network = as_draw(join_parts(target, replace_parts(parts, indices, chosen)))["network"]
        outputs_of_row: Any = model.module.apply({"params": network}, x)
        return outputs_of_row

    jacobian = jax.jit(jax.vmap(jax.jacrev(outputs), in_axes=(None, 0)))
    slopes = jacobian([parts[index] for index in indices], problem.train.x[:16])
    by_output = [np.abs(slope).reshape(*slope.shape[:2], -1).sum(axis=(0, 2)) for slope in slopes]
    reached = np.sum(by_output, axis=0) > 0
    if not np.all(reached):
        raise ConfigError(
            "method.subset",
            expected=f"a last layer that computes all {len(reached)} outputs",
            found=f"{layer}, which does not compute output {', '.join(map(str, np.flatnonzero(~reached)))}",
            fix=f"end the network in one layer, as in nn.Dense(outputs), or {alternative(model)}",
        )


def fit_spread(curvature: Curvature, prior: LocalPrior, multiplier: float) -> Spread:
    """Fits the normal with the precision G + τ P.

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
        # The diagonal of Var z = H⁻¹ = L⁻ᵀ L⁻¹ has the squared lengths of L⁻¹'s columns.
        inverse = linalg.solve_triangular(factor, np.eye(len(factor), order="F"), lower=True, overwrite_b=True)
        return Spread(factor, np.sqrt(np.einsum("ij,ij->j", inverse, inverse)), jitter * scale)
    raise FitError(
        "the precision of the last layer is not positive definite",
        where="method",
        expected="positive curvature at the mode",
        found=f"negative eigenvalues beyond {JITTERS[-1]:g} of the mean diagonal element, {scale:.3g}",
        fix="check the scale of the data, or narrow prior.scale",
    )


def sample(
    key: PRNGKeyArray, mode: Vector, sites: Sequence[Site], spread: Spread, draws: int
) -> Float[np.ndarray, "draws dim"]:
    """Draws z* + L⁻ᵀ ε for the subset; other parameters stay at the mode."""
    noise = np.array(jax.random.normal(key, (draws, len(spread.std))))
    if spread.root.ndim == 2:
        # trans=1: Lᵀ.
        noise = linalg.solve_triangular(spread.root, noise.T.astype(np.float64), trans=1, lower=True).T
    else:
        noise *= spread.root
    zs = np.tile(np.asarray(mode), (draws, 1))
    first = 0
    for site in sites:
        zs[:, site.first : site.last] += noise[:, first : first + site.last - site.first]
        first += site.last - site.first
    return zs


def evidence_notes(evidence: Evidence, spread: Spread) -> tuple[str, ...]:
    """Returns notes on the multiplier and on the jitter."""
    notes = []
    if evidence.multiplier in MULTIPLIERS:
        notes.append(
            f"the marginal likelihood is largest at {evidence.multiplier:g} times the prior's precision, where the search "
            "ends; the prior's scale does not fit the data, or the search for the mode was too short"
        )
    if spread.jitter:
        notes.append(f"the precision was numerically singular; {spread.jitter:.2g} was added to its diagonal")
    return tuple(notes)
