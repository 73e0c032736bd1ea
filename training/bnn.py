"""The Bayesian network: priors over a network's parameters, and a likelihood, as a NumPyro model.

Sites are named by the parameter's path, `network.Dense_0.kernel`; the noise of `normal` is the site `noise`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Float, Num, PRNGKeyArray

from models.posterior import Draws, Model
from models.preprocessing import transform, transformed_shape
from training.config import PriorConfig
from training.rows import Rows

Sites = dict[str, Any]
"""Arrays, of jax or numpy, by site."""


@dataclass(frozen=True)
class BNN:
    """A model and the prior over its parameters."""

    model: Model
    prior: PriorConfig


class Observations(NamedTuple):
    """Rows as inference sees them: preprocessed inputs, and targets as class indices or standardised numbers."""

    x: Float[Array, "rows ..."]
    y: Num[Array, " rows"]


def observe(model: Model, rows: Rows) -> Observations:
    """Preprocessed once, so that no gradient does it again."""
    prepare = jax.jit(jax.vmap(partial(transform, model.preprocessing)))
    chunks = [
        np.asarray(prepare(rows.x[start : start + 4096].astype(np.float32))) for start in range(0, len(rows), 4096)
    ]
    targets = rows.y
    if model.law.task == "regression":
        targets = ((rows.y - model.preprocessing.target_shift) / model.preprocessing.target_scale).astype(np.float32)
    return Observations(jnp.asarray(np.concatenate(chunks)), jnp.asarray(targets))


def prior_sites(bnn: BNN) -> dict[str, dist.Distribution]:
    """The prior of every site: normals over the network, a half-Cauchy over the noise."""
    shapes = flatten_dict(bnn.model.parameter_shapes(), sep=".")
    return {
        site: dist.HalfCauchy(bnn.prior.noise_scale)
        if site == "noise"
        else dist.Normal(jnp.zeros(shape.shape), _prior_std(bnn.prior, shape.shape)).to_event(len(shape.shape))
        for site, shape in shapes.items()
    }


def _prior_std(prior: PriorConfig, shape: tuple[int, ...]) -> float:
    fan_in = int(np.prod(shape[:-1])) if prior.fan_in and len(shape) > 1 else 1
    return prior.scale / fan_in**0.5


def log_likelihood(model: Model, draw: Draws, observations: Observations) -> Float[Array, " rows"]:
    """Log density in nats of each target under one draw."""
    noise = draw.get("noise", jnp.float32(0))

    def of_row(x: Array, y: Array) -> Array:
        return model.law.log_prob(model.module.apply({"params": draw["network"]}, x), noise, y)

    return jax.vmap(of_row)(observations.x, observations.y)


def numpyro_model(
    bnn: BNN, observations: Observations, total_rows: int | None = None, prior_weight: float = 1.0
) -> None:
    """The joint density.

    Args:
        total_rows: what the likelihood of a minibatch is scaled up to; the rows observed if None.
        prior_weight: multiplies the log prior; with the guide's entropy weighted alike, the weight of the KL term.
    """
    with numpyro.handlers.scale(scale=prior_weight):
        sites = {site: numpyro.sample(site, prior) for site, prior in prior_sites(bnn).items()}
    log_probs = log_likelihood(bnn.model, as_draws(sites), observations)
    rows = len(observations.y)
    numpyro.factor("log_likelihood", log_probs.sum() * ((total_rows or rows) / rows))


def network_start(bnn: BNN, key: PRNGKeyArray) -> Sites:
    """A start for inference: the network's own initialisation, and a third of the target's spread as noise."""
    shape = transformed_shape(bnn.model.preprocessing, bnn.model.feature_shape)
    draw: dict[str, Any] = {"network": bnn.model.module.init(key, jnp.zeros(shape, jnp.float32))["params"]}
    if bnn.model.law.has_noise:
        draw["noise"] = jnp.float32(0.3)
    return as_sites(draw)


def as_draws(sites: Sites) -> Draws:
    """Sites as the tree that a posterior holds."""
    return unflatten_dict(sites, sep=".")


def as_sites(draws: Draws) -> Sites:
    """The tree that a posterior holds, as sites."""
    return flatten_dict(draws, sep=".")
