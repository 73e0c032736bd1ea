"""The No-U-Turn sampler (Hoffman & Gelman, 2014; Betancourt, 2017) by NumPyro, on the whole training set."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray
from numpyro.infer.hmc import hmc

from training.adaptation import StepSize, adapt_step_size
from training.chains import Info, Kernel
from training.config import NUTSConfig
from training.journal import Journal
from training.methods.form import Fitted, Problem
from training.sampling import fit_by_chains
from training.target import Data, Target, Vector


class State(NamedTuple):
    """One chain: NumPyro's state of it."""

    hmc: Any


def fit(key: PRNGKeyArray, problem: Problem, settings: NUTSConfig, draws: int, journal: Journal) -> Fitted:
    """`draws` draws, evenly thinned from all chains; diagnostics are of all samples, before thinning."""
    return fit_by_chains(key, kernel(problem.target, settings), problem, settings, draws, journal)


def kernel(target: Target, settings: NUTSConfig) -> Kernel:
    """The transitions of one chain."""

    def potential(data: Data, z: Vector) -> Array:
        return -target.log_density(z, data)

    init_kernel, sample_kernel = hmc(potential_fn_gen=lambda data: partial(potential, data), algo="NUTS")

    def init(key: PRNGKeyArray, position: Vector, data: Data) -> State:
        state = init_kernel(
            position,
            settings.warmup,
            step_size=settings.step_size,
            adapt_step_size=settings.adaptation == "dual_averaging",
            adapt_mass_matrix=settings.mass_matrix != "unit" and settings.adaptation != "none",
            dense_mass=settings.mass_matrix == "dense",
            target_accept_prob=settings.target_acceptance,
            max_tree_depth=settings.max_tree_depth,
            model_args=(data,),
            rng_key=key,
        )
        return State(state)

    def step(state: State, data: Data) -> tuple[State, Info]:
        after = sample_kernel(state.hmc, model_args=(data,))
        info = {
            "acceptance": after.accept_prob,
            "diverging": after.diverging,
            "leapfrogs": after.num_steps,
            "energy": after.energy,
            "log_density": -after.potential_energy,
        }
        return State(after), info

    def warm(state: State, data: Data) -> tuple[State, Info]:
        state, info = step(state, data)
        if settings.adaptation == "simple":
            adapted = state.hmc.adapt_state
            size = adapt_step_size(
                StepSize(adapted.step_size, ()), info["acceptance"], "simple", settings.target_acceptance
            )
            state = State(state.hmc._replace(adapt_state=adapted._replace(step_size=size.value)))
        return state, info

    def tuned(state: State) -> dict[str, Array]:
        return {"step_size": state.hmc.adapt_state.step_size}

    return Kernel(init, warm, lambda state: state, step, position=lambda state: state.hmc.z, tuned=tuned)


def tree_depth(leapfrogs: Any) -> Any:
    """The depth of the tree that a number of leapfrog steps makes."""
    return jnp.ceil(jnp.log2(leapfrogs + 1))
