"""Out-of-distribution scores: one number a row, each growing with strangeness.

A score is a pure function of the row's `PredictiveSummary`; all are computed inside the compiled call.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Float

from models.summaries import ClassificationSummary, PredictiveSummary, RegressionSummary

Score = Callable[..., Float[Array, " batch"]]


def largest_std(summary: ClassificationSummary) -> Float[Array, " batch"]:
    """The largest class's standard deviation over draws: max over classes."""
    return summary.std.max(axis=-1)


def predictive_entropy(summary: ClassificationSummary) -> Float[Array, " batch"]:
    """Entropy of the mean probabilities, nats."""
    return summary.entropy


def mutual_information(summary: ClassificationSummary) -> Float[Array, " batch"]:
    """Mutual information of the label and the parameters, nats (BALD; Houlsby et al., 2011)."""
    return summary.mutual_information


def doubt(summary: ClassificationSummary) -> Float[Array, " batch"]:
    """1 − the largest mean probability (Hendrycks & Gimpel, 2017)."""
    return 1 - summary.mean.max(axis=-1)


def epistemic_std(summary: RegressionSummary) -> Float[Array, " batch"]:
    """Standard deviation over draws of the mean, in the target's units."""
    return jnp.sqrt(summary.epistemic_variance)


def total_std(summary: RegressionSummary) -> Float[Array, " batch"]:
    """Standard deviation of the predictive distribution, in the target's units."""
    return jnp.sqrt(summary.aleatoric_variance + summary.epistemic_variance)


SCORES: dict[Literal["classification", "regression"], dict[str, Score]] = {
    "classification": {
        "std": largest_std,
        "entropy": predictive_entropy,
        "mutual_information": mutual_information,
        "max_probability": doubt,
    },
    "regression": {"std": epistemic_std, "total_std": total_std},
}


def scores_of(summary: PredictiveSummary) -> dict[str, Float[Array, " batch"]]:
    """Every score that the summary's task has, by name."""
    task = "classification" if isinstance(summary, ClassificationSummary) else "regression"
    return {name: score(summary) for name, score in SCORES[task].items()}
