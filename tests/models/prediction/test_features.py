"""Penultimate features: the last dense layer's input, taken in the same pass; its weights make the outputs of them."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from abstain.models.networks.architectures import LeNetSpec, MLPSpec
from abstain.models.networks.user_module import ModuleSpec
from abstain.models.prediction.features import feature_weights, last_layer, outputs_and_features
from abstain.models.prediction.posterior import Model
from abstain.models.prediction.preprocessing import Preprocessing, transform
from tests.helpers.user_networks import CLASSES

SHAPE = (12, 12)
SCALED = Preprocessing(shift=(2.0,), scale=(3.0,))
OWN = ("Batch", "Nested", "One", "NoDense", "Scanned", "Tokens", "Keyword", "Shared")
BUILT_IN = {
    "mlp": MLPSpec(hidden=(8, 6)),
    "linear": MLPSpec(hidden=()),
    "lenet": LeNetSpec(channels=(2, 3), hidden=(9, 5)),
}


@pytest.fixture(autouse=True)
def own_modules(tmp_path, monkeypatch):
    """A file of networks that may be imported."""
    (tmp_path / "features_of_mine.py").write_text(CLASSES)
    monkeypatch.syspath_prepend(tmp_path)


def model_of(name, outputs=4):
    """A classifier of images."""
    network = (
        BUILT_IN[name]
        if name in BUILT_IN
        else ModuleSpec(module=f"features_of_mine:{name}").allow(("features_of_mine",))
    )
    return Model(
        network=network,
        likelihood="categorical",
        preprocessing=SCALED,
        feature_shape=SHAPE,
        class_names=tuple("abcdefgh"[:outputs]),
    )


def draw_of(model, seed=0):
    """Normal parameters."""
    rng = np.random.default_rng(seed)
    shapes = model.parameter_shapes()
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(0, 0.5, leaf.shape), jnp.float32), shapes)


def image(seed=1):
    """One row."""
    return jnp.asarray(np.random.default_rng(seed).normal(size=SHAPE), jnp.float32)


@pytest.mark.parametrize(
    ("name", "width"), [("mlp", 6), ("lenet", 5), ("Batch", 3), ("Nested", 5), ("One", 5), ("Shared", 4)]
)
def test_the_last_layer_makes_the_outputs_of_the_features(name, width):
    """Outputs = features · kernel + bias, to rounding: they are that layer's input, for every kind of network."""
    model, x = model_of(name), image()
    draw = draw_of(model)
    outputs, features = outputs_and_features(model, draw, x)
    kernel, bias = feature_weights(model, draw, x)
    assert (features.shape, kernel.shape, bias.shape) == ((width,), (width, 4), (4,))
    np.testing.assert_allclose(features @ kernel + bias, outputs, rtol=1e-5, atol=1e-6)
    plain = model.module.apply({"params": draw["network"]}, transform(model.preprocessing, x))
    np.testing.assert_array_equal(outputs, plain)


@pytest.mark.parametrize(
    ("name", "path", "dense"),
    [
        ("mlp", ("Dense_2",), True),
        ("lenet", ("Dense_2",), True),
        ("Nested", ("inner", "Dense_0"), True),
        ("Scanned", ("Dense_0",), True),
        ("NoDense", (), False),
        ("Shared", ("a",), True),
    ],
)
def test_the_last_layer_is_the_last_that_is_called(name, path, dense):
    """Of a(relu(b(a(x)))) it is `a`, made before `b`; of a network without layers, the network itself, which is not dense."""
    network = model_of(name).module
    assert last_layer(network, SHAPE).path == path
    only_dense = last_layer(network, SHAPE, nn.Dense)
    assert (only_dense is not None and only_dense.path == path) == dense


def test_a_layer_without_bias_has_one_of_zeros():
    """`use_bias=False` adds nothing."""
    model = model_of("Batch")
    _, bias = feature_weights(model, draw_of(model), image())
    np.testing.assert_array_equal(bias, np.zeros(4))


def test_the_features_of_an_mlp_are_its_last_hidden_layer():
    """By hand, in float64, of the preprocessed input; of a network without hidden layers, that input itself."""
    model, x = model_of("mlp"), image()
    draw = draw_of(model)
    hidden = (np.asarray(x, np.float64).ravel() - 2) / 3
    for name in ("Dense_0", "Dense_1"):
        layer = jax.tree.map(np.float64, draw["network"][name])
        hidden = np.maximum(hidden @ layer["kernel"] + layer["bias"], 0)
    np.testing.assert_allclose(outputs_and_features(model, draw, x)[1], hidden, rtol=1e-4, atol=1e-5)
    linear = model_of("linear")
    _, features = outputs_and_features(linear, draw_of(linear), x)
    np.testing.assert_allclose(features, (np.asarray(x).ravel() - 2) / 3, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["NoDense", "Scanned", "Tokens", "Keyword"])
def test_where_there_is_no_dense_layer_at_the_end_the_outputs_stand_in(name):
    """None at all, one inside a scan, one for each row of an image, one called by keyword: no layer, and no error."""
    model, x = model_of(name), image()
    draw = draw_of(model)
    outputs, features = outputs_and_features(model, draw, x)
    np.testing.assert_array_equal(features, outputs)
    assert outputs.shape == (4,)
    assert feature_weights(model, draw, x) is None


@pytest.mark.parametrize("name", [*BUILT_IN, *OWN])
def test_features_can_be_had_within_jit_and_vmap(name):
    """As the served call has them: over rows and over draws, the same numbers as one by one."""
    model = model_of(name)
    draws = [draw_of(model, seed) for seed in range(2)]
    rows = [image(seed) for seed in range(3)]
    over_rows = jax.vmap(lambda draw, x: outputs_and_features(model, draw, x), in_axes=(None, 0))
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *draws)
    outputs, features = jax.jit(jax.vmap(over_rows, in_axes=(0, None)))(stacked, jnp.stack(rows))
    for s, draw in enumerate(draws):
        for row, x in enumerate(rows):
            one = outputs_and_features(model, draw, x)
            np.testing.assert_allclose(outputs[s, row], one[0], rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(features[s, row], one[1], rtol=1e-4, atol=1e-5)
