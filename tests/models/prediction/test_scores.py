"""Scores: their names, their formulas, and that they grow with strangeness."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from abstain.models.prediction.scores import SCORES, energy, generalised_entropy, scores_of, variation_ratio
from abstain.models.prediction.summaries import (
    ClassificationSummary,
    RegressionSummary,
    summarise_classification,
    summarise_regression,
)

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


OUTPUTS = np.array([[[2.0, 1.0, 0.0], [0.0, 0.0, 0.0]], [[0.0, 3.0, 0.0], [1.0, 0.5, 0.0]]], np.float32)
"""Of two draws for two rows; the draws disagree about the first and, but for a tie, not about the second."""


def scored(summary, outputs=OUTPUTS):
    """Every score of a summary, numpy."""
    outputs = jnp.asarray(outputs)
    log_probabilities = jax.nn.log_softmax(outputs, axis=-1)
    return jax.tree.map(np.asarray, scores_of(jax.tree.map(jnp.asarray, summary), log_probabilities, outputs))


def test_class_scores_by_hand():
    """Every score of classification, by its public name, as the contract and the papers define it."""
    p = CLASSES.mean.astype(np.float64)
    expected = {
        "std": [0.3, 0.05],
        "entropy": [0.8, 1.08],
        "expected_entropy": [0.6, 1.0],
        "mutual_information": [0.2, 0.08],
        "max_probability": [0.3, 0.6],
        "gen": (p**0.1 * (1 - p) ** 0.1).sum(axis=1),
        "energy": -np.log(np.exp(OUTPUTS.astype(np.float64)).sum(axis=-1)).mean(axis=0),
        "variation_ratio": [0.5, 0.0],
    }
    found = scored(CLASSES)
    assert set(found) == set(expected)
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-6, atol=1e-7, err_msg=name)


def test_regression_scores_by_hand():
    """The epistemic and the total standard deviation, and no score of classes."""
    found = scored(NUMBERS)
    assert list(found) == ["std", "total_std"]
    np.testing.assert_allclose(found["std"], [0.3, 2.0], rtol=1e-6)
    np.testing.assert_allclose(found["total_std"], [0.5, 5**0.5], rtol=1e-6)


def test_the_names_are_the_literatures():
    """A score's name is public: in requests, answers, metrics and manifests."""
    ensembles = {"std", "entropy", "expected_entropy", "mutual_information", "max_probability"}
    assert {task: set(names) for task, names in SCORES.items()} == {
        "classification": ensembles | {"gen", "energy", "variation_ratio"},
        "regression": {"std", "total_std"},
    }


def gen(mean):
    """The generalised entropy of one row."""
    mean = np.asarray([mean], np.float32)
    zeros = np.zeros(1, np.float32)
    return float(generalised_entropy(ClassificationSummary(mean, np.zeros_like(mean), zeros, zeros, zeros))[0])


def test_the_generalised_entropy_of_certainty_is_zero():
    """Probabilities of exactly 1 and 0: nothing is left to be unsure of, and nothing is no number."""
    assert gen([1, 0, 0]) == 0
    assert gen([0, 1]) == 0


def test_the_generalised_entropy_hears_what_float32_would_round_off():
    """A sure class's 1 − p is the sum of the others, be it 1e-12: against the formula in exact numbers."""
    for rest in (1e-3, 1e-6, 1e-9, 1e-12, 1e-30):
        others = [rest, rest / 2, 0.0]
        # 1 − p of the sure class is 1.5 rest, and of the others as good as 1.
        expected = (1.5 * rest) ** 0.1 + sum(p**0.1 for p in others)
        assert gen([1 - 1.5 * rest, *others]) == pytest.approx(expected, rel=2e-3)


def test_the_generalised_entropy_is_largest_for_a_flat_row():
    """10 · (0.1 · 0.9)^0.1 for ten classes alike, and less for any other row."""
    flat = gen(np.full(10, 0.1))
    assert flat == pytest.approx(10 * 0.09**0.1, rel=1e-6)
    rng = np.random.default_rng(0)
    assert all(gen(rng.dirichlet(np.full(10, width))) < flat for width in (0.01, 0.1, 1, 10, 100))


def test_the_energy_of_huge_logits_is_finite():
    """log-sum-exp does not overflow: the energy of ±1e30 is ∓1e30."""
    outputs = jnp.asarray([[[1e30, 0.0], [-1e30, -1e30]]], jnp.float32)
    np.testing.assert_allclose(energy(outputs), [-1e30, 1e30], rtol=1e-6)


@pytest.mark.parametrize("logit", [0.0, 0.3, 4.0, 80.0])
def test_one_logit_of_two_classes_has_no_stranger_class(logit):
    """One logit z stands for (−z/2, z/2): −log(2 cosh z/2), the same for either class, and largest where they tie."""
    found = energy(jnp.asarray([[[logit], [-logit]]], jnp.float32))
    np.testing.assert_allclose(found, -(logit / 2 + np.log1p(np.exp(-logit))), rtol=1e-6)


def test_the_variation_ratio_counts_votes():
    """Of five draws, 5, 4, 3 and 2 vote for the commonest class."""
    votes = np.array([[1, 1, 1, 1, 1], [0, 1, 1, 1, 1], [2, 2, 2, 0, 1], [0, 0, 1, 1, 2]])
    found = variation_ratio(jnp.log(jnp.asarray(np.eye(3)[votes.T] * 0.8 + 0.1, jnp.float32)))
    np.testing.assert_allclose(found, [0.0, 0.2, 0.4, 0.6], atol=1e-6)


def test_class_scores_grow_as_draws_come_to_disagree():
    """Draws that agree on a class, that waver, and that contradict each other: each score ascends."""
    agreeing = [[0.98, 0.01, 0.01]] * 4
    wavering = [[0.9, 0.05, 0.05], [0.8, 0.1, 0.1], [0.7, 0.2, 0.1], [0.8, 0.15, 0.05]]
    contradicting = [[0.9, 0.05, 0.05], [0.05, 0.9, 0.05], [0.05, 0.05, 0.9], [0.4, 0.3, 0.3]]
    probabilities = jnp.asarray(np.stack([agreeing, wavering, contradicting], axis=1), jnp.float32)
    found = scored(summarise_classification(jnp.log(probabilities)), jnp.log(probabilities))
    for name in SCORES["classification"]:
        if name == "energy":  # That of logits that are log probabilities is 0, whatever they are.
            np.testing.assert_allclose(found[name], 0, atol=1e-6)
        elif name == "variation_ratio":
            np.testing.assert_allclose(found[name], [0, 0, 0.5], atol=1e-6)
        elif name == "expected_entropy":  # Draws that contradict each other may each be sure.
            assert found[name][0] + 0.01 < found[name][1]
        else:
            assert np.all(np.diff(found[name]) > 0.01), name


def test_regression_scores_grow_as_draws_come_to_disagree():
    """Draws with diverging means and equal noise: both scores ascend, in the target's units."""
    spread = np.array([0.0, 1.0, 5.0], np.float32)
    means = jnp.asarray([[-1], [0], [1]], jnp.float32) * spread
    found = scored(summarise_regression(means, jnp.full_like(means, 0.25)), means[..., None])
    np.testing.assert_allclose(found["std"], np.sqrt(2 / 3) * spread, rtol=1e-6)
    np.testing.assert_allclose(found["total_std"], np.sqrt(0.25 + 2 / 3 * spread**2), rtol=1e-6)
