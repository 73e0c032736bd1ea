"""Likelihoods against scipy's distributions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special, stats

from abstain.models.prediction.likelihoods import LIKELIHOODS, LOG_VARIANCE_BOUND

CATEGORICAL, BERNOULLI = LIKELIHOODS["categorical"], LIKELIHOODS["bernoulli"]
NORMAL, HETEROSCEDASTIC = LIKELIHOODS["normal"], LIKELIHOODS["heteroscedastic_normal"]
NONE = jnp.float32(0)

number = st.floats(-20, 20, width=32)


def f32(values):
    """A float32 array for jax."""
    return jnp.asarray(values, jnp.float32)


@settings(deadline=None)
@given(st.lists(number, min_size=2, max_size=6), st.data())
def test_categorical_is_the_softmax(logits, data):
    """Log density and prediction are scipy's log softmax."""
    y = data.draw(st.integers(0, len(logits) - 1))
    expected = special.log_softmax(logits)
    np.testing.assert_allclose(CATEGORICAL.predict(f32(logits), NONE), expected, atol=1e-5)
    np.testing.assert_allclose(CATEGORICAL.log_prob(f32(logits), NONE, jnp.int32(y)), expected[y], atol=1e-5)


@settings(deadline=None)
@given(number)
def test_bernoulli_is_the_logistic_function(logit):
    """The two classes' log probabilities are scipy's log_expit of ∓ the logit."""
    expected = [special.log_expit(-logit), special.log_expit(logit)]
    np.testing.assert_allclose(BERNOULLI.predict(f32([logit]), NONE), expected, atol=1e-5, rtol=1e-6)
    found = [BERNOULLI.log_prob(f32([logit]), NONE, jnp.int32(y)) for y in (0, 1)]
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=1e-6)


@settings(deadline=None)
@given(number)
def test_bernoulli_is_categorical_with_logits_zero_and_l(logit):
    """Two classes are served alike whichever of the two likelihoods made them."""
    found = BERNOULLI.predict(f32([logit]), NONE)
    np.testing.assert_allclose(found, CATEGORICAL.predict(f32([0, logit]), NONE), atol=1e-5)


@settings(deadline=None)
@given(number, st.floats(0.125, 10, width=32), number)
def test_normal_has_scipys_density(mean, noise, y):
    """The inferred noise is a standard deviation, and the prediction its mean and variance."""
    expected = stats.norm(mean, noise).logpdf(y)
    np.testing.assert_allclose(NORMAL.log_prob(f32([mean]), f32(noise), f32(y)), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(NORMAL.predict(f32([mean]), f32(noise)), [mean, noise**2], rtol=1e-6)


@settings(deadline=None)
@given(number, st.floats(-5, 5, width=32), number)
def test_heteroscedastic_normal_has_scipys_density(mean, log_variance, y):
    """The second output is the log of the variance."""
    expected = stats.norm(mean, np.exp(log_variance / 2)).logpdf(y)
    found = HETEROSCEDASTIC.log_prob(f32([mean, log_variance]), NONE, f32(y))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    moments = HETEROSCEDASTIC.predict(f32([mean, log_variance]), NONE)
    np.testing.assert_allclose(moments, [mean, np.exp(log_variance)], rtol=1e-5)


@pytest.mark.parametrize("logit", [-1e4, -200.0, 200.0, 1e4])
def test_saturated_classes_have_finite_log_probabilities_and_gradients(logit):
    """A certain network is punished in proportion to its logit, not with an infinity."""
    found = BERNOULLI.predict(f32([logit]), NONE)
    np.testing.assert_allclose(found, [min(-logit, 0), min(logit, 0)], atol=1e-6)
    for law, outputs in ((BERNOULLI, [logit]), (CATEGORICAL, [0, logit])):
        for y in (0, 1):
            gradient = jax.grad(law.log_prob)(f32(outputs), NONE, jnp.int32(y))
            assert np.isfinite(gradient).all()


@pytest.mark.parametrize("log_variance", [-1e6, 1e6])
def test_a_runaway_log_variance_is_held(log_variance):
    """Variances stay between exp(−30) and exp(30), so nothing overflows float32."""
    _, variance = HETEROSCEDASTIC.predict(f32([0, log_variance]), NONE)
    np.testing.assert_allclose(variance, np.exp(np.sign(log_variance) * LOG_VARIANCE_BOUND), rtol=1e-5)
    assert np.isfinite(HETEROSCEDASTIC.log_prob(f32([0, log_variance]), NONE, f32(1)))


@pytest.mark.parametrize(
    ("law", "outputs", "noise"),
    [(NORMAL, [0.3], 0.7), (HETEROSCEDASTIC, [0.3, -0.5], 0.0)],
    ids=["normal", "heteroscedastic_normal"],
)
def test_a_regression_density_integrates_to_one(law, outputs, noise):
    """exp(log_prob) over the line is 1: no constant is missing."""
    grid = np.linspace(-10, 10, 2001)
    density = jnp.exp(jax.vmap(lambda y: law.log_prob(f32(outputs), f32(noise), y))(f32(grid)))
    np.testing.assert_allclose(np.trapezoid(density, grid), 1, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "task", "outputs", "has_noise"),
    [
        ("categorical", "classification", 7, False),
        ("bernoulli", "classification", 1, False),
        ("normal", "regression", 1, True),
        ("heteroscedastic_normal", "regression", 2, False),
    ],
)
def test_each_likelihood_says_what_it_needs(name, task, outputs, has_noise):
    """Task, network outputs for seven classes, and whether a noise is inferred."""
    law = LIKELIHOODS[name]
    assert (law.name, law.task, law.outputs(7), law.has_noise) == (name, task, outputs, has_noise)


def test_no_other_likelihood_exists():
    """A likelihood that later work adds is tested here too."""
    assert set(LIKELIHOODS) == {"categorical", "bernoulli", "normal", "heteroscedastic_normal"}
