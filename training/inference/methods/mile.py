"""Warm-started members, each followed by microcanonical Langevin dynamics (MILE; Sommer et al., 2025).

Every chain starts from a posterior mode of its own and explores around it with microcanonical Langevin Monte Carlo
(Robnik & Seljak, 2023): a velocity of constant length, u ∈ S^(d−1), turned by the gradient and by noise,

    dz = M^(−½) u dt,    du = (1 − u uᵀ) (M^(−½) ∇log π(z) / (d − 1) dt + η dW).

A transition is one step ε of McLachlan's integrator, two gradients, and one turn by noise that forgets the direction
over a length L. No step is refused for its error, so ε decides how wrong the draws are, and neither R-hat nor ESS shows
it; what shows it is the energy error ΔE of a step. The warm-up averages ΔE² by Var[ΔE] ∝ ε⁶ and moves ε to where
Var[ΔE]/d = `energy_variance`, all the way; twice it takes the positions' variance over a part of itself as M⁻¹, after
which L = √d (without a metric, L = √Σ variances). No positions are kept for it.

How wrong at the default, 5e-5: variances of a normal come out 0.7–0.9 % small in 10 and in 50 dimensions, 2 % at 5e-4.
Of a 1-10-1 network on 40 points, whose curvature varies, means and standard deviations of the function were within
3 Monte Carlo errors of a long ChEES run in both of two runs of 8 × 100,000 transitions; at 5e-4 they were up to 6 off,
with R-hat still at 1.01. L = 2√d gave about 1.5 times the ESS, L = 4√d up to 7 errors of bias: L stays at √d. The
noise of one transition is drawn once, where the published step has two halves: the same stationary law, fewer numbers.
In float32 ΔE drowns in rounding once |log π| ≳ 10⁵ for a few dozen parameters: the step size then comes out too small.
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
from abstain.training.inference.sampling import fit_by_chains
from abstain.training.inference.target import Data, Target, Vector
from abstain.training.runs.journal import Journal

GRADIENTS = 2
FIRST_STEP = 1e-3
"""Of √d: far too small, so that no first step throws a member out of its mode."""
LARGEST_GROWTH = 2.0
"""Of the step size, in one transition."""
SHRINKAGE = 0.8
"""Of the step size, after a step that left the numbers."""
MEMORY = 150
"""Transitions that the step size is an average of, at least; a tenth of the warm-up, where that is more."""
WINDOWS = ((0.3, 0.5), (0.5, 0.8))
"""Shares of the warm-up over which variances are taken; what is before and after is for the step size alone."""
EXCESS_LIMIT = 10.0
"""Times the energy variance aimed at, over all members: where the network above began to be wrong."""

Scalar = Float[Array, ""]


class State(NamedTuple):
    """One chain."""

    key: PRNGKeyArray
    point: Any
    """An `IntegratorState`, whose arrays blackjax types as any trees."""
    step_size: Scalar
    length: Scalar
    """Over which the direction is forgotten, in the metric's units."""
    inverse: Float[Array, " dim"]
    """M⁻¹, diagonal."""
    weight: Scalar
    """Of the energy errors that the step size comes from, …"""
    excess: Scalar
    """… and their mean square at this step size, in units of the one aimed at."""
    covariance: Any
    transition: Array


def fit(key: PRNGKeyArray, problem: Problem, settings: MILEConfig, draws: int, journal: Journal) -> Fitted:
    """`draws` draws, evenly thinned from all members; diagnostics are of all samples, before thinning."""
    fitted = fit_by_chains(key, kernel(problem.target, settings), problem, settings, draws, journal)
    assert fitted.chains is not None  # noqa: S101
    facts = fitted.diagnostics | member_facts(fitted.chains, problem.target.dim)
    if fitted.convergence is None:
        return fitted._replace(diagnostics=facts)
    convergence = replace(fitted.convergence, ebfmi=())
    shortfalls = chain_shortfalls(convergence) + member_shortfalls(facts, settings)
    return fitted._replace(diagnostics=facts, shortfalls=shortfalls, convergence=convergence)


def member_facts(chains: Chains, dim: int) -> dict[str, Any]:
    """What each member was run with, and its energy variance, in plain JSON; E-BFMI says nothing of these dynamics."""
    variance = (chains.column("energy").astype(np.float64) ** 2).mean(axis=1) / dim
    return {
        "ebfmi": [],
        "energy_variance": variance.tolist(),
    }


def member_shortfalls(facts: dict[str, Any], settings: MILEConfig) -> tuple[Shortfall, ...]:
    """What R-hat and ESS do not show: members that stood still, and steps too large to be right."""
    shortfalls = [
        Shortfall(
            "still_member",
            f"member {place} left the numbers at every step and never moved; choose another start, or check the data's scale",
        )
        for place, acceptance in enumerate(facts["acceptance"])
        if acceptance == 0
    ]
    variance = float(np.mean(facts["energy_variance"]))
    if variance > EXCESS_LIMIT * settings.energy_variance:
        text = (
            f"the steps were too large: their energy variance is {variance:.1e} per dimension, more than "
            f"{EXCESS_LIMIT:.0f} times the {settings.energy_variance:.1e} aimed at, and the draws may be biased; "
            "raise warmup, or lower energy_variance"
        )
        shortfalls.append(Shortfall("energy_variance", text))
    return tuple(shortfalls)


def kernel(target: Target, settings: MILEConfig) -> Kernel:
    """The transitions of one chain; their `energy` is what a step added to it, 0 were the step exact.

    Raises:
        ConfigError: there is only one parameter, and no direction to turn.
    """
    if target.dim < 2:
        raise ConfigError(
            "method.kind", expected="at least 2 parameters, for mile", found=target.dim, fix='kind = "nuts"'
        )
    return Kernel(
        partial(init, target), partial(warm, target, settings), settle, partial(step, target), position, tuned
    )


def init(target: Target, key: PRNGKeyArray, position: Vector, data: Data) -> State:
    """A chain at its start, with nothing adapted yet."""
    dim = target.dim
    key, key_momentum = jax.random.split(key)
    direction = normalised(jax.random.normal(key_momentum, (dim,)))
    density, gradient = jax.value_and_grad(target.log_density)(position, data)
    return State(
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


def step(target: Target, state: State, data: Data) -> tuple[State, Info]:
    """One step of the integrator, and one turn by noise."""
    key, key_noise = jax.random.split(state.key)
    integrate: Any = isokinetic_mclachlan(lambda z: target.log_density(z, data), state.inverse)
    end, kinetic = integrate(state.point, state.step_size)
    error = kinetic - end.logdensity + state.point.logdensity
    fine = (jnp.abs(error) < DIVERGENCE) & jnp.isfinite(end.logdensity_grad).all()
    point = where(fine, end, state.point)
    noise = jax.random.normal(key_noise, (target.dim,))
    scale = jnp.sqrt(jnp.expm1(2 * state.step_size / state.length) / target.dim)
    direction = normalised(jnp.where(fine, point.momentum + scale * noise, noise))
    info = {
        "acceptance": fine.astype(jnp.float32),
        "diverging": ~fine,
        "leapfrogs": jnp.int32(GRADIENTS),
        "energy": jnp.where(fine, error, 0.0),
        "log_density": point.logdensity,
    }
    return state._replace(key=key, point=point._replace(momentum=direction)), info


def warm(target: Target, settings: MILEConfig, state: State, data: Data) -> tuple[State, Info]:
    """A step after which the step size and the metric are adapted."""
    state, info = step(target, state, data)
    state = state._replace(transition=state.transition + 1)
    return adapt_metric(settings, adapt_step_size(settings, state, info)), info


def adapt_step_size(settings: MILEConfig, state: State, info: Info) -> State:
    """The state with the step size at which the mean squared energy error is the one aimed at."""
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


def adapt_metric(settings: MILEConfig, state: State) -> State:
    """The state with its position added to the window, and with the window's metric where the window ends."""
    for first, last in variance_windows(settings.warmup):
        added = add_position(state.covariance, state.point.position, "diagonal")
        inside = (state.transition > first) & (state.transition <= last)
        state = state._replace(covariance=where(inside, added, state.covariance))
        state = where(state.transition == last, renew_metric(settings, state), state)
    return state


def variance_windows(warmup: int) -> list[tuple[int, int]]:
    """The first and last transition of each of `WINDOWS`; those too short for a variance are left out."""
    windows = [(round(first * warmup), round(last * warmup)) for first, last in WINDOWS]
    return [(first, last) for first, last in windows if last - first >= 2]


def renew_metric(settings: MILEConfig, state: State) -> State:
    """The state with the variances of a window as its metric or, where that stays the unit one, as its length."""
    variance = metric_of(state.covariance, "diagonal").inverse
    if settings.mass_matrix == "unit":
        state = state._replace(length=jnp.sqrt(variance.sum()))
    else:
        # No parameter moves further than before, until the errors in the new metric are known.
        shrunk = jnp.sqrt((state.inverse / variance).min())
        state = state._replace(step_size=state.step_size * shrunk, inverse=variance)
    return state._replace(weight=jnp.float32(0), covariance=no_positions(variance.shape[-1], "diagonal"))


def settle(state: State) -> State:
    """The state as it is: the step size is an average already."""
    return state


def position(state: State) -> Vector:
    """Where the chain is."""
    return state.point.position


def tuned(state: State) -> dict[str, Array]:
    """The adapted step size and the length over which the direction is forgotten."""
    return {"step_size": state.step_size, "decoherence_length": state.length}


def normalised(vector: Float[Array, " dim"]) -> Float[Array, " dim"]:
    """The vector at length 1."""
    return vector / jnp.linalg.norm(vector)
