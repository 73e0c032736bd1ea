"""Diagnostics of Markov chains, of parameters and, what decides, of predictions.

A network's parameters are not identified (its units can be permuted), so chains that agree on every prediction may
disagree on every weight. R-hat and ESS are therefore taken in function space, at held-out inputs, and the parameters'
stand beside them. Both are the rank-normalised ones of Vehtari et al. (2021), by ArviZ.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from arviz_stats.base.array import array_stats
from jaxtyping import Array, Float

from models.posterior import Draws, Model
from training.bnn import Observations

FUNCTION_ROWS = 50


def chain_diagnostics(model: Model, chains: Draws, monitor: Observations) -> dict[str, Any]:
    """R-hat (worst) and bulk ESS (least), in function space and of the parameters.

    Args:
        chains: draws with two leading axes, `[chains, samples, …]`.
        monitor: held-out rows; the first `FUNCTION_ROWS` are predicted by every draw.
    """
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(chains)]
    parameters = np.concatenate([leaf.reshape(*leaf.shape[:2], -1) for leaf in leaves], axis=2)
    return {
        "function": summary(np.asarray(predictions(model, chains, monitor.x[:FUNCTION_ROWS]))),
        "parameters": summary(parameters),
    }


def predictions(model: Model, chains: Draws, x: Float[Array, "rows ..."]) -> Float[Array, "chains samples values"]:
    """What every draw predicts at some inputs: each class's probability, or the mean."""

    def of_draw(draw: Draws) -> Array:
        outputs = jax.vmap(lambda row: model.module.apply({"params": draw["network"]}, row))(x)
        noise = draw.get("noise", jnp.float32(0))
        parts = jax.vmap(lambda out: model.law.predict(out, noise))(outputs)
        return jnp.exp(parts).ravel() if model.law.task == "classification" else parts[:, 0]

    return jax.jit(partial(jax.lax.map, jax.vmap(of_draw)))(chains)


def summary(values: Float[np.ndarray, "chains samples values"]) -> dict[str, float | int | None]:
    """The worst rank-normalised split R-hat and the least bulk ESS over the values that vary at all."""
    # A probability that float32 rounds to 0 or 1 in every draw has no variance, hence no R-hat, and nothing to settle.
    varying = values.astype(np.float64)[..., np.ptp(values, axis=(0, 1)) > 0]
    if not varying.size:
        return {"rhat": None, "ess": None, "values": 0}
    return {
        "rhat": float(np.max(array_stats.rhat(varying, method="rank", chain_axis=0, draw_axis=1))),
        "ess": float(np.min(array_stats.ess(varying, method="bulk", chain_axis=0, draw_axis=1))),
        "values": int(varying.shape[-1]),
    }
