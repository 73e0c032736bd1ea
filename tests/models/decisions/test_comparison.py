"""The comparison of two versions: fair bets, few false verdicts however often one looks, and the route to a verdict.

Bounds are binomial quantiles of one false alarm in a million, for the promised probability.
"""

import math

import numpy as np
import pytest
from scipy import stats

from abstain.models.decisions.comparison import (
    DISAGREEMENT,
    NO_EVIDENCE,
    PAIRED,
    STAKES,
    Evidence,
    average_stakes,
    canary_bounds,
    canary_difference,
    combine,
    compare,
    log_factors,
    weigh,
)

ALPHA, STREAMS = 0.05, 500
MOST_FALSE = stats.binom.isf(1e-6, STREAMS, ALPHA)


def first_verdicts(differences, margin, bounds, labels=None):
    """The first verdict of each stream, looked for after every observation, and the median of the observations until then."""
    found, counts = [], []
    for start in range(0, len(differences), 50):  # All streams at once would need a gigabyte.
        part = slice(start, start + 50)
        rejects = average_stakes(np.cumsum(log_factors(differences[part], margin, bounds), axis=-1))
        others = None
        if labels is not None:
            others = average_stakes(np.cumsum(log_factors(labels[part], margin, DISAGREEMENT), axis=-1))
        promote, abort = (values >= -np.log(ALPHA) for values in combine(rejects, others))
        for promotes, aborts in zip(promote, abort, strict=True):
            looks = np.flatnonzero(promotes | aborts)
            found.append(None if not len(looks) else "promote" if promotes[looks[0]] else "abort")
            counts.append(looks[0] + 1 if len(looks) else len(promotes))
    return found, np.median(counts)


def paired(random, before, after, streams=STREAMS, rows=600):
    """Differences of the reject flags of two versions of the same row, whose reject rates are `before` and `after`."""
    uniform = random.random((streams, rows))  # The same rows are hard for both.
    return (uniform < after) * 1.0 - (uniform < before)


def canary(random, share, before, after, streams=STREAMS, callers=1200):
    """Weighted differences of a canary."""
    candidate = random.random((streams, callers)) < share
    rejected = random.random((streams, callers)) < np.where(candidate, after, before)
    centered = rejected - before
    return np.where(candidate, centered / share, -centered / (1 - share))


def test_capital_is_the_product_of_the_bets():
    """Against the definition, written as loops."""
    differences, margin = np.array([0.5, -1.0, 0.0, 1.0]), 0.2
    evidence = weigh(differences, margin, PAIRED)
    for test, sign, side in ((0, 1, -1), (1, 1, 1), (2, -1, 1), (3, -1, -1)):
        for index, part in enumerate(STAKES):
            loss = 1 - margin if sign > 0 else 1 + margin
            capital = math.prod(1 + part / loss * (sign * margin + side * value) for value in differences)
            assert evidence.capital[test, index] == pytest.approx(math.log(capital))
    assert (evidence.count, evidence.total, evidence.squares) == (4, 0.5, 2.25)


def test_a_comparison_is_that_of_all_looks_at_once():
    """`compare` of evidence that grows step by step, against the vectorised route of these tests."""
    differences = paired(np.random.default_rng(7), 0.02, 0.1, 1, 120)
    labels = np.abs(differences)
    rejects = average_stakes(np.cumsum(log_factors(differences, 0.1, PAIRED), axis=-1))
    others = average_stakes(np.cumsum(log_factors(labels, 0.1, DISAGREEMENT), axis=-1))
    promote, abort = combine(rejects, others)
    for end in (1, 60, 120):
        one = compare(weigh(differences[0, :end], 0.1, PAIRED), weigh(labels[0, :end], 0.1, DISAGREEMENT), ALPHA)
        assert (one.promote, one.abort) == (pytest.approx(promote[0, end - 1]), pytest.approx(abort[0, end - 1]))


def test_evidence_adds_up_in_any_order():
    """That of two workers is that of all their observations."""
    differences = np.random.default_rng(0).uniform(-1, 1, 40)
    whole = weigh(differences, 0.1, PAIRED)
    parts = weigh(differences[30:], 0.1, PAIRED) + weigh(differences[:30], 0.1, PAIRED)
    assert (parts.count, parts.total) == (whole.count, pytest.approx(whole.total))
    np.testing.assert_allclose(parts.capital, whole.capital)


def test_no_capital_becomes_negative():
    """With the worst differences of every test."""
    for bounds in (PAIRED, DISAGREEMENT, canary_bounds(0.05, 0.02)):
        for value in bounds:
            assert np.isfinite(weigh(np.full(50, value), 0.05, bounds).capital).all()


@pytest.mark.parametrize("difference", [0.1, -0.1])
def test_a_shadow_at_the_margin_has_few_false_verdicts(difference):
    """At the margin both verdicts are false; a look after every row."""
    verdicts, _ = first_verdicts(paired(np.random.default_rng(1), 0.2, 0.2 + difference), 0.1, PAIRED)
    assert verdicts.count("promote") <= MOST_FALSE
    assert verdicts.count("abort") <= MOST_FALSE


def test_a_shadow_whose_labels_differ_is_not_promoted():
    """Equal reject rates do not make up for labels that differ at the margin."""
    random = np.random.default_rng(2)
    labels = (random.random((STREAMS, 600)) < 0.1) * 1.0
    verdicts, _ = first_verdicts(paired(random, 0.02, 0.02), 0.1, PAIRED, labels)
    assert verdicts.count("promote") <= MOST_FALSE
    assert verdicts.count("abort") <= MOST_FALSE


@pytest.mark.parametrize(
    ("labels", "expected", "most_rows"), [(0.01, "promote", 200), (0.3, "abort", 200)], ids=["equal", "other labels"]
)
def test_a_shadow_gets_the_right_verdict_soon(labels, expected, most_rows):
    """Far inside and far beyond a margin of 10 %."""
    random = np.random.default_rng(3)
    verdicts, median = first_verdicts(
        paired(random, 0.02, 0.02, 100), 0.1, PAIRED, (random.random((100, 600)) < labels) * 1.0
    )
    assert set(verdicts) == {expected}
    assert median <= most_rows


def test_a_canary_at_the_margin_has_few_false_verdicts():
    """The callers of both versions, whose reject rates differ by the margin."""
    verdicts, _ = first_verdicts(canary(np.random.default_rng(4), 0.2, 0.02, 0.12), 0.1, canary_bounds(0.2, 0.02))
    assert verdicts.count("promote") <= MOST_FALSE
    assert verdicts.count("abort") <= MOST_FALSE


def test_a_canary_gets_the_right_verdict():
    """Equal, and beyond the margin."""
    random, bounds = np.random.default_rng(5), canary_bounds(0.2, 0.02)
    assert set(first_verdicts(canary(random, 0.2, 0.02, 0.02, 50), 0.1, bounds)[0]) == {"promote"}
    assert set(first_verdicts(canary(random, 0.2, 0.02, 0.4, 50), 0.1, bounds)[0]) == {"abort"}


@pytest.mark.parametrize("center", [0.0, 0.3])
def test_the_mean_of_a_canarys_differences_is_the_difference_of_the_means(center):
    """Whatever the constant; and every value is within the bounds."""
    share, before, after = 0.1, 0.2, 0.5
    values = {
        (side, value): canary_difference(value, share, center, candidate=side)
        for side in (True, False)
        for value in (0.0, 1.0)
    }
    mean = share * (after * values[True, 1.0] + (1 - after) * values[True, 0.0]) + (1 - share) * (
        before * values[False, 1.0] + (1 - before) * values[False, 0.0]
    )
    assert mean == pytest.approx(after - before)
    bounds = canary_bounds(share, center)
    assert bounds.low == pytest.approx(min(values.values()))
    assert bounds.high == pytest.approx(max(values.values()))


def test_the_missing_observations_are_about_right():
    """After a third of the way, the estimate is within a factor of two of the median."""
    differences = paired(np.random.default_rng(6), 0.02, 0.02, 100)
    _, median = first_verdicts(differences, 0.1, PAIRED)
    third = int(median) // 3
    missing = [compare(weigh(stream[:third], 0.1, PAIRED), None, ALPHA).missing for stream in differences]
    assert median / 3 <= third + np.median([count for count in missing if count]) <= 2 * median
    assert compare(NO_EVIDENCE, None, ALPHA).missing is None


@pytest.mark.parametrize(
    ("differences", "margin", "bounds"),
    [([1.1], 0.1, PAIRED), ([-0.1], 0.1, DISAGREEMENT), ([0.0], 0.0, PAIRED), ([0.0], 1.0, DISAGREEMENT)],
)
def test_what_the_bets_do_not_hold_for_is_refused(differences, margin, bounds):
    """Differences outside of the bounds, and margins that leave nothing to test."""
    with pytest.raises(ValueError, match=r"difference|margin"):
        weigh(np.array(differences), margin, bounds)


def test_without_observations_there_is_no_verdict():
    """The e-values are 1."""
    comparison = compare(NO_EVIDENCE, NO_EVIDENCE, ALPHA)
    assert (comparison.promote, comparison.abort, comparison.verdict) == (pytest.approx(0), pytest.approx(0), None)
    assert Evidence(0, 0.0, 0.0, NO_EVIDENCE.capital).mean is None
