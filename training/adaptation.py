"""What a Hamiltonian sampler learns during its warm-up: a step size, and the scales of the parameters.

The step size follows the acceptance, by dual averaging (Nesterov, 2009; Hoffman & Gelman, 2014, §3.2) or by the simple
rule of Andrieu & Thoms (2008): a hundredth up or down. The inverse mass matrix is the regularised covariance of the
positions in windows of doubling length, Stan's schedule. The pieces are NumPyro's.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from numpyro.infer.hmc_util import build_adaptation_schedule, dual_averaging, welford_covariance

from training.config import Adaptation, MassMatrix

SIMPLE_RATE = 0.01

Scalar = Float[Array, ""]


class StepSize(NamedTuple):
    """The step size now, and what its adaptation remembers."""

    value: Scalar
    memory: Any


class Metric(NamedTuple):
    """The inverse mass matrix (a vector where it is diagonal), and a square root of the mass matrix."""

    inverse: Array
    root: Array

    def velocity(self, momentum: Float[Array, "... dim"]) -> Float[Array, "... dim"]:
        """The inverse mass matrix times a momentum."""
        return self.inverse * momentum if self.inverse.ndim == 1 else momentum @ self.inverse

    def momentum(self, noise: Float[Array, "... dim"]) -> Float[Array, "... dim"]:
        """Standard normal numbers as a momentum."""
        return self.root * noise if self.root.ndim == 1 else noise @ self.root.T


class Windows(NamedTuple):
    """For every step of the warm-up: whether its position counts towards the metric, and whether a window ends."""

    collecting: Array
    ending: Array


def first_step_size(value: float | Scalar) -> StepSize:
    """Adaptation from a first guess; dual averaging tries larger ones first."""
    start = jnp.asarray(value, jnp.float32)
    return StepSize(start, dual_averaging()[0](jnp.log(10 * start)))


def adapt_step_size(size: StepSize, acceptance: Scalar, kind: Adaptation, target: float) -> StepSize:
    """The step size after a transition that was accepted with a probability."""
    match kind:
        case "dual_averaging":
            memory = dual_averaging()[1](target - acceptance, size.memory)
            return StepSize(jnp.exp(memory[0]), memory)
        case "simple":
            factor = jnp.where(acceptance > target, 1 + SIMPLE_RATE, 1 / (1 + SIMPLE_RATE))
            return size._replace(value=size.value * factor)
        case "none":
            return size


def restart_step_size(size: StepSize, kind: Adaptation) -> StepSize:
    """Adaptation anew, from the step size that was reached: the metric has changed."""
    return first_step_size(size.value) if kind == "dual_averaging" else size


def final_step_size(size: StepSize, kind: Adaptation) -> Scalar:
    """What adaptation came to."""
    return jnp.exp(size.memory[1]) if kind == "dual_averaging" else size.value


def unit_metric(dim: int, kind: MassMatrix) -> Metric:
    """Where adaptation starts."""
    unit = jnp.eye(dim) if kind == "dense" else jnp.ones(dim)
    return Metric(unit, unit)


def no_positions(dim: int, kind: MassMatrix) -> Any:
    """A running covariance of nothing yet."""
    return welford_covariance(diagonal=kind != "dense")[0](dim)


def add_position(covariance: Any, position: Float[Array, " dim"], kind: MassMatrix) -> Any:
    """The running covariance with one position more."""
    return welford_covariance(diagonal=kind != "dense")[1](position, covariance)


def metric_of(covariance: Any, kind: MassMatrix) -> Metric:
    """The metric of a running covariance, drawn a little towards the unit matrix, as Stan does."""
    inverse, root, _ = welford_covariance(diagonal=kind != "dense")[2](covariance, regularize=True)
    return Metric(inverse, root)


def windows(warmup: int) -> Windows:
    """Stan's schedule: a fast phase, windows of doubling length, a fast phase."""
    schedule = build_adaptation_schedule(warmup)
    collecting, ending = np.zeros(warmup, bool), np.zeros(warmup, bool)
    for window in schedule[1:-1]:
        collecting[window.start : window.end + 1] = True
        ending[window.end] = True
    return Windows(jnp.asarray(collecting), jnp.asarray(ending))


def where(condition: Array, then: Any, otherwise: Any) -> Any:
    """One of two trees."""
    return jax.tree.map(lambda left, right: jnp.where(condition, left, right), then, otherwise)
