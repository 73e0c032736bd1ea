"""The bounds of the stochastic tests: correct samples pass with any random key, samples 10 % off fail."""

import numpy as np
import pytest
from scipy import signal

from tests.helpers.montecarlo import assert_chains_agree, assert_means, assert_variances

SHAPE = (16, 800, 5)


def samples(key, rho=0.3):
    """Stationary autoregressive chains of standard normals."""
    rng = np.random.default_rng(key)
    noise = rng.normal(size=SHAPE) * np.sqrt(1 - rho**2)
    noise[:, 0] /= np.sqrt(1 - rho**2)
    return signal.lfilter([1], [1, -rho], noise, axis=1)


@pytest.mark.parametrize("seed", range(30))
def test_correct_samples_pass(seed):
    """With all of 30 random keys."""
    values = samples(seed)
    assert_means(values, 0)
    assert_variances(values, 0, np.ones(5))
    assert_chains_agree(values)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("scale", [0.9, 1.1])
def test_a_standard_deviation_ten_percent_off_fails(seed, scale):
    """In one column of five."""
    values = samples(seed) * [1, 1, scale, 1, 1]
    with pytest.raises(AssertionError):
        assert_variances(values, 0, np.ones(5))


def test_too_few_samples_fail():
    """Their bounds would be too wide."""
    with pytest.raises(AssertionError):
        assert_variances(samples(0)[:, :60], 0, np.ones(5))


@pytest.mark.parametrize("seed", range(3))
def test_a_biased_mean_and_a_chain_that_disagrees_fail(seed):
    """All chains are off by a fifth of a standard deviation; one chain by half of one."""
    with pytest.raises(AssertionError):
        assert_means(samples(seed) + 0.2, 0)
    values = samples(seed)
    values[3] += 0.5
    with pytest.raises(AssertionError):
        assert_chains_agree(values)
