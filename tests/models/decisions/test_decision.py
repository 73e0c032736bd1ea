"""One decision from several scores: evidence against the naive loop, rules by hand, and the level on simulated rows."""

import math
import statistics

import numpy as np
import pytest
from pydantic import ValidationError
from scipy import special, stats

from abstain.models.decisions.calibration import calibrate
from abstain.models.decisions.decision import (
    COMBINED,
    LEAST_STEP,
    ROUNDED,
    TAIL_ROWS,
    Decision,
    combine,
    contributions,
    evidence,
    evidence_map,
    leave_one_out,
    main_scores,
)
from abstain.models.decisions.judging import judge
from abstain.models.decisions.records import Calibration
from abstain.models.errors import CalibrationError
from abstain.models.prediction.predictive import Prediction
from abstain.models.prediction.summaries import ClassificationSummary

RULES = ("min", "weighted", "harmonic")
REFERENCES = {
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


def naive_evidence(reference, value, least_scale=0.0):
    """The definition, one step after the other, in Python's floats."""
    ascending = sorted(map(float, reference))
    rows = len(ascending)
    halvings = 0
    while rows / 2 ** (halvings + 1) >= TAIL_ROWS:
        halvings += 1
    knots = [ascending[int(rows * (1 - 0.5**k))] for k in range(halvings + 1)]
    tail = ascending[int(rows * (1 - 0.5**halvings)) :]
    scale = max(statistics.median(tail) - knots[-1], least_scale, ROUNDED, 10 * ROUNDED * abs(knots[-1]))
    for k in range(1, len(knots)):
        knots[k] = max(knots[k], knots[k - 1] + LEAST_STEP * scale)
    if value <= knots[0]:
        return 0.0
    if value >= knots[-1]:
        return halvings * math.log(2) + math.log1p((value - knots[-1]) / scale)
    above = next(k for k, knot in enumerate(knots) if knot > value)
    share = (value - knots[above - 1]) / (knots[above] - knots[above - 1])
    return (above - 1 + share) * math.log(2)


@pytest.mark.parametrize("least_scale", [0.0, 0.05, 20.0])
@pytest.mark.parametrize("name", REFERENCES)
def test_evidence_is_the_naive_loops(name, least_scale):
    """Within, between, at, below and beyond the reference scores."""
    scores = float32(REFERENCES[name])
    low, high = scores.min() - 3, scores.max() + 3
    values = float32([*scores, *np.linspace(low, high, 57), 1e6, -1e6])
    expected = [naive_evidence(scores, float(v), least_scale) for v in values]
    np.testing.assert_allclose(evidence(evidence_map(scores, least_scale), values), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", REFERENCES)
def test_leave_one_out_is_the_evidence_among_the_other_rows(name):
    """Bundles of schema 1: each row in turn is taken out, and is ranked among the rest, in the calibration's own order."""
    scores = float32(REFERENCES[name])
    expected = [
        naive_evidence(np.delete(scores, row) if len(scores) > 1 else scores, value)
        for row, value in enumerate(scores.tolist())
    ]
    np.testing.assert_allclose(leave_one_out(scores), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("rows", [*range(1, 40), 63, 64, 65, 255, 256, 257, 1000])
def test_leave_one_out_is_row_by_row_to_the_last_bit(rows):
    """Maps that neighbours share are those that each row would have of its own, whatever number of knots there are."""
    rng = np.random.default_rng(rows)
    for values in (rng.standard_cauchy(rows), rng.integers(0, 5, rows)):
        scores = float32(values)
        others = [np.delete(scores, row) if rows > 1 else scores for row in range(rows)]
        expected = [evidence(evidence_map(rest), scores[[row]])[0] for row, rest in enumerate(others)]
        assert leave_one_out(scores).tolist() == expected


def test_evidence_halves_the_share_of_reference_rows_at_each_knot():
    """Of 1 … 1024, half have at least 513: ln 2; an eighth at least 897: 3 ln 2; the top eight begin the tail."""
    fixed = evidence_map(float32(np.arange(1, 1025)))
    np.testing.assert_allclose(fixed.nats, np.log(2) * np.arange(8))
    np.testing.assert_allclose(fixed.knots, [1, 513, 769, 897, 961, 993, 1009, 1017])
    found = evidence(fixed, np.array([1.0, 513, 641, 897, 1017]))
    np.testing.assert_allclose(found, np.log(2) * np.array([0, 1, 1.5, 3, 7]))


@pytest.mark.parametrize("name", REFERENCES)
def test_evidence_increases_strictly_and_has_no_jump(name):
    """A larger score has more evidence, up to the largest float32; a hair more of score is a hair more of evidence."""
    scores = np.sort(float32(REFERENCES[name]))
    fixed = evidence_map(scores)
    span = max(float(scores[-1] - scores[0]), 1.0)
    values = np.concatenate(
        [
            np.linspace(float(scores[0]), float(scores[-1]) + span, 4001),
            float(scores[-1]) + span * np.geomspace(2, 1e38 / span, 300),
        ]
    )
    found = evidence(fixed, values)
    assert np.all(np.diff(found) > 0)
    assert np.isfinite(found).all()
    # Knots are LEAST_STEP scales apart at least, so no step is steeper than ln 2 over that.
    steepest = np.log(2) / (LEAST_STEP * fixed.scale)
    assert np.all(np.diff(found) <= np.diff(values) * max(steepest, 1 / fixed.scale) * (1 + 1e-9))


@pytest.mark.parametrize("rule", RULES)
def test_the_evidence_of_the_absurd_is_finite(rule):
    """The largest float32 of either sign, by every rule."""
    fixed = evidence_map(float32(REFERENCES["zeros"]))
    found = evidence(fixed, float32([3.4e38, 1e30, -1e30, -3.4e38]))
    assert np.isfinite(found).all()
    assert found[0] > found[1] > found[2] == found[3] == 0
    assert np.isfinite(combine(Decision(scores=("a", "b"), rule=rule), np.stack([found, found[::-1]]))).all()


def test_no_single_reference_row_sets_the_scale_of_the_tail():
    """One absurd reference row, or the only one that is not 0, leaves the scale where it is."""
    scores = np.random.default_rng(0).exponential(size=200)
    absurd = np.append(scores[:-1], 1e12)
    assert evidence_map(float32(absurd)).scale < 3 * evidence_map(float32(scores)).scale
    outlier = np.append(np.zeros(79), 1e-6)
    assert evidence_map(float32(outlier), 0.05).scale == 0.05
    assert evidence_map(float32(outlier)).scale == ROUNDED
    assert evidence_map(float32(1e-20 * outlier), unit=1e-20).scale == ROUNDED * 1e-20


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


def test_the_main_score_contributes_most():
    """The largest weighed part: shares multiply a sum's parts, and divide p-values."""

    def main_scores_of(**terms):
        return main_scores(dict(zip(NAMES, contributions(Decision(scores=NAMES, **terms), PARTS), strict=True)))

    assert main_scores_of() == ["gen", "vim", "knn"]
    assert main_scores_of(rule="weighted", weights=(1, 1, 9)) == ["knn", "knn", "knn"]
    assert main_scores_of(rule="min", weights=(1, 1, 2)) == ["gen", "knn", "knn"]
    assert main_scores_of(rule="harmonic", weights=(1, 4, 1)) == ["gen", "gen", "knn"]


@pytest.mark.parametrize(
    ("terms", "message"),
    [
        ({"scores": ()}, "at least 1 item"),
        ({"scores": ("a", "b", "a")}, "every score once, found a, b, a"),
        ({"scores": ("a", "b"), "weights": (1.0,)}, "one weight for each of 2 scores, found 1"),
        ({"scores": ("a", "b"), "weights": (1.0, 0.0)}, "greater than 0"),
        ({"scores": ("a",), "rule": "fisher"}, "'min', 'weighted' or 'harmonic'"),
    ],
)
def test_a_decision_that_cannot_be_is_refused(terms, message):
    """No score, one twice, too few weights, a weight of nothing, a rule that nobody knows."""
    with pytest.raises(ValidationError, match=message):
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
    """A discrete score and two continuous ones."""
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


def strictest(rows):
    """The largest percentile that so many calibration rows have a threshold for, to six digits."""
    return math.floor(1e8 * rows / (rows + 1)) / 1e6


def rejected(draw, decision, percentiles, splits, rows, fresh=200, reference=40):
    """The reject rate at each percentile, and its standard error, over fresh splits."""
    rng = np.random.default_rng(5)
    rates = []
    for _ in range(splits):
        split = calibrate(
            predicted(draw(rng, rows)),
            np.zeros(rows, int),
            decision=decision,
            percentile=50.0,
            reference=predicted(draw(rng, reference)).scores if reference else None,
        )
        new = predicted(draw(rng, fresh))
        rates.append([judge(split, new, percentile).reject.mean() for percentile in percentiles])
    return np.mean(rates, axis=0), np.std(rates, axis=0) / np.sqrt(splits)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("draw", [normals, heavy, mixed])
def test_the_combined_decision_keeps_its_level(draw, rule):
    """At 90, 95 and 99 the reject rate is the stated one, whatever the scores' tails and correlations.

    Five standard errors; and the tolerance for ties may take a fiftieth of the rate.
    """
    percentiles = (90.0, 95.0, 99.0)
    rates, errors = rejected(draw, Decision(scores=SCORES, rule=rule, weights=(1, 2, 1)), percentiles, 100, 999)
    stated = 1 - np.array(percentiles) / 100
    assert np.all(rates < stated + 5 * errors), (rates, errors)
    assert np.all(rates > 0.98 * stated - 5 * errors), (rates, errors)


@pytest.mark.parametrize("rule", RULES)
def test_ties_only_make_the_combined_decision_more_careful(rule):
    """Of scores of which most rows share a value, no more are rejected than stated."""
    rates, errors = rejected(tied, Decision(scores=SCORES, rule=rule), (90.0, 95.0, 99.0), 100, 199)
    assert np.all(rates <= np.array([0.1, 0.05, 0.01]) + 4 * errors), (rates, errors)


@pytest.mark.parametrize("rule", RULES)
def test_the_largest_percentile_that_a_split_gives_keeps_its_level(rule):
    """99 calibration rows at 99: only what is stranger than all of them is rejected, which is 1 in 100."""
    (rate,), (error,) = rejected(heavy, Decision(scores=SCORES, rule=rule), (99.0,), 300, 99, 500)
    assert rate == pytest.approx(0.01, abs=5 * error)


@pytest.mark.parametrize("rule", RULES)
def test_a_calibration_of_schema_1_rejects_no_more_than_stated(rule):
    """Without reference rows each calibration row is ranked among the others: a new row is ranked among one more."""
    (rate,), (error,) = rejected(heavy, Decision(scores=SCORES, rule=rule), (99.0,), 60, 99, 500, reference=0)
    assert rate <= 0.01 + 5 * error


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("rows", [99, 199, 1000])
def test_no_calibration_row_silences_the_decision(rule, rows):
    """Columns of 1 to 16 features: a row far outside their ranges is rejected at every possible percentile.

    `range` is 0 for nearly all rows, and just above 0 for one or two: their excess once set the scale of the tail.
    """
    rng = np.random.default_rng(3)
    decision = Decision(scores=("std", "range"), rule=rule)
    for features in (1, 2, 4, 16) * 25:
        train, reference, known = (rng.normal(size=(n, features)) for n in (4 * rows, max(rows // 4, 16), rows))
        low, high = train.min(axis=0), train.max(axis=0)
        far = np.repeat(0.5 * (low + high)[None], 3, axis=0)
        far[:, 0] = low[0] + (high - low)[0] * np.array([3.0, 50.0, 1e30])

        def scores(x, low=low, high=high):
            outside = np.maximum(low - x, x - high).max(axis=1) / (high - low).max()
            return {"std": float32(np.abs(x).mean(axis=1).clip(0, 9)), "range": float32(np.maximum(outside, 0))}

        split = Calibration(
            scores=scores(known),
            nonconformity=np.arange(float(rows)),
            decision=decision,
            percentile=strictest(rows),
            reference=scores(reference),
        )
        new = predicted(np.zeros((3, 3)))._replace(scores=scores(far))
        assert judge(split, new).reject.all()


def test_a_row_that_dominates_all_calibration_rows_is_rejected():
    """Larger in every score than every calibration row, by more than the tolerance: rejected at every percentile."""
    rng = np.random.default_rng(11)
    for trial in range(100):
        rows = int(rng.choice([99, 150, 400]))
        draw = (normals, heavy, tied, mixed)[trial % 4]
        known = predicted(draw(rng, rows))
        top = np.array([values.max() for values in known.scores.values()])
        new = predicted(np.stack([top + 1e-3 * np.abs(top) + 0.01, top * 2 + 1e3, np.full(3, 1e30)], axis=1))
        for rule in RULES:
            split = calibrate(
                known,
                np.zeros(rows, int),
                decision=Decision(scores=SCORES, rule=rule),
                percentile=strictest(rows),
                reference=predicted(draw(rng, 80)).scores,
            )
            assert judge(split, new).reject.all(), (trial, rule)


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
            reference = draw(40)[0].scores
            split = calibrate(*draw(400), decision=decision, percentile=90.0, per_class=per_class, reference=reference)
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
        "calibration rows predicted to be of class 2: the 99th percentile needs a larger calibration part: "
        "expected at least 99 rows, found 98 rows; request a lower value, or calibrate with more rows"
    )
    split = calibrate(predicted(values, labels), labels, percentile=95.0, per_class=True)
    with pytest.raises(CalibrationError, match=r"predicted to be of class 2: .* at least 99 rows, found 98 rows"):
        judge(split, predicted(values[:, :4], labels[:4]), percentile=99.0)
    with pytest.raises(CalibrationError, match=r"predicted to be of class 1: .* at least 9 rows, found 0 rows"):
        calibrate(predicted(values, np.zeros(297, int)), labels, percentile=90.0, per_class=True)


def test_a_combined_decision_by_hand():
    """Sixteen reference rows, nine calibration rows, two scores: evidence, combination, threshold, p-value, verdict."""
    scores = {"std": float32(np.arange(1, 10)), "entropy": float32(np.arange(9, 0, -1))}
    split = Calibration(
        scores=scores,
        nonconformity=np.arange(9.0),
        decision=Decision(scores=("std", "entropy")),
        percentile=80.0,
        reference={name: float32(np.arange(16)) for name in scores},
    )
    # Of the reference 0 … 15 half have at least 8: that is the last knot, and the tail's scale is the median of 0 … 7.
    own = np.log(2) * np.minimum(np.arange(1, 10) / 8, 1) + np.log1p(np.maximum(np.arange(1, 10) - 8, 0) / 3.5)
    expected = np.maximum(own, own[::-1]) - np.log(2)
    np.testing.assert_allclose(split.all_scores["combined"], expected, rtol=1e-12)
    new = predicted(np.array([[5, 8.5, 30], [5, 1, 1], [0, 0, 0]]))
    judgement = judge(split, new)
    evidence_of_std = np.log(2) * np.array([5 / 8, 1, 1]) + np.log1p(np.array([0, 0.5, 22]) / 3.5)
    np.testing.assert_allclose(judgement.evidence["std"], evidence_of_std, rtol=1e-6)
    np.testing.assert_allclose(judgement.evidence["entropy"], np.log(2) * np.array([5 / 8, 1 / 8, 1 / 8]), rtol=1e-6)
    np.testing.assert_allclose(
        judgement.scores["combined"].value, np.max(list(judgement.evidence.values()), axis=0) - np.log(2)
    )
    # The ⌈10 · 0.8⌉-th smallest of nine.
    assert judgement.scores["combined"].threshold.tolist() == pytest.approx([np.sort(expected)[7]] * 3, rel=1e-9)
    assert judgement.reject.tolist() == [False, False, True]
    assert judgement.main_scores == ["std", "std", "std"]
    assert judgement.scores["combined"].p_value.tolist() == [1.0, 0.3, 0.1]
    assert judgement.scores["std"].p_value.tolist() == [0.6, 0.2, 0.1]
