"""Networks that somebody trained elsewhere, and rows for them."""

import flax.linen as nn
import numpy as np
from flax import nnx


class Net(nn.Module):
    """A network for a batch of rows."""

    outputs: int = 1
    width: int = 4

    @nn.compact
    def __call__(self, x):
        """Returns the outputs."""
        hidden = nn.tanh(nn.Dense(self.width)(x))
        return nn.Dense(self.outputs)(hidden)


class Normalised(nn.Module):
    """Batch normalisation and dropout, which an argument switches to inference."""

    outputs: int = 3
    train: bool = False

    @nn.compact
    def __call__(self, x):
        """Returns the outputs."""
        x = nn.BatchNorm(use_running_average=not self.train)(nn.Dense(5)(x))
        x = nn.Dropout(0.5, deterministic=not self.train)(nn.relu(x))
        return nn.Dense(self.outputs)(x)


class Graph(nnx.Module):
    """A network of Flax NNX, with a list of layers, batch normalisation and dropout."""

    def __init__(self, outputs: int = 3, width: int = 4, *, rngs: nnx.Rngs):
        self.layers = nnx.List([nnx.Linear(2, width, rngs=rngs), nnx.Linear(width, width, rngs=rngs)])
        self.norm = nnx.BatchNorm(width, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.head = nnx.Linear(width, outputs, rngs=rngs)

    def __call__(self, x):
        """Returns the outputs."""
        for layer in self.layers:
            x = nnx.relu(layer(x))
        return self.head(self.dropout(self.norm(x)))


class Rows(nnx.Module):
    """A small network of Flax NNX for a batch of rows."""

    def __init__(self, outputs: int = 1, *, rngs: nnx.Rngs):
        self.first = nnx.Linear(2, 4, rngs=rngs)
        self.last = nnx.Linear(4, outputs, rngs=rngs)

    def __call__(self, x):
        """Returns the outputs."""
        return self.last(nnx.tanh(self.first(x)))


class TutorialCNN(nn.Module):
    """The network of Flax's tutorial: images need a channel axis."""

    outputs: int = 3

    @nn.compact
    def __call__(self, x):
        """Returns the outputs."""
        x = nn.relu(nn.Conv(features=4, kernel_size=(3, 3))(x))
        x = nn.avg_pool(x, window_shape=(2, 2), strides=(2, 2))
        return nn.Dense(self.outputs)(x.reshape((x.shape[0], -1)))


class AsksForTrain(nn.Module):
    """Its call has an argument without a default."""

    outputs: int = 3

    @nn.compact
    def __call__(self, x, train):
        """Returns the outputs."""
        return nn.Dense(self.outputs)(x)


def rows_of(classes: int = 0, count: int = 260, seed: int = 0) -> dict[str, np.ndarray]:
    """Rows of two features, with a number or a class as target."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, 2)).astype(np.float32)
    signal = np.sin(2 * x[:, 0]) + 0.5 * x[:, 1]
    y = signal + 0.3 * rng.normal(size=count)
    return {"x": x, "y": np.digitize(y, [-0.5, 0.5]) if classes else y}


def softmax(logits):
    """Probabilities of logits, in float64."""
    shifted = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    return shifted / shifted.sum(axis=-1, keepdims=True)


__all__ = ["AsksForTrain", "Graph", "Net", "Normalised", "Rows", "TutorialCNN", "rows_of", "softmax"]
