"""Networks with running statistics and dropout: taken in inference mode, else refused with what to do; NNX beside Linen."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from abstain.models.errors import AbstainError
from abstain.models.networks.architectures import parameter_shapes
from abstain.models.networks.running_statistics import fold, unfold
from abstain.models.networks.user_module import ModuleSpec
from tests.helpers.imported_networks import Graph, Normalised, TutorialCNN

NETWORKS = "tests.helpers.imported_networks"


def network_of(name, statistics=False, **arguments):
    """The network of a class, for one example."""
    spec = ModuleSpec(module=f"{NETWORKS}:{name}", arguments=arguments, running_statistics=statistics)
    return spec.allow((NETWORKS,)).build(3)


def refusal(network, shape=(2,)):
    """The text of the error."""
    with pytest.raises(AbstainError) as caught:
        parameter_shapes(network, shape)
    return str(caught.value)


def test_running_statistics_are_a_branch_of_the_parameters():
    """One example gets the outputs that Flax's batch gets with both collections."""
    network, module, x = network_of("Normalised", statistics=True), Normalised(), jnp.ones((4, 2))
    variables = module.init(jax.random.key(0), x)
    variables["batch_stats"] = jax.tree.map(lambda leaf: leaf + 0.7, variables["batch_stats"])
    assert unfold(fold(variables)) == variables
    shapes = parameter_shapes(network, (2,))
    assert shapes["batch_stats"]["BatchNorm_0"]["mean"].shape == (5,)
    np.testing.assert_allclose(network.apply(fold(variables), x[0]), module.apply(variables, x)[0], rtol=1e-5)


def test_without_them_a_network_with_statistics_is_refused_as_before():
    """A fit has parameters alone."""
    assert "has mutable collections: expected parameters only, found batch_stats" in refusal(network_of("Normalised"))


def test_batch_normalisation_in_training_is_refused():
    """Its outputs would depend on the batch; the error says how to switch it to inference."""
    text = refusal(network_of("Normalised", statistics=True, train=True))
    assert "changes its running statistics when it predicts" in text or "draws random numbers" in text
    assert "use_running_average=True" in text or "deterministic=True" in text


def test_an_argument_without_default_is_named():
    """The call gets one array."""
    text = refusal(network_of("AsksForTrain"))
    assert "its __call__ is called with one array, so 'train' must have a default" in text


def test_an_image_without_channel_axis_is_told_to_add_one():
    """Flax's tutorial gives its network images [rows, 28, 28, 1]."""
    text = refusal(network_of("TutorialCNN"), (8, 8))
    assert "it needs a channel axis: give the rows the shape [rows, 8, 8, 1], as x[..., None] does" in text
    shapes = parameter_shapes(network_of("TutorialCNN"), (8, 8, 1))
    own = TutorialCNN().init(jax.random.key(0), jnp.ones((1, 8, 8, 1)))["params"]
    assert jax.tree.map(jnp.shape, own) == jax.tree.map(lambda leaf: leaf.shape, shapes)


def test_nnx_predicts_in_evaluation_mode():
    """With its parameters and running statistics, by text keys."""
    network, module = network_of("Graph", statistics=True, width=6), Graph(width=6, rngs=nnx.Rngs(3))
    module.eval()
    module.norm.mean[...] = np.arange(6.0)
    pure = [nnx.to_pure_dict(nnx.state(module, kind)) for kind in (nnx.Param, nnx.BatchStat)]
    parameters, statistics = (jax.tree.map(np.asarray, tree) for tree in pure)
    parameters["layers"] = {str(index): layer for index, layer in parameters["layers"].items()}
    shapes = parameter_shapes(network, (2,))
    assert shapes["layers"]["1"]["kernel"].shape == (6, 6)
    x = jnp.array([0.3, -2.0])
    outputs = network.apply({"params": {**parameters, "batch_stats": statistics}}, x)
    np.testing.assert_allclose(outputs, module(x[None])[0], rtol=1e-5)


def test_arguments_of_nnx_are_checked():
    """Unknown ones are named, with those that the class has."""
    with pytest.raises(AbstainError, match="unknown arguments: expected some of outputs, width, found depth"):
        network_of("Graph", depth=2)
