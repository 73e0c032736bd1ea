"""The search for posterior modes by stochastic gradients.

The mode is that of the unconstrained parameters' density, which is where Laplace's approximation and the samplers
start from. Of the iterates at every report the one that predicts held-out rows best is kept; these rows are cut from
the training part, and never from the calibration or test part.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from abstain.training.config.methods import ChainMethod, MAPSettings
from abstain.training.inference.bnn import Observations
from abstain.training.inference.optimization import descend
from abstain.training.inference.problem import Problem
from abstain.training.inference.tracking import ROWS, Views, progress_report
from abstain.training.runs.journal import Journal, Traces


def find_modes(
    key: PRNGKeyArray,
    problem: Problem,
    settings: MAPSettings,
    members: int,
    journal: Journal,
    chain_method: ChainMethod = "sequential",
    name: str = "map",
) -> tuple[Float[Array, "members dim"], Traces]:
    """Modes from several initialisations of the network, each the best of its iterates by held-out log-probability."""
    target = problem.target
    key_start, key_rows, key_descent = jax.random.split(key, 3)
    starts = jax.jit(jax.vmap(problem.bnn.start))(jax.random.split(key_start, members))
    learned, held_out = hold_out(key_rows, len(problem.train.y), settings.held_out)

    seen = Views(
        problem.train.take(jnp.asarray(learned[:ROWS])),
        problem.train.take(jnp.asarray(held_out)) if held_out.size else None,
    )

    def loss(z: Array, _key: PRNGKeyArray, batch: Observations) -> Array:
        return -target.log_likelihood(target.constrain(z), batch).mean() - target.log_prior(z) / len(learned)

    def score(z: Array, seen: Views) -> Array:
        return target.total_log_likelihood(target.constrain(z), seen.held_out)

    return descend(
        name,
        key_descent,
        starts,
        loss,
        problem.train,
        settings,
        journal,
        report=lambda z, _key, seen: progress_report(problem.bnn, z[None], seen),
        seen=seen,
        score=score if held_out.size else None,
        chosen=learned,
        augment=problem.augment,
        chain_method=chain_method,
    )


def hold_out(
    key: PRNGKeyArray, rows: int, share: float
) -> tuple[Int[np.ndarray, " learned"], Int[np.ndarray, " held_out"]]:
    """The places of the training rows in two: to learn from, and to choose an iterate by."""
    count = min(max(1, round(share * rows)), rows - 1) if share else 0
    seed = np.asarray(jax.random.key_data(key)).tolist()
    order = np.random.default_rng(seed).permutation(rows).astype(np.int32)
    return np.sort(order[count:]), np.sort(order[:count])
