"""The packed, compiled ensemble against a plain loop over draws and rows; and what an answer may depend on."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize, special, stats
from sklearn.datasets import load_diabetes, load_digits

from abstain.models.networks.architectures import LeNetSpec, MLPSpec
from abstain.models.prediction.packing import pack, unpack
from abstain.models.prediction.posterior import Model, Posterior
from abstain.models.prediction.predictive import BUCKETS, Predictor, buckets_for
from abstain.models.prediction.preprocessing import Preprocessing, transform
from abstain.models.prediction.summaries import QUANTILES
from abstain.models.tables.columns import Column

SMALL = (1, 8)
DIGITS = tuple("0123456789")
IMAGES = load_digits().images
DIABETES = load_diabetes(scaled=False).data
TABLE = (Column(name="age", missing=40.0), Column(name="sex", categories=("f", "m", "x"), missing=1.0))

MODELS = {
    "mlp": Model(
        network=MLPSpec(hidden=(16, 16)),
        likelihood="categorical",
        preprocessing=Preprocessing(shift=(4.9,), scale=(6.0,)),
        feature_shape=(8, 8),
        class_names=DIGITS,
    ),
    "lenet": Model(
        network=LeNetSpec(channels=(3, 4), hidden=(16,)),
        likelihood="categorical",
        preprocessing=Preprocessing(scale=(16.0,)),
        feature_shape=(16, 16),
        class_names=DIGITS,
    ),
    "bernoulli": Model(
        network=MLPSpec(hidden=(7,), activation="tanh"),
        likelihood="bernoulli",
        preprocessing=Preprocessing(shift=tuple(DIABETES.mean(axis=0)), scale=tuple(DIABETES.std(axis=0))),
        feature_shape=(10,),
        class_names=("no", "yes"),
    ),
    "normal": Model(
        network=MLPSpec(hidden=(10,)),
        likelihood="normal",
        preprocessing=Preprocessing(
            shift=tuple(DIABETES.mean(axis=0)), scale=tuple(DIABETES.std(axis=0)), target_shift=15.2, target_scale=7.7
        ),
        feature_shape=(10,),
    ),
    "heteroscedastic": Model(
        network=MLPSpec(hidden=(9, 5), activation="silu"),
        likelihood="heteroscedastic_normal",
        preprocessing=Preprocessing(shift=(40.0, 0.0), scale=(12.0, 1.0), columns=TABLE, target_scale=3.0),
        feature_shape=(2,),
    ),
    "lenet regression": Model(
        network=LeNetSpec(channels=(3, 4), hidden=(8,), activation="tanh"),
        likelihood="heteroscedastic_normal",
        preprocessing=Preprocessing(scale=(16.0,), target_shift=-1.0),
        feature_shape=(16, 16),
    ),
}


def rows_of(name):
    """Real rows for a model: digits, enlarged digits, patients; or a table with gaps in it."""
    shape = MODELS[name].feature_shape
    if shape == (8, 8):
        return IMAGES
    if shape == (16, 16):
        return np.kron(IMAGES[:300], np.ones((2, 2)))
    if shape == (10,):
        return DIABETES
    ages = np.where(np.arange(300) % 7 == 3, np.nan, DIABETES[:300, 0])
    return np.stack([ages, np.where(np.arange(300) % 5 == 2, np.nan, np.arange(300) % 3)], axis=1)


def posterior_of(model, draws=12, seed=0):
    """Normal draws of all parameters, positive ones of the noise."""
    rng = np.random.default_rng(seed)
    shapes = model.parameter_shapes()
    network = jax.tree.map(lambda leaf: rng.normal(0, 0.3, (draws, *leaf.shape)).astype(np.float32), shapes["network"])
    noise = {"noise": rng.uniform(0.2, 0.6, draws).astype(np.float32)} if "noise" in shapes else {}
    return Posterior(model, {"network": network} | noise)


def draw_at(posterior, s):
    """One draw."""
    return jax.tree.map(lambda leaf: jnp.asarray(leaf[s]), posterior.draws)


@cache
def predictor_of(name, buckets=BUCKETS):
    """A model's predictor, compiled once for all tests."""
    return Predictor(posterior_of(MODELS[name]), buckets)


def leaves(prediction):
    """Every number of a prediction, `[rows, numbers]`."""
    return np.concatenate([leaf.reshape(len(leaf), -1) for leaf in jax.tree.leaves(prediction)], axis=1)


def looped(posterior, rows):
    """What each draw's network says of each row, one at a time: `[draws, rows, outputs]`, float64."""
    model = posterior.model
    apply = jax.jit(lambda draw, x: model.module.apply({"params": draw}, transform(model.preprocessing, x)))
    return np.array(
        [
            [apply(draw_at(posterior, s)["network"], row.astype(np.float32)) for row in rows]
            for s in range(posterior.size)
        ],
        np.float64,
    )


def classes_by_hand(outputs, bernoulli):
    """Mean, std and entropies of an ensemble's logits, float64, in a summary's order; then the scores."""
    logits = np.concatenate([-outputs / 2, outputs / 2], axis=-1) if bernoulli else outputs
    p = special.softmax(logits, axis=-1)
    mean, std, aleatoric = p.mean(axis=0), p.std(axis=0), stats.entropy(p, axis=-1).mean(axis=0)
    entropy = stats.entropy(mean, axis=-1)
    summary = (mean, std, entropy, aleatoric, entropy - aleatoric)
    scores = {
        "std": std.max(axis=1),
        "entropy": entropy,
        "expected_entropy": aleatoric,
        "mutual_information": entropy - aleatoric,
        "max_probability": 1 - mean.max(axis=1),
        "gen": ((mean * (1 - mean)) ** 0.1).sum(axis=1),
        "energy": -special.logsumexp(logits, axis=-1).mean(axis=0),
        "variation_ratio": 1 - np.array([np.bincount(votes).max() for votes in p.argmax(axis=-1).T]) / len(p),
    }
    return summary, scores


def numbers_by_hand(outputs, noise, preprocessing):
    """Moments, entropy and quantiles of an ensemble of normals in the target's units; then the two scores."""
    variances = np.exp(outputs[..., 1]) if noise is None else np.broadcast_to(noise[:, None] ** 2, outputs.shape[:2])
    means = preprocessing.target_shift + preprocessing.target_scale * outputs[..., 0]
    variances = preprocessing.target_scale**2 * variances
    aleatoric, epistemic = variances.mean(axis=0), means.var(axis=0)
    total = np.sqrt(aleatoric + epistemic)
    quantiles = [
        [
            optimize.brentq(lambda y, m=m, v=v, q=q: stats.norm.cdf(y, m, np.sqrt(v)).mean() - q, -1e3, 1e3, xtol=1e-9)
            for q in QUANTILES
        ]
        for m, v in zip(means.T, variances.T, strict=True)
    ]
    summary = (means.mean(axis=0), aleatoric, epistemic, stats.norm(0, total).entropy(), np.array(quantiles))
    return summary, {"std": np.sqrt(epistemic), "total_std": total}


@cache
def by_hand(name):
    """Summary and scores of 33 rows by the loop, in float64."""
    model, posterior = MODELS[name], posterior_of(MODELS[name])
    outputs = looped(posterior, rows_of(name)[:33])
    if model.likelihood_functions.task == "classification":
        return classes_by_hand(outputs, model.likelihood == "bernoulli")
    return numbers_by_hand(outputs, posterior.draws.get("noise"), model.preprocessing)


@pytest.mark.parametrize("batch", [1, 2, 7, 8, 9, 33])
@pytest.mark.parametrize("name", MODELS)
def test_packed_and_compiled_is_the_plain_loop(name, batch):
    """Every field and score, for batches that fill buckets, leave gaps, and need several: the loop's, in order."""
    summary, scores = by_hand(name)
    prediction = predictor_of(name, SMALL)(rows_of(name)[:batch])
    for field, found, expected in zip(prediction.summary._fields, prediction.summary, summary, strict=True):
        np.testing.assert_allclose(found, expected[:batch], rtol=1e-5, atol=1e-5, err_msg=field)
    assert set(prediction.scores) == set(scores)
    for score, expected in scores.items():
        np.testing.assert_allclose(
            prediction.scores[score], expected[:batch], rtol=1e-5, atol=1e-5, err_msg=f"score {score}"
        )


def assert_same(name, found, expected):
    """The same bits; within 1e-6 with convolutions, whose products a processor divides by the sizes of its caches.

    On some processors the last row of a bucket is rounded differently from the others.
    """
    if "lenet" in name:
        tolerance = 1e-6 * np.abs(expected).max(axis=-1, keepdims=True).clip(1)
        assert np.all(np.abs(found - expected) <= tolerance)
    else:
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("bucket", BUCKETS)
@pytest.mark.parametrize("name", ["mlp", "lenet", "normal", "lenet regression"])
def test_an_answer_is_the_same_at_every_place(name, bucket):
    """A bucket full of one row answers it alike from the first place to the last."""
    for row in rows_of(name)[[0, 50, 99]]:
        found = leaves(predictor_of(name)(np.repeat(row[None], bucket, axis=0)))
        assert_same(name, found, np.repeat(found[:1], bucket, axis=0))


@pytest.mark.parametrize("bucket", [8, 32, 128, 256])
@pytest.mark.parametrize("name", ["mlp", "lenet", "normal", "lenet regression"])
def test_an_answer_is_the_same_whatever_the_neighbours(name, bucket):
    """Ordinary neighbours, overflowing ones, none at all: the row's answer is the same."""
    predictor, rows = predictor_of(name), rows_of(name)
    rng = np.random.default_rng(bucket)
    smaller = BUCKETS[BUCKETS.index(bucket) - 1]
    expected = leaves(predictor(np.repeat(rows[7][None], bucket, axis=0)))[0]
    for place in (0, 1, smaller // 2, smaller):
        for size in (smaller + 1, bucket - 1, bucket):
            batch = rows[rng.integers(0, 300, size)]
            batch[place] = rows[7]
            assert_same(name, leaves(predictor(batch))[place], expected)
    wild = np.full((bucket, *rows.shape[1:]), 3e38)
    wild[bucket - 1] = rows[7]
    assert_same(name, leaves(predictor(wild))[bucket - 1], expected)


@pytest.mark.parametrize("name", ["mlp", "lenet", "normal", "lenet regression"])
def test_buckets_answer_within_a_millionth_of_each_other(name):
    """The same rows through every bucket: 1e-6, of the row's largest number where that is beyond 1."""
    rows, predictor = rows_of(name)[:256], predictor_of(name)
    expected = leaves(predictor(rows))[:32]
    tolerance = 1e-6 * np.abs(expected).max(axis=1, keepdims=True).clip(1)
    for bucket in BUCKETS[:-1]:
        found = np.concatenate([leaves(predictor(rows[i : i + bucket])) for i in range(0, 32, bucket)])[:32]
        assert np.all(np.abs(found - expected) <= tolerance)


def test_a_batch_beyond_the_largest_bucket_is_answered_in_several():
    """600 rows are the answers of rows 0–255, 256–511 and 512–599, joined."""
    predictor, rows = predictor_of("mlp"), rows_of("mlp")[:600]
    expected = [leaves(predictor(rows[a:b])) for a, b in ((0, 256), (256, 512), (512, 600))]
    np.testing.assert_array_equal(leaves(predictor(rows)), np.concatenate(expected))


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.float16, np.float32])
def test_the_dtype_of_the_rows_does_not_matter(dtype):
    """uint8 pixels and floats of the same value answer the same bits."""
    images = IMAGES[:9].astype(np.float64)
    np.testing.assert_array_equal(
        leaves(predictor_of("mlp", SMALL)(images.astype(dtype))), leaves(predictor_of("mlp", SMALL)(images))
    )


def test_calling_a_predictor_compiles_nothing():
    """Everything is compiled when a predictor is made: no batch size, dtype or layout compiles later."""
    compiled = []

    def listen(event, _seconds, **_facts):
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        fresh, small = Predictor(posterior_of(MODELS["bernoulli"]), (1, 8)), predictor_of("mlp", SMALL)
        at_load = len(compiled)
        for predictor, rows in ((fresh, DIABETES), (small, IMAGES)):
            for batch in (1, 2, 3, 7, 8, 9, 20):
                predictor(rows[:batch])
                predictor(rows[:batch].astype(np.uint8))
        small(np.asfortranarray(IMAGES[:5]))
        small(IMAGES[::-3][:5])
        assert (at_load >= 2, len(compiled) - at_load) == (True, 0)
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def test_an_answer_is_numpy():
    """The result is numpy arrays on the host without padding, one row for each row."""
    found = jax.tree.leaves(predictor_of("mlp", SMALL)(IMAGES[:3]))
    assert {(type(leaf), len(leaf), leaf.dtype.name) for leaf in found} == {(np.ndarray, 3, "float32")}


def test_a_target_far_from_zero_keeps_its_spread():
    """Targets around ten million: the standard deviations are those around zero, to 1 %."""
    near = MODELS["normal"].model_copy(update={"preprocessing": Preprocessing()})
    far = near.model_copy(update={"preprocessing": Preprocessing(target_shift=1e7)})
    rows = (DIABETES[:8] - DIABETES.mean(axis=0)) / DIABETES.std(axis=0)
    expected, found = (Predictor(posterior_of(model), (8,))(rows).scores for model in (near, far))
    np.testing.assert_allclose(found["std"], expected["std"], rtol=0.01)
    np.testing.assert_allclose(found["total_std"], expected["total_std"], rtol=0.01)


def test_packing_puts_the_output_axis_behind_the_draws():
    """`[draw, out, in]` for kernels of any rank, `[draw, out]` for biases, `[draw]` for the noise; unpacked, as before."""
    rng = np.random.default_rng(0)
    shapes = {"kernel": (4, 5, 3), "conv": (4, 5, 5, 2, 6), "bias": (4, 3), "noise": (4,)}
    draws = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    packed = pack(draws)
    assert {name: leaf.shape for name, leaf in packed.items()} == shapes | {
        "kernel": (4, 3, 5),
        "conv": (4, 6, 5, 5, 2),
    }
    assert all(leaf.flags.c_contiguous for leaf in packed.values())
    np.testing.assert_array_equal(packed["kernel"][2], draws["kernel"][2].T)
    jax.tree.map(np.testing.assert_array_equal, unpack(packed), draws)


@pytest.mark.parametrize("rows", [*range(1, 260), 300, 4096, 4100])
def test_the_buckets_for_so_many_rows_are_those_that_are_used(rows):
    """Row by row as `Predictor` cuts them; no other is compiled for a file."""
    largest = BUCKETS[-1]
    pieces = [min(largest, rows - start) for start in range(0, rows, largest)]
    assert buckets_for(rows) == tuple(sorted({next(size for size in BUCKETS if size >= piece) for piece in pieces}))
