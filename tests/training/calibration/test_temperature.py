"""Fitting a recalibration, against closed forms and SciPy's optimiser."""

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.special
import scipy.stats

from abstain.models.prediction.temperature import Recalibration, temper_draws, temper_pooled
from abstain.training.calibration import temperature
from abstain.training.calibration.temperature import (
    BOUNDS,
    choose_temperature,
    deviation_of_classes,
    deviation_of_numbers,
    fit_draws,
    fit_pooled,
    fit_variance,
    variance_gain,
)

FLOAT = np.float32


def ensemble(rng, draws, rows, classes, disagreement=1.0):
    """Log-probabilities of draws that share a logit and differ in part."""
    logits = rng.normal(0, 2, (rows, classes)) + disagreement * rng.normal(0, 2, (draws, rows, classes))
    return scipy.special.log_softmax(logits, axis=-1).astype(FLOAT)


def labels_of(rng, probabilities):
    """One label a row, drawn from its probabilities."""
    return (probabilities.cumsum(axis=1) > rng.random((len(probabilities), 1))).argmax(axis=1)


def power(probabilities, temperature):
    """p^(1/T), normalised, in double precision."""
    with np.errstate(divide="ignore"):
        return scipy.special.softmax(np.log(np.asarray(probabilities, np.float64)) / temperature, axis=-1)


def loss(probabilities, labels):
    """The negative log-likelihood of a row, nats."""
    return -np.log(probabilities[np.arange(len(labels)), labels]).mean()


def loss_with_an_error(probabilities, labels, plain):
    """The same with one more row, whose label is the second most probable class of `plain`."""
    second = np.argsort(-plain, axis=1)[:, 1]
    return loss(probabilities, labels) + loss(probabilities, second) / len(labels)


def mixture(log_probabilities, temperature):
    """The mean over draws of every draw's own tempered probabilities."""
    return scipy.special.softmax(np.asarray(log_probabilities, np.float64) / temperature, axis=-1).mean(axis=0)


def optimum(loss_of):
    """SciPy's bounded minimum over log T."""
    found = scipy.optimize.minimize_scalar(
        lambda log: loss_of(np.exp(log)), bounds=np.log(BOUNDS), method="bounded", options={"xatol": 1e-9}
    )
    return np.exp(found.x)


@pytest.mark.parametrize(("stated", "right"), [(0.9, 0.7), (0.7, 0.9), (0.6, 0.99), (0.75, 0.75)])
def test_the_temperature_of_two_classes_is_a_ratio_of_logits(stated, right):
    """Every row stated alike, a share of them right: T = logit(stated) / logit(right), pooled and per draw.

    One more row is wrong.
    """
    labels = (np.arange(1000) >= round(1000 * right)).astype(int)
    mean = np.tile(np.array([stated, 1 - stated]), (1000, 1))
    expected = scipy.special.logit(stated) / scipy.special.logit(right * 1000 / 1001)
    np.testing.assert_allclose(fit_pooled(mean, labels), expected, rtol=1e-5)
    np.testing.assert_allclose(fit_draws(np.log(np.stack([mean, mean])), labels), expected, rtol=1e-5)


@pytest.mark.parametrize("true", [0.3, 0.8, 1.7, 5.0])
def test_the_fits_are_scipys(true):
    """The least loss, pooled and per draw, by another optimiser of the plain formulas."""
    rng = np.random.default_rng(1)
    log_probabilities = ensemble(rng, 7, 400, 5)
    mean = np.exp(log_probabilities).mean(axis=0)
    labels = labels_of(rng, power(mean, true))
    expected = optimum(lambda temperature: loss_with_an_error(power(mean, temperature), labels, mean))
    np.testing.assert_allclose(fit_pooled(mean, labels), expected, rtol=1e-5)
    expected = optimum(lambda temperature: loss_with_an_error(mixture(log_probabilities, temperature), labels, mean))
    np.testing.assert_allclose(fit_draws(log_probabilities, labels), expected, rtol=1e-5)


def test_the_pooled_fit_finds_the_temperature_that_labels_were_drawn_at():
    """20,000 rows tell it to a few percent."""
    rng = np.random.default_rng(2)
    mean = rng.dirichlet(np.full(10, 0.3), 20_000)
    assert abs(fit_pooled(mean, labels_of(rng, power(mean, 1.6))) - 1.6) < 0.05


def test_chunks_of_rows_change_nothing(monkeypatch):
    """The loss of many rows is that of its parts, whatever their number."""
    rng = np.random.default_rng(3)
    log_probabilities = ensemble(rng, 5, 101, 4)
    labels = rng.integers(0, 4, 101)
    whole = fit_draws(log_probabilities, labels), choose_temperature(log_probabilities, labels)
    monkeypatch.setattr(temperature, "_CHUNK_NUMBERS", 5 * 4 * 7)
    parts = fit_draws(log_probabilities, labels), choose_temperature(log_probabilities, labels)
    np.testing.assert_allclose(parts[0], whole[0], rtol=1e-5)
    assert parts[1].recalibration.kind == whole[1].recalibration.kind
    np.testing.assert_allclose(parts[1].gain, whole[1].gain, rtol=1e-6)


@pytest.mark.parametrize("fit", ["pooled", "draws"])
def test_labels_that_are_all_wrong_or_all_right_have_a_temperature(fit):
    """Every label wrong asks for infinity and gets the bound; every label right does not ask for 0.

    Of 60 right answers that state .9 each, the next is wrong with a probability of about 1/61, and not of 1e-14.
    """
    mean = np.array([[0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.1, 0.1, 0.8]])

    def fitted(mean, labels):
        return fit_pooled(mean, labels) if fit == "pooled" else fit_draws(np.log(mean)[None], labels)

    np.testing.assert_allclose(fitted(mean, np.array([1, 2, 0])), BOUNDS[1], rtol=1e-5)
    right = fitted(np.tile([0.9, 0.1], (60, 1)), np.zeros(60, int))
    np.testing.assert_allclose(scipy.special.expit(scipy.special.logit(0.9) / right), 60 / 61, rtol=1e-5)
    few = optimum(lambda temperature: loss_with_an_error(power(mean, temperature), np.arange(3), mean))
    np.testing.assert_allclose(fitted(mean, np.arange(3)), few, rtol=1e-5)


def test_a_model_that_is_right_by_chance_is_not_sharpened():
    """58 rows that state 95 % are all right with probability 5 %: the gain of temperature 0 would pass the test."""
    mean = np.tile(np.append(0.95, np.full(9, 0.05 / 9)), (58, 1))
    found = choose_temperature(np.log(mean)[None], np.zeros(58, int))
    assert -58 * np.log(0.95) > 2.9
    assert found.gain < 2.51


def test_a_true_class_of_probability_zero_has_a_finite_cost():
    """One such row among a hundred raises T; it does not make every T equally bad."""
    mean = np.tile(np.array([0.9, 0.1, 0.0]), (100, 1))
    labels = np.array([0] * 89 + [1] * 10 + [2])
    with np.errstate(divide="ignore"):
        log_probabilities = np.log(mean)[None]
    assert 1.5 < fit_pooled(mean, labels) < BOUNDS[1]
    assert np.isfinite(fit_draws(log_probabilities, labels))
    assert np.isfinite(choose_temperature(log_probabilities, labels).recalibration.factor)


def test_the_variance_factor_is_the_closed_form_and_the_likeliest():
    """c² is the mean squared standardised residual: the maximum of the Gaussian likelihood, by SciPy's optimiser."""
    rng = np.random.default_rng(6)
    mean, variance = rng.normal(size=300), rng.uniform(0.1, 4, 300)
    targets = mean + 2.5 * np.sqrt(variance) * rng.standard_t(5, 300)
    found = fit_variance(mean, variance, targets)
    np.testing.assert_allclose(found, np.sqrt(np.mean((targets - mean) ** 2 / variance)), rtol=1e-12)
    likeliest = optimum(lambda c: -scipy.stats.norm.logpdf(targets, mean, c * np.sqrt(variance)).mean())
    np.testing.assert_allclose(found, likeliest, rtol=1e-5)


@pytest.mark.parametrize("factor", [0.3, 1.0, 2.5])
def test_the_gain_of_a_factor_is_a_difference_of_log_likelihoods(factor):
    """Of normal densities, by SciPy."""
    rng = np.random.default_rng(9)
    mean, variance = rng.normal(size=40), rng.uniform(0.1, 4, 40)
    targets = mean + rng.normal(size=40)
    std = np.sqrt(variance)
    expected = (
        scipy.stats.norm.logpdf(targets, mean, factor * std) - scipy.stats.norm.logpdf(targets, mean, std)
    ).sum()
    np.testing.assert_allclose(variance_gain(mean, variance, targets, factor), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("error", "bound"), [(0.0, BOUNDS[0]), (1e6, BOUNDS[1])])
def test_the_variance_factor_stays_within_its_bounds(error, bound):
    """No spread at all, and a million times too little, are no scale; nor is a variance of zero a division by it."""
    assert fit_variance(np.zeros(9), np.ones(9), np.full(9, error)) == bound
    assert np.isfinite(fit_variance(np.zeros(9), np.zeros(9), np.full(9, error)))


def test_a_mean_that_is_right_is_left_alone():
    """Three of four right at a stated .75: no temperature gains anything."""
    mean = np.tile([0.75, 0.25], (400, 1))
    assert choose_temperature(np.log(mean)[None], np.array([0] * 300 + [1] * 100)) == (
        Recalibration(),
        0,
        pytest.approx(0, abs=1e-9),
    )


def test_the_deviation_is_the_score_of_a_temperature():
    """Its terms are the derivatives of each row's log-likelihood by log T at T = 1, by differences; of numbers, by hand."""
    rng = np.random.default_rng(10)
    mean = rng.dirichlet(np.ones(4), 50)
    labels = rng.integers(0, 4, 50)
    rows = np.arange(50)
    step = 1e-5
    high, low = (np.log(power(mean, np.exp(sign * step))[rows, labels]) for sign in (1, -1))
    slopes = (high - low) / (2 * step)
    np.testing.assert_allclose(deviation_of_classes(mean, labels), slopes.sum() / np.sqrt((slopes**2).sum()), rtol=1e-5)
    found = deviation_of_numbers(np.zeros(3), np.full(3, 4.0), np.array([2.0, 4.0, 0.0]))
    np.testing.assert_allclose(found, (0 + 3 - 1) / np.sqrt(0 + 9 + 1))
    assert deviation_of_numbers(np.zeros(3), np.ones(3), np.ones(3)) == 0


def test_one_extreme_row_is_no_deviation():
    """A row 30 standard deviations away in 200 right ones gains hundreds of nats, and is one standard error."""
    targets = np.append(np.random.default_rng(11).normal(size=200), 30.0)
    mean, variance = np.zeros(201), np.ones(201)
    assert variance_gain(mean, variance, targets, fit_variance(mean, variance, targets)) > 100
    assert abs(deviation_of_numbers(mean, variance, targets)) < 1.1


@pytest.mark.parametrize(("kind", "temperature"), [("pooled", 1.8), ("draws", 2.0)])
def test_the_choice_is_the_one_that_made_the_labels(kind, temperature):
    """Labels drawn from the mean tempered as a whole, or from the mean of tempered draws."""
    rng = np.random.default_rng(7)
    log_probabilities = ensemble(rng, 5, 6000, 4, disagreement=1.5)
    pooled = power(np.exp(log_probabilities).mean(axis=0), temperature)
    truth = pooled if kind == "pooled" else mixture(log_probabilities, temperature)
    found = choose_temperature(log_probabilities, labels_of(rng, truth)).recalibration
    assert found.kind == kind
    assert abs(found.factor - temperature) < 0.15


def test_the_choice_has_the_least_loss_of_what_is_served():
    """None of the three recalibrations, as they are served, fits the labels better than the chosen one."""
    rng = np.random.default_rng(8)
    for _ in range(5):
        log_probabilities = ensemble(rng, 4, 60, 3)
        labels = rng.integers(0, 3, 60)
        raw = np.exp(log_probabilities).mean(axis=0)
        pooled, draws = fit_pooled(raw, labels), fit_draws(log_probabilities, labels)
        tempered = jnp.exp(temper_draws(jnp.asarray(log_probabilities), draws)).mean(axis=0)
        served = {
            "none": loss(raw, labels),
            "pooled": loss(np.asarray(temper_pooled(jnp.asarray(raw), pooled)), labels),
            "draws": loss(np.where((tempered.argmax(axis=1) == raw.argmax(axis=1))[:, None], tempered, raw), labels),
        }
        found = choose_temperature(log_probabilities, labels)
        assert served[found.recalibration.kind] < min(served.values()) + 1e-6
        np.testing.assert_allclose(found.gain / 60, served["none"] - min(served.values()), atol=1e-5)
