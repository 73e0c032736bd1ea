"""Warm-started members, each followed by microcanonical Langevin dynamics (MILE; Sommer et al., 2025).

Every chain starts from its own posterior mode and explores around it with microcanonical Langevin Monte Carlo
(Robnik & Seljak, 2023): a velocity of constant length, u ∈ S^(d−1), turned by the gradient and by noise,

    dz = M^(−½) u dt,    du = (1 − u uᵀ) (M^(−½) ∇log π(z) / (d − 1) dt + η dW).

A transition is one step ε of McLachlan's integrator, two gradients, and one turn by noise that forgets the direction
over a length L. No step is rejected for its error, so ε determines the bias of the draws. R-hat and ESS do not show this
bias, but the energy error ΔE of a step does. The whole warm-up averages ΔE², with Var[ΔE] ∝ ε⁶, and moves ε towards the
value with Var[ΔE]/d = `energy_variance`. Twice it sets M⁻¹ to the positions' variance over a part of the warm-up, and then
L = √d (without a metric, L = √Σ variances). It keeps running variances, not positions.

With the default of 5e-5, variances of a normal are 0.7–0.9 % too small in 10 and in 50 dimensions; with 5e-4, 2 %.
For a 1-10-1 network on 40 points, a posterior of varying curvature, means and standard deviations of the function were
within 3 Monte Carlo errors of a long ChEES run in both of two runs of 8 × 100,000 transitions. With 5e-4 they differed by
up to 6 errors, although R-hat was 1.01. L = 2√d gave about 1.5 times the ESS, but L = 4√d up to 7 errors of bias; so L
is √d. The noise of a transition is drawn once, not twice as in the published step; the stationary distribution is the
same. In float32 rounding dominates ΔE if |log π| ≳ 10⁵ for a few dozen parameters: the step size is then too small.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from blackjax.mcmc.integrators import IntegratorState, isokinetic_mclachlan
from jaxtyping import Array, Float, PRNGKeyArray

from abstain.models.bundles.shortfalls import Shortfall
from abstain.models.errors import ConfigError
from abstain.training.config.methods import MILEConfig
from abstain.training.inference.adaptation import add_position, metric_of, no_positions, where
from abstain.training.inference.chains import Chains, Info, Kernel
from abstain.training.inference.diagnostics import chain_shortfalls
from abstain.training.inference.methods.hmc import DIVERGENCE
from abstain.training.inference.problem import Fitted, Problem
from abstain.training.inference.records import SamplingDiagnostics
from abstain.training.inference.sampling import fit_by_chains
from abstain.training.inference.target import Data, Target, Vector
from abstain.training.runs.journal import Journal

GRADIENTS = 2
FIRST_STEP = 1e-3
"""The first step size in units of √d: so small that no first step leaves the mode."""
LARGEST_GROWTH = 2.0
"""The largest growth of the step size in one transition."""
SHRINKAGE = 0.8
"""The factor of the step size after a step that was not finite."""
MEMORY = 150
"""The step size averages over at least this many transitions, or over a tenth of the warm-up, if that is more."""
WINDOWS = ((0.3, 0.5), (0.5, 0.8))
"""The parts of the warm-up, as shares, over which variances are computed; the rest adapts only the step size."""
EXCESS_LIMIT = 10.0
"""The largest ratio of energy variance to its target: above it, the draws of the 1-10-1 network were biased."""

Scalar = Float[Array, ""]


class MILEState(NamedTuple):
    """The state of one chain."""

    key: PRNGKeyArray
    point: Any
    """An `IntegratorState`; blackjax annotates its arrays as any trees."""
    step_size: Scalar
    length: Scalar
    """The length over which the direction is forgotten, in the metric's units."""
    inverse: Float[Array, " dim"]
    """M⁻¹, diagonal."""
    weight: Scalar
    """The weight of the energy errors that the step size averages over."""
    excess: Scalar
    """The mean square of these errors at this step size, in units of the target."""
    covariance: Any
    transition: Array


def fit(key: PRNGKeyArray, problem: Problem, settings: MILEConfig, draws: int, journal: Journal) -> Fitted:
    """Samples members and thins them evenly to `draws` draws; diagnostics use all samples."""
    fitted = fit_by_chains(key, kernel(problem.target, settings), problem, settings, draws, journal)
    assert fitted.chains is not None  # noqa: S101
    assert isinstance(fitted.diagnostics, SamplingDiagnostics)  # noqa: S101
    variance = energy_variance(fitted.chains, problem.target.dim)
    if fitted.diagnostics.chains is None:
        return fitted._replace(diagnostics=replace(fitted.diagnostics, energy_variance=variance))
    # E-BFMI does not apply to these dynamics.
    chains = replace(fitted.diagnostics.chains, ebfmi=())
    shortfalls = chain_shortfalls(chains) + member_shortfalls(chains.acceptance, variance, settings)
    diagnostics = replace(fitted.diagnostics, chains=chains, energy_variance=variance)
    return fitted._replace(diagnostics=diagnostics, shortfalls=shortfalls)


def energy_variance(chains: Chains, dim: int) -> tuple[float, ...]:
    """Returns each member's variance of the energy error per dimension."""
    return tuple(((chains.column("energy").astype(np.float64) ** 2).mean(axis=1) / dim).tolist())


def member_shortfalls(
    acceptance: tuple[float, ...], variances: tuple[float, ...], settings: MILEConfig
) -> tuple[Shortfall, ...]:
    """Returns shortfalls that R-hat and ESS do not show: members that never moved, and steps with too large errors."""
    shortfalls = [
        Shortfall(
            "still_member",
            f"member {index} never moved: no step led to finite values; choose another start, or check the data's scale",
        )
        for index, accepted in enumerate(acceptance)
        if accepted == 0
    ]
    variance = float(np.mean(variances))
    if variance > EXCESS_LIMIT * settings.energy_variance:
        text = (
            f"the steps were too large: their energy variance is {variance:.1e} per dimension, more than "
            f"{EXCESS_LIMIT:.0f} times the target of {settings.energy_variance:.1e}, and the draws may be biased; "
            "raise warmup, or lower energy_variance"
        )
        shortfalls.append(Shortfall("energy_variance", text))
    return tuple(shortfalls)


def kernel(target: Target, settings: MILEConfig) -> Kernel:
    """Returns the transitions of one chain; their `energy` is the energy error of a step, 0 for an exact step.

    Raises:
        ConfigError: there is only one parameter, so the direction cannot turn.
    """
    if target.dim < 2:
        raise ConfigError(
            "method.kind", expected="at least 2 parameters, for mile", found=target.dim, fix='kind = "nuts"'
        )
    return Kernel(
        partial(init, target), partial(warm, target, settings), settle, partial(step, target), position, tuning
    )


def init(target: Target, key: PRNGKeyArray, position: Vector, data: Data) -> MILEState:
    """Returns the state of a chain at its start, before adaptation."""
    dim = target.dim
    key, key_momentum = jax.random.split(key)
    direction = normalise(jax.random.normal(key_momentum, (dim,)))
    density, gradient = jax.value_and_grad(target.log_density)(position, data)
    return MILEState(
        key,
        IntegratorState(position, direction, density, gradient),
        jnp.float32(FIRST_STEP * math.sqrt(dim)),
        jnp.float32(math.sqrt(dim)),
        jnp.ones(dim),
        jnp.float32(0),
        jnp.float32(1),
        no_positions(dim, "diagonal"),
        jnp.int32(0),
    )


def step(target: Target, state: MILEState, data: Data) -> tuple[MILEState, Info]:
    """Runs one step of the integrator, then one turn by noise."""
    key, key_noise = jax.random.split(state.key)
    integrate: Any = isokinetic_mclachlan(lambda z: target.log_density(z, data), state.inverse)
    end, kinetic = integrate(state.point, state.step_size)
    error = kinetic - end.logdensity + state.point.logdensity
    valid = (jnp.abs(error) < DIVERGENCE) & jnp.isfinite(end.logdensity_grad).all()
    point = where(valid, end, state.point)
    noise = jax.random.normal(key_noise, (target.dim,))
    scale = jnp.sqrt(jnp.expm1(2 * state.step_size / state.length) / target.dim)
    direction = normalise(jnp.where(valid, point.momentum + scale * noise, noise))
    info = {
        "acceptance": valid.astype(jnp.float32),
        "diverging": ~valid,
        "leapfrogs": jnp.int32(GRADIENTS),
        "energy": jnp.where(valid, error, 0.0),
        "log_density": point.logdensity,
    }
    return state._replace(key=key, point=point._replace(momentum=direction)), info


def warm(target: Target, settings: MILEConfig, state: MILEState, data: Data) -> tuple[MILEState, Info]:
    """Runs a step, then adapts step size and metric."""
    state, info = step(target, state, data)
    state = state._replace(transition=state.transition + 1)
    return adapt_metric(settings, adapt_step_size(settings, state, info)), info


def adapt_step_size(settings: MILEConfig, state: MILEState, info: Info) -> MILEState:
    """Moves the step size towards the target of the mean squared energy error."""
    dim = state.inverse.shape[-1]
    memory = max(MEMORY, settings.warmup // 10)
    ratio = info["energy"] ** 2 / (dim * settings.energy_variance) + 1e-8
    total = state.weight + 1
    excess = (state.weight * state.excess + ratio) / total
    factor = jnp.minimum(excess ** (-1 / 6), LARGEST_GROWTH)
    adapted = state._replace(
        step_size=state.step_size * factor, weight=jnp.minimum(total, memory), excess=excess * factor**6
    )
    return where(info["diverging"], state._replace(step_size=SHRINKAGE * state.step_size), adapted)


def adapt_metric(settings: MILEConfig, state: MILEState) -> MILEState:
    """Adds the position to its window; at the window's end, renews the metric."""
    for first, last in variance_windows(settings.warmup):
        added = add_position(state.covariance, state.point.position, "diagonal")
        inside = (state.transition > first) & (state.transition <= last)
        state = state._replace(covariance=where(inside, added, state.covariance))
        state = where(state.transition == last, renew_metric(settings, state), state)
    return state


def variance_windows(warmup: int) -> list[tuple[int, int]]:
    """Returns the first and last transition of each of `WINDOWS`; those too short for a variance are left out."""
    windows = [(round(first * warmup), round(last * warmup)) for first, last in WINDOWS]
    return [(first, last) for first, last in windows if last - first >= 2]


def renew_metric(settings: MILEConfig, state: MILEState) -> MILEState:
    """Sets the metric to the window's variances or, if the metric stays the identity, sets the length from them."""
    variance = metric_of(state.covariance, "diagonal").inverse
    if settings.mass_matrix == "unit":
        state = state._replace(length=jnp.sqrt(variance.sum()))
    else:
        # No parameter moves further than before, because the errors in the new metric are not known yet.
        shrunk = jnp.sqrt((state.inverse / variance).min())
        state = state._replace(step_size=state.step_size * shrunk, inverse=variance)
    return state._replace(weight=jnp.float32(0), covariance=no_positions(variance.shape[-1], "diagonal"))


def settle(state: MILEState) -> MILEState:
    """Returns the state unchanged, because the step size is already an average."""
    return state


def position(state: MILEState) -> Vector:
    """Returns the position of the chain."""
    return state.point.position


def tuning(state: MILEState) -> dict[str, Array]:
    """Returns the adapted step size and the length over which the direction is forgotten."""
    return {"step_size": state.step_size, "decoherence_length": state.length}


def normalise(vector: Float[Array, " dim"]) -> Float[Array, " dim"]:
    """Scales the vector to length 1."""
    return vector / jnp.linalg.norm(vector)
