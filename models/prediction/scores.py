"""Out-of-distribution scores: one number for each row, which is larger for stranger rows.

This module computes scores from the ensemble's predictions; `feature_scores.py` computes those fitted to training
rows. All are pure functions and run inside the compiled call.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Float

from abstain.models.prediction.summaries import ClassificationSummary, PredictiveSummary, RegressionSummary

Scores = dict[str, Float[Array, " batch"]]
GEN_EXPONENT = 0.1
"""γ of the generalised entropy, as in the paper."""


def largest_std(summary: ClassificationSummary) -> Float[Array, " batch"]:
    """Returns the standard deviation over draws, the largest over classes."""
    return summary.std.max(axis=-1)


def predictive_entropy(summary: ClassificationSummary) -> Float[Array, " batch"]:
    """Returns the entropy of the mean probabilities, in nats."""
    return summary.entropy


def expected_entropy(summary: ClassificationSummary) -> Float[Array, " batch"]:
    """Returns the mean over draws of the entropy, in nats: the aleatoric part (Depeweg et al., 2018)."""
    return summary.aleatoric_entropy


def mutual_information(summary: ClassificationSummary) -> Float[Array, " batch"]:
    """Returns the mutual information of label and parameters, in nats (BALD; Houlsby et al., 2011)."""
    return summary.mutual_information


def one_minus_max_probability(summary: ClassificationSummary) -> Float[Array, " batch"]:
    """Returns 1 − the largest mean probability (Hendrycks & Gimpel, 2017)."""
    return 1 - summary.mean.max(axis=-1)


def generalised_entropy(summary: ClassificationSummary) -> Float[Array, " batch"]:
    """Returns GEN, Σ pᵞ (1 − p)ᵞ over classes (Liu et al., 2023): an entropy that also depends on improbable classes."""
    # For the most probable class, 1 − p is computed as the sum of the others: float32 would lose the difference.
    others = summary.mean.sum(axis=-1, keepdims=True) - summary.mean
    largest = summary.mean.argmax(axis=-1)[:, None] == jnp.arange(summary.mean.shape[-1])
    rest = jnp.where(largest, jnp.where(largest, 0.0, summary.mean).sum(axis=-1, keepdims=True), others)
    return (jnp.maximum(summary.mean, 0.0) ** GEN_EXPONENT * jnp.maximum(rest, 0.0) ** GEN_EXPONENT).sum(axis=-1)


def energy(outputs: Float[Array, "draws batch outputs"]) -> Float[Array, " batch"]:
    """Returns the free energy, −log Σ exp(logit), mean over draws (Liu et al., 2020).

    The single logit z of two classes becomes (−z/2, z/2), so that the score treats both classes alike.
    """
    last = jnp.swapaxes(outputs, 1, 2)
    logits = jnp.concatenate([-last / 2, last / 2], axis=1) if last.shape[1] == 1 else last
    # The same formula as in `log_softmax`, so that the compiler computes every exponential only once.
    largest = logits.max(axis=1, keepdims=True)
    per_draw = jnp.log(jnp.exp(logits - largest).sum(axis=1)) + largest[:, 0]
    # Divided before the sum, which may overflow float32.
    return -(per_draw / len(logits)).sum(axis=0)


def variation_ratio(log_probabilities: Float[Array, "draws batch classes"]) -> Float[Array, " batch"]:
    """Returns 1 − the share of draws with the most common label (Freeman, 1965).

    If classes tie within a draw, the first one counts.
    """
    logs = jnp.swapaxes(log_probabilities, 1, 2)
    classes = jnp.arange(logs.shape[1])[:, None]
    # The same as argmax, but vectorised along rows.
    first = jnp.where(logs == logs.max(axis=1, keepdims=True), classes, classes.size).min(axis=1, keepdims=True)
    return 1 - (classes == first).mean(axis=0).max(axis=0)


def epistemic_std(summary: RegressionSummary) -> Float[Array, " batch"]:
    """Returns the standard deviation over draws of the mean, in the target's units."""
    return jnp.sqrt(summary.epistemic_variance)


def total_std(summary: RegressionSummary) -> Float[Array, " batch"]:
    """Returns the standard deviation of the predictive distribution, in the target's units."""
    return jnp.sqrt(summary.aleatoric_variance + summary.epistemic_variance)


_CLASSIFICATION_SCORES: dict[str, Callable[[ClassificationSummary], Array]] = {
    "std": largest_std,
    "entropy": predictive_entropy,
    "expected_entropy": expected_entropy,
    "mutual_information": mutual_information,
    "max_probability": one_minus_max_probability,
    "gen": generalised_entropy,
}
_REGRESSION_SCORES: dict[str, Callable[[RegressionSummary], Array]] = {"std": epistemic_std, "total_std": total_std}

SCORES: dict[Literal["classification", "regression"], tuple[str, ...]] = {
    "classification": (*_CLASSIFICATION_SCORES, "energy", "variation_ratio"),
    "regression": tuple(_REGRESSION_SCORES),
}
"""The names of the scores that every ensemble has, by task."""


def scores_of(
    summary: PredictiveSummary,
    log_probabilities: Float[Array, "draws batch parts"],
    outputs: Float[Array, "draws batch outputs"],
) -> Scores:
    """Computes every score of `SCORES` for the summary's task; returns them by name.

    Args:
        log_probabilities: the prediction of each draw; ignored for regression.
        outputs: the network's outputs for each draw; ignored for regression.
    """
    if isinstance(summary, RegressionSummary):
        return {name: score(summary) for name, score in _REGRESSION_SCORES.items()}
    return {name: score(summary) for name, score in _CLASSIFICATION_SCORES.items()} | {
        "energy": energy(outputs),
        "variation_ratio": variation_ratio(log_probabilities),
    }
