"""Networks: Flax Linen modules written for ONE example, and the small specs that name them in configs and manifests.

A network maps one preprocessed example to a vector of outputs; what the outputs mean is the likelihood's business.
Batches and posterior draws are mapped over in `predictive.py`, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
from pydantic import BaseModel, ConfigDict, Field, PositiveInt

from abstain.models.errors import AbstainError
from abstain.models.networks.user_module import ModuleSpec, OneExample, check_network

Activation = Literal["relu", "tanh", "gelu", "silu", "softplus", "sigmoid"]
Widths = Annotated[tuple[PositiveInt, ...], Field(strict=False, max_length=256)]
"""A list in TOML and JSON; strictness is about what is in it. No network in use has more layers."""
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

    `rows_last` says where rows lie that are mapped over outside: along the last axis of every product, so that the
    activations of a narrow layer are computed along many rows and not along few units. The numbers are the same.
    """

    hidden: tuple[int, ...]
    outputs: int
    activation: str = "relu"
    rows_last: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "..."]) -> Float[Array, " outputs"]:
        """The outputs for one example."""
        product = cast("Any", _kernel_first) if self.rows_last else None
        hidden = jnp.ravel(x)
        for width in self.hidden:
            hidden = ACTIVATIONS[self.activation](nn.Dense(width, dot_general=product)(hidden))
        return nn.Dense(self.outputs, dot_general=product)(hidden)


def _kernel_first(
    x: Float[Array, " inputs"], kernel: Float[Array, "inputs outputs"], _dimensions: Any, **options: Any
) -> Float[Array, " outputs"]:
    """The product with the kernel on the left: what is mapped over on the right stays last in the result."""
    return jax.lax.dot_general(kernel, x, (((0,), (0,)), ((), ())), **options)


class LeNet(nn.Module):
    """LeNet-5 with max pooling (LeCun et al., 1998) over one image `[height, width]` or `[height, width, channel]`."""

    outputs: int
    channels: tuple[int, int] = (6, 16)
    hidden: tuple[int, ...] = (120, 84)
    activation: str = "relu"

    @nn.compact
    def __call__(self, x: Float[Array, "height width ..."]) -> Float[Array, " outputs"]:
        """The outputs for one image."""
        activation = ACTIVATIONS[self.activation]
        image = x[..., None] if x.ndim == 2 else x
        for width, padding in zip(self.channels, ("SAME", "VALID"), strict=True):
            image = activation(nn.Conv(width, (5, 5), padding=padding)(image))
            image = nn.max_pool(image, (2, 2), strides=(2, 2))
        hidden = jnp.ravel(image)
        for width in self.hidden:
            hidden = activation(nn.Dense(width)(hidden))
        return nn.Dense(self.outputs)(hidden)


class MLPSpec(BaseModel):
    """`kind = "mlp"`: hidden widths and the activation between them."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    kind: Literal["mlp"] = "mlp"
    hidden: Widths = (64, 64)
    activation: Activation = "relu"

    def build(self, outputs: int) -> nn.Module:
        """The module with `outputs` numbers at its end."""
        return MLP(hidden=self.hidden, outputs=outputs, activation=self.activation)


class LeNetSpec(BaseModel):
    """`kind = "lenet"`: two 5×5 convolutions with pooling, then dense layers; wants images of at least 12×12."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    kind: Literal["lenet"] = "lenet"
    channels: Annotated[tuple[PositiveInt, PositiveInt], Field(strict=False)] = (6, 16)
    hidden: Widths = (120, 84)
    activation: Activation = "relu"

    def build(self, outputs: int) -> nn.Module:
        """The module with `outputs` numbers at its end."""
        return LeNet(outputs=outputs, channels=self.channels, hidden=self.hidden, activation=self.activation)


NetworkSpec = Annotated[MLPSpec | LeNetSpec | ModuleSpec, Field(discriminator="kind")]
Network = nn.Module | OneExample
"""For one example: `init(key, x)`, and `apply({"params": …}, x)`."""


def parameter_shapes(network: Network, example_shape: tuple[int, ...]) -> Parameters:
    """The tree of `jax.ShapeDtypeStruct` of the network's parameters for one preprocessed example.

    Raises:
        AbstainError: the network cannot take that shape, or keeps state beside its parameters (batch statistics,
            caches): a posterior over such a network would not be defined by its draws. Of your own network, also what
            `check_network` refuses.
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
            f"{name} keeps mutable collections",
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
            expected="every layer to see at least one input",
            found="an empty parameter",
            fix="choose another network, or larger inputs",
        )
    if isinstance(network, OneExample):
        check_network(network, parameters, example)
    return parameters
