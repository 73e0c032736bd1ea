"""Scores: their names, their formulas, and that they grow with strangeness."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.scores import SCORES, scores_of
from models.summaries import ClassificationSummary, RegressionSummary, summarise_classification, summarise_regression

CLASSES = ClassificationSummary(
    mean=np.array([[0.7, 0.2, 0.1], [0.4, 0.3, 0.3]], np.float32),
    std=np.array([[0.1, 0.3, 0.2], [0.0, 0.05, 0.01]], np.float32),
    entropy=np.array([0.8, 1.08], np.float32),
    aleatoric_entropy=np.array([0.6, 1.0], np.float32),
    mutual_information=np.array([0.2, 0.08], np.float32),
)
NUMBERS = RegressionSummary(
    mean=np.array([1.0, 2.0], np.float32),
    aleatoric_variance=np.array([0.16, 1.0], np.float32),
    epistemic_variance=np.array([0.09, 4.0], np.float32),
    entropy=np.array([0.0, 1.0], np.float32),
    quantiles=np.zeros((2, 3), np.float32),
)


@pytest.mark.parametrize(
    ("summary", "expected"),
    [
        (
            CLASSES,
            {
                "std": [0.3, 0.05],
                "entropy": [0.8, 1.08],
                "mutual_information": [0.2, 0.08],
                "max_probability": [0.3, 0.6],
            },
        ),
        (NUMBERS, {"std": [0.3, 2.0], "total_std": [0.5, 5**0.5]}),
    ],
    ids=["classification", "regression"],
)
def test_scores_by_hand(summary, expected):
    """Every score of a task, by its public name, as the contract defines it."""
    found = scores_of(jax.tree.map(jnp.asarray, summary))
    assert list(found) == list(expected)
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-6, err_msg=name)


def test_the_names_are_the_contracts():
    """A score's name is public: in requests, answers, metrics and manifests."""
    assert {task: set(scores) for task, scores in SCORES.items()} == {
        "classification": {"std", "entropy", "mutual_information", "max_probability"},
        "regression": {"std", "total_std"},
    }


def test_class_scores_grow_as_draws_come_to_disagree():
    """Draws that agree on a class, that waver, and that contradict each other: each score ascends."""
    agreeing = [[0.98, 0.01, 0.01]] * 4
    wavering = [[0.9, 0.05, 0.05], [0.8, 0.1, 0.1], [0.7, 0.2, 0.1], [0.8, 0.15, 0.05]]
    contradicting = [[0.9, 0.05, 0.05], [0.05, 0.9, 0.05], [0.05, 0.05, 0.9], [0.4, 0.3, 0.3]]
    probabilities = jnp.asarray(np.stack([agreeing, wavering, contradicting], axis=1), jnp.float32)
    for name, values in scores_of(summarise_classification(jnp.log(probabilities))).items():
        assert np.all(np.diff(values) > 0.01), name


def test_regression_scores_grow_as_draws_come_to_disagree():
    """Draws whose means part, at one noise: both scores ascend, in the target's units."""
    spread = np.array([0.0, 1.0, 5.0], np.float32)
    means = jnp.asarray([[-1], [0], [1]], jnp.float32) * spread
    found = scores_of(summarise_regression(means, jnp.full_like(means, 0.25)))
    np.testing.assert_allclose(found["std"], np.sqrt(2 / 3) * spread, rtol=1e-6)
    np.testing.assert_allclose(found["total_std"], np.sqrt(0.25 + 2 / 3 * spread**2), rtol=1e-6)
