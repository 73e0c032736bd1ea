"""The Bayesian network: priors over a network's parameters and a likelihood, as the three ingredients of a `Target`.

The parameter tree is `{"network": Flax parameters, "noise": (), "scales": {"Dense_0.kernel": ()}}`; the last two
only if the likelihood has a noise or the prior infers a scale. With an inferred scale s the network's array holds w / s,
and the network gets w = s · (w / s). In this non-centred form the prior's parameters are independent (Papaspiliopoulos et
al., 2007).

With class weights, vectors are parameters of the weighted fit, and draws are networks in which the weights are undone
(`training/inference/class_weights.py`): `draw` and `vector` convert.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Float, Num, PRNGKeyArray

from abstain.models.errors import ConfigError
from abstain.models.networks.architectures import MLP, Network
from abstain.models.prediction.posterior import Draws, Model
from abstain.models.prediction.preprocessing import on_host, transform, transformed_shape
from abstain.training.config.priors import PriorConfig
from abstain.training.data.rows import Rows
from abstain.training.inference.class_weights import Weights, find_output_bias, logit_shift, lower_bias
from abstain.training.inference.priors import distribution, noise_distribution, parameter_priors, scale_distribution
from abstain.training.inference.target import Parameters, Target

NOISE_START = 0.3
"""The noise at the start of a fit, in standard deviations of the target."""


class Observations(NamedTuple):
    """Rows in the form that inference uses: preprocessed inputs, and class indices or standardised numbers as targets."""

    x: Float[Array, "rows ..."]
    y: Num[Array, " rows"]

    def head(self, rows: int) -> Observations:
        """Returns the first rows."""
        return Observations(self.x[:rows], self.y[:rows])

    def take(self, indices: Array) -> Observations:
        """Returns the rows at some indices."""
        return Observations(self.x[indices], self.y[indices])


@dataclass(frozen=True, eq=False)
class BNN:
    """A model and the prior over its parameters.

    Attributes:
        class_weights: what the log density of a row is multiplied by, for each class; None for 1.
    """

    model: Model
    prior: PriorConfig
    class_weights: Weights | None = None

    def __post_init__(self) -> None:
        """Finds the bias by which class weights are undone.

        Raises:
            ConfigError: the network has no such bias.
        """
        # Not when it is first used: that is within compiled functions, which cannot try it.
        if self.class_weights is not None:
            _ = self.output_bias

    @cached_property
    def target(self) -> Target:
        """The posterior over the tree of parameters.

        Raises:
            ConfigError: the prior names a parameter that the network does not have.
        """
        whole = self.model.parameter_shapes()
        leaves: dict[str, Any] = flatten_dict(whole["network"], sep=".")
        arrays: dict[str, tuple[int, ...]] = {name: leaf.shape for name, leaf in leaves.items()}
        priors = parameter_priors(self.prior, arrays)
        distributions: dict[str, Any] = {name: distribution(priors[name], shape) for name, shape in arrays.items()}
        trees: dict[str, Any] = {"network": unflatten_dict(distributions, sep=".")}
        shapes: dict[str, Any] = {"network": unflatten_dict(arrays, sep=".")}
        if "noise" in whole:
            trees["noise"], shapes["noise"] = noise_distribution(self.prior), ()
        scales = {name: scale_distribution(prior) for name, prior in priors.items() if prior.hierarchical}
        if scales:
            trees["scales"], shapes["scales"] = scales, dict.fromkeys(scales, ())
        return Target(trees, self._weighted_log_likelihood, shapes)

    def _weighted_log_likelihood(self, parameters: Parameters, rows: Observations) -> Float[Array, " rows"]:
        log_probs = log_likelihood(self.model, as_draw(parameters), rows)
        return log_probs if self.class_weights is None else self.row_weights(rows.y) * log_probs

    def row_weights(self, y: Num[Array, " rows"]) -> Float[Array, " rows"]:
        """Returns what the log density of each row is multiplied by, for its target."""
        if self.class_weights is None:
            return jnp.ones(y.shape)
        return jnp.asarray(self.class_weights, jnp.float32)[y.astype(jnp.int32)]

    @cached_property
    def output_bias(self) -> str:
        """The path of the bias by which class weights are undone."""
        return find_output_bias(self.model)

    def start(self, key: PRNGKeyArray) -> Float[Array, " dim"]:
        """Returns the network's own initialisation as a vector; the noise is `NOISE_START`, inferred scales are 1."""
        shape = transformed_shape(self.model.preprocessing, self.model.feature_shape)
        network = self.model.module.init(key, jnp.zeros(shape, jnp.float32))["params"]
        parameters: dict[str, Any] = {"network": jax.tree.map(jnp.asarray, network)}
        if "noise" in self.target.shapes:
            parameters["noise"] = jnp.float32(NOISE_START)
        if "scales" in self.target.shapes:
            parameters["scales"] = dict.fromkeys(self.target.shapes["scales"], jnp.float32(1))
        return self.target.unconstrain(parameters)

    def vector(self, draw: Draws) -> Float[Array, " dim"]:
        """Returns the vector of a draw from an earlier posterior of the same network.

        Raises:
            ConfigError: the prior infers scales, which a draw does not hold.
        """
        if "scales" in self.target.shapes:
            raise ConfigError(
                "start",
                expected="a prior without inferred scales",
                found="prior.hierarchical",
                fix="choose another start",
            )
        return self.target.unconstrain(self._shift_logits(draw, -1))

    def draw(self, z: Float[Array, " dim"]) -> Draws:
        """Converts a vector to a draw: the network that is served, with class weights undone."""
        return self._shift_logits(as_draw(self.target.constrain(z)), 1)

    def _shift_logits(self, draw: Draws, sign: int) -> Draws:
        """Returns a draw with the class weights undone; with `sign` −1, with the weights as in the fit."""
        if self.class_weights is None:
            return draw
        shift = jnp.asarray(sign * logit_shift(self.model, self.class_weights), jnp.float32)
        return {**draw, "network": lower_bias(draw["network"], self.output_bias, shift)}

    def draws(self, z: Float[np.ndarray, "draws dim"]) -> Draws:
        """Converts vectors to draws of a posterior: numpy leaves of float32, sample axis 0."""
        return jax.device_get(jax.jit(jax.vmap(self.draw))(jnp.asarray(z)))


def as_draw(parameters: Parameters) -> Draws:
    """Returns the parameters of network and likelihood, multiplied by the inferred scales."""
    draw = {name: leaf for name, leaf in parameters.items() if name != "scales"}
    scales = parameters.get("scales", {})
    if scales:
        arrays = flatten_dict(draw["network"], sep=".")
        scaled = {name: leaf * scales.get(name, 1.0) for name, leaf in arrays.items()}
        draw["network"] = unflatten_dict(scaled, sep=".")
    return draw


def log_likelihood(model: Model, draw: Draws, observations: Observations) -> Float[Array, " rows"]:
    """Returns the log density of each target under one draw, in nats."""
    noise, module = draw.get("noise", jnp.float32(0)), network(model)

    def of_row(x: Array, y: Array) -> Array:
        outputs: Any = module.apply({"params": draw["network"]}, x)
        return model.likelihood_functions.log_prob(outputs, noise, y)

    return jax.vmap(of_row)(observations.x, observations.y)


def network(model: Model) -> Network:
    """Returns the network in the memory layout of inference: many rows, few units, several chains."""
    module = model.module
    return module.clone(rows_last=True) if isinstance(module, MLP) else module


def observe(model: Model, rows: Rows) -> Observations:
    """Preprocesses rows once for all gradients, in pieces, so that the rows are in memory only once."""
    prepare = jax.jit(
        lambda x: jax.lax.map(lambda row: transform(model.preprocessing, row.astype(jnp.float32)), x, batch_size=4096)
    )
    targets = rows.y
    if model.likelihood_functions.task == "regression":
        targets = ((rows.y - model.preprocessing.target_shift) / model.preprocessing.target_scale).astype(np.float32)
    # Wider numbers are converted here, because jax would first copy them.
    x = on_host(model.preprocessing, rows.x)
    x = x if x.dtype.itemsize <= 4 else x.astype(np.float32)
    return Observations(prepare(x), jnp.asarray(targets))
