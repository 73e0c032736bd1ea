"""The prior over a network's parameters from the config: a distribution for each parameter array.

`[prior]` applies to all of them. `[prior.layers."PATTERN"]` replaces some of its settings for the arrays with a matching
name (`Dense_0.bias`, `*.kernel`, `Dense_?.*`).
"""

from __future__ import annotations

import math
from fnmatch import fnmatchcase
from typing import Any

import jax.numpy as jnp
import numpyro.distributions as dist

from abstain.models.errors import ConfigError
from abstain.training.config.priors import LayerPrior, PriorConfig


def parameter_priors(prior: PriorConfig, shapes: dict[str, tuple[int, ...]]) -> dict[str, LayerPrior]:
    """Returns the prior's settings of each parameter, by name.

    Raises:
        ConfigError: a pattern matches no parameter; the error lists the parameters.
    """
    for pattern in prior.layers:
        if not any(fnmatchcase(name, pattern) for name in shapes):
            raise ConfigError(
                f'prior.layers."{pattern}"',
                expected=f"a parameter of the network, or a pattern: {', '.join(shapes)}",
                found="no match",
            )
    return {name: _prior_of(name, prior) for name in shapes}


def _prior_of(name: str, prior: PriorConfig) -> LayerPrior:
    for pattern, layer in prior.layers.items():
        if fnmatchcase(name, pattern):
            return prior.model_copy(update=layer.model_dump(exclude_unset=True))
    return prior


def distribution(prior: LayerPrior, shape: tuple[int, ...]) -> dist.Distribution:
    """Returns the prior of one parameter array; an inferred scale is replaced by 1, before division by the fan-in."""
    scale = (1.0 if prior.hierarchical else prior.scale) / _fan_in(prior, shape) ** 0.5
    match prior.kind:
        case "normal":
            return dist.Normal(0.0, scale)
        case "cauchy":
            return dist.Cauchy(0.0, scale)
        case "laplace":
            return dist.Laplace(0.0, scale)
        case "student_t":
            return dist.StudentT(prior.degrees, 0.0, scale)
        case "scale_mixture":
            weights = dist.Categorical(jnp.array([prior.narrow_weight, 1 - prior.narrow_weight]))
            return dist.MixtureSameFamily(weights, dist.Normal(0.0, scale * jnp.array([prior.narrow_scale, 1.0])))


def scale_distribution(prior: LayerPrior) -> dist.Distribution:
    """Returns the prior of an inferred scale."""
    return dist.HalfNormal(prior.scale)


def noise_distribution(prior: PriorConfig) -> dist.Distribution:
    """Returns the prior of the noise of the likelihood `normal`, in standard deviations of the target."""
    distributions: dict[str, Any] = {"half_cauchy": dist.HalfCauchy, "half_normal": dist.HalfNormal}
    if prior.noise == "log_normal":
        return dist.LogNormal(0.0, prior.noise_scale)
    return distributions[prior.noise](prior.noise_scale)


def _fan_in(prior: LayerPrior, shape: tuple[int, ...]) -> int:
    return math.prod(shape[:-1]) if prior.fan_in and len(shape) > 1 else 1
