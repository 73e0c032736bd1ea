"""Parallel tempering (Geyer, 1991): an example of a new sampler, a `Kernel` that the library runs like its own.

Each chain has a ladder of replicas. Replica k moves by HMC in the tempered posterior

    π_k(z) ∝ p(z) · p(y | z)^β_k,    1 = β_0 > β_1 > … > β_K,

and after every move, neighbours are exchanged with probability min(1, exp((β_k − β_l)(ℓ_l − ℓ_k))), ℓ = log p(y | z).
The hottest replicas move between modes, and exchanges carry these modes to the coldest replica; its positions are the
samples.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from abstain.training.inference.adaptation import (
    StepSize,
    adapt_step_size,
    final_step_size,
    first_step_size,
    unit_metric,
    where,
)
from abstain.training.inference.chains import Info, Kernel
from abstain.training.inference.methods.hmc import DIVERGENCE, Point, acceptance_probability, energies, leapfrogs
from abstain.training.inference.target import Data, Target, Vector

LADDER = tuple(0.02 ** (rung / 9) for rung in range(10))
"""β of each replica: for the last ones the likelihood hardly counts, and the only mode is that of the prior."""
STEPS, JITTER, TARGET_ACCEPTANCE, FIRST_STEP = 16, 0.5, 0.75, 0.05


class State(NamedTuple):
    """One chain; the leading axis of `point` and `step_size` is the rung."""

    key: PRNGKeyArray
    point: Point
    step_size: StepSize
    transition: Array


def kernel(target: Target) -> Kernel:
    """Makes the transitions of one chain and its ladder."""
    return Kernel(
        partial(init, target),
        partial(warm, target),
        settle,
        partial(step, target),
        position=lambda state: state.point.position[0],
        tuning=lambda state: {"step_size": state.step_size.value},
    )


def init(target: Target, key: PRNGKeyArray, position: Vector, data: Data) -> State:
    """Starts every replica at the same position."""
    sizes = jax.vmap(first_step_size)(jnp.full(len(LADDER), FIRST_STEP))
    return State(key, tempered_points(target, jnp.tile(position, (len(LADDER), 1)), data), sizes, jnp.int32(0))


def warm(target: Target, state: State, data: Data) -> tuple[State, Info]:
    """Makes a transition, and adapts the step size of each replica."""
    state, info, acceptance = move(target, state, data)

    def adapt(size: StepSize, acceptance: Array) -> StepSize:
        return adapt_step_size(size, acceptance, "dual_averaging", TARGET_ACCEPTANCE)

    return state._replace(step_size=jax.vmap(adapt)(state.step_size, acceptance)), info


def settle(state: State) -> State:
    """Fixes the step sizes after the warm-up."""
    final = jax.vmap(lambda size: final_step_size(size, "dual_averaging"))(state.step_size)
    return state._replace(step_size=StepSize(final, ()))


def step(target: Target, state: State, data: Data) -> tuple[State, Info]:
    """Makes a transition."""
    state, info, _ = move(target, state, data)
    return state, info


def move(target: Target, state: State, data: Data) -> tuple[State, Info, Float[Array, " rungs"]]:
    """Moves every replica by HMC, then exchanges neighbours; also returns the acceptance probability of each replica."""
    key, key_momentum, key_jitter, key_accept, key_swap = jax.random.split(state.key, 5)
    size = state.step_size.value * (1 - JITTER * jax.random.uniform(key_jitter))
    momentum = jax.random.normal(key_momentum, state.point.position.shape)
    metric = unit_metric(target.dim, "unit")
    end, last = jax.vmap(
        lambda beta, point, momentum, size: leapfrogs(
            lambda position: tempered_point(target, beta, position, data), point, momentum, metric, size, STEPS
        )
    )(jnp.array(LADDER), state.point, momentum, size)
    energy, error = energies(state.point, momentum, end, last, metric)
    acceptance = acceptance_probability(error)
    accepted = jax.random.uniform(key_accept, acceptance.shape) < acceptance
    moved = where(accepted[:, None], end.position, state.point.position)
    point = tempered_points(target, exchange(target, key_swap, moved, data, state.transition), data)
    info = {
        "acceptance": acceptance[0],
        "diverging": ~(error[0] < DIVERGENCE),
        "leapfrogs": jnp.int32(STEPS * len(LADDER)),
        "energy": energy[0],
        "log_density": point.log_density[0],
    }
    return state._replace(key=key, point=point, transition=state.transition + 1), info, acceptance


def exchange(
    target: Target, key: PRNGKeyArray, positions: Float[Array, "rungs dim"], data: Data, transition: Array
) -> Float[Array, "rungs dim"]:
    """Exchanges neighbours, in turn the pairs (0, 1), (2, 3) … and (1, 2), (3, 4) …; returns the new positions."""
    betas = jnp.array(LADDER)
    fits = jax.vmap(lambda position: log_likelihood(target, position, data))(positions)
    gain = (betas[:-1] - betas[1:]) * (fits[1:] - fits[:-1])
    is_in_turn = jnp.arange(len(betas) - 1) % 2 == transition % 2
    exchanged = is_in_turn & (jnp.log(jax.random.uniform(key, gain.shape)) < gain)
    rungs = jnp.arange(len(betas))
    up, down = jnp.append(exchanged, False), jnp.insert(exchanged, 0, False)
    return positions[rungs + up - down]


def tempered_points(target: Target, positions: Float[Array, "rungs dim"], data: Data) -> Point:
    """Evaluates the tempered posterior of each replica at its position."""
    return jax.vmap(lambda beta, position: tempered_point(target, beta, position, data))(jnp.array(LADDER), positions)


def tempered_point(target: Target, beta: Array, position: Vector, data: Data) -> Point:
    """Evaluates log p(z) + β log p(y | z) in nats, and its gradient."""

    def density(position: Vector) -> Array:
        return target.log_prior(position) + beta * log_likelihood(target, position, data)

    return Point(position, *jax.value_and_grad(density)(position))


def log_likelihood(target: Target, position: Vector, data: Data) -> Float[Array, ""]:
    """Returns log p(y | z) of all rows in nats."""
    return target.total_log_likelihood(target.constrain(position), data)
