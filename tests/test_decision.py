"""One decision from several scores: evidence against the naive loop, rules by hand, and the level on simulated rows."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pydantic import ValidationError
from scipy import special, stats

from models.calibration import Calibration, calibrate, judge
from models.decision import (
    COMBINED,
    Decision,
    combine,
    contributions,
    evidence,
    ladder,
    leave_one_out,
    loudest,
    tail_scale,
)
from models.errors import CalibrationError
from models.predictive import Prediction
from models.ranks import p_value
from models.summaries import ClassificationSummary

RULES = ("min", "weighted", "harmonic")
CALIBRATIONS = {
    "normal": np.random.default_rng(0).normal(size=200),
    "ties": np.random.default_rng(1).integers(0, 7, 150).astype(float),
    "heavy": np.random.default_rng(2).standard_cauchy(99),
    "constant": np.full(40, 3.0),
    "zeros": np.zeros(5),
    "one": np.array([2.0]),
    "two": np.array([1.0, 4.0]),
    "two alike": np.array([1.0, 1.0]),
    "largest twice": np.array([0.0, 1.0, 5.0, 5.0]),
    "smallest twice": np.array([0.0, 0.0, 1.0, 5.0]),
}


def float32(values):
    """Scores, as the compiled call gives them."""
    return np.asarray(values, np.float32)


def naive_evidence(others, value, scale):
    """−ln p by the definition, one step after the other, in Python's floats."""
    known = sorted(set(others))
    at_least = [sum(other >= step for other in others) for step in known]
    if not known or value <= known[0]:
        count = len(others)
    elif value > known[-1]:
        count = at_least[-1]
    else:
        above = next(place for place, step in enumerate(known) if step >= value)
        low, high = known[above - 1], known[above]
        share = (value - low) / (high - low)
        count = at_least[above - 1] + share * (at_least[above] - at_least[above - 1])
    excess = max(value - known[-1], 0) if known else 0
    return -np.log((1 + count) / (len(others) + 1)) + excess / scale


def naive_leave_one_out(scores):
    """Every row's evidence among the others, whose tail it is measured by, too."""
    found = []
    for place, value in enumerate(scores.tolist()):
        others = np.delete(scores, place)
        found.append(naive_evidence(others.tolist(), value, tail_scale(np.sort(others)) if len(others) else 1.0))
    return found


@pytest.mark.parametrize("name", CALIBRATIONS)
def test_evidence_is_the_naive_loops(name):
    """Within, between, at, below and beyond the calibration scores."""
    scores = float32(CALIBRATIONS[name])
    low, high = scores.min() - 3, scores.max() + 3
    values = float32([*scores, *np.linspace(low, high, 57), 1e6, -1e6])
    ascending = np.sort(scores)
    expected = [naive_evidence(scores.tolist(), float(v), tail_scale(ascending)) for v in values]
    np.testing.assert_allclose(evidence(ladder(ascending), values), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", CALIBRATIONS)
def test_leave_one_out_is_the_naive_loops(name):
    """Each row in turn is taken out and ranked among the rest, in the calibration's own order."""
    scores = float32(CALIBRATIONS[name])
    np.testing.assert_allclose(leave_one_out(scores), naive_leave_one_out(scores), rtol=1e-12, atol=1e-12)


@settings(deadline=None, max_examples=200)
@given(arrays(np.float32, st.integers(1, 12), elements=st.sampled_from([0.0, 1.0, 1.5, 2.0, 7.0])))
def test_leave_one_out_is_the_naive_loops_whatever_ties(scores):
    """Every pattern of ties at the ends and in the middle of small splits."""
    np.testing.assert_allclose(leave_one_out(scores), naive_leave_one_out(scores), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", CALIBRATIONS)
def test_evidence_at_a_calibration_score_is_that_of_the_conformal_p_value(name):
    """−ln((1 + #{calibration ≥ s}) / (n + 1)): nothing is interpolated there, and no tail added."""
    ascending = np.sort(float32(CALIBRATIONS[name]))
    np.testing.assert_allclose(
        evidence(ladder(ascending), ascending), -np.log(p_value(ascending, ascending)), atol=1e-12
    )


@pytest.mark.parametrize("name", CALIBRATIONS)
def test_evidence_rises_and_does_not_jump_where_the_tail_begins(name):
    """A larger score is no less strange; strictly stranger beyond all; and a hair beyond all is a hair stranger."""
    ascending = np.sort(float32(CALIBRATIONS[name]))
    span = max(float(ascending[-1] - ascending[0]), 1.0)
    within = np.linspace(float(ascending[0]) - span, float(ascending[-1]), 2001)
    beyond = float(ascending[-1]) + span * np.geomspace(1e-6, 1e6, 100)
    found = evidence(ladder(ascending), np.concatenate([within, beyond]))
    assert np.all(np.diff(found) >= 0)
    assert np.all(np.diff(found[len(within) :]) > 0)
    at, after = evidence(
        ladder(ascending), np.array([ascending[-1], ascending[-1] + 1e-9 * tail_scale(ascending)], float)
    )
    assert after == pytest.approx(at, abs=1e-6)


@pytest.mark.parametrize("name", CALIBRATIONS)
def test_evidence_of_the_absurd_is_finite(name):
    """The largest float32, of either sign; and the three rules of it."""
    ascending = np.sort(float32(CALIBRATIONS[name]))
    found = evidence(ladder(ascending), float32([3.4e38, 1e30, -1e30, -3.4e38]))
    assert np.isfinite(found).all()
    assert found[0] > found[1] > found[2] == found[3] == 0
    for rule in RULES:
        assert np.isfinite(combine(Decision(scores=("a", "b"), rule=rule), np.stack([found, found[::-1]]))).all()


def test_the_tails_scale_is_the_mean_excess():
    """Of 1 … 1000 the 975th begins the tail: the mean of 0 … 24; an exponential's own scale is found again."""
    assert tail_scale(np.arange(1.0, 1001.0)) == 12.0
    scores = np.sort(np.random.default_rng(0).exponential(4.0, 100_000))
    assert tail_scale(scores) == pytest.approx(4.0, rel=0.05)
    assert tail_scale(np.full(10, 5.0)) > 0
    assert tail_scale(np.zeros(10)) > 0


# ---- rules -----------------------------------------------------------------------------------------------------------

PARTS = np.array([[0.1, 3.0, 5.0], [2.0, 3.0, 0.0], [1.0, 3.0, 700.0]])
NAMES = ("vim", "gen", "knn")


@pytest.mark.parametrize("weights", [(), (1.0, 1.0, 1.0), (2.0, 5.0, 1.0)])
@pytest.mark.parametrize("rule", RULES)
def test_the_rules_by_hand(rule, weights):
    """From p-values, in SciPy's terms: the least of p/w, the weighted sum of −ln p, −ln of Σ w / p."""
    decision = Decision(scores=NAMES, rule=rule, weights=weights)
    w = np.array(weights or (1.0, 1.0, 1.0))[:, None]
    w = w / w.sum()
    expected = {
        "min": (PARTS + np.log(w)).max(axis=0),
        "weighted": (w * PARTS).sum(axis=0),
        "harmonic": special.logsumexp(PARTS, b=w, axis=0),
    }[rule]
    np.testing.assert_allclose(combine(decision, PARTS), expected, rtol=1e-12)


def test_the_rules_are_tippetts_goods_and_wilsons():
    """Of p = .1, .2, .5: the least, Fisher's statistic, the harmonic mean; each by SciPy or by its formula."""
    p = np.array([0.1, 0.2, 0.5])
    parts = -np.log(p)[:, None]
    least, summed, mean = (float(combine(Decision(scores=NAMES, rule=rule), parts)[0]) for rule in RULES)
    assert np.exp(-least) / 3 == pytest.approx(stats.combine_pvalues(p, "tippett").statistic)
    assert 6 * summed == pytest.approx(stats.combine_pvalues(p, "fisher").statistic)
    assert np.exp(-mean) == pytest.approx(stats.hmean(p))


def test_the_loudest_score_is_the_one_that_adds_most():
    """The largest weighed part: shares multiply a sum's parts, and divide p-values."""

    def told(**terms):
        return loudest(dict(zip(NAMES, contributions(Decision(scores=NAMES, **terms), PARTS), strict=True)))

    assert told() == ["gen", "vim", "knn"]
    assert told(rule="weighted", weights=(1, 1, 9)) == ["knn", "knn", "knn"]
    assert told(rule="min", weights=(1, 1, 2)) == ["gen", "knn", "knn"]
    assert told(rule="harmonic", weights=(1, 4, 1)) == ["gen", "gen", "knn"]


@pytest.mark.parametrize(
    ("terms", "said"),
    [
        ({"scores": ()}, "at least 1 item"),
        ({"scores": ("a", "b", "a")}, "every score once, found a, b, a"),
        ({"scores": ("a", "b"), "weights": (1.0,)}, "one weight for each of 2 scores, found 1"),
        ({"scores": ("a", "b"), "weights": (1.0, 0.0)}, "greater than 0"),
        ({"scores": ("a",), "rule": "fisher"}, "'min', 'weighted' or 'harmonic'"),
    ],
)
def test_a_decision_that_cannot_be_is_refused(terms, said):
    """No score, one twice, too few weights, a weight of nothing, a rule that nobody knows."""
    with pytest.raises(ValidationError, match=said):
        Decision(**terms)


def test_one_score_is_taken_as_it_is():
    """A decision of one has its name; of several, `combined`; weights sum to 1."""
    assert Decision(scores=("vim",)).name == "vim"
    assert Decision(scores=("vim", "gen")).name == COMBINED == "combined"
    assert Decision(scores=("vim", "gen"), weights=(3, 1)).shares == (0.75, 0.25)


# ---- the level -------------------------------------------------------------------------------------------------------

SCORES = ("std", "entropy", "energy")


def normals(rng, rows):
    """Three correlated scores of light tails."""
    common = rng.normal(size=rows)
    return np.stack([common + s * rng.normal(size=rows) for s in (0.5, 1, 3)])


def heavy(rng, rows):
    """Scores of which one has no mean, correlated by a common scale."""
    common = rng.exponential(size=rows)
    return np.stack([common * rng.standard_cauchy(rows), common, rng.lognormal(0, 2, rows)])


def tied(rng, rows):
    """A discrete score with few values, a continuous one that is 0 for most rows, and one that never varies."""
    return np.stack([rng.poisson(1.0, rows), np.maximum(rng.normal(-1, 1, rows), 0), np.full(rows, 7.0)])


def mixed(rng, rows):
    """A discrete score beside two continuous ones."""
    return np.stack([rng.poisson(1.0, rows), *rng.normal(size=(2, rows))])


def predicted(values, labels=None, classes=3):
    """A prediction with these scores, of these classes."""
    rows = values.shape[1]
    labels = np.zeros(rows, int) if labels is None else labels
    mean = np.full((rows, classes), 0.1, np.float32)
    mean[np.arange(rows), labels] = 0.8
    zeros = np.zeros(rows, np.float32)
    summary = ClassificationSummary(mean, mean, zeros, zeros, zeros)
    return Prediction(summary, dict(zip(SCORES, float32(values), strict=True)))


def rejected(draw, decision, percentiles, splits, rows, fresh=200):
    """The reject rate at each percentile, and its standard error, over fresh splits."""
    rng = np.random.default_rng(5)
    rates = []
    for _ in range(splits):
        split = calibrate(predicted(draw(rng, rows)), np.zeros(rows, int), decision=decision, percentile=50.0)
        new = predicted(draw(rng, fresh))
        rates.append([judge(split, new, percentile).reject.mean() for percentile in percentiles])
    return np.mean(rates, axis=0), np.std(rates, axis=0) / np.sqrt(splits)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("draw", [normals, heavy, mixed])
def test_the_combined_decision_keeps_its_level(draw, rule):
    """At 90, 95 and 99 the reject rate is the stated one, whatever the scores' tails and correlations."""
    percentiles = (90.0, 95.0, 99.0)
    rates, errors = rejected(draw, Decision(scores=SCORES, rule=rule, weights=(1, 2, 1)), percentiles, 100, 999)
    stated = 1 - np.array(percentiles) / 100
    assert np.all(np.abs(rates - stated) < 4 * errors), (rates, errors)


@pytest.mark.parametrize("rule", RULES)
def test_ties_only_make_the_combined_decision_more_careful(rule):
    """Of scores of which most rows share a value, no more are rejected than stated."""
    rates, errors = rejected(tied, Decision(scores=SCORES, rule=rule), (90.0, 95.0, 99.0), 100, 199)
    assert np.all(rates <= np.array([0.1, 0.05, 0.01]) + 4 * errors), (rates, errors)


@pytest.mark.parametrize("rule", RULES)
def test_the_largest_percentile_that_a_split_gives_keeps_its_level(rule):
    """99 calibration rows at 99: only what is stranger than all of them is rejected, at most 1 in 100.

    The strangest row of the split is measured by the others, not by the new one too; that is the careful side.
    """
    (rate,), (error,) = rejected(heavy, Decision(scores=SCORES, rule=rule), (99.0,), 300, 99, 500)
    assert 0.005 - 4 * error <= rate <= 0.01 + 4 * error, (rate, error)


@pytest.mark.parametrize("decision", [Decision(scores=SCORES), Decision(scores=("entropy",))])
def test_per_class_the_level_holds_within_each(decision):
    """Mondrian: classes of other scores, and of other sizes, are each rejected at the stated rate; not so without."""
    rng, shares, fresh = np.random.default_rng(9), [0.2, 0.3, 0.5], 600
    offsets = np.array([3.0, 0.0, -1.0])

    def draw(rows):
        labels = rng.choice(3, rows, p=shares)
        return predicted(normals(rng, rows) + offsets[labels], labels), labels

    def rates(per_class):
        found = []
        for _ in range(100):
            split = calibrate(*draw(400), decision=decision, percentile=90.0, per_class=per_class)
            new, labels = draw(fresh)
            reject = judge(split, new).reject
            found.append([reject[labels == label].mean() for label in range(3)])
        return np.mean(found, axis=0), np.std(found, axis=0) / 10

    means, errors = rates(per_class=True)
    # Of n rows of a class, ⌊(n + 1) / 10⌋ / (n + 1) are rejected: up to 1 / (n + 1) less than a tenth.
    assert np.all(means <= 0.1 + 4 * errors)
    assert np.all(means >= 0.1 - 1 / (400 * np.array(shares)) - 4 * errors)
    pooled, _ = rates(per_class=False)
    assert pooled[0] > 0.2
    assert pooled[2] < 0.05


def test_a_class_of_too_few_rows_is_refused_by_name():
    """Which class, how many rows it would need, and how many it has; also at a request's own percentile."""
    labels = np.repeat([0, 1, 2], [100, 99, 98])
    values = normals(np.random.default_rng(0), len(labels))
    with pytest.raises(CalibrationError) as error:
        calibrate(predicted(values, labels), labels, percentile=99.0, per_class=True)
    assert str(error.value) == (
        "calibration rows predicted to be of class 2: the 99th percentile needs a larger calibration split: "
        "expected at least 99 rows, found 98 rows; ask for less, or calibrate on more"
    )
    split = calibrate(predicted(values, labels), labels, percentile=95.0, per_class=True)
    with pytest.raises(CalibrationError, match=r"predicted to be of class 2: .* at least 99 rows, found 98 rows"):
        judge(split, predicted(values[:, :4], labels[:4]), percentile=99.0)
    with pytest.raises(CalibrationError, match=r"predicted to be of class 1: .* at least 9 rows, found 0 rows"):
        calibrate(predicted(values, np.zeros(297, int)), labels, percentile=90.0, per_class=True)


def test_a_combined_decision_by_hand():
    """Nine rows, two scores: evidence, combination, threshold and p-value of three new rows, step by step."""
    scores = {"std": float32(np.arange(1, 10)), "entropy": float32(np.arange(9, 0, -1))}
    decision = Decision(scores=("std", "entropy"))
    split = Calibration(scores=scores, nonconformity=np.arange(9.0), decision=decision, percentile=80.0)
    # Of the eight others the score k has 9 − k above it, and lies midway between two: p = (1 + 9 − k + ½) / 9, but for the
    # ends: the least has p = 1, and the largest that of the others' largest, 2/9, and the tail, 1 beyond it.
    own = -np.log(np.array([9, 8.5, 7.5, 6.5, 5.5, 4.5, 3.5, 2.5, 2]) / 9)
    own[-1] += 1 / tail_scale(np.arange(1.0, 9.0))
    tail = 1 / tail_scale(scores["std"])
    expected = np.maximum(own, own[::-1]) - np.log(2)
    np.testing.assert_allclose(split.all_scores["combined"], expected, rtol=1e-12)
    zeros = np.zeros(3, np.float32)
    mean = np.full((3, 2), 0.5, np.float32)
    new = Prediction(
        ClassificationSummary(mean, mean, zeros, zeros, zeros),
        {"std": float32([5, 8.5, 30]), "entropy": float32([5, 1, 1])},
    )
    told = judge(split, new)
    np.testing.assert_allclose(told.evidence["std"], -np.log([0.6, 0.25, 0.2]) + [0, 0, 21 * tail], rtol=1e-6)
    np.testing.assert_allclose(told.evidence["entropy"], -np.log([0.6, 1, 1]), atol=1e-12)
    np.testing.assert_allclose(told.scores["combined"].value, np.max(list(told.evidence.values()), axis=0) - np.log(2))
    # The ⌈10 · 0.8⌉-th smallest of nine: one of the two rows that are beyond all others by one of their scores.
    assert told.scores["combined"].threshold.tolist() == pytest.approx([np.sort(expected)[7]] * 3, rel=1e-9)
    assert told.reject.tolist() == [False, False, True]
    assert told.loudest == ["std", "std", "std"]
    np.testing.assert_allclose(
        told.scores["combined"].p_value, p_value(np.sort(expected), told.scores["combined"].value)
    )
    assert told.scores["std"].p_value.tolist() == [0.6, 0.2, 0.1]
