"""Recalibration: one number that makes stated uncertainty match observed error, applied to every prediction.

It is a temperature on class probabilities, either of the ensemble's mean or of every draw, or a factor on a regression's
standard deviations. None of them changes a label or a mean. `training/calibration/temperature.py` fits the number on the
calibration part.
"""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, NonNegativeInt, PositiveInt

Kind = Literal["none", "pooled", "draws", "variance"]


class Recalibration(BaseModel):
    """The type and the number of a recalibration.

    Attributes:
        kind: "pooled" and "draws" are temperatures (`temper_pooled`, `temper_draws`), "variance" a factor on standard
            deviations, "none" no recalibration.
        factor: the temperature, above 1 if the model was overconfident, or the factor; 1 changes nothing.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    kind: Kind = "none"
    factor: float = Field(default=1.0, gt=0, allow_inf_nan=False)


class RecalibrationChoice(BaseModel):
    """How a recalibration was chosen: the likeliest one is applied if it gains enough.

    Attributes:
        rows: the number of calibration rows by which it was chosen; 0 if there were too few.
        radius_rows: the number of the others, which set the radius of sets and intervals; None if all rows do.
        best: the likeliest recalibration of these rows.
        gain: how much larger the log-likelihood of these rows is with it than without it, in nats.
        least_gain: the gain that it needs to be applied, in nats.
        deviation: how many standard errors the error of these rows is above the stated one without it; below 0, under it.
        least_deviation: the deviation, up or down, that it needs to be applied.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    rows: NonNegativeInt
    radius_rows: PositiveInt | None = None
    best: Recalibration = Recalibration()
    gain: FiniteFloat = 0.0
    least_gain: FiniteFloat
    deviation: FiniteFloat = 0.0
    least_deviation: FiniteFloat


def temper_pooled(
    mean: Float[Array, "rows classes"], temperature: float | Float[Array, ""]
) -> Float[Array, "rows classes"]:
    """Returns p̄^(1/T), normalised; T = 1 returns `mean` itself, and no T changes a row's label."""
    tempered = jax.nn.softmax(jnp.log(mean) / temperature, axis=-1)
    # Classes that differ by rounding may become equal; then the first of them would be the label.
    winner = jnp.argmax(mean, axis=-1, keepdims=True)
    lost = jnp.argmax(tempered, axis=-1, keepdims=True) != winner
    ahead = jnp.nextafter(tempered.max(axis=-1, keepdims=True), jnp.float32(2))
    tempered = jnp.where(lost & (jnp.arange(mean.shape[-1]) == winner), ahead, tempered)
    return jnp.where(temperature == 1, mean, tempered)


def temper_draws(
    log_probabilities: Float[Array, "draws rows classes"], temperature: float | Float[Array, ""]
) -> Float[Array, "draws rows classes"]:
    """Returns every draw's log p_s / T, normalised; T = 1 returns the input.

    The label of their mean may differ; `with_labels_of` restores it.
    """
    return jnp.where(temperature == 1, log_probabilities, jax.nn.log_softmax(log_probabilities / temperature, axis=-1))
