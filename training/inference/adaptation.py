"""The warm-up of a Hamiltonian sampler: it adapts the step size and the scales of the parameters.

The step size follows the acceptance, by stochastic approximation with averaged iterates (`dual_averaging`) or by the
simple rule of Andrieu & Thoms (2008): a hundredth up or down (`simple`). The inverse mass matrix is the regularised
covariance of the positions in windows of doubling length, Stan's schedule.

Stan's and NumPyro's constants for dual averaging (Hoffman & Gelman, 2014, §3.2) move log ε by 20 / √t times the error of
one acceptance, which is half a unit or more even after fifty transitions. The average of these large moves is far below
the step size with the target acceptance, because acceptance falls more steeply than it rises: a target of .8 gave .94 in
two dimensions and .88 in fifty. Here the iterates take Robbins and Monro's steps without a fixed centre,

    log ε ← log ε + γ (acceptance − target),    γ = GAIN · (1 + turns)^−DECAY,

with a tenth of that gain, which falls only when the error changes its sign (Kesten, 1958), so that a bad start is left
quickly; the result is their average (Polyak & Juditsky, 1992). `benchmarks/adaptation.py` prints the acceptance reached.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from numpyro.infer.hmc_util import build_adaptation_schedule, welford_covariance

from abstain.training.config.methods import Adaptation, MassMatrix

SIMPLE_RATE = 0.01
GAIN, DECAY = 2.0, 0.75
"""The gain of the log step size per unit of acceptance: GAIN · (1 + k)^−DECAY after k changes of sign."""
FORGETTING = 0.75
"""The weight of the t-th iterate in the average is t^−FORGETTING."""
LOG_RANGE = (-80.0, 80.0)
"""Limits of the log step size, within which float32 can represent the step size."""

Scalar = Float[Array, ""]


class DualAveraging(NamedTuple):
    """The state of dual averaging."""

    average: Scalar
    """The average log step size over the latest transitions."""
    transitions: Scalar
    turns: Scalar
    """The number of times that the sign of acceptance − target has changed."""
    side: Scalar
    """The sign of the last acceptance − target: −1, 0 at the start, or 1."""


class StepSize(NamedTuple):
    """The current step size and the memory of its adaptation."""

    value: Scalar
    memory: Any


class Metric(NamedTuple):
    """The inverse mass matrix (a vector if it is diagonal), and a square root of the mass matrix."""

    inverse: Array
    root: Array

    def velocity(self, momentum: Float[Array, "... dim"]) -> Float[Array, "... dim"]:
        """Returns the inverse mass matrix times a momentum."""
        return self.inverse * momentum if self.inverse.ndim == 1 else momentum @ self.inverse

    def momentum(self, noise: Float[Array, "... dim"]) -> Float[Array, "... dim"]:
        """Converts standard normal numbers to a momentum."""
        return self.root * noise if self.root.ndim == 1 else noise @ self.root.T


class Windows(NamedTuple):
    """For every step of the warm-up: whether its position counts towards the metric, and whether a window ends."""

    collecting: Array
    ending: Array


def first_step_size(value: float | Scalar) -> StepSize:
    """Starts adaptation from a first guess."""
    start, zero = jnp.asarray(value, jnp.float32), jnp.float32(0)
    return StepSize(start, DualAveraging(jnp.log(start), zero, zero, zero))


def adapt_step_size(size: StepSize, acceptance: Scalar, kind: Adaptation, target: float) -> StepSize:
    """Adapts the step size after a transition with this acceptance probability."""
    match kind:
        case "dual_averaging":
            return _update_average(size, acceptance - target)
        case "simple":
            factor = jnp.where(acceptance > target, 1 + SIMPLE_RATE, 1 / (1 + SIMPLE_RATE))
            return size._replace(value=size.value * factor)
        case "none":
            return size


def _update_average(size: StepSize, excess: Scalar) -> StepSize:
    memory, side = size.memory, jnp.sign(excess)
    transitions = memory.transitions + 1
    turns = memory.turns + (side * memory.side < 0)
    log = jnp.log(size.value) + GAIN * (1 + turns) ** -DECAY * excess
    log = jnp.clip(log, *LOG_RANGE)
    weight = transitions**-FORGETTING
    average = (1 - weight) * memory.average + weight * log
    return StepSize(jnp.exp(log), DualAveraging(average, transitions, turns, side))


def restart_step_size(size: StepSize, before: Metric, after: Metric, kind: Adaptation) -> StepSize:
    """Restarts adaptation for a new metric, from a step that is as long as before in the fastest direction."""
    if kind != "dual_averaging":
        return size
    return first_step_size(final_step_size(size, kind) * step_size_ratio(before, after))


def step_size_ratio(before: Metric, after: Metric) -> Scalar:
    """Returns the step size of the new metric over that of the old one, if the new one is the posterior's covariance.

    The largest stable step is 2 / ω, where ω² is the largest eigenvalue of M⁻¹Σ⁻¹: 1 if M⁻¹ = Σ.
    """
    if after.inverse.ndim == 1:
        return jnp.sqrt((before.inverse / after.inverse).max())
    return jnp.sqrt(jnp.linalg.eigvalsh(after.root.T @ before.inverse @ after.root)[-1])


def final_step_size(size: StepSize, kind: Adaptation) -> Scalar:
    """Returns the step size at the end of adaptation."""
    return jnp.exp(size.memory.average) if kind == "dual_averaging" else size.value


def unit_metric(dim: int, kind: MassMatrix) -> Metric:
    """Returns the first metric, the identity."""
    unit = jnp.eye(dim) if kind == "dense" else jnp.ones(dim)
    return Metric(unit, unit)


def no_positions(dim: int, kind: MassMatrix) -> Any:
    """Returns a running covariance without positions."""
    return welford_covariance(diagonal=kind != "dense")[0](dim)


def add_position(covariance: Any, position: Float[Array, " dim"], kind: MassMatrix) -> Any:
    """Adds a position to the running covariance."""
    return welford_covariance(diagonal=kind != "dense")[1](position, covariance)


def metric_of(covariance: Any, kind: MassMatrix) -> Metric:
    """Returns the metric of a running covariance, shrunk a little towards the identity, as Stan does."""
    inverse, root, _ = welford_covariance(diagonal=kind != "dense")[2](covariance, regularize=True)
    return Metric(jnp.asarray(inverse), jnp.asarray(root))


def windows(warmup: int) -> Windows:
    """Returns Stan's schedule: a fast phase, windows of doubling length, and another fast phase."""
    schedule = build_adaptation_schedule(warmup)
    collecting, ending = np.zeros(warmup, bool), np.zeros(warmup, bool)
    for window in schedule[1:-1]:
        collecting[window.start : window.end + 1] = True
        ending[window.end] = True
    return Windows(jnp.asarray(collecting), jnp.asarray(ending))


def where(condition: Array, then: Any, otherwise: Any) -> Any:
    """Selects one of two trees by a condition."""
    return jax.tree.map(lambda left, right: jnp.where(condition, left, right), then, otherwise)
