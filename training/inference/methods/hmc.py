"""Hamiltonian Monte Carlo (Duane et al., 1987; Neal, 2011) with a fixed number of leapfrog steps.

    p ~ N(0, M);   (q, p) ↦ L leapfrog steps of size ε;   accept with min(1, exp(H − H′)),   H = −log π(q) + ½ pᵀM⁻¹p

A leapfrog step costs little more than one gradient, because the loop's length is fixed at compilation.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from abstain.training.config.methods import HMCConfig, MassMatrix
from abstain.training.inference.adaptation import (
    Metric,
    StepSize,
    adapt_step_size,
    add_position,
    final_step_size,
    first_step_size,
    metric_of,
    no_positions,
    restart_step_size,
    unit_metric,
    where,
    windows,
)
from abstain.training.inference.chains import Info, Kernel
from abstain.training.inference.problem import Fitted, Problem
from abstain.training.inference.sampling import fit_by_chains
from abstain.training.inference.target import Data, Target, Vector
from abstain.training.runs.journal import Journal

DIVERGENCE = 1000.0
"""The energy error in nats above which a trajectory counts as divergent, as in Stan."""

Scalar = Float[Array, ""]


class Point(NamedTuple):
    """A position with log density and gradient, or a batch with leading axes."""

    position: Float[Array, "... dim"]
    log_density: Float[Array, "..."]
    gradient: Float[Array, "... dim"]


class HMCState(NamedTuple):
    """The state of one chain."""

    key: PRNGKeyArray
    point: Point
    metric: Metric
    step_size: StepSize
    covariance: Any
    transition: Array


def fit(key: PRNGKeyArray, problem: Problem, settings: HMCConfig, draws: int, journal: Journal) -> Fitted:
    """Samples chains and thins them evenly to `draws` draws; diagnostics use all samples."""
    return fit_by_chains(key, kernel(problem.target, settings), problem, settings, draws, journal)


def kernel(target: Target, settings: HMCConfig) -> Kernel:
    """Returns the transitions of one chain."""
    return Kernel(
        partial(init, target, settings),
        partial(warm, target, settings),
        partial(settle, settings),
        partial(step, target, settings),
        position,
        tuning,
    )


def init(target: Target, settings: HMCConfig, key: PRNGKeyArray, position: Vector, data: Data) -> HMCState:
    """Returns the state of a chain at its start, before adaptation."""
    kind = mass_matrix(settings)
    return HMCState(
        key,
        evaluate(target, position, data),
        unit_metric(target.dim, kind),
        first_step_size(settings.step_size),
        no_positions(target.dim, kind),
        jnp.int32(0),
    )


def step(target: Target, settings: HMCConfig, state: HMCState, data: Data) -> tuple[HMCState, Info]:
    """Runs one trajectory, and accepts or rejects it."""
    key, key_momentum, key_jitter, key_accept = jax.random.split(state.key, 4)
    size = state.step_size.value * (1 - settings.jitter * jax.random.uniform(key_jitter))
    momentum = state.metric.momentum(jax.random.normal(key_momentum, (target.dim,)))
    end, last_momentum = leapfrogs(
        lambda q: evaluate(target, q, data), state.point, momentum, state.metric, size, settings.leapfrogs
    )
    energy, error = energies(state.point, momentum, end, last_momentum, state.metric)
    acceptance = acceptance_probability(error)
    point = where(jax.random.uniform(key_accept) < acceptance, end, state.point)
    info = {
        "acceptance": acceptance,
        "diverging": ~(error < DIVERGENCE),
        "leapfrogs": jnp.int32(settings.leapfrogs),
        "energy": energy,
        "log_density": point.log_density,
    }
    return state._replace(key=key, point=point), info


def warm(target: Target, settings: HMCConfig, state: HMCState, data: Data) -> tuple[HMCState, Info]:
    """Runs a transition, then adapts step size and metric."""
    state, info = step(target, settings, state, data)
    size = adapt_step_size(state.step_size, info["acceptance"], settings.adaptation, settings.target_acceptance)
    state = state._replace(step_size=size, transition=state.transition + 1)
    return (state if mass_matrix(settings) == "unit" else adapt_metric(target, settings, state)), info


def adapt_metric(target: Target, settings: HMCConfig, state: HMCState) -> HMCState:
    """Adds the position to the window; at its end, sets the metric to that of the window."""
    schedule, index, kind = windows(settings.warmup), state.transition - 1, mass_matrix(settings)
    added = add_position(state.covariance, state.point.position, kind)
    state = state._replace(covariance=where(schedule.collecting[index], added, state.covariance))
    metric = metric_of(state.covariance, kind)
    renewed = state._replace(
        metric=metric,
        step_size=restart_step_size(state.step_size, state.metric, metric, settings.adaptation),
        covariance=no_positions(target.dim, kind),
    )
    return jax.lax.cond(schedule.ending[index], lambda: renewed, lambda: state)


def settle(settings: HMCConfig, state: HMCState) -> HMCState:
    """Fixes the step size at the end of adaptation."""
    return state._replace(step_size=StepSize(final_step_size(state.step_size, settings.adaptation), ()))


def position(state: HMCState) -> Vector:
    """Returns the position of the chain, or of each chain of a batch."""
    return state.point.position


def tuning(state: HMCState) -> dict[str, Array]:
    """Returns the adapted step size."""
    return {"step_size": state.step_size.value}


def mass_matrix(settings: HMCConfig) -> MassMatrix:
    """Returns the form of the mass matrix; without adaptation it stays the identity."""
    return settings.mass_matrix if settings.adaptation != "none" else "unit"


def evaluate(target: Target, position: Vector, data: Data) -> Point:
    """Returns the point at a position."""
    return Point(position, *jax.value_and_grad(target.log_density)(position, data))


def leapfrogs(
    evaluate: Callable[[Array], Point], start: Point, momentum: Array, metric: Metric, size: Scalar, steps: int | Array
) -> tuple[Point, Array]:
    """Runs `steps` leapfrog steps; adjacent half steps of the momentum are merged."""

    def leap(_: int | Array, carry: tuple[Point, Array]) -> tuple[Point, Array]:
        point, momentum = carry
        point = evaluate(point.position + size * metric.velocity(momentum))
        return point, momentum + size * point.gradient

    end, momentum = jax.lax.fori_loop(0, steps, leap, (start, momentum + size / 2 * start.gradient))
    return end, momentum - size / 2 * end.gradient


def energies(
    start: Point, momentum: Array, end: Point, last_momentum: Array, metric: Metric
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """Returns the energy at the start and the energy error of the trajectory, in nats."""
    before = -start.log_density + kinetic(momentum, metric)
    after = -end.log_density + kinetic(last_momentum, metric)
    return before, after - before


def kinetic(momentum: Float[Array, "... dim"], metric: Metric) -> Float[Array, "..."]:
    """Returns the kinetic energy ½ pᵀM⁻¹p."""
    return (momentum * metric.velocity(momentum)).sum(axis=-1) / 2


def acceptance_probability(error: Float[Array, "..."]) -> Float[Array, "..."]:
    """Returns min(1, exp(−error)), or 0 if the error is not a number."""
    return jnp.where(jnp.isnan(error), 0.0, jnp.minimum(1.0, jnp.exp(-error)))
