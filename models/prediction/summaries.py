"""The summary of an ensemble's predictions for a batch of rows: its records and their formulas.

The records are NamedTuples, hence pytrees: jit accepts and returns them, and `jax.tree.map` slices and joins them. Axis 0
of every field is the batch.
"""

from __future__ import annotations

import math
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

QUANTILES = (0.025, 0.5, 0.975)
LARGEST_VARIANCE = 1e35
"""In squared units of the target. It replaces larger variances, so that a widened sum of two stays within float32."""
_BISECTIONS = 40


class ClassificationSummary(NamedTuple):
    """Mean and standard deviation over draws of each class's probability; entropies in nats.

    For S draws `std` divides by S, not S − 1: it describes these draws and is √(1 − 1/S) times the unbiased estimate.

    `entropy` = `aleatoric_entropy` + `mutual_information`: the entropy of the mean is the mean of the entropies plus the
    disagreement between the draws (Depeweg et al., 2018).
    """

    mean: Float[Array, "batch classes"]
    std: Float[Array, "batch classes"]
    entropy: Float[Array, " batch"]
    aleatoric_entropy: Float[Array, " batch"]
    mutual_information: Float[Array, " batch"]


class RegressionSummary(NamedTuple):
    """Mean, two parts of the variance, entropy in nats and quantiles of the mixture over draws, in the target's units.

    Law of total variance: aleatoric = mean of the variances, epistemic = variance of the means (with divisor S for S
    draws), so that their sum is the mixture's variance. `entropy` is that of a normal distribution with this variance, an
    upper bound of the mixture's entropy (maximum entropy property).
    """

    mean: Float[Array, " batch"]
    aleatoric_variance: Float[Array, " batch"]
    epistemic_variance: Float[Array, " batch"]
    entropy: Float[Array, " batch"]
    quantiles: Float[Array, "batch quantiles"]


PredictiveSummary = ClassificationSummary | RegressionSummary


def summarise_classification(log_probabilities: Float[Array, "draws batch classes"]) -> ClassificationSummary:
    """Computes mean, std and entropies of an ensemble of categorical predictions.

    Mutual information is the mean divergence of a draw from the mean, E KL(p_s ‖ p̄), which equals H(p̄) − E H(p_s).
    """
    # Rows are the last axis, so that sums over few classes are vectorised along many rows.
    logs = jnp.swapaxes(log_probabilities, 1, 2)
    probabilities = jnp.exp(logs)
    mean = probabilities.mean(axis=0)
    std = probabilities.std(axis=0)
    # If every draw gives a class probability 0, its terms are 0 and must not become 0 · inf.
    log_mean = jnp.log(jnp.maximum(mean, np.finfo(np.float32).tiny))
    finite_log = jnp.where(probabilities > 0, logs, 0.0)
    aleatoric = -(probabilities * finite_log).sum(axis=1).mean(axis=0)
    divergence = jnp.where(probabilities > 0, probabilities * (finite_log - log_mean), 0.0).sum(axis=1)
    information = jnp.maximum(divergence.mean(axis=0), 0.0)
    return ClassificationSummary(mean.T, std.T, aleatoric + information, aleatoric, information)


def with_mean(summary: ClassificationSummary, mean: Float[Array, "batch classes"]) -> ClassificationSummary:
    """Replaces the mean probabilities and recomputes `entropy`; its two parts keep their shares of it.

    A temperature on the pooled probabilities does not change the draws, so `std` does not change.
    """
    entropy = -(mean * jnp.log(jnp.maximum(mean, np.finfo(np.float32).tiny))).sum(axis=-1)
    share = summary.mutual_information / jnp.maximum(summary.entropy, np.finfo(np.float32).tiny)
    information = entropy * jnp.clip(share, 0.0, 1.0)
    return summary._replace(
        mean=mean, entropy=entropy, aleatoric_entropy=entropy - information, mutual_information=information
    )


def with_labels_of(summary: ClassificationSummary, other: ClassificationSummary) -> ClassificationSummary:
    """Returns `other` for the rows with the same most probable class in both summaries, else `summary`."""
    same = summary.mean.argmax(axis=-1) == other.mean.argmax(axis=-1)

    def select(own: Array, others: Array) -> Array:
        return jnp.where(same[:, None] if own.ndim == 2 else same, others, own)

    return ClassificationSummary(*map(select, summary, other))


def summarise_regression(
    means: Float[Array, "draws batch"], variances: Float[Array, "draws batch"]
) -> RegressionSummary:
    """Computes moments, entropy and quantiles of an equally weighted mixture of normal distributions."""
    aleatoric = variances.mean(axis=0)
    epistemic = means.var(axis=0)
    entropy = 0.5 * jnp.log(2 * jnp.pi * jnp.e * (aleatoric + epistemic))
    return RegressionSummary(means.mean(axis=0), aleatoric, epistemic, entropy, mixture_quantiles(means, variances))


def widen(summary: RegressionSummary, factor: float) -> RegressionSummary:
    """Multiplies the standard deviations, and the quantiles' distances from the mean, by a factor."""
    mean = summary.mean[:, None]
    return summary._replace(
        aleatoric_variance=factor**2 * summary.aleatoric_variance,
        epistemic_variance=factor**2 * summary.epistemic_variance,
        entropy=summary.entropy + jnp.log(factor),
        quantiles=mean + factor * (summary.quantiles - mean),
    )


def in_target_units(summary: RegressionSummary, shift: float, scale: float) -> RegressionSummary:
    """Converts a summary of y on the fit's scale to a summary of `shift + scale · y`.

    This is done last, not for each draw: in float32, differences lose a spread of 1 around a mean of a million.
    """
    return RegressionSummary(
        mean=shift + scale * summary.mean,
        aleatoric_variance=scale**2 * summary.aleatoric_variance,
        epistemic_variance=scale**2 * summary.epistemic_variance,
        entropy=summary.entropy + math.log(scale),
        quantiles=shift + scale * summary.quantiles,
    )


def within_float32(summary: RegressionSummary) -> RegressionSummary:
    """Limits the variances to `LARGEST_VARIANCE`, for computations in float32."""
    return summary._replace(
        aleatoric_variance=jnp.minimum(summary.aleatoric_variance, LARGEST_VARIANCE),
        epistemic_variance=jnp.minimum(summary.epistemic_variance, LARGEST_VARIANCE),
    )


def mixture_quantiles(
    means: Float[Array, "draws batch"], variances: Float[Array, "draws batch"]
) -> Float[Array, "batch quantiles"]:
    """Computes `QUANTILES` of an equally weighted mixture of normal distributions by bisection.

    The bracket [min, max over draws of mean ∓ 6 std] contains every quantile between 1e-9 and 1 − 1e-9; after forty
    halvings it is narrower than float32's precision.
    """
    stds = jnp.sqrt(variances)
    levels = jnp.asarray(QUANTILES)[:, None]
    below = jnp.broadcast_to((means - 6 * stds).min(axis=0), (len(QUANTILES), means.shape[1]))
    above = jnp.broadcast_to((means + 6 * stds).max(axis=0), below.shape)

    def halve(_: Array, bracket: tuple[Array, Array]) -> tuple[Array, Array]:
        """Keeps the half of each bracket that contains the quantile."""
        low, high = bracket
        middle = low + 0.5 * (high - low)
        mass = jax.scipy.special.ndtr((middle[:, None] - means) / stds).mean(axis=1)
        return jnp.where(mass < levels, middle, low), jnp.where(mass < levels, high, middle)

    low, high = cast("tuple[Array, Array]", jax.lax.fori_loop(0, _BISECTIONS, halve, (below, above)))
    return jnp.transpose(low + 0.5 * (high - low))
