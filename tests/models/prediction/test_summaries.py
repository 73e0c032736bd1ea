"""Summaries against numpy and scipy in float64: the entropies, the variances and the mixture's quantiles."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize, special, stats

from abstain.models.prediction.summaries import QUANTILES, summarise_classification, summarise_regression


def ensemble(draws=40, rows=30, classes=5, spread=2.0, seed=0):
    """Logits of an ensemble `[draws, rows, classes]`, float64, rows from certain to undecided."""
    rng = np.random.default_rng(seed)
    common = rng.normal(0, 3, (1, rows, classes)) * np.linspace(0, 3, rows)[None, :, None]
    return common + rng.normal(0, spread, (draws, rows, classes))


def expected_of(logits):
    """Mean, std, entropy, aleatoric entropy and mutual information by their definitions, float64."""
    probabilities = special.softmax(logits, axis=-1)
    mean = probabilities.mean(axis=0)
    entropy = stats.entropy(mean, axis=-1)
    aleatoric = stats.entropy(probabilities, axis=-1).mean(axis=0)
    return mean, probabilities.std(axis=0), entropy, aleatoric, entropy - aleatoric


def summary_of(logits):
    """`summarise_classification` of logits' float32 log softmax."""
    return summarise_classification(jnp.asarray(special.log_softmax(logits, axis=-1), jnp.float32))


@pytest.mark.parametrize(("draws", "classes"), [(1, 2), (2, 3), (40, 5), (300, 10)])
def test_class_summaries_are_their_definitions(draws, classes):
    """Every field, for few and many draws and classes, within float32's rounding of scipy's float64."""
    logits = ensemble(draws=draws, classes=classes)
    for found, expected in zip(summary_of(logits), expected_of(logits), strict=True):
        np.testing.assert_allclose(found, expected, atol=2e-6)


def test_entropy_is_its_two_parts():
    """H(mean) = mean of H + mutual information, to the last bit of what is served."""
    summary = summary_of(ensemble())
    np.testing.assert_array_equal(summary.entropy, summary.aleatoric_entropy + summary.mutual_information)


@pytest.mark.parametrize("spread", [0.0, 1e-6, 1e-3, 1.0, 30.0])
def test_mutual_information_is_never_negative(spread):
    """Draws that agree, or nearly so, leave no negative rest behind."""
    summary = summary_of(ensemble(spread=spread, rows=200, classes=10))
    assert np.all(np.asarray(summary.mutual_information) >= 0)
    assert np.all(np.asarray(summary.mutual_information) <= np.log(10) + 1e-6)


def test_small_mutual_information_is_not_lost_in_rounding():
    """Draws that differ by a hundredth: information below 1e-4 nats is right to 1 % of the largest."""
    logits = ensemble(spread=1e-2, rows=100, classes=10)
    found, expected = summary_of(logits).mutual_information, expected_of(logits)[-1]
    np.testing.assert_allclose(found, expected, atol=0.01 * expected.max())
    assert expected.max() < 1e-4


def test_draws_that_agree_know_all_there_is_to_know():
    """One distribution, many times: its own entropy, no spread, no information to gain."""
    logits = np.repeat(ensemble(draws=1), 20, axis=0)
    summary = summary_of(logits)
    np.testing.assert_allclose(summary.aleatoric_entropy, expected_of(logits)[2], atol=1e-6)
    np.testing.assert_allclose(summary.mutual_information, 0, atol=5e-7)
    np.testing.assert_allclose(summary.std, 0, atol=5e-7)


@pytest.mark.parametrize("certain", [200.0, 1e4, np.inf])
def test_saturated_draws_that_agree_have_no_entropy(certain):
    """Probabilities of exactly 0 and 1, log probabilities down to −∞: zeros, never NaN."""
    log_probabilities = np.full((10, 2, 3), -certain, np.float32)
    log_probabilities[:, :, 1] = 0
    summary = summarise_classification(jnp.asarray(log_probabilities))
    np.testing.assert_array_equal(summary.mean, [[0, 1, 0]] * 2)
    for field in summary[1:]:
        np.testing.assert_array_equal(field, np.zeros_like(field))


@pytest.mark.parametrize("certain", [200.0, np.inf])
def test_saturated_draws_that_disagree_hold_all_the_information(certain):
    """Half the draws certain of one class, half of another: one bit, all of it mutual information."""
    log_probabilities = np.full((10, 1, 4), -certain, np.float32)
    log_probabilities[:5, :, 0] = log_probabilities[5:, :, 3] = 0
    summary = summarise_classification(jnp.asarray(log_probabilities))
    np.testing.assert_array_equal(summary.mean, [[0.5, 0, 0, 0.5]])
    np.testing.assert_array_equal(summary.std, [[0.5, 0, 0, 0.5]])
    np.testing.assert_array_equal(summary.aleatoric_entropy, [0])
    np.testing.assert_allclose(summary.mutual_information, [np.log(2)], rtol=1e-6)


def mixture(draws=21, rows=12, seed=0):
    """Means and variances `[draws, rows]` of normals, from nearly one normal to many modes far apart."""
    rng = np.random.default_rng(seed)
    means = rng.normal(0, np.geomspace(0.01, 50, rows), (draws, rows)) + np.linspace(-40, 40, rows)
    return means.astype(np.float32), rng.lognormal(0, 1, (draws, rows)).astype(np.float32)


def regression_of(means, variances):
    """`summarise_regression` of numpy arrays."""
    return summarise_regression(jnp.asarray(means), jnp.asarray(variances))


def mixture_quantile(level, means, variances):
    """A quantile of one row's mixture, by scipy's root finder in float64."""
    normals = stats.norm(means.astype(np.float64), np.sqrt(variances.astype(np.float64)))
    reach = np.abs(means).max() + 10 * np.sqrt(variances.max())
    return optimize.brentq(lambda y: normals.cdf(y).mean() - level, -reach, reach, xtol=1e-12)


def test_moments_follow_the_law_of_total_variance():
    """The mixture's variance is the mean of the variances plus the variance of the means."""
    means, variances = mixture()
    summary = regression_of(means, variances)
    m, v = means.astype(np.float64), variances.astype(np.float64)
    second_moment = (v + m**2).mean(axis=0)
    total = summary.aleatoric_variance + summary.epistemic_variance
    np.testing.assert_allclose(summary.mean, m.mean(axis=0), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(summary.aleatoric_variance, v.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(summary.epistemic_variance, m.var(axis=0), rtol=1e-4)
    np.testing.assert_allclose(total, second_moment - m.mean(axis=0) ** 2, rtol=1e-4)


def test_entropy_is_that_of_the_normal_of_the_same_variance():
    """The entropy field is scipy's for a normal of the total variance, in nats."""
    means, variances = mixture()
    total = variances.astype(np.float64).mean(axis=0) + means.astype(np.float64).var(axis=0)
    np.testing.assert_allclose(
        regression_of(means, variances).entropy, stats.norm(0, np.sqrt(total)).entropy(), atol=1e-5
    )


@pytest.mark.parametrize("draws", [1, 21, 100])
def test_quantiles_are_the_mixtures(draws):
    """2.5 %, 50 % and 97.5 % of the mixture, as scipy finds them, to a ten-thousandth of its spread."""
    means, variances = mixture(draws=draws)
    found = regression_of(means, variances).quantiles
    expected = [
        [mixture_quantile(level, m, v) for level in QUANTILES] for m, v in zip(means.T, variances.T, strict=True)
    ]
    spread = np.sqrt(variances.mean(axis=0) + means.var(axis=0))[:, None]
    np.testing.assert_allclose(found / spread, expected / spread, atol=1e-4)


def test_quantiles_of_one_normal_are_the_normals():
    """Draws that agree: mean ± 1.96 standard deviations."""
    means, variances = np.full((7, 1), 3.0, np.float32), np.full((7, 1), 4.0, np.float32)
    found = regression_of(means, variances).quantiles
    np.testing.assert_allclose(found, stats.norm(3, 2).ppf([QUANTILES]), atol=1e-5)


def test_quantiles_ascend_and_shift_and_scale_with_the_target():
    """Quantiles are in order, and those of a + b·y are a + b times those of y."""
    means, variances = mixture()
    found = np.asarray(regression_of(means, variances).quantiles)
    assert np.all(np.diff(found, axis=1) > 0)
    moved = regression_of(10 + 4 * means, 16 * variances).quantiles
    np.testing.assert_allclose(moved, 10 + 4 * found, rtol=1e-4, atol=1e-3)
