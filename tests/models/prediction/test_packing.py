"""The packed ensemble: layers computed kernel first, draws in chunks, and draws spread over devices."""

import os
import subprocess
import sys
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from abstain.models.networks.architectures import LeNetSpec, MLPSpec
from abstain.models.prediction import packing
from abstain.models.prediction.features import outputs_and_features
from abstain.models.prediction.packing import chunk_of, kernel_first, unpack
from abstain.models.prediction.posterior import Model
from abstain.models.prediction.predictive import Predictor
from abstain.models.prediction.preprocessing import Preprocessing
from tests.helpers.feature_score_cases import CASES, fitted, scores_by_row
from tests.helpers.paths import PROJECT


class Layers(nn.Module):
    """Dense layers of every sort."""

    @nn.compact
    def __call__(self, x):
        """Plain, without bias and over many vectors, general, and with a setting of its own."""
        x = nn.Dense(5)(x)
        x = nn.Dense(4, use_bias=False)(x[None])
        x = nn.DenseGeneral(3)(x)
        return nn.Dense(2, precision="highest")(x)[0]


def test_kernel_first_is_the_same_layer():
    """Whatever a layer's settings, what it gives is what Flax itself gives, to rounding."""
    x = jnp.linspace(-1, 1, 6)
    variables = Layers().init(jax.random.key(0), x)
    expected = Layers().apply(variables, x)
    with nn.intercept_methods(kernel_first):
        found = Layers().apply(variables, x)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def shapes_of(network, shape):
    """A network's function of one draw and one row, the draw's shapes, and the row's."""
    names = tuple("abcdefghij")
    model = Model(
        network=network, likelihood="categorical", preprocessing=Preprocessing(), feature_shape=shape, class_names=names
    )
    return partial(outputs_and_features, model), model.parameter_shapes(), jax.ShapeDtypeStruct(shape, jnp.float32)


@pytest.mark.parametrize(("batch", "expected"), [(1, 100), (32, 100), (256, 16), (100_000, 1)])
def test_chunks_hold_the_widest_layers_activations(batch, expected):
    """`CHUNK_BYTES` of float32: of 400 wide layers, 19 draws fit at 256 rows, and so 6 chunks of 16 and a remainder."""
    assert chunk_of(*shapes_of(MLPSpec(hidden=(64, 400)), (784,)), batch, 100) == expected


def test_convolutions_go_draw_by_draw():
    """However small the batch."""
    assert chunk_of(*shapes_of(LeNetSpec(), (28, 28)), 1, 100) == 1


@pytest.mark.parametrize("name", ["mlp", "regression"])
@pytest.mark.parametrize("bytes_", [1, 1500])
def test_chunked_is_whole(name, bytes_, monkeypatch):
    """Chunks of one draw, of some with a remainder, of fewer than the members: every number is that of all at once."""
    posterior, feature_scores = fitted(name)
    rows = 1.01 * CASES[name][1].x[:8].astype(np.float64)
    monkeypatch.setattr(packing, "CHUNK_BYTES", 10**9)
    whole = Predictor(posterior, (8,), feature_scores=feature_scores)(rows)
    monkeypatch.setattr(packing, "CHUNK_BYTES", bytes_)
    chunked = Predictor(posterior, (8,), feature_scores=feature_scores)(rows)
    for expected, found in zip(jax.tree.leaves(whole.summary), jax.tree.leaves(chunked.summary), strict=True):
        np.testing.assert_allclose(found, expected, rtol=2e-5, atol=1e-6)
    np.testing.assert_allclose(scores_by_row(chunked), scores_by_row(whole), rtol=1e-4, atol=1e-4)


def test_unpacked_is_what_was_packed():
    """Of a whole posterior, its noise included."""
    posterior, _ = fitted("regression")
    jax.tree.map(np.testing.assert_array_equal, unpack(packing.pack(posterior.draws)), posterior.draws)


SPREAD = """
import jax, numpy as np
from abstain.models.prediction.predictive import Predictor, mesh_of
from tests.helpers.feature_score_cases import CASES, fitted, scores_by_row
assert jax.device_count() == 4
assert mesh_of(jax.devices(), 7) is None and mesh_of(jax.devices(), 9).size == 3 and mesh_of(jax.devices(), 8).size == 4
for name in ("mlp", "regression", "lenet"):
    posterior, feature_scores = fitted(name, 8)
    rows = 1.01 * CASES[name][1].x[:8].astype(np.float64)
    one = Predictor(posterior, (8,), feature_scores=feature_scores)(rows)
    four = Predictor(posterior, (8,), feature_scores=feature_scores, devices=jax.devices())
    for shard in jax.tree.leaves(four._packed)[0].addressable_shards:
        assert shard.data.shape[0] == 2
    four = four(rows)
    for expected, found in zip(jax.tree.leaves(one.summary), jax.tree.leaves(four.summary), strict=True):
        np.testing.assert_allclose(found, expected, rtol=2e-5, atol=1e-6)
    np.testing.assert_allclose(scores_by_row(four), scores_by_row(one), rtol=1e-4, atol=1e-4)
print("the same")
"""


def test_draws_spread_over_devices_say_the_same():
    """On four forced host devices each has two of eight draws; every score and number is that of one device."""
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", SPREAD], cwd=PROJECT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout == "the same\n", done.stderr[-3000:]
