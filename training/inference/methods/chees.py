"""ChEES-HMC (Hoffman, Radul & Sountsov, 2021): many chains in lockstep with one adapted trajectory length.

All chains share a step size ε, a diagonal metric and a longest trajectory T; a transition's trajectory is u·T long with
one u ~ U(0, 1) for all, so that every chain takes the same number of leapfrog steps and none waits for another. After
the warm-up, groups of chains may continue in separate threads (`chain_method = "parallel"`). The warm-up moves log T
up the gradient of ChEES, the change in the estimator of the expected square,

    ChEES(T) = ¼ E[(‖q′ − E q′‖² − ‖q − E q‖²)²],

with q in units of the metric, by Adam on the chains' average of

    u · T · (‖q̃′‖² − ‖q̃‖²) · ⟨q̃′, ṽ′⟩,    ~: centred, in the metric's units,

weighted by acceptance (§3.2); ε follows the harmonic mean of the acceptance, and the metric is the variance over all
chains in windows of doubling length.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key, PRNGKeyArray

from abstain.training.config.methods import ChEESConfig
from abstain.training.inference.adaptation import (
    Metric,
    StepSize,
    adapt_step_size,
    final_step_size,
    first_step_size,
    restart_step_size,
    unit_metric,
    where,
    windows,
)
from abstain.training.inference.chains import Info, Kernel
from abstain.training.inference.methods.hmc import (
    DIVERGENCE,
    Point,
    acceptance_probability,
    energies,
    evaluate,
    leapfrogs,
)
from abstain.training.inference.problem import Fitted, Problem
from abstain.training.inference.sampling import fit_by_chains
from abstain.training.inference.target import Data, Target
from abstain.training.runs.journal import Journal

ADAM = optax.adam(0.025, b1=0.0, b2=0.95)
"""The optimiser of the log trajectory length."""
FIRST_LEAPFROGS = 1
"""T starts short and grows, because the criterion has a maximum at every half turn and the first is the best."""
STEP_JITTER = 0.2
"""The step size of a transition is the adapted one times a draw from [1 − STEP_JITTER, 1], which avoids resonances."""

Scalar = Float[Array, ""]


class Length(NamedTuple):
    """The logarithm of the longest trajectory, its running average, and Adam's memory."""

    log: Scalar
    average: Scalar
    memory: Any


class ChEESState(NamedTuple):
    """The state of all chains; the leading axis of `point` is the chain."""

    key: PRNGKeyArray
    point: Point
    metric: Metric
    step_size: StepSize
    length: Length
    moments: tuple[Scalar, Array, Array]
    """Number, mean and sum of squared deviations of the positions of this window, over all chains."""
    transition: Array


def fit(key: PRNGKeyArray, problem: Problem, settings: ChEESConfig, draws: int, journal: Journal) -> Fitted:
    """Samples chains and thins them evenly to `draws` draws; diagnostics use all samples."""
    return fit_by_chains(key, kernel(problem.target, settings), problem, settings, draws, journal)


def kernel(target: Target, settings: ChEESConfig) -> Kernel:
    """Returns the transitions of all chains."""
    return Kernel(
        partial(init, target, settings),
        partial(warm, target, settings),
        settle,
        partial(step, target, settings),
        position,
        tuning,
        lockstep=True,
        split=partial(split, settings) if settings.chain_method == "parallel" else None,
    )


def init(
    target: Target,
    settings: ChEESConfig,
    keys: Key[Array, " chains"],
    positions: Float[Array, "chains dim"],
    data: Data,
) -> ChEESState:
    """Returns the state of all chains at their starts, before adaptation."""
    log = jnp.log(jnp.float32(FIRST_LEAPFROGS * settings.step_size))
    return ChEESState(
        keys[0],
        evaluate_all(target, positions, data),
        unit_metric(target.dim, settings.mass_matrix),
        first_step_size(settings.step_size),
        Length(log, log, ADAM.init(log)),
        no_moments(target.dim),
        jnp.int32(0),
    )


def step(target: Target, settings: ChEESConfig, state: ChEESState, data: Data) -> tuple[ChEESState, Info]:
    """Runs one trajectory of every chain, and accepts or rejects each."""
    state, info, *_ = transition(target, settings, state, data)
    return state, info


def transition(
    target: Target, settings: ChEESConfig, state: ChEESState, data: Data
) -> tuple[ChEESState, Info, Point, Array, Scalar]:
    """Runs a step; returns also the ends, their velocities and the share of the length, for the adaptation."""
    key, key_momentum, key_length, key_jitter, key_accept = jax.random.split(state.key, 5)
    chains = len(state.point.position)
    share = jax.random.uniform(key_length)
    size = state.step_size.value * (1 - STEP_JITTER * jax.random.uniform(key_jitter))
    steps = jnp.clip(jnp.ceil(share * jnp.exp(state.length.log) / size), 1, settings.max_leapfrogs)
    momentum = state.metric.momentum(jax.random.normal(key_momentum, (chains, target.dim)))
    end, last_momentum = leapfrogs(
        lambda positions: evaluate_all(target, positions, data),
        state.point,
        momentum,
        state.metric,
        size,
        steps.astype(int),
    )
    energy, error = energies(state.point, momentum, end, last_momentum, state.metric)
    acceptance = acceptance_probability(error)
    accepted = jax.random.uniform(key_accept, (chains,)) < acceptance
    point = Point(
        where(accepted[:, None], end.position, state.point.position),
        where(accepted, end.log_density, state.point.log_density),
        where(accepted[:, None], end.gradient, state.point.gradient),
    )
    info = {
        "acceptance": acceptance,
        "diverging": ~(error < DIVERGENCE),
        "leapfrogs": jnp.full(chains, steps, jnp.int32),
        "energy": energy,
        "log_density": point.log_density,
    }
    return state._replace(key=key, point=point), info, end, state.metric.velocity(last_momentum), share


def warm(target: Target, settings: ChEESConfig, state: ChEESState, data: Data) -> tuple[ChEESState, Info]:
    """Runs a step, then adapts step size, trajectory length and metric."""
    before = state.point.position
    state, info, end, velocity, share = transition(target, settings, state, data)
    acceptance = info["acceptance"]
    # The harmonic mean, so that the step is not too large for any chain.
    mean = 1 / (1 / jnp.maximum(acceptance, 1e-6)).mean()
    size = adapt_step_size(state.step_size, mean, "dual_averaging", settings.target_acceptance)
    slope = ascent(before, end.position, velocity, acceptance, state.metric) * share * jnp.exp(state.length.log)
    length = adapt_length(settings, state.length, slope, size.memory.average, state.transition)
    state = state._replace(step_size=size, length=length, transition=state.transition + 1)
    return (state if settings.mass_matrix == "unit" else adapt_metric(target, settings, state)), info


def adapt_length(
    settings: ChEESConfig, length: Length, slope: Scalar, average_log_size: Scalar, transition: Array
) -> Length:
    """Returns the trajectory length after one step of Adam up the slope."""
    update, memory = ADAM.update(-jnp.nan_to_num(slope), length.memory)
    # Bounded by the average step size, because single step sizes could push T to a farther maximum.
    log = jnp.minimum(length.log + jnp.asarray(update), average_log_size + jnp.log(settings.max_leapfrogs))
    weight = (transition + 1.0) ** -0.5
    return Length(log, (1 - weight) * length.average + weight * log, memory)


def adapt_metric(target: Target, settings: ChEESConfig, state: ChEESState) -> ChEESState:
    """Adds the positions to the window; at its end, sets the metric to that of the window."""
    schedule, index = windows(settings.warmup), state.transition - 1
    moments = where(schedule.collecting[index], add_moments(state.moments, state.point.position), state.moments)
    state = state._replace(moments=moments)
    metric = metric_of_moments(moments)
    # The widest direction needs the longest trajectory: there T stays as long as before, in the new metric's units.
    shift = jnp.log((metric.inverse / state.metric.inverse).max()) / 2
    length = state.length
    renewed = state._replace(
        metric=metric,
        step_size=restart_step_size(state.step_size, state.metric, metric, "dual_averaging"),
        length=length._replace(log=length.log - shift, average=length.average - shift),
        moments=no_moments(target.dim),
    )
    return jax.lax.cond(schedule.ending[index], lambda: renewed, lambda: state)


def settle(state: ChEESState) -> ChEESState:
    """Fixes the step size and the length at the end of adaptation."""
    size = StepSize(final_step_size(state.step_size, "dual_averaging"), ())
    return state._replace(step_size=size, length=state.length._replace(log=state.length.average))


def split(settings: ChEESConfig, state: ChEESState) -> ChEESState:
    """Splits the chains into groups with separate random keys; they share the adapted settings."""
    shape = (settings.groups, settings.chains // settings.groups)
    shared = jax.tree.map(lambda leaf: jnp.stack([leaf] * settings.groups), state)
    point = jax.tree.map(lambda leaf: leaf.reshape(*shape, *leaf.shape[1:]), state.point)
    return shared._replace(key=jax.random.split(state.key, settings.groups), point=point)


def position(state: ChEESState) -> Float[Array, "chains dim"]:
    """Returns the positions of the chains."""
    return state.point.position


def tuning(state: ChEESState) -> dict[str, Array]:
    """Returns the adapted step size, and the longest trajectory in units of time."""
    return {"step_size": state.step_size.value, "trajectory_length": jnp.exp(state.length.log)}


def evaluate_all(target: Target, positions: Float[Array, "chains dim"], data: Data) -> Point:
    """Returns the point of every chain."""
    return jax.vmap(lambda position: evaluate(target, position, data))(positions)


def ascent(
    before: Float[Array, "chains dim"],
    after: Float[Array, "chains dim"],
    velocity: Float[Array, "chains dim"],
    acceptance: Float[Array, " chains"],
    metric: Metric,
) -> Scalar:
    """Returns the derivative of ChEES by the trajectory's length in time, up to a constant factor."""
    unit = jnp.sqrt(metric.inverse)
    weight = jnp.where(jnp.isfinite(after).all(axis=1), acceptance, 0.0)
    safe = jnp.where(weight[:, None] > 0, after, before)
    end = (safe - jnp.average(safe, axis=0, weights=weight + 1e-9)) / unit
    start = (before - before.mean(axis=0)) / unit
    change = (end**2).sum(axis=1) - (start**2).sum(axis=1)
    slope = change * (end * jnp.nan_to_num(velocity) / unit).sum(axis=1)
    return (weight * slope).sum() / (weight.sum() + 1e-9)


def no_moments(dim: int) -> tuple[Scalar, Array, Array]:
    """Returns moments without positions."""
    return jnp.float32(0), jnp.zeros(dim), jnp.zeros(dim)


def add_moments(moments: tuple[Scalar, Array, Array], positions: Float[Array, "chains dim"]) -> tuple[Scalar, Any, Any]:
    """Adds a batch of positions to the moments (Chan et al., 1979)."""
    count, mean, squares = moments
    size = len(positions)
    delta = positions.mean(axis=0) - mean
    total = count + size
    squares = squares + ((positions - positions.mean(axis=0)) ** 2).sum(axis=0) + delta**2 * count * size / total
    return total, mean + delta * size / total, squares


def metric_of_moments(moments: tuple[Scalar, Array, Array]) -> Metric:
    """Returns the metric of a window, shrunk a little towards the identity, as Stan does."""
    count, _, squares = moments
    variance = squares / jnp.maximum(count - 1, 1)
    inverse = count / (count + 5) * variance + 1e-3 * 5 / (count + 5)
    return Metric(inverse, 1 / jnp.sqrt(inverse))
