"""Networks against the same arithmetic in numpy and scipy, float64."""

from itertools import pairwise

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError
from scipy.signal import correlate2d
from scipy.special import expit

from abstain.models.errors import AbstainError
from abstain.models.networks.architectures import ACTIVATIONS, MLP, LeNetSpec, MLPSpec, NetworkSpec, parameter_shapes

FORMULAS = {
    "relu": lambda x: np.maximum(x, 0),
    "tanh": np.tanh,
    "gelu": lambda x: 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
    "silu": lambda x: x * expit(x),
    "softplus": lambda x: np.logaddexp(x, 0),
    "sigmoid": expit,
}


def random_parameters(module, shape, seed=0):
    """Normal parameters of a module, as float32."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: rng.normal(0, 0.4, leaf.shape).astype(np.float32), parameter_shapes(module, shape))


def dense(x, layer):
    """A dense layer in float64."""
    return x @ layer["kernel"].astype(np.float64) + layer["bias"]


def convolution(image, layer, mode):
    """A convolution as deep learning means it, one output channel and one input channel at a time, in float64."""
    kernel = layer["kernel"].astype(np.float64)
    channels = [
        sum(correlate2d(image[..., i], kernel[..., i, o], mode) for i in range(kernel.shape[2]))
        for o in range(kernel.shape[3])
    ]
    return np.stack(channels, axis=-1) + layer["bias"]


def pooled(image):
    """The largest of every 2×2 block; an odd last row or column is dropped."""
    height, width = image.shape[0] // 2, image.shape[1] // 2
    blocks = image[: 2 * height, : 2 * width].reshape(height, 2, width, 2, -1)
    return blocks.max(axis=(1, 3))


def lenet(parameters, image):
    """LeNet with ReLU, in float64."""
    image = image.astype(np.float64)
    image = image[..., None] if image.ndim == 2 else image
    image = pooled(np.maximum(convolution(image, parameters["Conv_0"], "same"), 0))
    image = pooled(np.maximum(convolution(image, parameters["Conv_1"], "valid"), 0))
    hidden = np.maximum(dense(image.ravel(), parameters["Dense_0"]), 0)
    return dense(hidden, parameters["Dense_1"])


@pytest.mark.parametrize("activation", FORMULAS)
def test_mlp_is_dense_layers_with_activations_between(activation):
    """The perceptron equals its formula for every activation there is."""
    module = MLPSpec(hidden=(7, 5), activation=activation).build(3)
    parameters = random_parameters(module, (4,))
    x = np.random.default_rng(1).normal(0, 2, 4).astype(np.float32)
    hidden = FORMULAS[activation](dense(x.astype(np.float64), parameters["Dense_0"]))
    hidden = FORMULAS[activation](dense(hidden, parameters["Dense_1"]))
    found = module.apply({"params": parameters}, jnp.asarray(x))
    np.testing.assert_allclose(found, dense(hidden, parameters["Dense_2"]), atol=1e-5)


def test_every_activation_has_a_formula_here():
    """No activation is left untested."""
    assert set(ACTIVATIONS) == set(FORMULAS)


def test_mlp_without_hidden_layers_is_linear():
    """`hidden = []` is a linear model."""
    module = MLPSpec(hidden=()).build(2)
    parameters = random_parameters(module, (3,))
    x = np.array([1.0, -2.0, 0.5], np.float32)
    found = module.apply({"params": parameters}, jnp.asarray(x))
    np.testing.assert_allclose(found, dense(x, parameters["Dense_0"]), atol=1e-6)


def test_mlp_reads_an_image_row_by_row():
    """An image and its flattened pixels give the same bits."""
    module = MLPSpec(hidden=(5,)).build(3)
    parameters = random_parameters(module, (4, 4))
    image = np.random.default_rng(2).normal(size=(4, 4)).astype(np.float32)
    found = [module.apply({"params": parameters}, jnp.asarray(x)) for x in (image, image.ravel())]
    np.testing.assert_array_equal(*found)


@pytest.mark.parametrize("shape", [(12, 12), (13, 16), (14, 12, 3)])
def test_lenet_is_convolutions_pooling_and_dense_layers(shape):
    """LeNet equals scipy's correlation and numpy's maximum, grey and in colour, even and odd."""
    module = LeNetSpec(channels=(2, 3), hidden=(5,)).build(4)
    parameters = random_parameters(module, shape)
    image = np.random.default_rng(3).normal(size=shape).astype(np.float32)
    found = module.apply({"params": parameters}, jnp.asarray(image))
    np.testing.assert_allclose(found, lenet(parameters, image), atol=1e-4)


def test_lenet_has_the_layers_of_1998():
    """The default is LeNet-5 on 28×28: 6 and 16 channels, 120 and 84 units, 61,706 numbers in all."""
    shapes = parameter_shapes(LeNetSpec().build(10), (28, 28))
    kernels = {layer: leaf["kernel"].shape for layer, leaf in shapes.items()}
    assert kernels == {
        "Conv_0": (5, 5, 1, 6),
        "Conv_1": (5, 5, 6, 16),
        "Dense_0": (400, 120),
        "Dense_1": (120, 84),
        "Dense_2": (84, 10),
    }
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 61_706


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(1, 9), max_size=3), st.integers(1, 6), st.integers(1, 6))
def test_parameter_shapes_are_those_of_an_initialised_network(hidden, features, outputs):
    """Shapes are right, and no parameter is computed."""
    widths = [features, *hidden, outputs]
    shapes = parameter_shapes(MLPSpec(hidden=tuple(hidden)).build(outputs), (features,))
    found = [shapes[f"Dense_{i}"]["kernel"].shape for i in range(len(shapes))]
    assert found == list(pairwise(widths))
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {np.dtype(np.float32)}


@pytest.mark.parametrize("shape", [(8, 8), (11, 11), (12, 11), (64,)])
def test_an_example_lenet_cannot_take_is_refused_by_shape(shape):
    """Images too small for two poolings, and what is no image, are refused before any computation."""
    with pytest.raises(AbstainError) as error:
        parameter_shapes(LeNetSpec().build(10), shape)
    assert f"an example of shape {shape}" in str(error.value)
    assert str(error.value).startswith("network: LeNet")
    assert str(error.value).endswith("choose another network, or larger inputs")


def test_a_network_with_running_statistics_is_refused_by_name():
    """Batch statistics are no parameters: draws would not define such a posterior."""

    class Normalised(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.BatchNorm(use_running_average=True)(nn.Dense(2)(x))

    with pytest.raises(AbstainError) as error:
        parameter_shapes(Normalised(), (3,))
    assert str(error.value) == (
        "network: Normalised has mutable collections: expected parameters only, found batch_stats; "
        "use layers without running statistics (LayerNorm or GroupNorm instead of BatchNorm)"
    )


@pytest.mark.parametrize(
    "spec",
    [
        {"kind": "resnet"},
        {"kind": "mlp", "hidden": [8], "dropout": 0.1},
        {"kind": "mlp", "hidden": [0]},
        {"kind": "mlp", "hidden": ["8"]},
        {"kind": "mlp", "hidden": [True]},
        {"kind": "mlp", "activation": "swish"},
        {"kind": "lenet", "channels": [6]},
    ],
)
def test_a_wrong_spec_is_refused(spec):
    """Unknown kinds, keys and activations, and widths that are no numbers, get no further than the spec."""
    with pytest.raises(ValidationError):
        TypeAdapter(NetworkSpec).validate_python(spec)


@pytest.mark.parametrize("spec", [MLPSpec(hidden=(3, 2), activation="tanh"), LeNetSpec(channels=(2, 4))])
def test_a_spec_survives_json(spec):
    """What the manifest holds is what was configured."""
    assert TypeAdapter(NetworkSpec).validate_json(spec.model_dump_json()) == spec


def test_rows_last_changes_the_layout_and_not_the_numbers():
    """The product with the kernel on the left is the same product, mapped over rows or not, and so is its gradient."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=(40, 3)), jnp.float32)
    plain, turned = (MLP(hidden=(5, 4), outputs=2, activation="tanh", rows_last=last) for last in (False, True))
    parameters = plain.init(jax.random.key(0), x[0])
    assert jax.tree.map(np.shape, parameters) == jax.tree.map(np.shape, turned.init(jax.random.key(0), x[0]))

    def total(network, parameters):
        return (jax.vmap(lambda row: network.apply(parameters, row))(x) ** 2).sum()

    for network in (plain, turned):
        assert network.apply(parameters, x[0]).shape == (2,)
    expected = jax.value_and_grad(total, argnums=1)(plain, parameters)
    found = jax.value_and_grad(total, argnums=1)(turned, parameters)
    jax.tree.map(lambda left, right: np.testing.assert_allclose(left, right, rtol=2e-5), expected, found)
