"""How well a few draws predict, while a fit is under way."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from training.bnn import BNN, Observations, as_draw, log_likelihood
from training.methods.form import Problem
from training.target import Vector

ROWS = 5_000


class Views(NamedTuple):
    """What is looked at between the blocks of a fit; handed to compiled code as arguments, not as constants."""

    train: Observations
    test: Observations
    held_out: Observations | None = None


def views(problem: Problem, held_out: Observations | None = None) -> Views:
    """The first training and held-out rows, and the rows that choose among iterates."""
    return Views(problem.train.head(ROWS), problem.monitor.head(ROWS), held_out)


def progress_report(bnn: BNN, zs: Float[Array, "draws dim"], seen: Views) -> dict[str, Array]:
    """Log-likelihood a row, and accuracy or RMSE, of the mean prediction of some draws, on train and held-out rows."""
    parts = {"train": seen.train, "test": seen.test}
    return {f"{part}_{name}": value for part, rows in parts.items() for name, value in quality(bnn, zs, rows).items()}


def quality(bnn: BNN, zs: Float[Array, "draws dim"], rows: Observations) -> dict[str, Array]:
    """The draws' mean log-likelihood a row, and the accuracy or RMSE of their mean prediction."""
    model = bnn.model

    def of_draw(z: Vector) -> tuple[Array, Array]:
        draw = as_draw(bnn.target.constrain(z))
        outputs = jax.vmap(lambda x: model.module.apply({"params": draw["network"]}, x))(rows.x)
        parts = jax.vmap(lambda out: model.law.predict(out, draw.get("noise", jnp.float32(0))))(outputs)
        return parts, log_likelihood(model, draw, rows)

    parts, log_probs = jax.lax.map(of_draw, zs)
    figures = {"log_likelihood": log_probs.mean()}
    if model.law.task == "classification":
        return figures | {"accuracy": (jnp.exp(parts).mean(axis=0).argmax(axis=-1) == rows.y).mean()}
    error = parts[..., 0].mean(axis=0) - rows.y
    return figures | {"rmse": jnp.sqrt((error**2).mean()) * model.preprocessing.target_scale}
