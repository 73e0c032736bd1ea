"""The ensemble: from rows to a `PredictiveSummary` and its scores; nothing that serves maps over draws but this.

`Predictor` is what serving, calibration and evaluation share: one float32 executable per bucket, all compiled at load,
rows padded to the bucket. A row's answer does not depend on the rows beside it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from operator import itemgetter
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num

from models.errors import AbstainError
from models.posterior import Draws, Model, Posterior
from models.preprocessing import transform
from models.scores import scores_of
from models.summaries import PredictiveSummary, in_target_units, summarise_classification, summarise_regression

BUCKETS = (1, 8, 32, 128, 256)


class Prediction(NamedTuple):
    """The summary of a batch and each score of it; axis 0 of every leaf is the batch."""

    summary: PredictiveSummary
    scores: dict[str, Float[Array, " batch"]]


def predict_draw(model: Model, draw: Draws, x: Float[Array, "..."]) -> Float[Array, " parts"]:
    """What ONE draw predicts for ONE row: log probabilities `[classes]`, or `[mean, variance]` on the fit's scale."""
    outputs: Any = model.module.apply({"params": draw["network"]}, transform(model.preprocessing, x))
    return model.law.predict(outputs, draw.get("noise", jnp.float32(0)))


def log_prob_draw(model: Model, draw: Draws, x: Float[Array, "..."], y: Array) -> Array:
    """Log density, in nats, of ONE target (a class index, or a number on the fit's scale) for ONE row under ONE draw."""
    outputs: Any = model.module.apply({"params": draw["network"]}, transform(model.preprocessing, x))
    return model.law.log_prob(outputs, draw.get("noise", jnp.float32(0)), y)


def pack(draws: Draws) -> Draws:
    """Draws with the sample axis moved next to the output axis: `[in, draw, out]`, biases `[draw, out]`.

    A dense layer over all draws is then one plain matrix product; sample-first, XLA would transpose the weights anew
    on every call.
    """
    return jax.tree.map(_pack_leaf, draws)


def _pack_leaf(leaf: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(np.moveaxis(leaf, 0, _packed_axis(leaf)))


def _packed_axis(leaf: Any) -> int:
    return max(leaf.ndim - 2, 0)


def predict_packed(model: Model, packed: Draws, rows: Float[Array, "batch ..."]) -> Prediction:
    """The prediction of packed draws for a batch: the one place where draws and rows are mapped over."""
    over_rows = jax.vmap(partial(predict_draw, model), in_axes=(None, 0))
    over_draws = jax.vmap(over_rows, in_axes=(jax.tree.map(_packed_axis, packed), None))
    parts = over_draws(packed, rows)
    if model.law.task == "classification":
        summary = summarise_classification(parts)
    else:
        terms = model.preprocessing
        summary = in_target_units(
            summarise_regression(parts[..., 0], parts[..., 1]), terms.target_shift, terms.target_scale
        )
    return Prediction(summary, scores_of(summary))


class Predictor:
    """A posterior, packed and compiled for every bucket. Calling it never compiles.

    Args:
        posterior: whose predictions to make.
        buckets: batch sizes to compile, ascending; more rows than the largest are answered in several calls.
        on_compile: called after each bucket's compilation.
    """

    def __init__(
        self,
        posterior: Posterior,
        buckets: tuple[int, ...] = BUCKETS,
        on_compile: Callable[[int], None] | None = None,
    ) -> None:
        odd = [bucket for bucket in buckets if bucket > 8 and bucket % 8]
        if odd:
            # XLA computes the rows beyond a multiple of its vector width by another program, with other rounding.
            raise AbstainError("buckets", expected="sizes up to 8, or multiples of 8", found=odd)
        self.model = posterior.model
        self.draws = posterior.size
        self.buckets = buckets
        self._packed = jax.device_put(pack(posterior.draws))
        self._executables: dict[int, Callable[[Draws, np.ndarray], Prediction]] = {}
        for bucket in buckets:
            self._executables[bucket] = self._compile(bucket)
            if on_compile:
                on_compile(bucket)

    def _compile(self, bucket: int) -> Callable[[Draws, np.ndarray], Prediction]:
        rows = jax.ShapeDtypeStruct((bucket, *self.model.feature_shape), jnp.float32)
        return jax.jit(partial(predict_packed, self.model)).lower(self._packed, rows).compile()

    def __call__(self, rows: Num[np.ndarray, "rows ..."]) -> Prediction:
        """The prediction for any number of rows (at least one), with numpy leaves."""
        if rows.shape[1:] != self.model.feature_shape:
            raise AbstainError("rows", expected=f"shape {self.model.feature_shape}", found=f"shape {rows.shape[1:]}")
        ends = np.cumsum(self.batches(len(rows)))[:-1]
        parts = [self._predict_bucket(chunk) for chunk in np.split(rows, ends)]
        return parts[0] if len(parts) == 1 else jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)

    def batches(self, rows: int) -> list[int]:
        """How many rows go into each compiled call."""
        largest = self.buckets[-1]
        return [min(largest, rows - start) for start in range(0, rows, largest)]

    def _predict_bucket(self, chunk: Num[np.ndarray, "rows ..."]) -> Prediction:
        bucket = next(size for size in self.buckets if size >= len(chunk))
        padded = np.zeros((bucket, *self.model.feature_shape), np.float32)
        padded[: len(chunk)] = chunk
        prediction: Prediction = jax.device_get(self._executables[bucket](self._packed, padded))
        return jax.tree.map(itemgetter(slice(len(chunk))), prediction)
