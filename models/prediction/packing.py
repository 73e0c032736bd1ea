"""The packed ensemble: how draws lie in memory, and how layers are computed, so that a call moves no weights.

Draws come first and outputs right behind them: `[draw, out, in]`. With the kernel as the left factor a dense layer over
all draws and rows is then

    first layer    [draw · out, in] @ [in, batch]                   one plain matrix product
    later layers   [out, in] @ [in, batch], for every draw          products of matrices that lie whole in memory

and rows stay last, so that what follows runs along many of them. Nothing is transposed, copied or gathered but the
rows' own numbers. The layers are Flax's own, told apart by class: those of a module of one's own are computed this way
too, and any other layer as it is written.

Draws are taken in chunks whose activations stay in a processor's cache, and a network with convolutions draw by draw:
with kernels of many draws XLA makes one grouped convolution of them, which is slower than as many plain ones.
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
"""Of one layer's activations: draws are taken in chunks whose activations stay in a processor's cache."""


def pack(draws: Draws) -> Draws:
    """Draws with every leaf's output axis right behind the draws': `[draw, out, in]`, biases `[draw, out]`."""
    return jax.tree.map(_pack_leaf, draws)


def _pack_leaf(leaf: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(np.moveaxis(leaf, -1, 1)) if leaf.ndim > 2 else leaf


def unpack(packed: Draws) -> Draws:
    """The draws as their network knows them; within a compiled call nothing is moved, only read in this order."""
    return jax.tree.map(_unpack_leaf, packed)


def _unpack_leaf(leaf: Any) -> Any:
    return jnp.moveaxis(leaf, 1, -1) if leaf.ndim > 2 else leaf


def kernel_first(call: Callable[..., Any], args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
    """A Flax interceptor that computes plain dense layers with the kernel as the left factor."""
    layer: Any = context.module
    if type(layer) is not nn.Dense or context.method_name != "__call__" or len(args) != 1 or not _is_plain(layer):
        return call(*args, **kwargs)
    variable = cast("Callable[[str, str], Any]", layer.get_variable)
    kernel, x = variable("params", "kernel"), args[0]
    rows_last = jax.lax.dot_general(kernel, x, (((0,), (x.ndim - 1,)), ((), ())))
    y = jnp.moveaxis(rows_last, 0, -1)
    return y + variable("params", "bias") if layer.use_bias else y


def _is_plain(layer: nn.Dense) -> bool:
    """Whether a layer has no precision, type or product of its own."""
    own = (layer.dtype, layer.precision, layer.dot_general, layer.dot_general_cls)
    return all(setting is None for setting in own)


def chunk_of(function: Callable[[Draws, Array], Any], draw: Draws, row: Any, batch: int, draws: int) -> int:
    """How many draws to compute together.

    A rule and not a measurement: workers must not differ in their rounding.

    Args:
        function: of one draw and one row.
        draw: its shapes.
        row: its shape.
        batch: how many rows there are.
        draws: and how many draws.
    """
    jaxpr = jax.make_jaxpr(function)(draw, row).jaxpr
    of_draw, of_row = set(jaxpr.invars[:-1]), {jaxpr.invars[-1]}
    largest = 1
    for equation in jaxpr.eqns:
        given = {variable for variable in equation.invars if isinstance(variable, Var)}
        of_draw |= set(equation.outvars) if given & of_draw else set()
        of_row |= set(equation.outvars) if given & of_row else set()
        activations = [variable.aval.size for variable in equation.outvars if variable in of_draw & of_row]
        if activations and equation.primitive.name == "conv_general_dilated":
            return 1
        largest = max([largest, *activations])
    most = max(1, CHUNK_BYTES // (4 * largest * batch))
    # As few chunks as that allows, and these alike.
    return draws // -(-draws // most)
