"""Penultimate features: the input of a network's last dense layer, taken from the forward pass that computes its outputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core.tracers import current_trace
from jaxtyping import Array, Float

from abstain.models.networks.architectures import Network
from abstain.models.prediction.packing import kernel_first
from abstain.models.prediction.posterior import Draws, Model
from abstain.models.prediction.preprocessing import transform

FEATURE_LAYER = nn.Dense
"""The class of the layer that takes a row's features as input."""


class LayerCall(NamedTuple):
    """One call of a layer in a forward pass.

    Attributes:
        path: the path of the layer's parameters in the network's tree.
        input: the layer's input, or its shape; None if it exists only within a scan or another transformation.
    """

    path: tuple[str, ...]
    input: Any


@lru_cache(maxsize=64)
def last_layer(network: Network, shape: tuple[int, ...], kind: type[nn.Module] = nn.Module) -> LayerCall | None:
    """Returns the last call of a layer in a forward pass, for a preprocessed row of a shape; None if there is no layer.

    A layer is a module with parameters and without inner layers. The order is that of the calls, not of the parameters:
    in `a(relu(b(a(x))))` the last layer is `a`, although `b` was made last.

    Args:
        kind: only layers of this class count.
    """
    example = jax.ShapeDtypeStruct(shape, jnp.float32)
    parameters: Any = jax.eval_shape(network.init, jax.random.key(0), example)["params"]
    last: list[LayerCall] = []

    def trace(parameters: Any, x: Array) -> None:
        # Traced values must not leave the trace, so only the shape of the input is kept.
        for path, value in _call_layers(network, parameters, x, kind)[1][-1:]:
            shape = jax.ShapeDtypeStruct(value.shape, value.dtype) if isinstance(value, jax.Array) else None
            last.append(LayerCall(path, shape))

    jax.eval_shape(trace, parameters, example)
    return last[0] if last else None


def outputs_and_features(
    model: Model, draw: Draws, x: Float[Array, "..."]
) -> tuple[Float[Array, " outputs"], Float[Array, " width"]]:
    """Returns ONE draw's outputs and penultimate features for ONE row; without features, the outputs twice."""
    network, prepared = model.module, transform(model.preprocessing, x)
    if _feature_layer(network, prepared.shape) is None:
        with nn.intercept_methods(kernel_first):
            outputs: Any = network.apply({"params": draw["network"]}, prepared)
        return outputs, outputs
    outputs, calls = _call_layers(network, draw["network"], prepared, FEATURE_LAYER)
    return outputs, jnp.ravel(calls[-1].input)


def feature_weights(
    model: Model, draw: Draws, x: Float[Array, "..."]
) -> tuple[Float[Array, "width outputs"], Float[Array, " outputs"]] | None:
    """Returns kernel and bias of the layer that takes the features; None if the outputs replace the features."""
    layer = _feature_layer(model.module, transform(model.preprocessing, x).shape)
    if layer is None:
        return None
    parameters = _parameters_at(draw["network"], layer.path)
    kernel = parameters["kernel"]
    return kernel, parameters.get("bias", jnp.zeros(kernel.shape[-1], kernel.dtype))


def _feature_layer(network: Network, shape: tuple[int, ...]) -> LayerCall | None:
    """Returns the last dense layer if its input is a single vector, and not inside a scan or another transformation."""
    layer = last_layer(network, shape, FEATURE_LAYER)
    if layer is None or layer.input is None or layer.input.size != layer.input.shape[-1]:
        return None
    return layer


def _call_layers(
    network: Network, parameters: Any, x: Float[Array, "..."], kind: type[nn.Module]
) -> tuple[Any, list[LayerCall]]:
    """Returns the network's outputs, and every call of its layers of this class, in order."""
    calls: list[LayerCall] = []
    outside = cast("Any", current_trace())

    def record(call: Callable[..., Any], args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        """Keeps the inputs and outputs of a layer of this class."""
        module = context.module
        if (
            isinstance(module, kind)
            and context.method_name != "setup"
            and _is_layer(_parameters_at(parameters, module.path))
        ):
            # A value traced inside a scan or another transformation cannot be used outside of it.
            calls.append(LayerCall(module.path, args[0] if args and current_trace() == outside else None))
        return call(*args, **kwargs)

    with nn.intercept_methods(record), nn.intercept_methods(kernel_first):
        outputs = network.apply({"params": parameters}, x)
    return outputs, calls


def _parameters_at(parameters: Any, path: tuple[str, ...]) -> Any:
    """Returns the parameters of the module at a path, with those of its submodules; {} if it has none."""
    for name in path:
        parameters = parameters.get(name, {})
    return parameters


def _is_layer(parameters: Mapping[str, Any]) -> bool:
    """Whether these are the parameters of one layer: arrays only, and at least one."""
    return bool(parameters) and not any(isinstance(value, Mapping) for value in parameters.values())
