"""How far a threshold may be off its level: against SciPy, and as often as stated."""

import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from abstain.models.decisions.ranks import exact, percentile_rank
from abstain.models.errors import CalibrationError
from abstain.training.calibration.record import beta_bounds, reject_rate_bounds, threshold_bounds


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 3000),
    st.decimals("0.0001", "0.9999", places=4).map(float),
    st.sampled_from([0.5, 0.9, 0.95, 0.999]),
)
def test_beta_bounds_are_the_betas_quantiles(rows, level, confidence):
    """Beta(k, n + 1 − k), k the conformal rank, by SciPy's inverse of the incomplete beta function."""
    rank = math.ceil((rows + 1) * exact(level))
    if rank > rows:
        with pytest.raises(CalibrationError, match="needs a larger calibration part"):
            beta_bounds(level, rows, confidence)
        return
    tails = [(1 - confidence) / 2, (1 + confidence) / 2]
    expected = scipy.stats.beta.ppf(tails, rank, rows + 1 - rank)
    np.testing.assert_allclose(beta_bounds(level, rows, confidence), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("level", "rows"), [(0.99, 60_000), (0.5, 60_000), (0.999, 1_000_000)])
def test_beta_bounds_of_large_splits(level, rows):
    """Sums of many small terms, of large factorials, stay exact to what is shown."""
    rank = math.ceil((rows + 1) * exact(level))
    expected = scipy.stats.beta.ppf([0.025, 0.975], rank, rows + 1 - rank)
    np.testing.assert_allclose(beta_bounds(level, rows), expected, atol=1e-9)


def test_the_bounds_of_a_single_row():
    """The smallest split: a new score lies below the one with a probability that is uniform over splits."""
    np.testing.assert_allclose(beta_bounds(0.5, 1), (0.025, 0.975), atol=1e-14)


def test_the_reject_rates_bounds_are_what_lies_above():
    """The true rate at the 99th percentile of 5,000 rows is between .74 and 1.29 percent."""
    low, high = beta_bounds(0.99, 5000)
    assert reject_rate_bounds(99.0, 5000) == (1 - high, 1 - low)
    np.testing.assert_allclose(reject_rate_bounds(99.0, 5000), (0.00743, 0.01294), atol=5e-6)


def test_a_refused_rate_names_the_percentile():
    """The error is the same as that of `threshold`."""
    with pytest.raises(CalibrationError, match=r"the 99\.9th percentile needs .* at least 999 rows, found 998 rows"):
        reject_rate_bounds(99.9, 998)


@pytest.mark.parametrize(("rows", "percentile"), [(99, 90.0), (500, 99.0), (40, 50.0)])
def test_the_true_rate_lies_within_its_bounds_as_often_as_stated(rows, percentile):
    """95 % of 4,000 splits of uniform scores have their true rate, 1 − threshold, within the bounds."""
    scores = np.sort(np.random.default_rng(3).random((4000, rows)), axis=1)
    rates = 1 - scores[:, percentile_rank(percentile, rows) - 1]
    low, high = reject_rate_bounds(percentile, rows)
    inside = int(np.sum((low <= rates) & (rates <= high)))
    assert scipy.stats.binomtest(inside, 4000, 0.95).pvalue > 1e-3


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 2000),
    st.decimals("0.1", "99.9", places=1).map(float),
    st.sampled_from([0.5, 0.9, 0.95, 0.99]),
)
def test_threshold_bounds_are_scipys(rows, percentile, confidence):
    """The order statistics of SciPy's quantile test, which says NaN where there is none."""
    ascending = np.arange(1.0, rows + 1)
    test = scipy.stats.quantile_test(ascending, p=percentile / 100)
    expected = test.confidence_interval(confidence)
    found = [math.nan if end is None else end for end in threshold_bounds(ascending, percentile, confidence)]
    np.testing.assert_array_equal(found, [expected.low, expected.high])


@pytest.mark.parametrize("percentile", [1e-323, math.nextafter(100, 0)])
def test_threshold_bounds_of_extreme_percentiles(percentile):
    """One end is beyond all scores at the edges, and the other is the outermost score."""
    ends = threshold_bounds(np.arange(1.0, 51), percentile)
    assert ends == ((None, 1.0) if percentile < 50 else (50.0, None))


@pytest.mark.parametrize(("rows", "percentile"), [(60, 50.0), (400, 99.0), (200, 95.0)])
def test_the_true_quantile_lies_within_its_bounds_at_least_as_often_as_stated(rows, percentile):
    """At least 95 % of 2,000 samples of a skewed distribution have its quantile between the two scores."""
    rng = np.random.default_rng(5)
    true = scipy.stats.gamma.ppf(percentile / 100, 0.3)
    inside = 0
    for _ in range(2000):
        low, high = threshold_bounds(np.sort(rng.gamma(0.3, size=rows)), percentile)
        inside += (low is None or low <= true) and (high is None or true <= high)
    assert scipy.stats.binomtest(inside, 2000, 0.95, alternative="less").pvalue > 1e-3
