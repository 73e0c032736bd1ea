"""The ensemble: from rows to a `PredictiveSummary` and its scores; nothing that serves maps over draws but this.

`Predictor` is what serving, calibration and evaluation share: one float32 executable per bucket, all compiled at load,
rows padded to the bucket. A row's answer does not depend on the rows beside it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from operator import itemgetter
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int, Num

from abstain.models.errors import AbstainError
from abstain.models.prediction.feature_score_records import Densities, View
from abstain.models.prediction.feature_scores import density_scores, farthest_feature
from abstain.models.prediction.features import outputs_and_features
from abstain.models.prediction.packing import chunk_of, pack, unpack
from abstain.models.prediction.posterior import Draws, Model, Posterior
from abstain.models.prediction.preprocessing import Preprocessing, on_host, transform
from abstain.models.prediction.scores import SCORES, scores_of
from abstain.models.prediction.summaries import (
    PredictiveSummary,
    RegressionSummary,
    in_target_units,
    summarise_classification,
    summarise_regression,
    widen,
    with_labels_of,
    with_mean,
    within_float32,
)
from abstain.models.prediction.temperature import Recalibration, temper_draws, temper_pooled

BUCKETS = (1, 8, 32, 128, 256)
NONE = Recalibration()
COMPILING = 2
"""Programs compiled at a time."""
DRAWS = "draws"
"""The name of the axis of devices."""


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


class Form(NamedTuple):
    """A prediction's leaves: their shapes behind the batch, their types, and the tree that they are of."""

    shapes: list[tuple[int, ...]]
    types: list[np.dtype[Any]]
    tree: Any


def predict_draw(model: Model, draw: Draws, x: Float[Array, "..."]) -> Float[Array, " parts"]:
    """What ONE draw predicts for ONE row: log probabilities `[classes]`, or `[mean, variance]` on the fit's scale."""
    outputs: Any = model.module.apply({"params": draw["network"]}, transform(model.preprocessing, x))
    return model.law.predict(outputs, draw.get("noise", jnp.float32(0)))


def predict_packed(
    model: Model,
    packed: Draws,
    rows: Float[Array, "batch ..."],
    densities: Densities | None = None,
    recalibration: Recalibration = NONE,
    mesh: Mesh | None = None,
) -> Prediction:
    """The prediction of packed draws for a batch: the one place where draws and rows are mapped over.

    Args:
        packed: the draws as `packing.pack` lays them out; those whose features the densities see come first.
        mesh: the devices that the draws are spread over.
    """
    members = 0 if densities is None else len(densities.members)
    rows_last, features = over_draws(model, packed, rows, members, mesh)
    noise = packed.get("noise", jnp.zeros(len(rows_last)))
    parts = jnp.swapaxes(jax.vmap(model.law.predict)(rows_last, noise), 1, 2)
    outputs = jnp.swapaxes(rows_last, 1, 2)
    summary = _summary(model, parts)
    # Scores are of the draws as they are: no recalibration changes what is rejected.
    scores = scores_of(summary, parts, outputs)
    summary = _recalibrated(summary, parts, recalibration)
    plain = Prediction(summary, scores, uniform=jax.vmap(uniform_of)(rows))
    if densities is None:
        return plain
    views = _views(model, rows, jnp.moveaxis(features, -1, 1), outputs[:members], summary)
    return plain._replace(
        scores=scores | jax.vmap(partial(density_scores, densities))(views),
        farthest=jax.vmap(partial(farthest_feature, densities.records["range"]))(views),
    )


def over_draws(
    model: Model, packed: Draws, rows: Float[Array, "batch ..."], members: int, mesh: Mesh | None = None
) -> tuple[Float[Array, "draws outputs batch"], Float[Array, "members width batch"]]:
    """The outputs of every draw for every row, and the features of the first draws; rows last, as `packing` leaves them.

    Args:
        mesh: the devices that the draws are spread over; each computes its own, and no weight moves.
    """
    if mesh is None:
        return over_own_draws(model, members, packed, rows)
    own = jax.shard_map(
        partial(over_own_draws, model, members), mesh=mesh, in_specs=(P(DRAWS), P()), out_specs=P(DRAWS)
    )
    outputs, features = own(packed, rows)
    return outputs, features[:members]


def over_own_draws(
    model: Model, members: int, packed: Draws, rows: Float[Array, "batch ..."]
) -> tuple[Float[Array, "draws outputs batch"], Float[Array, "members width batch"]]:
    """The same on one device; of fewer draws than members, all of their features.

    One chunk of draws after another, each by one and the same program; what remains of them last.
    """
    network = partial(outputs_and_features, model)

    def of_chunk(chunk: Draws) -> tuple[Array, Array]:
        over_rows = jax.vmap(jax.vmap(network, in_axes=(0, None)), in_axes=(None, 0), out_axes=-1)
        return over_rows(unpack(chunk), rows)

    def of_place(place: Array) -> tuple[Array, Array]:
        slices = partial(jax.lax.dynamic_slice_in_dim, start_index=place, slice_size=together)
        return of_chunk(jax.tree.map(slices, packed))

    draws, row = len(jax.tree.leaves(packed)[0]), jax.ShapeDtypeStruct(rows.shape[1:], rows.dtype)
    one_draw = jax.eval_shape(lambda: jax.tree.map(itemgetter(0), unpack(packed)))
    together = chunk_of(network, one_draw, row, len(rows), draws)
    if together == draws:
        outputs, features = of_chunk(packed)
        return outputs, features[:members]
    places = np.arange(draws // together) * together
    seen = -(-members // together)
    heads = cast("tuple[Array, Array]", jax.lax.map(of_place, places[:seen]))
    tails = cast("Array", jax.lax.map(lambda place: of_place(place)[0], places[seen:]))  # pyright: ignore
    last = of_chunk(jax.tree.map(itemgetter(slice(len(places) * together, None)), packed))
    outputs, features = ([head.reshape(-1, *tail.shape[1:])] for head, tail in zip(heads, last, strict=True))
    outputs += [tails.reshape(-1, *last[0].shape[1:]), last[0]]
    return jnp.concatenate(outputs), jnp.concatenate([*features, last[1]])[:members]


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
    if terms.float64_target:
        return summarise_regression(parts[..., 0], parts[..., 1])
    summary = summarise_regression(parts[..., 0], parts[..., 1])
    return within_float32(in_target_units(summary, terms.target_shift, terms.target_scale))


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


def members_first(draws: Draws, densities: Densities | None) -> Draws:
    """The draws in another order: those whose features the densities see come first, and need not be looked for."""
    if densities is None:
        return draws
    members: Any = np.asarray(densities.members)
    order: Any = np.append(members, np.setdiff1d(np.arange(len(jax.tree.leaves(draws)[0])), members))
    return jax.tree.map(itemgetter(order), draws)


class Predictor:
    """A posterior, packed and compiled for every bucket. Calling it never compiles.

    Args:
        posterior: whose predictions to make.
        buckets: batch sizes to compile, ascending; more rows than the largest are answered in several calls.
        densities: scores fitted to the training rows; without them there are only the ensemble's own.
        recalibration: of what is predicted.
        devices: to spread the draws over, in equal shares: of as many of them as divide the draws. The first device
            where none are given.
    """

    def __init__(
        self,
        posterior: Posterior,
        buckets: tuple[int, ...] = BUCKETS,
        *,
        densities: Densities | None = None,
        recalibration: Recalibration = NONE,
        devices: Sequence[Any] | None = None,
    ) -> None:
        check_buckets(buckets)
        self.model = posterior.model
        self.draws = posterior.size
        self.buckets = buckets
        self._mesh = mesh_of(devices or cast("list[Any]", jax.devices()[:1]), self.draws)
        self._recalibration = recalibration
        self._packed = self._placed(pack(members_first(posterior.draws, densities)), P(DRAWS))
        self._densities = self._placed(densities, P())
        compiled = self._compile_all(buckets)
        self._form = compiled[0][1]
        self._executables = {bucket: call for bucket, (call, _) in zip(buckets, compiled, strict=True)}

    def add_buckets(self, buckets: tuple[int, ...]) -> None:
        """Compiles those of these batch sizes that are not compiled yet; two threads must not do so at once.

        Raises:
            AbstainError: a size is none that a row's answer is the same in.
        """
        check_buckets(buckets)
        new = tuple(bucket for bucket in buckets if bucket not in self._executables)
        compiled = self._compile_all(new)
        self._executables |= {bucket: call for bucket, (call, _) in zip(new, compiled, strict=True)}
        self.buckets = tuple(sorted(self._executables))

    def _compile_all(self, buckets: tuple[int, ...]) -> list[tuple[Callable[[Draws, np.ndarray, Any], Array], Form]]:
        # Compilation leaves Python, and so can be done side by side; but each takes some 100 MB while it lasts.
        with ThreadPoolExecutor(COMPILING) as pool:
            return list(pool.map(self._compile, buckets))

    def _placed(self, tree: Any, spec: P) -> Any:
        return jax.device_put(tree, None if self._mesh is None else NamedSharding(self._mesh, spec))

    def _rows(self, bucket: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((bucket, *self.model.feature_shape), jnp.float32)

    def _predict(self, packed: Draws, rows: Array, densities: Densities | None) -> Prediction:
        return predict_packed(self.model, packed, rows, densities, self._recalibration, self._mesh)

    def _compile(self, bucket: int) -> tuple[Callable[[Draws, np.ndarray, Densities | None], Array], Form]:
        """From padded rows to one array `[parts, bucket]`: one thing to fetch, and not thirty; and what is in it.

        In two programs: computed while it is joined, a number would be rounded by its place in the array.
        """
        predict: Any = jax.jit(self._predict).lower(self._packed, self._rows(bucket), self._densities)
        compiled = predict.compile()
        placed = jax.tree.map(_placed_alike, predict.out_info, compiled.output_shardings)
        joined = jax.jit(_joined).lower(placed).compile()
        leaves, tree = cast("tuple[list[Any], Any]", jax.tree.flatten(placed))
        form = Form([leaf.shape[1:] for leaf in leaves], [leaf.dtype for leaf in leaves], tree)
        return lambda packed, rows, densities: joined(compiled(packed, rows, densities)), form

    def __call__(self, rows: Num[np.ndarray, "rows ..."]) -> Prediction:
        """The prediction for any number of rows (at least one), with numpy leaves."""
        if rows.shape[1:] != self.model.feature_shape:
            raise AbstainError("rows", expected=f"shape {self.model.feature_shape}", found=f"shape {rows.shape[1:]}")
        largest = self.buckets[-1]
        parts = [self._predict_bucket(rows[start : start + largest]) for start in range(0, len(rows), largest)]
        return parts[0] if len(parts) == 1 else jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)

    def _predict_bucket(self, rows: Num[np.ndarray, "rows ..."]) -> Prediction:
        return self.read(np.asarray(self.launch(rows)), len(rows))

    def launch(self, rows: Num[np.ndarray, "rows ..."]) -> Array:
        """Has a device compute the prediction for no more rows than the largest bucket, and does not wait for it.

        What comes is for `read`, once it is a numpy array: to make it one is to wait, for which Python is not needed.
        """
        bucket = next(size for size in self.buckets if size >= len(rows))
        padded = np.zeros((bucket, *self.model.feature_shape), np.float32)
        padded[: len(rows)] = on_host(self.model.preprocessing, rows)
        return self._executables[bucket](self._packed, padded, self._densities)

    def read(self, whole: Float[np.ndarray, "parts bucket"], rows: int) -> Prediction:
        """The prediction of the first rows, of what was launched."""
        leaves: list[np.ndarray] = []
        start = 0
        for shape, kind in zip(self._form.shapes, self._form.types, strict=True):
            end = start + math.prod(shape)
            leaf = whole[start:end, :rows].T.reshape(rows, *shape)
            leaves.append(leaf if kind == np.float32 else leaf.astype(kind))
            start = end
        return _in_float64(self.model.preprocessing, jax.tree.unflatten(self._form.tree, leaves))


def check_buckets(buckets: tuple[int, ...]) -> None:
    """Refuses batch sizes in which a row's answer would depend on the size.

    Raises:
        AbstainError: naming them.
    """
    odd = [bucket for bucket in buckets if bucket > 8 and bucket % 8]
    if odd:
        # XLA computes the rows beyond a multiple of its vector width by another program, with other rounding.
        raise AbstainError("buckets", expected="sizes up to 8, or multiples of 8", found=odd)


def buckets_for(rows: int, buckets: tuple[int, ...] = BUCKETS) -> tuple[int, ...]:
    """Those of the buckets that a `Predictor` of all of them uses for so many rows (at least one), in one call."""
    whole, rest = divmod(rows, buckets[-1])
    needed = {buckets[-1]} if whole else set[int]()
    if rest:
        needed.add(next(size for size in buckets if size >= rest))
    return tuple(sorted(needed))


def _in_float64(terms: Preprocessing, prediction: Prediction) -> Prediction:
    """The prediction with summary and scores in the target's units, if the compiled program left that to the host."""
    if not terms.float64_target:
        return prediction
    exact = RegressionSummary(*(cast("Any", np.asarray(leaf, np.float64)) for leaf in prediction.summary))
    summary = in_target_units(exact, terms.target_shift, terms.target_scale)
    # Every score of a regression's own is a standard deviation.
    scores = {
        name: values.astype(np.float64) * terms.target_scale if name in SCORES["regression"] else values
        for name, values in prediction.scores.items()
    }
    return prediction._replace(summary=summary, scores=scores)


def _placed_alike(shape: Any, sharding: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding)


def _joined(prediction: Prediction) -> Float[Array, "parts batch"]:
    """Every leaf in one array; whole numbers are features' places, which float32 holds up to 2²⁴."""
    return jnp.concatenate([leaf.reshape(len(leaf), -1).T.astype(jnp.float32) for leaf in jax.tree.leaves(prediction)])


def mesh_of(devices: Sequence[Any], draws: int) -> Mesh | None:
    """The devices to spread draws over, each taking as many; None where that is one, and the first."""
    most = max(count for count in range(1, len(devices) + 1) if draws % count == 0)
    if most == 1 and devices[0] == jax.devices()[0]:
        return None
    return Mesh(cast("Any", np.array(devices[:most])), (DRAWS,))
