"""Calibration against exact arithmetic, and against the rates it promises on simulated rows."""

import math
import time
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from abstain.models.decisions.calibration import calibrate, check_calibration, nonconformity_of
from abstain.models.decisions.decision import Decision
from abstain.models.decisions.judging import judge
from abstain.models.decisions.records import Calibration
from abstain.models.errors import CalibrationError
from abstain.models.prediction.predictive import Prediction
from abstain.models.prediction.summaries import ClassificationSummary, RegressionSummary
from tests.helpers.records import altered

NAMES = ("std", "entropy", "mutual_information", "max_probability")


def classified(mean, scores=None):
    """A prediction with these class probabilities; every score is the one given, or zeros."""
    mean = np.asarray(mean, np.float32)
    zeros = np.zeros(len(mean), np.float32)
    values = zeros if scores is None else np.asarray(scores, np.float32)
    return Prediction(
        ClassificationSummary(mean, np.zeros_like(mean), zeros, zeros, zeros), dict.fromkeys(NAMES, values)
    )


def scored(scores):
    """A two-class prediction with these scores."""
    return classified(np.full((len(scores), 2), 0.5), scores)


def regressed(mean, std):
    """A regression's prediction with a fifth of epistemic variance."""
    mean, variance = np.asarray(mean, np.float32), np.square(np.asarray(std, np.float32))
    zeros = np.zeros_like(mean)
    summary = RegressionSummary(mean, 0.8 * variance, 0.2 * variance, zeros, np.zeros((len(mean), 3), np.float32))
    return Prediction(summary, {"std": np.sqrt(0.2 * variance), "total_std": np.sqrt(variance)})


def calibrated(scores, **terms):
    """The calibration of these scores, all labels 0."""
    return calibrate(scored(scores), np.zeros(len(scores), int), **terms)


@settings(deadline=None)
@given(
    st.lists(st.integers(0, 30), min_size=20, max_size=60),
    st.lists(st.integers(-1, 31), min_size=1, max_size=9),
    st.sampled_from([50.0, 75.0, 90.0, 95.0]),
)
def test_the_decision_and_the_p_value_agree(calibration, values, percentile):
    """A row is rejected exactly if its p-value is at most (n + 1 − rank) / (n + 1), ties or not."""
    n = len(calibration)
    judgement = judge(calibrated(calibration, percentile=percentile), scored(values))
    rank = math.ceil((n + 1) * Fraction(percentile) / 100)
    expected = [(1 + sum(c >= value for c in calibration)) <= n + 1 - rank for value in values]
    assert judgement.reject.tolist() == expected


def test_a_judgement_by_hand():
    """Nine calibration scores 9 … 1 at the 80th percentile: threshold 8, and the places of five rows."""
    calibration = calibrated(range(9, 0, -1), percentile=80.0, coverage=0.5)
    judgement = judge(calibration, scored([0, 8, 8.5, 9, np.inf]))
    assert (judgement.percentile, judgement.coverage, judgement.decision) == (80.0, 0.5, "std")
    assert judgement.reject.tolist() == [False, False, True, True, True]
    for score in judgement.scores.values():
        assert score.threshold.tolist() == [8] * 5
        np.testing.assert_allclose(score.p_value, [1.0, 0.3, 0.2, 0.2, 0.1])
        np.testing.assert_allclose(score.percentile, [0, 70, 80, 80, 90])


def test_the_decision_is_one_score():
    """`reject` reads the decision score alone, whatever the others say."""
    quiet, loud = np.zeros(1, np.float32), np.full(1, 100, np.float32)
    base = calibrated(range(99), decision=Decision(scores=("entropy",)), percentile=90.0)
    row = scored([0])
    only_std = row._replace(scores={**row.scores, "std": loud, "entropy": quiet})
    only_entropy = row._replace(scores={**row.scores, "std": quiet, "entropy": loud})
    assert judge(base, only_std).reject.tolist() == [False]
    assert judge(base, only_entropy).reject.tolist() == [True]


def test_a_request_may_set_another_percentile_and_coverage():
    """Without them the calibration's own values are used."""
    calibration = calibrated(range(1, 100), percentile=90.0, coverage=0.9)
    judgement = judge(calibration, scored([95]), percentile=98.0, coverage=0.5)
    assert (judgement.percentile, judgement.coverage, judgement.reject.tolist()) == (98.0, 0.5, [False])
    assert judge(calibration, scored([95])).reject.tolist() == [True]


@pytest.mark.parametrize(
    ("terms", "message"),
    [({"percentile": 99.5}, "the 99.5th percentile needs"), ({"coverage": 0.999}, "coverage 0.999 needs")],
)
def test_a_request_for_more_than_the_split_gives_is_refused(terms, message):
    """Percentile and coverage are each refused by name, with the rows they need."""
    calibration = calibrated(range(99), percentile=90.0)
    with pytest.raises(CalibrationError, match=f"{message} a larger calibration part: expected at least"):
        judge(calibration, scored([1]), **terms)


def average(rates):
    """The mean of independent rates, and its standard error."""
    return np.mean(rates), np.std(rates) / np.sqrt(len(rates))


def simulated_rejections(draw_scores, percentile, n):
    """The reject rate on fresh rows, of 400 calibrations one after another."""
    calibrations = (calibrated(draw_scores(n), percentile=percentile) for _ in range(400))
    return average([judge(calibration, scored(draw_scores(500))).reject.mean() for calibration in calibrations])


@pytest.mark.parametrize(("n", "percentile"), [(99, 99.0), (150, 95.0), (499, 97.5), (30, 80.0)])
def test_the_reject_rate_is_the_stated_one(n, percentile):
    """Over many splits of exchangeable rows: at most 100 − P percent, and no more than 1/(n + 1) less."""
    rng = np.random.default_rng(7)
    rate, error = simulated_rejections(lambda size: rng.gamma(0.3, size=size), percentile, n)
    stated = 1 - percentile / 100
    assert stated - 1 / (n + 1) - 4 * error <= rate <= stated + 4 * error
    exact = (n + 1 - math.ceil((n + 1) * Fraction(str(percentile)) / 100)) / (n + 1)
    assert abs(rate - exact) < 4 * error


def test_ties_only_make_the_decision_more_careful():
    """Scores with many ties reject no more than stated."""
    rng = np.random.default_rng(7)
    rate, error = simulated_rejections(lambda size: rng.poisson(2, size), 95.0, 99)
    assert rate <= 0.05 + 4 * error


def simulated_coverage(draw, coverage, covers):
    """How often `covers` holds on 200 fresh rows, over 300 calibrations of 99 rows."""
    rates = []
    for _ in range(300):
        calibration = calibrate(*draw(99), percentile=90.0, coverage=coverage)
        prediction, targets = draw(200)
        rates.append(covers(judge(calibration, prediction), targets).mean())
    return average(rates)


def test_prediction_sets_cover_the_truth_at_the_requested_rate():
    """Labels drawn from other probabilities than the predicted: the sets still hold 80 % of them."""
    rng = np.random.default_rng(11)

    def draw(size):
        truth = rng.dirichlet(np.full(5, 0.5), size)
        labels = (truth.cumsum(axis=1) > rng.random((size, 1))).argmax(axis=1)
        overconfident = truth**3 + 1e-3 * rng.random(truth.shape)
        return classified(overconfident / overconfident.sum(axis=1, keepdims=True)), labels

    rate, error = simulated_coverage(draw, 0.8, lambda found, labels: found.members[np.arange(200), labels])
    assert abs(rate - 0.8) < 4 * error < 0.02


def test_intervals_cover_the_truth_at_the_requested_rate():
    """Heavy tails the model knows nothing of: the intervals still hold 90 % of the targets."""
    rng = np.random.default_rng(12)

    def draw(size):
        std, mean = rng.uniform(0.5, 3, size), rng.normal(50, 10, size)
        return regressed(mean, std), mean + 1 + 2 * std * rng.standard_t(2, size)

    def covers(found, targets):
        return (found.interval[:, 0] <= targets) & (targets <= found.interval[:, 1])

    rate, error = simulated_coverage(draw, 0.9, covers)
    assert abs(rate - 0.9) < 4 * error < 0.02


def test_a_prediction_set_by_hand():
    """The classes with a probability of at least 1 − the radius; ties belong to the set."""
    fits = np.linspace(0.95, 0.05, 19)
    prediction = classified(np.stack([fits, 1 - fits], axis=1))
    calibration = calibrate(prediction, np.zeros(19, int), percentile=90.0, coverage=0.5)
    radius = calibration.nonconformity[9]
    np.testing.assert_allclose(radius, 0.5, atol=1e-6)
    judgement = judge(calibration, classified([[0.9, 0.1], [0.3, 0.7], [1 - radius, radius]]))
    assert judgement.members.tolist() == [[True, False], [False, True], [True, True]]
    assert judgement.interval is None


def test_an_interval_by_hand():
    """Mean ± radius · std, the radius the rank-th smallest |y − mean| / std."""
    prediction = regressed(np.zeros(9), np.full(9, 2.0))
    calibration = calibrate(prediction, np.arange(1.0, 10.0) * [1, -1, 1, -1, 1, -1, 1, -1, 1], percentile=50.0)
    judgement = judge(calibration, regressed([10.0, -5.0], [1.0, 0.1]), coverage=0.7)
    np.testing.assert_allclose(judgement.interval, [[6.5, 13.5], [-5.35, -4.65]], rtol=1e-6)
    assert judgement.members is None


def test_nonconformity_by_hand():
    """1 − the true class's probability; |y − mean| in total standard deviations."""
    prediction = classified([[0.7, 0.3], [0.2, 0.8]])
    np.testing.assert_allclose(nonconformity_of(prediction, np.array([0, 0])), [0.3, 0.8], rtol=1e-6)
    prediction = regressed([1.0, 1.0], [2.0, 0.5])
    np.testing.assert_allclose(nonconformity_of(prediction, np.array([5.0, 0.0])), [2, 2], rtol=1e-6)


def test_an_unknown_decision_is_refused_by_name():
    """The error lists the existing scores and the requested one."""
    with pytest.raises(CalibrationError) as error:
        calibrated(range(200), decision=Decision(scores=("std", "surprise")))
    assert str(error.value) == f"decision: expected some of {', '.join(NAMES)}, found surprise"


@pytest.mark.parametrize("terms", [{"percentile": 99.9}, {"coverage": 0.999}])
def test_a_split_too_small_for_its_own_terms_is_refused(terms):
    """Calibration fails when it is made, not when it is first used."""
    with pytest.raises(CalibrationError, match="expected at least 999 rows, found 998 rows"):
        calibrated(range(998), **terms)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_scores_that_are_not_finite_are_refused(value):
    """A posterior that overflows on a calibration row has no threshold: the score is named."""
    scores = np.arange(200.0)
    scores[5] = value
    with pytest.raises(CalibrationError, match=rf"row 5.*std.*expected a finite score, found {value}"):
        calibrated(scores)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_targets_that_are_not_finite_are_refused(value):
    """A target of NaN would make the radius of every interval NaN, or a stored calibration that cannot be loaded."""
    targets = np.zeros(200)
    targets[3] = value
    with pytest.raises(CalibrationError, match="finite"):
        calibrate(regressed(np.zeros(200), np.ones(200)), targets)


ROWS = np.arange(100, dtype=np.float32)
SCORES_OF = dict.fromkeys(NAMES, ROWS)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"scores": SCORES_OF | {"total_std": ROWS}}, "scores: expected ['energy', 'entropy', "),
        ({"scores": SCORES_OF | {"vim": ROWS}}, "scores: expected ['energy', 'entropy', "),
        ({"decision": Decision(scores=("energy",))}, "decision: expected ['entropy', 'max_probability', "),
        ({"decision": Decision(scores=("std", "energy"))}, "decision: expected ['entropy', 'max_probability', "),
        ({"nonconformity": ROWS * np.nan}, "nonconformity: expected 100 finite numbers"),
        ({"nonconformity": ROWS[:0]}, "std: expected 0 finite numbers"),
        ({"scores": SCORES_OF | {"entropy": ROWS[:50]}}, "entropy: expected 100 finite"),
        ({"scores": SCORES_OF | {"std": ROWS * np.nan}}, "std: expected 100 finite"),
        ({"scores": SCORES_OF | {"std": ROWS + np.inf}}, "std: expected 100 finite"),
        ({"labels": np.zeros(99, int)}, "labels: expected 100 class indices below 3, found int64 (99,)"),
        ({"labels": np.full(100, -1)}, "labels: expected 100 class indices"),
        ({"labels": np.full(100, 3)}, "labels: expected 100 class indices below 3, found int64 (100,) up to 3"),
        ({"percentile": 0.0}, "percentile: expected a number above 0 and below 100, found 0.0"),
        ({"percentile": 100.0}, "percentile: expected a number above 0 and below 100, found 100.0"),
        ({"percentile": math.nan}, "percentile: expected a number above 0 and below 100, found nan"),
        ({"percentile": 99.5}, "the 99.5th percentile needs a larger calibration part: expected at least 199 rows"),
        ({"coverage": 0.0}, "coverage: expected a number above 0 and below 1, found 0.0"),
        ({"coverage": 1.0}, "coverage: expected a number above 0 and below 1, found 1.0"),
        ({"coverage": 0.995}, "coverage 0.995 needs a larger calibration part"),
        ({"radius_rows": np.arange(8)}, "coverage 0.9 needs a larger calibration part: expected at least 9 rows"),
        ({"radius_rows": np.arange(0)}, "radius_rows: expected different whole numbers from 0 to 99, ascending"),
        ({"radius_rows": np.arange(91, 101)}, "radius_rows: expected different whole numbers from 0 to 99"),
        ({"radius_rows": np.arange(-1, 90)}, "radius_rows: expected different whole numbers from 0 to 99"),
        ({"radius_rows": np.zeros(20, int)}, "radius_rows: expected different whole numbers from 0 to 99"),
        ({"radius_rows": np.arange(20.0)}, "radius_rows: expected different whole numbers from 0 to 99"),
        ({"radius_rows": np.array([[1, 2]])}, "radius_rows: expected different whole numbers from 0 to 99"),
        (
            {"radius_rows": np.array([2**31 - 1, -(2**31)], np.int32)},
            "radius_rows: expected different whole numbers from 0 to 99",
        ),
        ({"per_class": True, "labels": None}, "per_class: expected a model of classes"),
        ({"per_class": True}, "calibration rows predicted to be of class 1: the 99th percentile needs a larger"),
    ],
)
def test_a_stored_calibration_that_cannot_be_right_is_refused(change, named):
    """A score of another task or an unknown one, another length, no numbers, no classes: refused by the name."""
    right = Calibration(scores=SCORES_OF, nonconformity=ROWS, labels=np.zeros(100, int))
    check_calibration(right, "classification", (), "calibration", classes=3)
    with pytest.raises(CalibrationError) as error:
        check_calibration(altered(right, **change), "classification", (), "bundle/calibration", classes=3)
    assert str(error.value).startswith(f"bundle/calibration: {named}")


def test_the_rows_of_each_class_are_found_in_one_sort():
    """Those of a look at all rows for each class; of 100,000 classes, too, for which such looks would take minutes."""
    rng = np.random.default_rng(0)
    values = np.round(rng.normal(size=500), 1).astype(np.float32)
    labels = rng.integers(0, 7, 500) * 2
    found = Calibration(scores={"std": values}, nonconformity=values, labels=labels).by_class["std"]
    assert list(found) == [0, 2, 4, 6, 8, 10, 12]
    for label, own in found.items():
        np.testing.assert_array_equal(own, np.sort(values[labels == label]))
    zeros = np.zeros(100_000, np.float32)
    many = Calibration(scores={"std": zeros}, nonconformity=zeros, labels=np.arange(100_000))
    started = time.process_time()
    assert len(many.by_class["std"]) == 100_000
    assert time.process_time() - started < 2


def test_a_stored_feature_score_needs_only_its_name():
    """The bundle may have scores of its own feature scores; an unknown feature score is refused."""
    calibration = Calibration(scores=SCORES_OF | {"vim": ROWS}, nonconformity=ROWS)
    check_calibration(calibration, "classification", ("vim", "range"), "calibration", classes=2)
    with pytest.raises(CalibrationError, match="calibration: scores: expected"):
        check_calibration(calibration, "classification", ("vim", "flow"), "calibration", classes=2)
