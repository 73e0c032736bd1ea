"""Out-of-distribution scores: one number a row, each growing with strangeness.

Here are those that the ensemble's answer itself gives; `feature_scores.py` has those that were fitted to the training rows.
All are pure functions, and computed inside the compiled call.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Float

from abstain.models.prediction.summaries import ClassificationSummary, PredictiveSummary, RegressionSummary

Scores = dict[str, Float[Array, " batch"]]
GEN_EXPONENT = 0.1
"""γ of the generalised entropy, as its authors have it."""


def largest_std(summary: ClassificationSummary) -> Float[Array, " batch"]:
    """The largest class's standard deviation over draws: max over classes."""
    return summary.std.max(axis=-1)


def predictive_entropy(summary: ClassificationSummary) -> Float[Array, " batch"]:
    """Entropy of the mean probabilities, nats."""
    return summary.entropy


def expected_entropy(summary: ClassificationSummary) -> Float[Array, " batch"]:
    """Mean over draws of the entropy, nats: the aleatoric part (Depeweg et al., 2018)."""
    return summary.aleatoric_entropy


def mutual_information(summary: ClassificationSummary) -> Float[Array, " batch"]:
    """Mutual information of the label and the parameters, nats (BALD; Houlsby et al., 2011)."""
    return summary.mutual_information


def doubt(summary: ClassificationSummary) -> Float[Array, " batch"]:
    """1 − the largest mean probability (Hendrycks & Gimpel, 2017)."""
    return 1 - summary.mean.max(axis=-1)


def generalised_entropy(summary: ClassificationSummary) -> Float[Array, " batch"]:
    """GEN, Σ pᵞ (1 − p)ᵞ over classes (Liu et al., 2023): an entropy that also hears the least probable classes."""
    # Of a sure class 1 − p is the others' sum: the difference would be lost in float32.
    others = summary.mean.sum(axis=-1, keepdims=True) - summary.mean
    largest = summary.mean.argmax(axis=-1)[:, None] == jnp.arange(summary.mean.shape[-1])
    rest = jnp.where(largest, jnp.where(largest, 0.0, summary.mean).sum(axis=-1, keepdims=True), others)
    return (jnp.maximum(summary.mean, 0.0) ** GEN_EXPONENT * jnp.maximum(rest, 0.0) ** GEN_EXPONENT).sum(axis=-1)


def energy(outputs: Float[Array, "draws batch outputs"]) -> Float[Array, " batch"]:
    """Free energy, −log Σ exp(logit), mean over draws (Liu et al., 2020).

    The one logit z of two classes stands for the pair (−z/2, z/2): neither class is then the stranger one.
    """
    last = jnp.swapaxes(outputs, 1, 2)
    logits = jnp.concatenate([-last / 2, last / 2], axis=1) if last.shape[1] == 1 else last
    # As `log_softmax` has it, which is there already: the compiler then takes every exponential once.
    largest = logits.max(axis=1, keepdims=True)
    of_draws = jnp.log(jnp.exp(logits - largest).sum(axis=1)) + largest[:, 0]
    # The share of each draw, for the sum of what float32 holds may be more than it does.
    return -(of_draws / len(logits)).sum(axis=0)


def variation_ratio(log_probabilities: Float[Array, "draws batch classes"]) -> Float[Array, " batch"]:
    """1 − the share of draws that vote for the commonest class (Freeman, 1965); a tie is the first one's."""
    logs = jnp.swapaxes(log_probabilities, 1, 2)
    classes = jnp.arange(logs.shape[1])[:, None]
    # As argmax has it, but many rows at a time.
    first = jnp.where(logs == logs.max(axis=1, keepdims=True), classes, classes.size).min(axis=1, keepdims=True)
    return 1 - (classes == first).mean(axis=0).max(axis=0)


def epistemic_std(summary: RegressionSummary) -> Float[Array, " batch"]:
    """Standard deviation over draws of the mean, in the target's units."""
    return jnp.sqrt(summary.epistemic_variance)


def total_std(summary: RegressionSummary) -> Float[Array, " batch"]:
    """Standard deviation of the predictive distribution, in the target's units."""
    return jnp.sqrt(summary.aleatoric_variance + summary.epistemic_variance)


_OF_CLASSES: dict[str, Callable[[ClassificationSummary], Array]] = {
    "std": largest_std,
    "entropy": predictive_entropy,
    "expected_entropy": expected_entropy,
    "mutual_information": mutual_information,
    "max_probability": doubt,
    "gen": generalised_entropy,
}
_OF_NUMBERS: dict[str, Callable[[RegressionSummary], Array]] = {"std": epistemic_std, "total_std": total_std}

SCORES: dict[Literal["classification", "regression"], tuple[str, ...]] = {
    "classification": (*_OF_CLASSES, "energy", "variation_ratio"),
    "regression": tuple(_OF_NUMBERS),
}
"""The names, by task, of the scores that every ensemble has."""


def scores_of(
    summary: PredictiveSummary,
    log_probabilities: Float[Array, "draws batch parts"],
    outputs: Float[Array, "draws batch outputs"],
) -> Scores:
    """Every score of `SCORES` that the summary's task has, by name.

    Args:
        log_probabilities: what each draw predicts; not looked at for regression.
        outputs: of the network, under each draw; not looked at for regression.
    """
    if isinstance(summary, RegressionSummary):
        return {name: score(summary) for name, score in _OF_NUMBERS.items()}
    return {name: score(summary) for name, score in _OF_CLASSES.items()} | {
        "energy": energy(outputs),
        "variation_ratio": variation_ratio(log_probabilities),
    }
