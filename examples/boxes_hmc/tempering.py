"""Parallel tempering (Geyer, 1991): an example of a new sampler, a `Kernel` that the library runs like its own.

Each chain has a ladder of replicas. Replica k moves by HMC in the tempered posterior

    π_k(z) ∝ p(z) · p(y | z)^β_k,    1 = β_0 > β_1 > … > β_K,

and after every move, neighbours are exchanged with probability min(1, exp((β_k − β_l)(ℓ_l − ℓ_k))), ℓ = log p(y | z).
The hottest replicas move between modes, and exchanges carry these modes to the coldest replica; its positions are the
samples.
"""

from __future__ import annotations

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
    betas, metric = jnp.array(LADDER), unit_metric(target.dim, "unit")

    def log_likelihood(position: Vector, data: Data) -> Array:
        return target.total_log_likelihood(target.constrain(position), data)

    def tempered(beta: Array, data: Data, position: Vector) -> Point:
        def density(position: Vector) -> Array:
            return target.log_prior(position) + beta * log_likelihood(position, data)

        return Point(position, *jax.value_and_grad(density)(position))

    def points(positions: Float[Array, "rungs dim"], data: Data) -> Point:
        return jax.vmap(tempered, in_axes=(0, None, 0))(betas, data, positions)

    def init(key: PRNGKeyArray, position: Vector, data: Data) -> State:
        sizes = jax.vmap(first_step_size)(jnp.full(len(betas), FIRST_STEP))
        return State(key, points(jnp.tile(position, (len(betas), 1)), data), sizes, jnp.int32(0))

    def move(state: State, data: Data) -> tuple[State, Info, Array]:
        key, key_momentum, key_jitter, key_accept, key_swap = jax.random.split(state.key, 5)
        size = state.step_size.value * (1 - JITTER * jax.random.uniform(key_jitter))
        momentum = jax.random.normal(key_momentum, state.point.position.shape)
        end, last = jax.vmap(
            lambda beta, point, momentum, size: leapfrogs(
                lambda position: tempered(beta, data, position), point, momentum, metric, size, STEPS
            )
        )(betas, state.point, momentum, size)
        energy, error = energies(state.point, momentum, end, last, metric)
        acceptance = acceptance_probability(error)
        accepted = jax.random.uniform(key_accept, acceptance.shape) < acceptance
        moved = where(accepted[:, None], end.position, state.point.position)
        point = points(exchange(key_swap, moved, data, state.transition), data)
        info = {
            "acceptance": acceptance[0],
            "diverging": ~(error[0] < DIVERGENCE),
            "leapfrogs": jnp.int32(STEPS * len(betas)),
            "energy": energy[0],
            "log_density": point.log_density[0],
        }
        return state._replace(key=key, point=point, transition=state.transition + 1), info, acceptance

    def exchange(key: PRNGKeyArray, positions: Float[Array, "rungs dim"], data: Data, transition: Array) -> Array:
        """Exchanges neighbours, in turn the pairs (0, 1), (2, 3) … and (1, 2), (3, 4) …; returns the new positions."""
        fits = jax.vmap(log_likelihood, in_axes=(0, None))(positions, data)
        gain = (betas[:-1] - betas[1:]) * (fits[1:] - fits[:-1])
        is_in_turn = jnp.arange(len(betas) - 1) % 2 == transition % 2
        exchanged = is_in_turn & (jnp.log(jax.random.uniform(key, gain.shape)) < gain)
        rungs = jnp.arange(len(betas))
        up, down = jnp.append(exchanged, False), jnp.insert(exchanged, 0, False)
        return positions[rungs + up - down]

    def step(state: State, data: Data) -> tuple[State, Info]:
        state, info, _ = move(state, data)
        return state, info

    def warm(state: State, data: Data) -> tuple[State, Info]:
        state, info, acceptance = move(state, data)

        def adapt(size: StepSize, acceptance: Array) -> StepSize:
            return adapt_step_size(size, acceptance, "dual_averaging", TARGET_ACCEPTANCE)

        return state._replace(step_size=jax.vmap(adapt)(state.step_size, acceptance)), info

    def settle(state: State) -> State:
        final = jax.vmap(lambda size: final_step_size(size, "dual_averaging"))(state.step_size)
        return state._replace(step_size=StepSize(final, ()))

    return Kernel(
        init,
        warm,
        settle,
        step,
        position=lambda state: state.point.position[0],
        tuning=lambda state: {"step_size": state.step_size.value},
    )
