"""The packed ensemble: the memory layout of draws and the order of products, so that a call never copies weights.

The draws are the first axis and the outputs the second: `[draw, out, in]`. With the kernel as the left factor, a dense
layer over all draws and rows is

    first layer    [draw · out, in] @ [in, batch]                   one plain matrix product
    later layers   [out, in] @ [in, batch], for every draw          products of contiguous matrices

and rows stay the last axis, so that later operations are vectorised along rows. Only the numbers of the rows are ever
transposed, copied or gathered. This applies to every `nn.Dense` of Flax, also in a user's module; all other layers are
computed as written.

Draws are computed in chunks small enough for their activations to stay in a processor's cache, and networks with
convolutions draw by draw: for the kernels of many draws XLA makes one grouped convolution, which is slower than many plain
ones.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Var
from jaxtyping import Array

from abstain.models.prediction.posterior import Draws

CHUNK_BYTES = 8_000_000
"""Largest size of a layer's activations in a chunk of draws, so that they stay in a processor's cache."""


def pack(draws: Draws) -> Draws:
    """Moves every leaf's output axis to the second place: kernels `[draw, out, in]`, biases `[draw, out]`."""
    return jax.tree.map(_pack_leaf, draws)


def _pack_leaf(leaf: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(np.moveaxis(leaf, -1, 1)) if leaf.ndim > 2 else leaf


def unpack(packed: Draws) -> Draws:
    """Restores the order of axes that the network needs; within a compiled call this copies nothing."""
    return jax.tree.map(_unpack_leaf, packed)


def _unpack_leaf(leaf: Any) -> Any:
    return jnp.moveaxis(leaf, 1, -1) if leaf.ndim > 2 else leaf


def kernel_first(call: Callable[..., Any], args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
    """Computes plain dense layers with the kernel as the left factor; an interceptor for Flax."""
    layer: Any = context.module
    if type(layer) is not nn.Dense or context.method_name != "__call__" or len(args) != 1 or not _is_plain(layer):
        return call(*args, **kwargs)
    variable = cast("Callable[[str, str], Any]", layer.get_variable)
    kernel, x = variable("params", "kernel"), args[0]
    rows_last = jax.lax.dot_general(kernel, x, (((0,), (x.ndim - 1,)), ((), ())))
    y = jnp.moveaxis(rows_last, 0, -1)
    return y + variable("params", "bias") if layer.use_bias else y


def _is_plain(layer: nn.Dense) -> bool:
    """Whether a layer has the default precision, dtype and product."""
    own = (layer.dtype, layer.precision, layer.dot_general, layer.dot_general_cls)
    return all(setting is None for setting in own)


def chunk_of(function: Callable[[Draws, Array], Any], draw: Draws, row: Any, batch: int, draws: int) -> int:
    """Returns how many draws to compute together.

    This is a fixed rule, not a measurement, so that all workers round alike.

    Args:
        function: a function of one draw and one row.
        draw: the shapes of one draw.
        row: the shape of one row.
        batch: the number of rows.
        draws: the number of draws.
    """
    jaxpr = jax.make_jaxpr(function)(draw, row).jaxpr
    of_draw, of_row = set(jaxpr.invars[:-1]), {jaxpr.invars[-1]}
    largest = 1
    for equation in jaxpr.eqns:
        inputs = {variable for variable in equation.invars if isinstance(variable, Var)}
        of_draw |= set(equation.outvars) if inputs & of_draw else set()
        of_row |= set(equation.outvars) if inputs & of_row else set()
        activations = [variable.aval.size for variable in equation.outvars if variable in of_draw & of_row]
        if activations and equation.primitive.name == "conv_general_dilated":
            return 1
        largest = max([largest, *activations])
    most = max(1, CHUNK_BYTES // (4 * largest * batch))
    # The draws are divided by the fewest chunks that this allows, and rounded down: 100 draws of at most 7 give chunks of
    # 6, and a last one of 4. A size rounded up would need fewer chunks, but served predictions would round differently.
    return draws // -(-draws // most)
