"""Penultimate features: what the last dense layer of a network is given, taken from the same pass as its outputs."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core.tracers import current_trace
from jaxtyping import Array, Float

from abstain.models.networks.architectures import Network
from abstain.models.prediction.packing import kernel_first
from abstain.models.prediction.posterior import Draws, Model
from abstain.models.prediction.preprocessing import transform

LAST_LAYER = nn.Dense


def outputs_and_features(
    model: Model, draw: Draws, x: Float[Array, "..."]
) -> tuple[Float[Array, " outputs"], Float[Array, " width"]]:
    """ONE draw's outputs for ONE row, and its penultimate features; the outputs stand in where there are none."""
    network, prepared = model.module, transform(model.preprocessing, x)
    if not _has_features(network, prepared.shape):
        with nn.intercept_methods(kernel_first):
            outputs: Any = network.apply({"params": draw["network"]}, prepared)
        return outputs, outputs
    outputs, layers = _listened(network, draw["network"], prepared)
    return outputs, jnp.ravel(layers[-1][1])


def last_layer(
    model: Model, draw: Draws, x: Float[Array, "..."]
) -> tuple[Float[Array, "width outputs"], Float[Array, " outputs"]] | None:
    """Kernel and bias of the layer that the features go into; None where the outputs stand in for them."""
    network, prepared = model.module, transform(model.preprocessing, x)
    if not _has_features(network, prepared.shape):
        return None
    _, layers = _listened(network, draw["network"], prepared)
    parameters: Any = draw["network"]
    for name in layers[-1][0]:
        parameters = parameters[name]
    kernel = parameters["kernel"]
    return kernel, parameters.get("bias", jnp.zeros(kernel.shape[-1], kernel.dtype))


def _listened(network: Network, parameters: Any, x: Float[Array, "..."]) -> tuple[Any, list[tuple[Any, Any]]]:
    """The network's outputs, and path and input of every dense layer it called; None for an input not to be had."""
    heard: list[tuple[Any, Any]] = []
    outside = cast("Any", current_trace())

    def listen(call: Callable[..., Any], args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        if isinstance(context.module, LAST_LAYER) and context.method_name == "__call__":
            # What is traced within a scan or another transformation is no value out here.
            heard.append((context.module.path, args[0] if args and current_trace() == outside else None))
        return call(*args, **kwargs)

    with nn.intercept_methods(listen), nn.intercept_methods(kernel_first):
        outputs = network.apply({"params": parameters}, x)
    return outputs, heard


@lru_cache(maxsize=64)
def _has_features(network: Network, shape: tuple[int, ...]) -> bool:
    """Whether the last dense layer is called once, with one vector that can be had, rather than for parts of a row."""
    example = jax.ShapeDtypeStruct(shape, jnp.float32)
    parameters: Any = jax.eval_shape(network.init, jax.random.key(0), example)["params"]
    found: list[Any] = []

    def listen(parameters: Any, x: Array) -> None:
        found.extend(_listened(network, parameters, x)[1][-1:])

    jax.eval_shape(listen, parameters, example)
    return bool(found) and found[0][1] is not None and found[0][1].size == found[0][1].shape[-1]
