"""Recalibration against the plain formulas; and that it moves no label."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from abstain.models.prediction.temperature import Recalibration, temper_draws, temper_pooled

FLOAT = np.float32


def ensemble(rng, draws, rows, classes, disagreement=1.0):
    """Log-probabilities of draws that share a logit and differ in part."""
    logits = rng.normal(0, 2, (rows, classes)) + disagreement * rng.normal(0, 2, (draws, rows, classes))
    return scipy.special.log_softmax(logits, axis=-1).astype(FLOAT)


def power(probabilities, temperature):
    """p^(1/T), normalised, in double precision."""
    with np.errstate(divide="ignore"):
        return scipy.special.softmax(np.log(np.asarray(probabilities, np.float64)) / temperature, axis=-1)


PROBABILITIES = st.lists(
    st.sampled_from([0.0, 1e-45, 1e-30, 0.1, 0.3, np.nextafter(FLOAT(0.3), FLOAT(1)), 1.0]), min_size=5, max_size=5
)


def test_a_recalibration_is_kept_as_json():
    """What is stored reads back; what cannot be one is refused."""
    stored = Recalibration(kind="draws", factor=1.25)
    assert Recalibration.model_validate_json(stored.model_dump_json()) == stored
    assert Recalibration() == Recalibration(kind="none", factor=1.0)


@pytest.mark.parametrize(
    "fields", [{"factor": 0}, {"factor": -1}, {"factor": np.inf}, {"factor": np.nan}, {"kind": "vector"}, {"t": 1}]
)
def test_what_is_no_recalibration_is_refused(fields):
    """A factor is positive and finite, a kind one of four, and there is nothing else."""
    with pytest.raises(ValidationError):
        Recalibration(**fields)


@settings(deadline=None, max_examples=100)
@given(st.lists(PROBABILITIES.filter(lambda row: max(row) >= 0.1), min_size=3, max_size=3), st.floats(0.05, 20.0))
def test_no_temperature_moves_a_label(weights, temperature):
    """Ties, neighbouring floats, zeros: the first largest class stays the first largest, inside jit."""
    mean = np.array(weights, FLOAT) / np.sum(weights, axis=1, keepdims=True, dtype=FLOAT)
    found = np.asarray(jax.jit(temper_pooled)(mean, temperature))
    np.testing.assert_array_equal(found.argmax(axis=1), mean.argmax(axis=1))
    np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-6)
    assert (found[mean == 0] == 0).all()


def test_neighbouring_probabilities_keep_their_order():
    """Two classes that differ by one rounding become equal at T = 20, and the label would change."""
    half = FLOAT(0.5)
    mean = jnp.array([[np.nextafter(half, FLOAT(0)), half]])
    assert jnp.argmax(jax.nn.softmax(jnp.log(mean) / 20), axis=-1).tolist() == [0]
    assert jnp.argmax(temper_pooled(mean, 20.0), axis=-1).tolist() == [1]


@pytest.mark.parametrize("temperature", [0.05, 0.5, 1.3, 20.0])
def test_tempering_is_the_plain_formula(temperature):
    """p^(1/T) / Z, of the mean and of every draw, against double precision; zeros stay zeros."""
    rng = np.random.default_rng(4)
    log_probabilities = ensemble(rng, 3, 50, 6)
    log_probabilities[0, 0, 2] = -np.inf
    mean = np.exp(log_probabilities).mean(axis=0)
    mean[1] = [0, 1, 0, 0, 0, 0]
    found = np.asarray(temper_pooled(jnp.asarray(mean), temperature))
    np.testing.assert_allclose(found, power(mean, temperature), rtol=2e-4, atol=1e-7)
    found = np.exp(np.asarray(temper_draws(jnp.asarray(log_probabilities), temperature)))
    expected = scipy.special.softmax(log_probabilities.astype(np.float64) / temperature, axis=-1)
    np.testing.assert_allclose(found, expected, rtol=2e-4, atol=1e-7)


def test_temperature_one_changes_no_bit():
    """A recalibration that asks for nothing gives back what came in, also compiled and with zeros."""
    rng = np.random.default_rng(5)
    log_probabilities = ensemble(rng, 3, 200, 7)
    log_probabilities[:, 0, 0] = -np.inf
    mean = np.exp(log_probabilities).mean(axis=0)
    for one in (1.0, jnp.float32(1)):
        np.testing.assert_array_equal(jax.jit(temper_pooled)(mean, one), mean)
        np.testing.assert_array_equal(jax.jit(temper_draws)(log_probabilities, one), log_probabilities)


def test_a_vote_tempered_by_the_draw_may_change_its_label():
    """One sure draw against two hesitant ones: at a high T the two prevail, and the guard is needed."""
    log_probabilities = jnp.log(jnp.array([[[0.98, 0.01, 0.01]], [[0.2, 0.6, 0.2]], [[0.2, 0.6, 0.2]]]))
    raw = jnp.exp(log_probabilities).mean(axis=0)
    tempered = jnp.exp(temper_draws(log_probabilities, 0.2)).mean(axis=0)
    assert (int(raw.argmax()), int(tempered.argmax())) == (0, 1)
