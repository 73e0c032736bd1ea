"""Discoveries: against SciPy and a plain loop in fractions, and the false discovery rate of simulated files."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import stats

from abstain.models.decisions.discoveries import (
    count_ranks,
    find_limit,
    flag_discoveries,
    least_calibration_rows,
    ranks_of,
)
from abstain.models.decisions.ranks import share_at_least

RATES = st.decimals("0.001", "0.999", places=3)
FALSE_ALARM = 4.9
"""The normal quantile of 1 − 5e-7: a bound in standard errors that holds for nearly every random key."""


def flag(ranks, n, rate):
    """The flags of rows with these ranks among n calibration rows."""
    return flag_discoveries(np.array(ranks) / (n + 1), n, float(rate)).tolist()


def flag_by_hand(ranks, n, rate):
    """Benjamini and Hochberg's own words: flag the i smallest p-values for the largest i with p₍ᵢ₎ ≤ Q·i/m."""
    p_values = sorted(Fraction(rank, n + 1) for rank in ranks)
    passed = [p for i, p in enumerate(p_values, 1) if p <= Fraction(rate) * i / len(p_values)]
    return [Fraction(rank, n + 1) <= max(passed, default=0) for rank in ranks]


@st.composite
def files(draw):
    """A number of calibration rows, and the ranks of a file's rows; often many ties, often small ranks."""
    n = draw(st.integers(1, 300))
    most = draw(st.sampled_from([1, min(3, n + 1), n + 1]))
    return n, draw(st.lists(st.integers(1, most), min_size=1, max_size=60))


@settings(deadline=None, max_examples=300)
@given(files(), RATES)
@example((99, [1]), 0.01)  # one row, exactly at the boundary
@example((99, [2]), 0.01)
@example((1, [2]), 0.999)
def test_the_flags_are_those_of_the_definition_and_of_scipy(file, rate):
    """For any ranks and any rate; SciPy rounds, so it is asked only where no adjusted p-value is at the rate."""
    n, ranks = file
    found = flag(ranks, n, rate)
    assert found == flag_by_hand(ranks, n, rate)
    adjusted = stats.false_discovery_control(np.array(ranks) / (n + 1), method="bh")
    if (abs(adjusted - float(rate)) > 1e-9).all():
        assert found == (adjusted <= float(rate)).tolist()


@pytest.mark.parametrize(
    ("n", "ranks", "rate", "flags"),
    [
        (99, [1], 0.01, [True]),  # 1/100 ≤ 0.01
        (99, [1], 0.0099999, [False]),
        (99, [1] * 5, 0.01, [True] * 5),
        (99, [1, 100, 100], 0.03, [True, False, False]),  # 1/100 ≤ 0.03·1/3; in floats, 0.03/3 is below 0.01
        (99, [1, 100, 100], 0.0299, [False, False, False]),
        (9, [1, 1, 2, 3, 4], 0.5, [True] * 5),  # 4/10 ≤ 0.5; in between, 3/10 ≤ 0.4
        (9, [2, 2, 3, 10], 0.4, [True, True, True, False]),  # step up: 2/10 ≤ 0.2 and 3/10 ≤ 0.3, both exactly
        (9, [2, 3, 3, 10], 0.4, [True, True, True, False]),  # 2/10 > 0.1 alone, but 3/10 ≤ 0.3
        (9, [2, 3, 4, 10], 0.3, [False] * 4),
        (9, [10, 10], 0.999, [False, False]),  # p = 1 is never flagged
        (199, [1] * 10 + [200] * 90, 0.05, [True] * 10 + [False] * 90),  # 1/200 ≤ 0.05·10/100
        (199, [1] * 9 + [200] * 91, 0.05, [False] * 100),
        (198, [1] * 10 + [199] * 90, 0.05, [False] * 100),
    ],
)
def test_flags_where_the_answer_is_known(n, ranks, rate, flags):
    """None, some and all rows, and boundaries that are exactly equal."""
    assert flag(ranks, n, rate) == flags


def test_a_boundary_where_floats_would_slip():
    """With Q·i/m = k/(n + 1) exactly, the row is flagged for every Q of two decimals."""
    for percent in range(1, 100):
        rows = 100
        ranks = [percent] * rows
        assert all(flag(ranks, 99, Fraction(percent, 100))), percent
        assert not any(flag([percent + 1] * rows, 99, Fraction(percent, 100))), percent


def test_a_rate_of_many_digits_does_not_overflow():
    """Whole numbers of any length decide."""
    counts = count_ranks(np.array([1] * 5_000 + [10**6 + 1] * 5_000), 10**6)
    assert find_limit(counts, 0.1234567890123456) == 1
    assert find_limit(counts, 5e-324) == 0
    assert find_limit(counts, np.nextafter(1.0, 0.0)) == 1


def test_no_rows_give_no_limit():
    """Counts of an empty part of a file."""
    assert find_limit(count_ranks(np.array([], int), 9), 0.5) == 0


def test_counts_of_parts_add_up():
    """The limit of a file is that of the sum of its parts' counts."""
    ranks = np.random.default_rng(0).integers(1, 201, 1_000)
    whole = count_ranks(ranks, 199)
    assert whole.shape == (200,)
    assert whole.tolist() == [int((ranks == rank).sum()) for rank in range(1, 201)]
    np.testing.assert_array_equal(count_ranks(ranks[:300], 199) + count_ranks(ranks[300:], 199), whole)


@pytest.mark.parametrize("n", [1, 2, 48, 99, 1_000, 12_345])
def test_every_p_value_has_its_rank(n):
    """No p-value k/(n + 1) is rounded to another rank."""
    ranks = np.arange(1, n + 2)
    np.testing.assert_array_equal(ranks_of(ranks / (n + 1), n), ranks)
    scores = np.arange(n, dtype=float)
    edges = np.arange(n + 1) - 0.5
    np.testing.assert_array_equal(ranks_of(share_at_least(scores, edges), n), ranks[::-1])


@pytest.mark.parametrize(
    ("rate", "least"), [(0.05, 19), (0.1, 9), (0.01, 99), (0.03, 33), (0.5, 1), (0.9, 1), (0.001, 999)]
)
def test_the_least_calibration_part(rate, least):
    """The least n for which a file of rows of the least p-value is flagged."""
    assert least_calibration_rows(rate) == least
    assert all(flag([1] * 7, least, rate))
    assert least == 1 or not any(flag([1] * 7, least - 1, rate))


# ---- simulated files -------------------------------------------------------------------------------------------------

LAWS = {
    "normal, outliers far away": lambda rng, rows, outliers: rng.normal(size=rows) + 20 * outliers,
    "counts with ties, outliers nearby": lambda rng, rows, outliers: rng.poisson(4 + 12 * outliers, rows).astype(float),
}


def simulate(law, key, *, n, rows, outliers, rate, splits):
    """The false discovery proportion and the share of outliers found, for each split."""
    rng = np.random.default_rng([key, n, rows, outliers])
    strange = np.arange(n + rows) >= n + rows - outliers
    false, found = [], []
    for _ in range(splits):
        scores = LAWS[law](rng, n + rows, strange)
        flags = flag_discoveries(share_at_least(np.sort(scores[:n]), scores[n:]), n, rate)
        false.append((flags & ~strange[n:]).sum() / max(flags.sum(), 1))
        found.append((flags & strange[n:]).sum() / max(outliers, 1))
    return np.array(false), np.array(found)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("outliers", [0, 10, 50])
def test_the_false_discovery_rate_is_bounded(key, law, outliers):
    """At most Q on average over splits, and most outliers are found; ties and a coarse p-value only lower the rate."""
    false, found = simulate(law, key, n=199, rows=100, outliers=outliers, rate=0.1, splits=300)
    error = max(false.std(), 0.1) / np.sqrt(len(false))
    assert false.mean() <= 0.1 + 3 * error, (false.mean(), error)
    if outliers:
        assert found.mean() > 0.5
    if outliers and "far" in law:
        assert (found == 1).all()


def test_the_false_discovery_rate_is_exact(key):
    """It is Q times the share of familiar rows if Q·(n + 1)/rows is whole and no scores tie (Marandon et al., 2024)."""
    false, found = simulate("normal, outliers far away", key, n=199, rows=20, outliers=5, rate=0.2, splits=3_000)
    error = false.std() / np.sqrt(len(false))
    assert abs(false.mean() - 0.2 * 15 / 20) <= FALSE_ALARM * error, (false.mean(), error)
    assert error < 0.01
    assert (found == 1).all()
