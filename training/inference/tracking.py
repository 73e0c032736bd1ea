"""Progress metrics: how well a few draws predict during a fit."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from abstain.training.inference.bnn import BNN, Observations, log_likelihood
from abstain.training.inference.problem import Problem
from abstain.training.inference.target import Vector

ROWS = 5_000


class TrackedRows(NamedTuple):
    """Rows for the progress metrics between the blocks of a fit. Compiled code gets them as arguments, not as constants.

    All rows are training rows. The calibration and test parts are used once, after the fit.

    Attributes:
        train: rows that the fit learns from.
        held_out: held-out training rows; None if the method holds out none.
    """

    train: Observations
    held_out: Observations | None = None


def tracked_training_rows(problem: Problem) -> TrackedRows:
    """Returns the first training rows, for a method that learns from all of them."""
    return TrackedRows(problem.train.head(ROWS))


def progress_report(bnn: BNN, zs: Float[Array, "draws dim"], tracked_rows: TrackedRows) -> dict[str, Array]:
    """Returns the `draw_quality` on training rows (`train_…`) and, if there are any, on held-out rows (`held_out_…`)."""
    parts = {"train": tracked_rows.train} | (
        {"held_out": tracked_rows.held_out.head(ROWS)} if tracked_rows.held_out else {}
    )
    return {
        f"{part}_{name}": value for part, rows in parts.items() for name, value in draw_quality(bnn, zs, rows).items()
    }


def draw_quality(bnn: BNN, zs: Float[Array, "draws dim"], rows: Observations) -> dict[str, Array]:
    """Returns the draws' mean log-likelihood per row, and the accuracy or RMSE of their mean prediction."""
    model = bnn.model

    def of_draw(z: Vector) -> tuple[Array, Array]:
        draw = bnn.draw(z)
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
