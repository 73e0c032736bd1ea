"""Networks: Flax Linen modules for ONE example. The specs that name them in configs and manifests are in `specs.py`.

A network maps one preprocessed example to a vector of outputs; the likelihood defines what the outputs mean. Only
`predictive.py` maps over batches and posterior draws.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from abstain.models.errors import AbstainError
from abstain.models.networks.specs import LeNetSpec, MLPSpec, NetworkSpec
from abstain.models.networks.user_module import OneExample, check_network

__all__ = [
    "ACTIVATIONS",
    "MLP",
    "LeNet",
    "LeNetSpec",
    "MLPSpec",
    "Network",
    "NetworkSpec",
    "Parameters",
    "parameter_shapes",
]

Parameters = Any  # a pytree of arrays, as Flax makes it

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "relu": nn.relu,
    "tanh": jnp.tanh,
    "gelu": nn.gelu,
    "silu": nn.silu,
    "softplus": nn.softplus,
    "sigmoid": nn.sigmoid,
}


class MLP(nn.Module):
    """A multi-layer perceptron; an input of any shape is flattened.

    With `rows_last`, if the module is mapped over rows, these are the last axis of every product: a narrow layer is then
    vectorised along many rows, not along few units. The numbers are the same.
    """

    hidden: tuple[int, ...]
    outputs: int
    activation: str = "relu"
    rows_last: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "..."]) -> Float[Array, " outputs"]:
        """Returns the outputs for one example."""
        product = cast("Any", _kernel_first) if self.rows_last else None
        hidden = jnp.ravel(x)
        for width in self.hidden:
            hidden = ACTIVATIONS[self.activation](nn.Dense(width, dot_general=product)(hidden))
        return nn.Dense(self.outputs, dot_general=product)(hidden)


def _kernel_first(
    x: Float[Array, " inputs"], kernel: Float[Array, "inputs outputs"], _dimensions: Any, **options: Any
) -> Float[Array, " outputs"]:
    """Multiplies with the kernel on the left, so that a mapped axis of the right factor stays last in the result."""
    return jax.lax.dot_general(kernel, x, (((0,), (0,)), ((), ())), **options)


class LeNet(nn.Module):
    """LeNet-5 with max pooling (LeCun et al., 1998) over one image `[height, width]` or `[height, width, channel]`."""

    outputs: int
    channels: tuple[int, int] = (6, 16)
    hidden: tuple[int, ...] = (120, 84)
    activation: str = "relu"

    @nn.compact
    def __call__(self, x: Float[Array, "height width ..."]) -> Float[Array, " outputs"]:
        """Returns the outputs for one image."""
        activation = ACTIVATIONS[self.activation]
        image = x[..., None] if x.ndim == 2 else x
        for width, padding in zip(self.channels, ("SAME", "VALID"), strict=True):
            image = activation(nn.Conv(width, (5, 5), padding=padding)(image))
            image = nn.max_pool(image, (2, 2), strides=(2, 2))
        hidden = jnp.ravel(image)
        for width in self.hidden:
            hidden = activation(nn.Dense(width)(hidden))
        return nn.Dense(self.outputs)(hidden)


Network = nn.Module | OneExample
"""A network for one example: `init(key, x)` and `apply({"params": …}, x)`."""


def parameter_shapes(network: Network, example_shape: tuple[int, ...]) -> Parameters:
    """Returns the shapes of the network's parameters, a tree of `jax.ShapeDtypeStruct`, without computing them.

    Args:
        example_shape: the shape of one preprocessed example.

    Raises:
        AbstainError: the network cannot take that shape, or has state other than its parameters (batch statistics,
            caches), which posterior draws would not contain; or `check_network` refuses the user's own network.
    """
    name = network.name if isinstance(network, OneExample) else type(network).__name__
    example = jax.ShapeDtypeStruct(example_shape, jnp.float32)
    try:
        variables = jax.eval_shape(network.init, jax.random.key(0), example)
    except (TypeError, ValueError, AssertionError, IndexError, ArithmeticError) as error:
        raise AbstainError(
            f"{name} cannot take an example of shape {example_shape}",
            where="network",
            found=str(error).splitlines()[0] if str(error) else type(error).__name__,
            fix="choose another network, or larger inputs",
        ) from error
    extra = sorted(set(variables) - {"params"})
    if extra:
        raise AbstainError(
            f"{name} has mutable collections",
            where="network",
            expected="parameters only",
            found=", ".join(extra),
            fix="use layers without running statistics (LayerNorm or GroupNorm instead of BatchNorm)",
        )
    parameters = variables.get("params", {})
    sizes = [leaf.size for leaf in jax.tree.leaves(parameters)]
    if 0 in sizes:
        raise AbstainError(
            f"{name} has a layer without weights for an example of shape {example_shape}",
            where="network",
            expected="at least one input for every layer",
            found="an empty parameter",
            fix="choose another network, or larger inputs",
        )
    if isinstance(network, OneExample):
        check_network(network, parameters, example)
    return parameters
