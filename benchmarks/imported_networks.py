"""The networks that `benchmarks/imports.py` imports; a server imports them from this file by their names."""

from __future__ import annotations

import flax.linen as nn
import jax
from flax import nnx

Array = jax.Array


class Dense(nn.Module):
    """Two layers of Flax Linen."""

    outputs: int = 1
    width: int = 8

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Returns the outputs."""
        hidden = nn.tanh(nn.Dense(self.width)(x))
        return nn.Dense(self.outputs)(hidden)


class Normalised(nn.Module):
    """Batch normalisation and dropout of Flax Linen; an argument, off by default, switches to training."""

    outputs: int = 3
    width: int = 8

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        """Returns the outputs."""
        x = nn.BatchNorm(use_running_average=not train)(nn.Dense(self.width)(x))
        x = nn.Dropout(0.2, deterministic=not train)(nn.relu(x))
        return nn.Dense(self.outputs)(x)


class Graph(nnx.Module):
    """Batch normalisation and dropout of Flax NNX."""

    def __init__(self, outputs: int = 3, width: int = 8, *, rngs: nnx.Rngs) -> None:
        self.first = nnx.Linear(2, width, rngs=rngs)
        self.norm = nnx.BatchNorm(width, rngs=rngs)
        self.dropout = nnx.Dropout(0.2, rngs=rngs)
        self.last = nnx.Linear(width, outputs, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        """Returns the outputs."""
        return self.last(self.dropout(nnx.relu(self.norm(self.first(x)))))


class Small(nnx.Module):
    """Two layers of Flax NNX."""

    def __init__(self, outputs: int = 1, width: int = 8, *, rngs: nnx.Rngs) -> None:
        self.first = nnx.Linear(2, width, rngs=rngs)
        self.last = nnx.Linear(width, outputs, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        """Returns the outputs."""
        return self.last(nnx.tanh(self.first(x)))
