"""Ranks against exact arithmetic, p-values against crepes, error bars against SciPy."""

import math
from fractions import Fraction

import crepes.base
import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from abstain.models.decisions.ranks import (
    beta_bounds,
    exact,
    less_tolerance,
    ordinal,
    percentile_rank,
    rank_of,
    reject_rate_bounds,
    rows_needed,
    share_at_least,
    threshold,
    threshold_bounds,
)
from abstain.models.errors import CalibrationError


@settings(deadline=None)
@given(st.integers(1, 20_000), st.decimals("0.001", "99.999", places=3))
def test_the_threshold_is_the_rank_of_exact_arithmetic(n, percent):
    """⌈(n + 1)·P/100⌉-th smallest of n, for any n and any P of three decimals; or refused, if that is beyond n."""
    rank = math.ceil((n + 1) * Fraction(percent) / 100)
    ascending = np.arange(1, n + 1, dtype=np.float64)
    if rank <= n:
        assert threshold(ascending, float(percent)) == rank
    else:
        with pytest.raises(CalibrationError):
            threshold(ascending, float(percent))


@pytest.mark.parametrize(
    ("n", "percentile", "rank"),
    [
        (999, 99.9, 999),  # in floats, 1000 · (99.9 / 100) is 999.0000000000001, whose ceiling is 1000
        (99, 55.0, 55),  # 55.00000000000001
        (99, 7.0, 7),  # 7.000000000000001
        (9999, 99.99, 9999),
        (99, 99.0, 99),
        (199, 97.5, 195),
        (1, 50.0, 1),
        (1000, 99.9, 1000),
        (1000, 0.001, 1),
    ],
)
def test_ranks_where_floats_would_slip(n, percentile, rank):
    """Percentiles whose product with n + 1 is a whole number that floats miss."""
    assert threshold(np.arange(1.0, n + 1), percentile) == rank


@pytest.mark.parametrize("percentile", [1e-300, 1e-323])
def test_the_smallest_percentile_is_the_smallest_score(percentile):
    """A percentile above 0, however small, has rank 1: it is never taken for the largest score."""
    assert threshold(np.arange(1.0, 100.0), percentile) == 1


@pytest.mark.parametrize("level", [0.5, 0.9, 0.99, 0.999, 0.9999, 0.95, 2 / 3])
def test_the_rows_needed_suffice_and_one_less_does_not(level):
    """The number of rows that a refusal names is the smallest that is not refused."""
    needed = rows_needed(level)
    assert rank_of(level, needed, "it") <= needed
    with pytest.raises(CalibrationError, match=rf"expected at least {needed} rows, found {needed - 1} rows"):
        rank_of(level, needed - 1, "it")


@pytest.mark.parametrize(("percentile", "needed"), [("99", 99), ("99.9", 999), ("97.5", 39)])
def test_too_few_rows_are_refused_with_the_number_needed(percentile, needed):
    """What was asked, the rows needed, the rows there are, and what to do."""
    with pytest.raises(CalibrationError) as error:
        threshold(np.arange(needed - 1.0), float(percentile))
    assert str(error.value) == (
        f"the {percentile}th percentile needs a larger calibration split: "
        f"expected at least {needed} rows, found {needed - 1} rows; ask for less, or calibrate on more"
    )


@pytest.mark.parametrize("percentile", [99.99999999999, math.nextafter(100, 0)])
def test_a_percentile_beyond_every_split_is_refused_like_any_other(percentile):
    """Just below 100 is a percentile too: it wants more rows than there are, and is no division by zero."""
    with pytest.raises(CalibrationError, match="needs a larger calibration split"):
        threshold(np.arange(1000.0), percentile)


def test_a_refusal_names_the_percentile_that_was_asked():
    """99.99999 is not rounded to "the 100th percentile", which nobody asked for."""
    with pytest.raises(CalibrationError, match=r"99\.99999"):
        threshold(np.arange(1000.0), 99.99999)


@pytest.mark.parametrize(
    ("percentile", "text"),
    [
        (99.0, "99th"),
        (91.0, "91st"),
        (92.0, "92nd"),
        (93.0, "93rd"),
        (11.0, "11th"),
        (12.0, "12th"),
        (13.0, "13th"),
        (0.1, "0.1th"),
    ],
)
def test_ordinals(percentile, text):
    """As they are spoken, the teens and decimals included."""
    assert ordinal(percentile) == text


@given(st.decimals("0.0001", "0.9999", places=4))
def test_a_float_is_the_decimal_it_was_written_as(decimal):
    """`exact` undoes the rounding to binary; a fraction is exact already."""
    assert exact(float(decimal)) == Fraction(decimal) == exact(Fraction(decimal))


@settings(deadline=None)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=40), st.lists(st.integers(-1, 10), min_size=1, max_size=9))
def test_p_values_count_the_scores_that_are_no_smaller(calibration, values):
    """(1 + #{calibration ≥ s}) / (n + 1), ties counted in: crepes' p-values without smoothing."""
    ascending = np.sort(np.array(calibration, np.float32))
    found = share_at_least(ascending, less_tolerance(np.array(values, np.float32)))
    expected = crepes.base.p_values_batch(np.array(calibration), np.array(values), smoothing=False)
    np.testing.assert_allclose(found, expected, rtol=1e-15)


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
        with pytest.raises(CalibrationError, match="needs a larger calibration split"):
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
    """At the 99th percentile of 5,000 rows the true rate is between .74 and 1.29 percent."""
    low, high = beta_bounds(0.99, 5000)
    assert reject_rate_bounds(99.0, 5000) == (1 - high, 1 - low)
    np.testing.assert_allclose(reject_rate_bounds(99.0, 5000), (0.00743, 0.01294), atol=5e-6)


def test_a_refused_rate_names_the_percentile():
    """As `threshold` does, in the words of the question."""
    with pytest.raises(CalibrationError, match=r"the 99\.9th percentile needs .* at least 999 rows, found 998 rows"):
        reject_rate_bounds(99.9, 998)


@pytest.mark.parametrize(("rows", "percentile"), [(99, 90.0), (500, 99.0), (40, 50.0)])
def test_the_true_rate_lies_within_its_bounds_as_often_as_stated(rows, percentile):
    """Of 4,000 calibration splits of uniform scores, whose true rate is 1 − threshold, 95 % within their bounds."""
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
    """At the edges one end is beyond all scores, and the other is the outermost score."""
    ends = threshold_bounds(np.arange(1.0, 51), percentile)
    assert ends == ((None, 1.0) if percentile < 50 else (50.0, None))


@pytest.mark.parametrize(("rows", "percentile"), [(60, 50.0), (400, 99.0), (200, 95.0)])
def test_the_true_quantile_lies_within_its_bounds_at_least_as_often_as_stated(rows, percentile):
    """Of 2,000 samples of a skewed distribution, at least 95 % hold its quantile between the two scores."""
    rng = np.random.default_rng(5)
    true = scipy.stats.gamma.ppf(percentile / 100, 0.3)
    inside = 0
    for _ in range(2000):
        low, high = threshold_bounds(np.sort(rng.gamma(0.3, size=rows)), percentile)
        inside += (low is None or low <= true) and (high is None or true <= high)
    assert scipy.stats.binomtest(inside, 2000, 0.95, alternative="less").pvalue > 1e-3
