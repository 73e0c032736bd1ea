"""The No-U-Turn sampler (Hoffman & Gelman, 2014; Betancourt, 2017) by NumPyro, on the whole training set."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray
from numpyro.infer.hmc import hmc

from abstain.training.config.methods import NUTSConfig
from abstain.training.inference.adaptation import (
    Metric,
    StepSize,
    adapt_step_size,
    final_step_size,
    first_step_size,
    restart_step_size,
    where,
    windows,
)
from abstain.training.inference.chains import Info, Kernel
from abstain.training.inference.problem import Fitted, Problem
from abstain.training.inference.sampling import fit_by_chains
from abstain.training.inference.target import Data, Target, Vector
from abstain.training.runs.journal import Journal


class Transitions(NamedTuple):
    """NumPyro's functions that start a chain and that run one trajectory."""

    init: Callable[..., Any]
    sample: Callable[..., Any]


class NUTSState(NamedTuple):
    """The state of one chain: NumPyro's state, which adapts the metric, and the step size, which is adapted here."""

    hmc: Any
    step_size: StepSize
    transition: Array


def fit(key: PRNGKeyArray, problem: Problem, settings: NUTSConfig, draws: int, journal: Journal) -> Fitted:
    """Samples chains and thins them evenly to `draws` draws; diagnostics use all samples."""
    return fit_by_chains(key, kernel(problem.target, settings), problem, settings, draws, journal)


def kernel(target: Target, settings: NUTSConfig) -> Kernel:
    """Returns the transitions of one chain."""
    numpyro = transitions(target)
    return Kernel(
        partial(init, numpyro, settings),
        partial(warm, numpyro, settings),
        partial(settle, settings),
        partial(step, numpyro),
        position,
        tuning,
    )


def transitions(target: Target) -> Transitions:
    """Returns NumPyro's sampler of a target. Its two functions share state, so each kernel needs its own pair."""

    def potential(data: Data, z: Vector) -> Array:
        return -target.log_density(z, data)

    return Transitions(*hmc(potential_fn_gen=lambda data: partial(potential, data), algo="NUTS"))


def init(numpyro: Transitions, settings: NUTSConfig, key: PRNGKeyArray, position: Vector, data: Data) -> NUTSState:
    """Returns the state of a chain at its start, before adaptation."""
    state = numpyro.init(
        position,
        settings.warmup,
        step_size=settings.step_size,
        adapt_step_size=False,
        adapt_mass_matrix=settings.mass_matrix != "unit" and settings.adaptation != "none",
        dense_mass=settings.dense_mass_matrix,
        max_tree_depth=settings.max_tree_depth,
        model_args=(data,),
        rng_key=key,
    )
    return with_step_size(NUTSState(state, first_step_size(settings.step_size), jnp.int32(0)))


def step(numpyro: Transitions, state: NUTSState, data: Data) -> tuple[NUTSState, Info]:
    """Runs one trajectory."""
    after = numpyro.sample(state.hmc, model_args=(data,))
    info = {
        "acceptance": after.accept_prob,
        "diverging": after.diverging,
        "leapfrogs": after.num_steps,
        "energy": after.energy,
        "log_density": -after.potential_energy,
    }
    return state._replace(hmc=after), info


def warm(numpyro: Transitions, settings: NUTSConfig, state: NUTSState, data: Data) -> tuple[NUTSState, Info]:
    """Runs a transition, then adapts the step size; NumPyro adapts the metric."""
    before = metric(state)
    state, info = step(numpyro, state, data)
    size = adapt_step_size(state.step_size, info["acceptance"], settings.adaptation, settings.target_acceptance)
    if settings.mass_matrix != "unit":
        restarted = restart_step_size(size, before, metric(state), settings.adaptation)
        size = where(windows(settings.warmup).ending[state.transition], restarted, size)
    return with_step_size(state._replace(step_size=size, transition=state.transition + 1)), info


def settle(settings: NUTSConfig, state: NUTSState) -> NUTSState:
    """Fixes the step size at the end of adaptation."""
    size = final_step_size(state.step_size, settings.adaptation)
    return with_step_size(state._replace(step_size=StepSize(size, ())))


def position(state: NUTSState) -> Vector:
    """Returns the position of the chain."""
    return state.hmc.z


def tuning(state: NUTSState) -> dict[str, Array]:
    """Returns the adapted step size."""
    return {"step_size": state.step_size.value}


def metric(state: NUTSState) -> Metric:
    """Returns the metric that NumPyro has adapted."""
    adapted = state.hmc.adapt_state
    return Metric(adapted.inverse_mass_matrix, adapted.mass_matrix_sqrt)


def with_step_size(state: NUTSState) -> NUTSState:
    """Copies the step size into NumPyro's state, from which its transitions read it."""
    adapted = state.hmc.adapt_state._replace(step_size=state.step_size.value)
    return state._replace(hmc=state.hmc._replace(adapt_state=adapted))
