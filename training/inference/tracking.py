"""How well a few draws predict, while a fit is under way."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from abstain.training.inference.bnn import BNN, Observations, as_draw, log_likelihood
from abstain.training.inference.problem import Problem
from abstain.training.inference.target import Vector

ROWS = 5_000


class Views(NamedTuple):
    """The rows looked at between the blocks of a fit; handed to compiled code as arguments, not as constants.

    All are of the training part. The calibration and test parts are looked at after the fit, once.

    Attributes:
        train: rows that the fit learns from.
        held_out: training rows that it does not learn from; None where a method holds out none.
    """

    train: Observations
    held_out: Observations | None = None


def views(problem: Problem) -> Views:
    """The first rows, for a method that learns from all of the training part."""
    return Views(problem.train.head(ROWS))


def progress_report(bnn: BNN, zs: Float[Array, "draws dim"], seen: Views) -> dict[str, Array]:
    """`train_…` and, where rows are held out, `held_out_…`: what `quality` says of some draws on these rows."""
    parts = {"train": seen.train} | ({"held_out": seen.held_out.head(ROWS)} if seen.held_out else {})
    return {f"{part}_{name}": value for part, rows in parts.items() for name, value in quality(bnn, zs, rows).items()}


def quality(bnn: BNN, zs: Float[Array, "draws dim"], rows: Observations) -> dict[str, Array]:
    """The draws' mean log-likelihood a row, and the accuracy or RMSE of their mean prediction."""
    model = bnn.model

    def of_draw(z: Vector) -> tuple[Array, Array]:
        draw = as_draw(bnn.target.constrain(z))
        outputs = jax.vmap(lambda x: model.module.apply({"params": draw["network"]}, x))(rows.x)
        parts = jax.vmap(lambda out: model.likelihood_functions.predict(out, draw.get("noise", jnp.float32(0))))(
            outputs
        )
        return parts, log_likelihood(model, draw, rows)

    parts, log_probs = jax.lax.map(of_draw, zs)
    figures = {"log_likelihood": log_probs.mean()}
    if model.likelihood_functions.task == "classification":
        return figures | {"accuracy": (jnp.exp(parts).mean(axis=0).argmax(axis=-1) == rows.y).mean()}
    error = parts[..., 0].mean(axis=0) - rows.y
    return figures | {"rmse": jnp.sqrt((error**2).mean()) * model.preprocessing.target_scale}
