"""Ranks against exact arithmetic, p-values against crepes, error bars against SciPy."""

import math
from fractions import Fraction

import crepes.base
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from abstain.models.decisions.ranks import (
    exact,
    less_tolerance,
    ordinal,
    rank_of,
    rows_needed,
    share_at_least,
    threshold,
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
    """For these percentiles the product with n + 1 is a whole number, but not in floats."""
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
    """The request, the rows needed, the rows there are, and how to fix it."""
    with pytest.raises(CalibrationError) as error:
        threshold(np.arange(needed - 1.0), float(percentile))
    assert str(error.value) == (
        f"the {percentile}th percentile needs a larger calibration part: "
        f"expected at least {needed} rows, found {needed - 1} rows; request a lower value, or calibrate with more rows"
    )


@pytest.mark.parametrize("percentile", [99.99999999999, math.nextafter(100, 0)])
def test_a_percentile_beyond_every_split_is_refused_like_any_other(percentile):
    """Just below 100 is a percentile too: it wants more rows than there are, and is no division by zero."""
    with pytest.raises(CalibrationError, match="needs a larger calibration part"):
        threshold(np.arange(1000.0), percentile)


def test_a_refusal_names_the_requested_percentile():
    """99.99999 is not rounded to "the 100th percentile", which was not requested."""
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
