"""The search for posterior modes by stochastic gradients.

The density is that of the unconstrained parameters; Laplace's approximation and the samplers start from its mode. At each
report the iterate is evaluated on held-out rows, and the best iterate is kept. The held-out rows come from the training
part, never from the calibration or test part.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from abstain.training.config.methods import ChainMethod, MAPSettings
from abstain.training.inference.bnn import Observations
from abstain.training.inference.optimization import DescentRows, Objective, descend
from abstain.training.inference.problem import Problem
from abstain.training.inference.tracking import ROWS, TrackedRows, progress_report
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
    """Finds modes from several initialisations of the network, each the best iterate by held-out log-likelihood."""
    target = problem.target
    key_start, key_rows, key_descent = jax.random.split(key, 3)
    starts = jax.jit(jax.vmap(problem.bnn.start))(jax.random.split(key_start, members))
    train_rows, held_out = hold_out(key_rows, len(problem.train.y), settings.held_out)

    tracked_rows = TrackedRows(
        problem.train.take(jnp.asarray(train_rows[:ROWS])),
        problem.train.take(jnp.asarray(held_out)) if held_out.size else None,
    )

    def loss(z: Array, _key: PRNGKeyArray, batch: Observations) -> Array:
        return -target.log_likelihood(target.constrain(z), batch).mean() - target.log_prior(z) / len(train_rows)

    def score(z: Array, tracked_rows: TrackedRows) -> Array:
        return target.total_log_likelihood(target.constrain(z), tracked_rows.held_out)

    return descend(
        name,
        key_descent,
        starts,
        Objective(
            loss,
            report=lambda z, _key, tracked_rows: progress_report(problem.bnn, z[None], tracked_rows),
            score=score if held_out.size else None,
            augment=problem.augment,
        ),
        DescentRows(problem.train, tracked_rows, train_rows),
        settings,
        journal,
        chain_method,
    )


def hold_out(
    key: PRNGKeyArray, rows: int, share: float
) -> tuple[Int[np.ndarray, " learned"], Int[np.ndarray, " held_out"]]:
    """Splits the indices of the training rows: rows to learn from, and rows to choose an iterate by."""
    count = min(max(1, round(share * rows)), rows - 1) if share else 0
    seed = np.asarray(jax.random.key_data(key)).tolist()
    order = np.random.default_rng(seed).permutation(rows).astype(np.int32)
    return np.sort(order[count:]), np.sort(order[:count])
