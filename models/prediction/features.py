"""Penultimate features: what the last dense layer of a network is given, taken from the same pass as its outputs."""

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
"""The kind of layer whose input is a row's features."""


class LayerCall(NamedTuple):
    """One call of a layer in a forward pass.

    Attributes:
        path: of the layer's parameters in the network's tree.
        input: the layer's input, or its shape; None where it exists only within a scan or another transformation.
    """

    path: tuple[str, ...]
    input: Any


@lru_cache(maxsize=64)
def last_layer(network: Network, shape: tuple[int, ...], kind: type[nn.Module] = nn.Module) -> LayerCall | None:
    """The last call of a layer in a forward pass, for a preprocessed row of a shape; None where there is no layer.

    A layer is a module that keeps parameters and has no further layers in it. The order is that of the calls, not of
    the parameters: of `a(relu(b(a(x))))` the last layer is `a`, although `b` is the last to be made.

    Args:
        kind: only layers of this class count.
    """
    example = jax.ShapeDtypeStruct(shape, jnp.float32)
    parameters: Any = jax.eval_shape(network.init, jax.random.key(0), example)["params"]
    last: list[LayerCall] = []

    def trace(parameters: Any, x: Array) -> None:
        # Nothing traced may be kept: of the input, only its shape.
        for path, given in _call_layers(network, parameters, x, kind)[1][-1:]:
            shape = jax.ShapeDtypeStruct(given.shape, given.dtype) if isinstance(given, jax.Array) else None
            last.append(LayerCall(path, shape))

    jax.eval_shape(trace, parameters, example)
    return last[0] if last else None


def outputs_and_features(
    model: Model, draw: Draws, x: Float[Array, "..."]
) -> tuple[Float[Array, " outputs"], Float[Array, " width"]]:
    """ONE draw's outputs for ONE row, and its penultimate features; the outputs stand in where there are none."""
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
    """Kernel and bias of the layer that the features go into; None where the outputs stand in for them."""
    layer = _feature_layer(model.module, transform(model.preprocessing, x).shape)
    if layer is None:
        return None
    parameters = _at(draw["network"], layer.path)
    kernel = parameters["kernel"]
    return kernel, parameters.get("bias", jnp.zeros(kernel.shape[-1], kernel.dtype))


def _feature_layer(network: Network, shape: tuple[int, ...]) -> LayerCall | None:
    """The last dense layer, if its input is one vector outside of transformations; not one vector for each part of a row."""
    layer = last_layer(network, shape, FEATURE_LAYER)
    if layer is None or layer.input is None or layer.input.size != layer.input.shape[-1]:
        return None
    return layer


def _call_layers(
    network: Network, parameters: Any, x: Float[Array, "..."], kind: type[nn.Module]
) -> tuple[Any, list[LayerCall]]:
    """The network's outputs, and every call of its layers of a kind, in order."""
    calls: list[LayerCall] = []
    outside = cast("Any", current_trace())

    def record(call: Callable[..., Any], args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        module = context.module
        if isinstance(module, kind) and context.method_name != "setup" and _is_layer(_at(parameters, module.path)):
            # What is traced within a scan or another transformation is no value out here.
            calls.append(LayerCall(module.path, args[0] if args and current_trace() == outside else None))
        return call(*args, **kwargs)

    with nn.intercept_methods(record), nn.intercept_methods(kernel_first):
        outputs = network.apply({"params": parameters}, x)
    return outputs, calls


def _at(parameters: Any, path: tuple[str, ...]) -> Any:
    """What a module keeps, its parts' parameters included; nothing where it keeps none."""
    for name in path:
        parameters = parameters.get(name, {})
    return parameters


def _is_layer(parameters: Mapping[str, Any]) -> bool:
    """Whether these are the parameters of one layer: some arrays, and nothing deeper."""
    return bool(parameters) and not any(isinstance(value, Mapping) for value in parameters.values())
