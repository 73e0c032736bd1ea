"""Class weights: the likelihood of each row counts by its class, and the probabilities are those of unweighted rows.

With weights w, inference sees the generalised posterior (Bissiri et al., 2016)

    p(θ | D) ∝ p(θ) ∏ p(y | x, θ)^w(y)

A network fitted so estimates q(y | x) ∝ w(y) p(y | x), because its expected log-likelihood, Σ w(y) p(y | x) log q(y | x), is
largest there (Elkan, 2001). So log w(y) is subtracted from its logits, and the probabilities are p(y | x) again (King & Zeng,
2001; Menon et al., 2021): for `categorical` from each logit, for `bernoulli` log w(1) / w(0) from the only one.

The weights are scaled to a mean of 1 over the training rows, so that all rows together count as much against the prior as
without weights. Which rows count more is a choice, not evidence: the posterior is narrower than the data justify where rows
of weight above 1 decide, and wider elsewhere.

The logits are lowered by the bias of the last dense layer of every draw (`training/inference/bnn.py`), so that bundles,
feature scores and serving need not know of weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Float, Num

from abstain.models.errors import ConfigError, suggest
from abstain.models.prediction.features import FEATURE_LAYER, last_layer
from abstain.models.prediction.posterior import Model
from abstain.models.prediction.preprocessing import transformed_shape

KEY = "data.class_weights"
TRIALS = 4
"""The number of networks and rows by which the effect of a bias is tried."""
TOLERANCE = 1e-3
"""The largest difference, in nats, between a lowered bias and lowered logits: rounding of float32."""

Weights = Float[np.ndarray, " classes"]


def weigh_classes(
    setting: Literal["balanced"] | Mapping[str, float], y: Num[np.ndarray, " rows"], names: tuple[str, ...]
) -> Weights:
    """Returns the weight of each class, with mean 1 over the training rows.

    Args:
        setting: "balanced" for rows / (classes · rows of the class), by which all classes together weigh the same; or weights
            by class name, 1 for the others.
        y: the class indices of the training rows; numbers for a regression.
        names: the class names; none for a regression.

    Raises:
        ConfigError: the target is a number; a class is unknown or has no training row; or all weights are equal.
    """
    if not names:
        raise ConfigError(
            KEY,
            expected="a likelihood of classes",
            found="a regression",
            fix="leave out class_weights",
        )
    counts = np.bincount(y.astype(int), minlength=len(names))
    absent = [name for name, count in zip(names, counts, strict=True) if not count]
    if absent:
        raise ConfigError(
            KEY,
            expected="training rows of every class",
            found=f"none of {', '.join(map(repr, absent))}",
            fix="add rows of it, set data.stratify = true, or leave out class_weights",
        )
    if setting == "balanced":
        return len(y) / (len(names) * counts)
    unknown = [name for name in setting if name not in names]
    if unknown:
        advice = suggest(unknown[0], names)
        raise ConfigError(KEY, expected=f"classes among {', '.join(names)}", found=repr(unknown[0]), fix=advice)
    weights = np.array([setting.get(name, 1.0) for name in names], np.float64)
    if np.all(weights == weights[0]):
        raise ConfigError(
            KEY, expected="weights that differ", found=f"{weights[0]:g} for every class", fix="leave out class_weights"
        )
    return weights * len(y) / (counts @ weights)


def logit_shift(model: Model, weights: Weights) -> Float[np.ndarray, " outputs"]:
    """Returns what the weights add to each logit, in nats; outputs as `models/prediction/likelihoods.py` has them."""
    logs = np.log(weights)
    return logs if model.likelihood == "categorical" else logs[1:] - logs[:1]


def lower_bias(network: Any, path: str, shift: Float[Array, " outputs"]) -> Any:
    """Returns the parameters of a network with a lower bias.

    Args:
        path: the bias, as `find_output_bias` returns it.
        shift: what to subtract, in nats.
    """
    arrays: dict[str, Any] = flatten_dict(network, sep=".")
    return unflatten_dict(arrays | {path: arrays[path] - shift}, sep=".")


def find_output_bias(model: Model) -> str:
    """Returns the path of the bias that is added to the logits, joined by dots: that of the last dense layer.

    A user's network may have no such bias, or use it elsewhere too, or change its sum. So it is tried whether a lower
    bias has the effect of lower logits, for networks and rows drawn at random.

    Raises:
        ConfigError: it has not, so weights could not be undone.
    """
    shape = transformed_shape(model.preprocessing, model.feature_shape)
    layer = last_layer(model.module, shape, FEATURE_LAYER)
    if layer is None:
        raise _no_bias("no nn.Dense")
    path = ".".join((*layer.path, "bias"))
    arrays: dict[str, Any] = flatten_dict(model.parameter_shapes()["network"], sep=".")
    outputs = model.likelihood_functions.outputs(len(model.class_names))
    if path not in arrays:
        raise _no_bias(f"{'.'.join(layer.path)} without a bias")
    if arrays[path].shape != (outputs,):
        raise _no_bias(f"{path} of shape {arrays[path].shape}, for {outputs} outputs")
    # Not `>`: a difference that is not a number shows nothing.
    if not _difference(model, path, shape, outputs) <= TOLERANCE:
        raise _no_bias(f"{path}, which is not the last term of the outputs")
    return path


def _difference(model: Model, path: str, shape: tuple[int, ...], outputs: int) -> float:
    """Returns the largest difference in log probabilities between a lowered bias and lowered logits."""
    predict, noise, rng = model.likelihood_functions.predict, jnp.float32(0), np.random.default_rng(0)

    def draw(leaf: jax.ShapeDtypeStruct) -> Float[np.ndarray, "trials ..."]:
        # The size of a network's own start, but no bias is 0: there, a bias that is used twice might not show.
        inputs = math.prod(leaf.shape[:-1])
        return rng.normal(size=(TRIALS, *leaf.shape)).astype(np.float32) / np.sqrt(inputs, dtype=np.float32)

    @jax.jit
    @jax.vmap
    def of_trial(network: Any, row: Array, shift: Array) -> Array:
        lowered: Any = model.module.apply({"params": lower_bias(network, path, shift)}, row)
        logits: Any = model.module.apply({"params": network}, row)
        return jnp.abs(predict(lowered, noise) - predict(logits - shift, noise)).max()

    network = jax.tree.map(draw, model.parameter_shapes()["network"])
    # Above 0, so that networks may take logarithms or roots of their inputs.
    rows, shifts = 0.1 + rng.random((TRIALS, *shape)), rng.normal(size=(TRIALS, outputs))
    return float(of_trial(network, rows.astype(np.float32), shifts.astype(np.float32)).max())


def _no_bias(found: str) -> ConfigError:
    return ConfigError(
        KEY,
        where="network",
        expected="a network that ends in an nn.Dense with a bias, by which the weights are undone",
        found=found,
        fix="end the network in nn.Dense(outputs), or leave out class_weights",
    )
