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
from jaxtyping import Array, Float, Int, Num

from models.densities import Densities, View, density_scores, farthest_feature
from models.errors import AbstainError
from models.features import outputs_and_features
from models.posterior import Draws, Model, Posterior
from models.preprocessing import transform
from models.recalibration import Recalibration, temper_draws, temper_pooled
from models.scores import scores_of
from models.summaries import (
    PredictiveSummary,
    RegressionSummary,
    in_target_units,
    summarise_classification,
    summarise_regression,
    widen,
    with_labels_of,
    with_mean,
)

BUCKETS = (1, 8, 32, 128, 256)
NONE = Recalibration()


class Prediction(NamedTuple):
    """The summary of a batch and each score of it; axis 0 of every leaf is the batch.

    Attributes:
        uniform: a number in [0, 1) that each row's own bits decide, for sets that need a random one.
        farthest: which feature lies farthest outside its training range; None without the density `range`.
    """

    summary: PredictiveSummary
    scores: dict[str, Float[Array, " batch"]]
    uniform: Float[Array, " batch"] | None = None
    farthest: Int[Array, " batch"] | None = None


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


def predict_packed(
    model: Model,
    packed: Draws,
    rows: Float[Array, "batch ..."],
    densities: Densities | None = None,
    recalibration: Recalibration = NONE,
) -> Prediction:
    """The prediction of packed draws for a batch: the one place where draws and rows are mapped over."""

    def of_row(draw: Draws, x: Array) -> tuple[Array, Array, Array]:
        outputs, features = outputs_and_features(model, draw, x)
        return model.law.predict(outputs, draw.get("noise", jnp.float32(0))), outputs, features

    over_rows = jax.vmap(of_row, in_axes=(None, 0))
    over_draws = jax.vmap(over_rows, in_axes=(jax.tree.map(_packed_axis, packed), None))
    parts, outputs, features = over_draws(packed, rows)
    summary = _summary(model, parts)
    # Scores are of the draws as they are: no recalibration changes what is rejected.
    scores = scores_of(summary, parts, outputs)
    summary = _recalibrated(summary, parts, recalibration)
    plain = Prediction(summary, scores, uniform=jax.vmap(uniform_of)(rows))
    if densities is None:
        return plain
    views = _views(model, rows, features[densities.members], outputs[densities.members], summary)
    return plain._replace(
        scores=scores | jax.vmap(partial(density_scores, densities))(views),
        farthest=jax.vmap(partial(farthest_feature, densities.records["range"]))(views),
    )


def _views(
    model: Model,
    rows: Float[Array, "batch ..."],
    features: Float[Array, "members batch width"],
    logits: Float[Array, "members batch outputs"],
    summary: PredictiveSummary,
) -> View:
    """What the densities see, row by row along axis 0."""
    batch = rows.shape[0]
    inputs = jax.vmap(partial(transform, model.preprocessing))(rows)
    regression = isinstance(summary, RegressionSummary)
    return View(
        row=rows.reshape(batch, -1),
        inputs=inputs.reshape(batch, -1),
        features=jnp.moveaxis(features, 0, 1),
        logits=jnp.moveaxis(logits, 0, 1),
        label=jnp.zeros(batch, jnp.int32) if regression else summary.mean.argmax(axis=-1),
    )


def _summary(model: Model, parts: Float[Array, "draws batch parts"]) -> PredictiveSummary:
    if model.law.task == "classification":
        return summarise_classification(parts)
    terms = model.preprocessing
    return in_target_units(summarise_regression(parts[..., 0], parts[..., 1]), terms.target_shift, terms.target_scale)


def _recalibrated(
    summary: PredictiveSummary, parts: Float[Array, "draws batch parts"], recalibration: Recalibration
) -> PredictiveSummary:
    """The summary after recalibration; labels and means stay those of the draws as they are."""
    kind, factor = recalibration.kind, recalibration.factor
    if isinstance(summary, RegressionSummary):
        return widen(summary, factor) if kind == "variance" else summary
    if kind == "pooled":
        return with_mean(summary, temper_pooled(summary.mean, factor))
    if kind == "draws":
        return with_labels_of(summary, summarise_classification(temper_draws(parts, factor)))
    return summary


def uniform_of(row: Float[Array, "..."]) -> Float[Array, ""]:
    """A number in [0, 1), as good as random, that is a function of the row's bits alone.

    Sums and exclusive ors of integers do not depend on the order they are taken in: the number is the same in every
    bucket and on every machine. The mixing is MurmurHash3's (Appleby, 2011).
    """
    # One bit pattern for each number: −0 is 0 (XLA takes + 0.0 away), and a gap is a gap.
    plain = jnp.where(jnp.isnan(row), jnp.float32(np.finfo(np.float32).max), jnp.where(row == 0, 0.0, row))
    bits = jax.lax.bitcast_convert_type(plain.ravel(), jnp.uint32)
    places = jnp.arange(1, bits.size + 1, dtype=jnp.uint32)
    mixed = _mixed(_mixed(bits ^ (places * jnp.uint32(0x9E3779B9))).sum(dtype=jnp.uint32))
    return (mixed >> 8).astype(jnp.float32) * jnp.float32(2**-24)


def _mixed(bits: Array) -> Array:
    bits = (bits ^ (bits >> 16)) * jnp.uint32(0x85EBCA6B)
    bits = (bits ^ (bits >> 13)) * jnp.uint32(0xC2B2AE35)
    return bits ^ (bits >> 16)


class Predictor:
    """A posterior, packed and compiled for every bucket. Calling it never compiles.

    Args:
        posterior: whose predictions to make.
        buckets: batch sizes to compile, ascending; more rows than the largest are answered in several calls.
        on_compile: called after each bucket's compilation.
        densities: scores fitted to the training rows; without them there are only the ensemble's own.
        recalibration: of what is predicted.
    """

    def __init__(
        self,
        posterior: Posterior,
        buckets: tuple[int, ...] = BUCKETS,
        on_compile: Callable[[int], None] | None = None,
        *,
        densities: Densities | None = None,
        recalibration: Recalibration = NONE,
    ) -> None:
        odd = [bucket for bucket in buckets if bucket > 8 and bucket % 8]
        if odd:
            # XLA computes the rows beyond a multiple of its vector width by another program, with other rounding.
            raise AbstainError("buckets", expected="sizes up to 8, or multiples of 8", found=odd)
        self.model = posterior.model
        self.draws = posterior.size
        self.buckets = buckets
        self._recalibration = recalibration
        self._packed = jax.device_put(pack(posterior.draws))
        self._densities = jax.device_put(densities)
        self._executables: dict[int, Callable[[Draws, np.ndarray, Densities | None], Prediction]] = {}
        for bucket in buckets:
            self._executables[bucket] = self._compile(bucket)
            if on_compile:
                on_compile(bucket)

    def _compile(self, bucket: int) -> Callable[[Draws, np.ndarray, Densities | None], Prediction]:
        rows = jax.ShapeDtypeStruct((bucket, *self.model.feature_shape), jnp.float32)
        call = jax.jit(partial(predict_packed, self.model, recalibration=self._recalibration))
        return call.lower(self._packed, rows, self._densities).compile()

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
        prediction: Prediction = jax.device_get(self._executables[bucket](self._packed, padded, self._densities))
        return jax.tree.map(itemgetter(slice(len(chunk))), prediction)
