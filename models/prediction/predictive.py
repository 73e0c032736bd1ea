"""The ensemble: from rows to a `PredictiveSummary` and scores. In serving, only this module maps over draws.

Serving, calibration and evaluation share `Predictor`: one float32 executable for each batch size (bucket), compiled when
the model is loaded; rows are padded to the bucket. A row's prediction does not depend on the other rows of its batch.
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
from jaxtyping import Array, Bool, Float, Int, Num

from abstain.models.errors import AbstainError
from abstain.models.prediction.feature_score_records import FeatureScores, ScoreInputs
from abstain.models.prediction.feature_scores import compute_feature_scores, farthest_feature
from abstain.models.prediction.features import outputs_and_features
from abstain.models.prediction.packing import chunk_of, pack, unpack
from abstain.models.prediction.posterior import Draws, Model, Posterior
from abstain.models.prediction.preprocessing import Preprocessing, find_unseen, on_host, transform
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
from abstain.models.tables.unseen import UNSEEN_SCORE

BUCKETS = (1, 8, 32, 128, 256)
NONE = Recalibration()
COMPILE_THREADS = 2
"""Number of programs that are compiled at the same time."""
DRAWS = "draws"
"""The name of the mesh axis that the draws are spread over."""


class Prediction(NamedTuple):
    """The summary and the scores of a batch; axis 0 of every leaf is the batch.

    Attributes:
        uniform: a number in [0, 1) computed from each row's bits, for prediction sets that need a random number.
        farthest: the index of the feature farthest outside its training range; None without the feature score `range`.
        unseen: which cells have an unseen category that rejects the row (`preprocessing.find_unseen`); None for models whose
            columns cannot have one.
    """

    summary: PredictiveSummary
    scores: dict[str, Float[Array, " batch"]]
    uniform: Float[Array, " batch"] | None = None
    farthest: Int[Array, " batch"] | None = None
    unseen: Bool[Array, "batch rejecting"] | None = None


class Layout(NamedTuple):
    """The leaves of a prediction: their shapes without the batch axis, their dtypes, and their tree structure."""

    shapes: list[tuple[int, ...]]
    dtypes: list[np.dtype[Any]]
    tree: Any


def predict_draw(model: Model, draw: Draws, x: Float[Array, "..."]) -> Float[Array, " parts"]:
    """Predicts ONE row with ONE draw: log probabilities `[classes]`, or `[mean, variance]` on the fit's scale."""
    outputs: Any = model.module.apply({"params": draw["network"]}, transform(model.preprocessing, x))
    return model.likelihood_functions.predict(outputs, draw.get("noise", jnp.float32(0)))


def predict_packed(
    model: Model,
    packed: Draws,
    rows: Float[Array, "batch ..."],
    feature_scores: FeatureScores | None = None,
    recalibration: Recalibration = NONE,
    mesh: Mesh | None = None,
) -> Prediction:
    """Predicts a batch with packed draws; the only function that maps over draws and rows.

    Args:
        packed: the draws as `packing.pack` returns them; the members, which feature scores use, are the first.
        mesh: the devices that the draws are spread over.
    """
    members = 0 if feature_scores is None else len(feature_scores.members)
    rows_last, features = over_draws(model, packed, rows, members, mesh)
    noise = packed.get("noise", jnp.zeros(len(rows_last)))
    parts = jnp.swapaxes(jax.vmap(model.likelihood_functions.predict)(rows_last, noise), 1, 2)
    outputs = jnp.swapaxes(rows_last, 1, 2)
    summary = _summary(model, parts)
    # Scores use the draws before recalibration, which must not change the rejected rows.
    scores = scores_of(summary, parts, outputs)
    summary = _recalibrate(summary, parts, recalibration)
    unseen = find_unseen(model.preprocessing, rows)
    if unseen is not None:
        scores = scores | {UNSEEN_SCORE: unseen.sum(axis=1).astype(jnp.float32)}
    plain = Prediction(summary, scores, uniform=jax.vmap(uniform_of)(rows), unseen=unseen)
    if feature_scores is None:
        return plain
    inputs = _score_inputs(model, rows, jnp.moveaxis(features, -1, 1), outputs[:members], summary)
    return plain._replace(
        scores=scores | jax.vmap(partial(compute_feature_scores, feature_scores))(inputs),
        farthest=jax.vmap(partial(farthest_feature, feature_scores.records["range"]))(inputs),
    )


def over_draws(
    model: Model, packed: Draws, rows: Float[Array, "batch ..."], members: int, mesh: Mesh | None = None
) -> tuple[Float[Array, "draws outputs batch"], Float[Array, "members width batch"]]:
    """Computes the outputs of every draw for every row, and the features of the first draws; rows are the last axis.

    Args:
        mesh: the devices that the draws are spread over; each computes its own draws, so no weights are copied.
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
    """Computes the same on one device; with fewer draws than members, the features of all draws.

    It computes one chunk of draws after another by the same program, and the remaining draws last.
    """
    network = partial(outputs_and_features, model)

    def compute_chunk(chunk: Draws) -> tuple[Array, Array]:
        over_rows = jax.vmap(jax.vmap(network, in_axes=(0, None)), in_axes=(None, 0), out_axes=-1)
        return over_rows(unpack(chunk), rows)

    def compute_from(start: Array) -> tuple[Array, Array]:
        slices = partial(jax.lax.dynamic_slice_in_dim, start_index=start, slice_size=together)
        return compute_chunk(jax.tree.map(slices, packed))

    draws, row = len(jax.tree.leaves(packed)[0]), jax.ShapeDtypeStruct(rows.shape[1:], rows.dtype)
    one_draw = jax.eval_shape(lambda: jax.tree.map(itemgetter(0), unpack(packed)))
    together = chunk_of(network, one_draw, row, len(rows), draws)
    if together == draws:
        outputs, features = compute_chunk(packed)
        return outputs, features[:members]
    starts = np.arange(draws // together) * together
    member_chunks = -(-members // together)
    heads = cast("tuple[Array, Array]", jax.lax.map(compute_from, starts[:member_chunks]))
    tails = cast("Array", jax.lax.map(lambda start: compute_from(start)[0], starts[member_chunks:]))  # pyright: ignore
    last = compute_chunk(jax.tree.map(itemgetter(slice(len(starts) * together, None)), packed))
    outputs, features = ([head.reshape(-1, *tail.shape[1:])] for head, tail in zip(heads, last, strict=True))
    outputs += [tails.reshape(-1, *last[0].shape[1:]), last[0]]
    return jnp.concatenate(outputs), jnp.concatenate([*features, last[1]])[:members]


def _score_inputs(
    model: Model,
    rows: Float[Array, "batch ..."],
    features: Float[Array, "members batch width"],
    logits: Float[Array, "members batch outputs"],
    summary: PredictiveSummary,
) -> ScoreInputs:
    """Returns the inputs of feature scores, with the rows as axis 0."""
    batch = rows.shape[0]
    inputs = jax.vmap(partial(transform, model.preprocessing))(rows)
    regression = isinstance(summary, RegressionSummary)
    return ScoreInputs(
        row=rows.reshape(batch, -1),
        inputs=inputs.reshape(batch, -1),
        features=jnp.moveaxis(features, 0, 1),
        logits=jnp.moveaxis(logits, 0, 1),
        label=jnp.zeros(batch, jnp.int32) if regression else summary.mean.argmax(axis=-1),
    )


def _summary(model: Model, parts: Float[Array, "draws batch parts"]) -> PredictiveSummary:
    if model.likelihood_functions.task == "classification":
        return summarise_classification(parts)
    preprocessing = model.preprocessing
    summary = summarise_regression(parts[..., 0], parts[..., 1])
    if preprocessing.float64_target:
        return summary
    return within_float32(in_target_units(summary, preprocessing.target_shift, preprocessing.target_scale))


def _recalibrate(
    summary: PredictiveSummary, parts: Float[Array, "draws batch parts"], recalibration: Recalibration
) -> PredictiveSummary:
    """Recalibrates the summary; labels and means do not change."""
    kind, factor = recalibration.kind, recalibration.factor
    if isinstance(summary, RegressionSummary):
        return widen(summary, factor) if kind == "variance" else summary
    if kind == "pooled":
        return with_mean(summary, temper_pooled(summary.mean, factor))
    if kind == "draws":
        return with_labels_of(summary, summarise_classification(temper_draws(parts, factor)))
    return summary


def uniform_of(row: Float[Array, "..."]) -> Float[Array, ""]:
    """Returns a pseudo-random number in [0, 1) that depends only on the row's bits.

    Sums and exclusive ors of integers do not depend on their order, so the number is the same in every bucket and on every
    machine. The mixing is that of MurmurHash3 (Appleby, 2011).
    """
    # One bit pattern for each number: −0 becomes 0 (XLA would remove `+ 0.0`), and all NaN are one number.
    plain = jnp.where(jnp.isnan(row), jnp.float32(np.finfo(np.float32).max), jnp.where(row == 0, 0.0, row))
    bits = jax.lax.bitcast_convert_type(plain.ravel(), jnp.uint32)
    positions = jnp.arange(1, bits.size + 1, dtype=jnp.uint32)
    mixed = _mix(_mix(bits ^ (positions * jnp.uint32(0x9E3779B9))).sum(dtype=jnp.uint32))
    return (mixed >> 8).astype(jnp.float32) * jnp.float32(2**-24)


def _mix(bits: Array) -> Array:
    bits = (bits ^ (bits >> 16)) * jnp.uint32(0x85EBCA6B)
    bits = (bits ^ (bits >> 13)) * jnp.uint32(0xC2B2AE35)
    return bits ^ (bits >> 16)


def members_first(draws: Draws, feature_scores: FeatureScores | None) -> Draws:
    """Reorders the draws: the members, which feature scores use, become the first."""
    if feature_scores is None:
        return draws
    members: Any = np.asarray(feature_scores.members)
    order: Any = np.append(members, np.setdiff1d(np.arange(len(jax.tree.leaves(draws)[0])), members))
    return jax.tree.map(itemgetter(order), draws)


class Predictor:
    """A posterior, packed and compiled for every bucket. Calling it never compiles.

    Args:
        posterior: the model and its draws.
        buckets: batch sizes to compile, ascending; more rows than the largest are computed in several calls.
        feature_scores: scores fitted to the training rows; without them there are only the ensemble's own scores.
        recalibration: the recalibration of the predictions.
        devices: devices to spread the draws over in equal shares: the largest number of them that divides the number of
            draws. If None, the first device.
    """

    def __init__(
        self,
        posterior: Posterior,
        buckets: tuple[int, ...] = BUCKETS,
        *,
        feature_scores: FeatureScores | None = None,
        recalibration: Recalibration = NONE,
        devices: Sequence[Any] | None = None,
    ) -> None:
        check_buckets(buckets)
        self.model = posterior.model
        self.draws = posterior.size
        self.buckets = buckets
        self._mesh = mesh_of(devices or cast("list[Any]", jax.devices()[:1]), self.draws)
        self._recalibration = recalibration
        self._packed = self._put_on_devices(pack(members_first(posterior.draws, feature_scores)), P(DRAWS))
        self._feature_scores = self._put_on_devices(feature_scores, P())
        compiled = self._compile_all(buckets)
        self._layout = compiled[0][1]
        self._executables = {bucket: call for bucket, (call, _) in zip(buckets, compiled, strict=True)}

    def add_buckets(self, buckets: tuple[int, ...]) -> None:
        """Compiles the batch sizes that are not compiled yet; two threads must not call it at once.

        Raises:
            AbstainError: with one of the sizes, a row's prediction would depend on the size (`check_buckets`).
        """
        check_buckets(buckets)
        new = tuple(bucket for bucket in buckets if bucket not in self._executables)
        compiled = self._compile_all(new)
        self._executables |= {bucket: call for bucket, (call, _) in zip(new, compiled, strict=True)}
        self.buckets = tuple(sorted(self._executables))

    def _compile_all(self, buckets: tuple[int, ...]) -> list[tuple[Callable[[Draws, np.ndarray, Any], Array], Layout]]:
        # Compilation releases Python's lock, so threads can compile in parallel; but each takes about 100 MB.
        with ThreadPoolExecutor(COMPILE_THREADS) as pool:
            return list(pool.map(self._compile, buckets))

    def _put_on_devices(self, tree: Any, spec: P) -> Any:
        return jax.device_put(tree, None if self._mesh is None else NamedSharding(self._mesh, spec))

    def _rows(self, bucket: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((bucket, *self.model.feature_shape), jnp.float32)

    def _predict(self, packed: Draws, rows: Array, feature_scores: FeatureScores | None) -> Prediction:
        return predict_packed(self.model, packed, rows, feature_scores, self._recalibration, self._mesh)

    def _compile(self, bucket: int) -> tuple[Callable[[Draws, np.ndarray, FeatureScores | None], Array], Layout]:
        """Compiles a function from padded rows to one array `[parts, bucket]`; returns it and the array's layout.

        One array is fetched from a device faster than thirty. The function is two programs: in a single program, the
        rounding of a number would depend on its position in the array.
        """
        predict: Any = jax.jit(self._predict).lower(self._packed, self._rows(bucket), self._feature_scores)
        compiled = predict.compile()
        shapes = jax.tree.map(_with_sharding, predict.out_info, compiled.output_shardings)
        join = jax.jit(_join).lower(shapes).compile()
        leaves, tree = cast("tuple[list[Any], Any]", jax.tree.flatten(shapes))
        layout = Layout([leaf.shape[1:] for leaf in leaves], [leaf.dtype for leaf in leaves], tree)
        return lambda packed, rows, feature_scores: join(compiled(packed, rows, feature_scores)), layout

    def __call__(self, rows: Num[np.ndarray, "rows ..."]) -> Prediction:
        """Predicts any number of rows (at least one); returns numpy leaves."""
        if rows.shape[1:] != self.model.feature_shape:
            raise AbstainError("rows", expected=f"shape {self.model.feature_shape}", found=f"shape {rows.shape[1:]}")
        largest = self.buckets[-1]
        parts = [self._predict_bucket(rows[start : start + largest]) for start in range(0, len(rows), largest)]
        return parts[0] if len(parts) == 1 else jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)

    def _predict_bucket(self, rows: Num[np.ndarray, "rows ..."]) -> Prediction:
        return self.read(np.asarray(self.launch(rows)), len(rows))

    def launch(self, rows: Num[np.ndarray, "rows ..."]) -> Array:
        """Starts the prediction of at most as many rows as the largest bucket, without waiting for the device.

        Converting the result to a numpy array waits for the device, without Python's lock. `read` takes this array.
        """
        bucket = next(size for size in self.buckets if size >= len(rows))
        padded = np.zeros((bucket, *self.model.feature_shape), np.float32)
        padded[: len(rows)] = on_host(self.model.preprocessing, rows)
        return self._executables[bucket](self._packed, padded, self._feature_scores)

    def read(self, whole: Float[np.ndarray, "parts bucket"], rows: int) -> Prediction:
        """Makes the prediction of the first rows from the result of `launch`, as a numpy array."""
        leaves: list[np.ndarray] = []
        start = 0
        for shape, dtype in zip(self._layout.shapes, self._layout.dtypes, strict=True):
            end = start + math.prod(shape)
            leaf = whole[start:end, :rows].T.reshape(rows, *shape)
            leaves.append(leaf if dtype == np.float32 else leaf.astype(dtype))
            start = end
        return _in_float64(self.model.preprocessing, jax.tree.unflatten(self._layout.tree, leaves))


def check_buckets(buckets: tuple[int, ...]) -> None:
    """Refuses batch sizes with which a row's prediction would depend on the size.

    Raises:
        AbstainError: names these sizes.
    """
    odd = [bucket for bucket in buckets if bucket > 8 and bucket % 8]
    if odd:
        # XLA computes the rows after the last multiple of its vector width by other code, which rounds differently.
        raise AbstainError("buckets", expected="sizes up to 8, or multiples of 8", found=odd)


def buckets_for(rows: int, buckets: tuple[int, ...] = BUCKETS) -> tuple[int, ...]:
    """Returns the buckets that a `Predictor` uses for a call with this number of rows (at least one)."""
    whole, rest = divmod(rows, buckets[-1])
    needed = {buckets[-1]} if whole else set[int]()
    if rest:
        needed.add(next(size for size in buckets if size >= rest))
    return tuple(sorted(needed))


def _in_float64(preprocessing: Preprocessing, prediction: Prediction) -> Prediction:
    """Converts summary and scores to the target's units in float64, if the model requires this (`float64_target`)."""
    if not preprocessing.float64_target:
        return prediction
    exact = RegressionSummary(*(cast("Any", np.asarray(leaf, np.float64)) for leaf in prediction.summary))
    summary = in_target_units(exact, preprocessing.target_shift, preprocessing.target_scale)
    # All ensemble scores of a regression are standard deviations.
    scores = {
        name: values.astype(np.float64) * preprocessing.target_scale if name in SCORES["regression"] else values
        for name, values in prediction.scores.items()
    }
    return prediction._replace(summary=summary, scores=scores)


def _with_sharding(shape: Any, sharding: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding)


def _join(prediction: Prediction) -> Float[Array, "parts batch"]:
    """Joins all leaves to one array; integers are indices of features, which float32 holds exactly up to 2²⁴."""
    return jnp.concatenate([leaf.reshape(len(leaf), -1).T.astype(jnp.float32) for leaf in jax.tree.leaves(prediction)])


def mesh_of(devices: Sequence[Any], draws: int) -> Mesh | None:
    """Returns the mesh of devices that take equal shares of the draws; None if this is only the first device."""
    most = max(count for count in range(1, len(devices) + 1) if draws % count == 0)
    if most == 1 and devices[0] == jax.devices()[0]:
        return None
    return Mesh(cast("Any", np.array(devices[:most])), (DRAWS,))
