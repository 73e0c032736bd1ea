"""Likelihoods: the probability of a target given a network's outputs, and the prediction of one draw.

Each likelihood is a record of pure functions over ONE example and ONE draw. `noise` is the draw of the likelihood's
own parameter (the standard deviation of `normal`), and 0 if a likelihood has none.

    categorical             outputs = logits [classes]           y in 0 … classes − 1
    bernoulli               outputs = one logit                  y in {0, 1}; served as two classes
    normal                  outputs = mean                       one standard deviation for all inputs, inferred
    heteroscedastic_normal  outputs = (mean, log variance)       a separate variance for every input
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Scalar

from abstain.models.prediction.likelihood_names import LikelihoodName

# exp(±30) includes every meaningful variance of a standardised target in float32; larger values overflow.
LOG_VARIANCE_BOUND = 30.0


class Likelihood(NamedTuple):
    """The functions of a likelihood; the module's docstring lists all likelihoods."""

    name: LikelihoodName
    task: Literal["classification", "regression"]
    outputs: Callable[[int], int]
    """Returns the number of network outputs for a number of classes (ignored by regression)."""
    has_noise: bool
    """Whether a standard deviation is inferred in addition to the network's parameters."""
    log_prob: Callable[[Float[Array, " outputs"], Scalar, Scalar], Scalar]
    """Returns the log density of a target (on the model's own scale) under one draw, in nats."""
    predict: Callable[[Float[Array, "outputs ..."], Scalar], Float[Array, "parts ..."]]
    """Returns the prediction of one draw, for one row or for many along later axes: log probabilities `[classes, …]`, or
    `[mean and variance, …]` on the model's own scale."""


def _categorical_log_probabilities(outputs: Float[Array, "classes ..."], _noise: Scalar) -> Float[Array, "classes ..."]:
    return jax.nn.log_softmax(outputs, axis=0)


def _categorical_log_prob(outputs: Float[Array, " classes"], _noise: Scalar, y: Scalar) -> Scalar:
    return jax.nn.log_softmax(outputs)[y.astype(jnp.int32)]


def _bernoulli_log_probabilities(outputs: Float[Array, "1 ..."], _noise: Scalar) -> Float[Array, "2 ..."]:
    logit = outputs[0]
    return jnp.stack([jax.nn.log_sigmoid(-logit), jax.nn.log_sigmoid(logit)])


def _bernoulli_log_prob(outputs: Float[Array, " 1"], noise: Scalar, y: Scalar) -> Scalar:
    return _bernoulli_log_probabilities(outputs, noise)[y.astype(jnp.int32)]


def _normal_moments(outputs: Float[Array, "1 ..."], noise: Scalar) -> Float[Array, "2 ..."]:
    return jnp.stack([outputs[0], jnp.broadcast_to(noise**2, outputs[0].shape)])


def _heteroscedastic_moments(outputs: Float[Array, "2 ..."], _noise: Scalar) -> Float[Array, "2 ..."]:
    log_variance = jnp.clip(outputs[1], -LOG_VARIANCE_BOUND, LOG_VARIANCE_BOUND)
    return jnp.stack([outputs[0], jnp.exp(log_variance)])


def normal_log_density(y: Array, mean: Array, variance: Array) -> Array:
    """Returns log N(y; mean, variance) in nats, elementwise."""
    return -0.5 * (jnp.log(2 * jnp.pi * variance) + (y - mean) ** 2 / variance)


def _normal_log_prob(outputs: Float[Array, " 1"], noise: Scalar, y: Scalar) -> Scalar:
    return normal_log_density(y, *_normal_moments(outputs, noise))


def _heteroscedastic_log_prob(outputs: Float[Array, " 2"], noise: Scalar, y: Scalar) -> Scalar:
    return normal_log_density(y, *_heteroscedastic_moments(outputs, noise))


def _one_per_class(classes: int) -> int:
    return classes


def _one(_classes: int) -> int:
    return 1


def _two(_classes: int) -> int:
    return 2


LIKELIHOODS: dict[LikelihoodName, Likelihood] = {
    "categorical": Likelihood(
        name="categorical",
        task="classification",
        outputs=_one_per_class,
        has_noise=False,
        log_prob=_categorical_log_prob,
        predict=_categorical_log_probabilities,
    ),
    "bernoulli": Likelihood(
        name="bernoulli",
        task="classification",
        outputs=_one,
        has_noise=False,
        log_prob=_bernoulli_log_prob,
        predict=_bernoulli_log_probabilities,
    ),
    "normal": Likelihood(
        name="normal",
        task="regression",
        outputs=_one,
        has_noise=True,
        log_prob=_normal_log_prob,
        predict=_normal_moments,
    ),
    "heteroscedastic_normal": Likelihood(
        name="heteroscedastic_normal",
        task="regression",
        outputs=_two,
        has_noise=False,
        log_prob=_heteroscedastic_log_prob,
        predict=_heteroscedastic_moments,
    ),
}
