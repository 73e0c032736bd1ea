"""Recalibration: one number that makes stated uncertainty match observed error, applied to every answer.

A temperature on class probabilities, either on the ensemble's mean or on every draw's own, or a factor on a
regression's standard deviations. None of them changes a label or a mean: what is the answer stays the answer.
`training/calibration/temperature.py` fits the number on the calibration split.
"""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
from pydantic import BaseModel, ConfigDict, Field

Kind = Literal["none", "pooled", "draws", "variance"]


class Recalibration(BaseModel):
    """What is done to a model's uncertainty, and by how much.

    Attributes:
        kind: "pooled" and "draws" are temperatures (`temper_pooled`, `temper_draws`), "variance" a factor on standard
            deviations, "none" nothing.
        factor: the temperature, above 1 where the model was too sure, or the factor; 1 changes nothing.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    kind: Kind = "none"
    factor: float = Field(default=1.0, gt=0, allow_inf_nan=False)


def temper_pooled(
    mean: Float[Array, "rows classes"], temperature: float | Float[Array, ""]
) -> Float[Array, "rows classes"]:
    """p̄^(1/T), normalised; T = 1 gives back `mean` itself, and no T moves a row's first largest class."""
    tempered = jax.nn.softmax(jnp.log(mean) / temperature, axis=-1)
    # Classes that differ by a rounding may come out equal, and the first of equals would be the label.
    winner = jnp.argmax(mean, axis=-1, keepdims=True)
    lost = jnp.argmax(tempered, axis=-1, keepdims=True) != winner
    ahead = jnp.nextafter(tempered.max(axis=-1, keepdims=True), jnp.float32(2))
    tempered = jnp.where(lost & (jnp.arange(mean.shape[-1]) == winner), ahead, tempered)
    return jnp.where(temperature == 1, mean, tempered)


def temper_draws(
    log_probabilities: Float[Array, "draws rows classes"], temperature: float | Float[Array, ""]
) -> Float[Array, "draws rows classes"]:
    """Every draw's log p_s / T, normalised; T = 1 gives back its input. Their mean may name another label: `with_labels_of`."""
    return jnp.where(temperature == 1, log_probabilities, jax.nn.log_softmax(log_probabilities / temperature, axis=-1))
