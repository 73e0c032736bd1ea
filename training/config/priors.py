"""`[prior]`: the priors of the network's parameters and of the noise."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, PositiveFloat, field_serializer

from abstain.training.config.section import Section


class LayerPrior(Section):
    """The prior of some of the network's parameters, independent over them."""

    kind: Literal["normal", "cauchy", "laplace", "student_t", "scale_mixture"] = "normal"
    """The distribution."""
    scale: PositiveFloat = 1.0
    """The standard deviation of the normal, the scale of the others."""
    fan_in: bool = False
    """Whether the scale of a kernel is divided by the square root of its number of inputs."""
    hierarchical: bool = False
    """Whether the scale is inferred as well, one for each parameter array: half-normal, with `scale` as its scale."""
    degrees: PositiveFloat = 3.0
    """Degrees of freedom of `student_t`."""
    narrow_scale: PositiveFloat = 0.05
    """The narrower of the two normals of `scale_mixture` (Blundell et al., 2015), in units of `scale` …"""
    narrow_weight: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """… and its weight."""


class PriorConfig(LayerPrior):
    """The prior of the network's parameters, of some of them by name, and of the noise of `normal`."""

    noise: Literal["half_cauchy", "half_normal", "log_normal"] = "half_cauchy"
    """The prior of the noise's standard deviation."""
    noise_scale: PositiveFloat = 1.0
    """Scale of the noise's prior, in standard deviations of the target; for `log_normal` the scale of its logarithm."""
    layers: dict[str, LayerPrior] = Field(default_factory=dict)
    """Different priors by parameter, `"Dense_0.bias"`, or pattern, `"*.bias"`. The first match counts."""

    @field_serializer("layers")
    def _set_keys(self, layers: dict[str, LayerPrior]) -> dict[str, Any]:
        # Without unset keys: a default in the record of a fit would replace the inherited value.
        return {name: layer.model_dump(exclude_unset=True) for name, layer in layers.items()}
