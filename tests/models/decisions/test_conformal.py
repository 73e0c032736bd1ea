"""Prediction sets and intervals against MAPIE and crepes, against loops, and against the coverage they promise."""

import crepes
import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from mapie.classification import SplitConformalClassifier
from mapie.conformity_scores import ResidualNormalisedScore
from mapie.regression import ConformalizedQuantileRegressor, SplitConformalRegressor
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin

from abstain.models.decisions.calibration import calibrate
from abstain.models.decisions.conformal import RAPS_FREE_RANKS, RAPS_PENALTY, TIE, interval, interval_scores, set_scores
from abstain.models.decisions.judging import judge
from abstain.models.decisions.ranks import coverage_rank
from abstain.models.prediction.predictive import Prediction
from abstain.models.prediction.summaries import ClassificationSummary

SETS = ("lac", "aps", "raps")
INTERVALS = ("normalised", "quantiles")


class Given(ClassifierMixin, BaseEstimator):
    """A classifier for MAPIE: a row is its class probabilities."""

    def __init__(self, classes=2):
        self.classes = classes
        self.classes_ = np.arange(classes)

    def fit(self, *_):
        """Nothing to fit."""
        return self

    def predict_proba(self, x):
        """The row itself."""
        return np.asarray(x)

    def predict(self, x):
        """Its largest entry's place."""
        return np.asarray(x).argmax(axis=1)


class Column(RegressorMixin, BaseEstimator):
    """A regressor for MAPIE: a row holds its own prediction in one column."""

    def __init__(self, column=0):
        self.column = column
        self.fitted_ = True

    def fit(self, *_):
        """Nothing to fit."""
        return self

    def predict(self, x):
        """That column."""
        return np.asarray(x)[:, self.column]


def radius_of(scores, coverage):
    """The calibration score at the conformal rank."""
    return float(np.sort(scores)[coverage_rank(coverage, len(scores)) - 1])


def labelled(rng, rows, classes):
    """Overconfident class probabilities, and labels drawn from milder ones."""
    truth = rng.dirichlet(np.full(classes, 0.5), rows)
    labels = (truth.cumsum(axis=1) > rng.random((rows, 1))).argmax(axis=1)
    stated = truth**2 + 1e-3 * rng.random(truth.shape)
    return stated / stated.sum(axis=1, keepdims=True), labels


def measured(rng, rows):
    """Means, stds, quantiles and heavy-tailed targets, of which the model is neither sure nor right."""
    mean, std = rng.normal(50, 10, rows), rng.uniform(0.5, 3, rows)
    low, high = mean - rng.uniform(0.1, 3, rows), mean + rng.uniform(0.1, 3, rows)
    return {"mean": mean, "std": std, "low": low, "high": high}, mean + 1 + std * rng.standard_t(3, rows)


def loop_score(kind, row, u, y):
    """The formula of one class of one row, by counting."""
    before = [c for c in range(len(row)) if row[c] > row[y] + TIE]
    if kind == "lac":
        return 1 - row[y]
    penalty = RAPS_PENALTY * max(0, len(before) + 1 - RAPS_FREE_RANKS) if kind == "raps" else 0
    return sum(row[c] for c in before) + u * row[y] + penalty


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("lac", [0.9, 0.3, 0.8]), ("aps", [0.925, 0.175, 0.75]), ("raps", [0.925, 0.175, 0.75])],
)
def test_set_scores_by_hand(kind, expected):
    """The mass of the more probable classes and a quarter of one's own; three classes are few enough for RAPS."""
    found = set_scores(kind, np.array([[0.1, 0.7, 0.2]]), np.array([0.25]))
    np.testing.assert_allclose(found, [expected], rtol=1e-12)


def test_raps_adds_a_penalty_to_every_class_after_the_fifth():
    """Ranks 6, 7 and 8 of eight classes cost one, two and three hundredths more than in APS."""
    probabilities = np.array([[0.3, 0.2, 0.15, 0.12, 0.1, 0.06, 0.04, 0.03]])
    extra = set_scores("raps", probabilities, np.array([0.5])) - set_scores("aps", probabilities, np.array([0.5]))
    np.testing.assert_allclose(extra, [[0, 0, 0, 0, 0, 0.01, 0.02, 0.03]], atol=1e-15)


@pytest.mark.parametrize("kind", SETS)
@settings(deadline=None, max_examples=50)
@given(arrays(np.float32, (4, 7), elements=st.sampled_from([0.0, 0.125, 0.25, 0.5])), st.floats(0, 0.99))
def test_set_scores_are_the_loops(kind, weights, u):
    """Class by class, with ties, zeros and single classes among the rows."""
    probabilities = weights / np.maximum(weights.sum(axis=1, keepdims=True), np.float32(0.125))
    found = set_scores(kind, probabilities, np.full(4, u))
    expected = [[loop_score(kind, row, u, y) for y in range(7)] for row in probabilities.astype(np.float64)]
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, expected, atol=1e-12)


@pytest.mark.parametrize("kind", SETS)
def test_certain_rows_have_finite_scores(kind):
    """Probabilities of exactly 0 and 1, and of equal parts, give numbers."""
    probabilities = np.array([[1, 0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0, 1], [1 / 7] * 7], np.float32)
    assert np.isfinite(set_scores(kind, probabilities, np.array([0.0, 0.5, 0.999]))).all()


@pytest.mark.parametrize(("kind", "larger"), [("lac", 1.001), ("aps", 1.15), ("raps", 1.15)])
def test_rounding_is_forgiven_and_an_improbable_class_is_not(kind, larger):
    """Of a sharp model with 2 % errors at .99: sets stay small, though the radius is within 1e-4 of all scores.

    Of sums the rounding is 2e-6, a tenth of the probability 2e-5 that a share of decides here.
    """
    rng = np.random.default_rng(4)
    mean = np.full((2_000, 10), 2e-5, np.float32)
    labels = rng.integers(0, 10, 2_000)
    predicted = np.where(rng.random(2_000) < 0.02, (labels + 1) % 10, labels)
    mean[np.arange(2_000), predicted] = 1 - 9 * 2e-5
    mean[:, 0] = np.where(predicted == 0, mean[:, 0], 1e-6)
    zeros = np.zeros(2_000, np.float32)
    summary = ClassificationSummary(mean, mean, zeros, zeros, zeros)
    prediction = Prediction(summary, {"std": zeros}, uniform=rng.random(2_000).astype(np.float32))
    split = calibrate(prediction, labels, percentile=90.0, coverage=0.99, sets=kind)
    members = judge(split, prediction).members
    exact = set_scores(kind, mean, prediction.uniform) <= split.ascending_nonconformity[coverage_rank(0.99, 2_000) - 1]
    assert np.all(members >= exact)
    assert members.sum() <= exact.sum() * larger


def test_without_chance_a_sure_model_would_offer_every_class():
    """Of a model that is sure and right, the radius is the largest score there is; a share of it keeps sets small."""
    rng = np.random.default_rng(2)
    sure = np.full((999, 10), 1e-9, np.float32)
    labels = rng.integers(0, 10, 999)
    sure[np.arange(999), labels] = 1
    doubtful = np.array([[0.6, 0.3, 0.08] + [0.02 / 7] * 7], np.float32)

    def size(uniform):
        radius = radius_of(set_scores("aps", sure, uniform)[np.arange(999), labels], 0.9)
        return int((set_scores("aps", doubtful, np.array([0.5])) <= radius).sum())

    assert size(np.full(999, 0.9999999)) == 10
    assert size(rng.random(999)) == 2


@pytest.mark.parametrize("coverage", [0.8, 0.9, 0.95])
@pytest.mark.parametrize("kind", ["lac", "aps"])
def test_sets_are_mapies(kind, coverage):
    """MAPIE's split-conformal sets of the same rows, its random numbers taken as ours."""
    rng = np.random.default_rng(4)
    (calibration, labels), (rows, _) = labelled(rng, 300, 6), labelled(rng, 400, 6)
    oracle = SplitConformalClassifier(
        Given(6), confidence_level=coverage, conformity_score=kind, prefit=True, random_state=17
    )
    oracle.conformalize(calibration, labels)
    terms = {} if kind == "lac" else {"conformity_score_params": {"include_last_label": "randomized"}}
    expected = oracle.predict_set(rows, **terms)[1][:, :, 0]

    def uniform(size):  # MAPIE takes u · p_y away from the mass up to and with y
        return 1 - np.random.RandomState(17).uniform(size=size)

    radius = radius_of(set_scores(kind, calibration, uniform(300))[np.arange(300), labels], coverage)
    np.testing.assert_array_equal(set_scores(kind, rows, uniform(400)) <= radius, expected)


@pytest.mark.parametrize(("kind", "expected"), [("normalised", [1.5, 0.0, 4.0]), ("quantiles", [2.0, -1.0, 1.0])])
def test_interval_scores_by_hand(kind, expected):
    """|y − mean| / std; how far outside of [low, high], or, negative, how far inside."""
    found = interval_scores(
        kind,
        mean=np.array([0.0, 5.0, 1.0], np.float32),
        std=np.array([2.0, 1.0, 0.5], np.float32),
        low=np.array([-1.0, 4.0, 0.0], np.float32),
        high=np.array([1.0, 7.0, 2.0], np.float32),
        targets=np.array([3.0, 5.0, -1.0], np.float32),
    )
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_an_interval_by_hand():
    """Mean ± radius · std; the quantiles drawn apart by the radius, or together."""
    row = {"mean": np.array([10.0]), "std": np.array([2.0]), "low": np.array([7.0]), "high": np.array([12.0])}
    assert interval("normalised", **row, radius=1.5).tolist() == [[7.0, 13.0]]
    assert interval("quantiles", **row, radius=1.5).tolist() == [[5.5, 13.5]]
    assert interval("quantiles", **row, radius=-1.5).tolist() == [[8.5, 10.5]]


def test_quantiles_that_would_cross_become_their_midpoint():
    """A radius below minus half the width leaves one number, never an interval with its ends exchanged."""
    low, high = np.array([1.0, 0.0, 2.0]), np.array([2.0, 10.0, 2.0])
    found = interval("quantiles", np.zeros(3), np.ones(3), low, high, radius=-0.75)
    assert found.tolist() == [[1.5, 1.5], [0.75, 9.25], [2.0, 2.0]]


@pytest.mark.parametrize("kind", INTERVALS)
@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**32 - 1), st.floats(-2, 8))
def test_a_target_is_in_its_interval_if_its_score_is_at_most_the_radius(kind, seed, radius):
    """The interval is the set of targets that the score lets in, but for what a crossing leaves."""
    rng = np.random.default_rng(seed)
    rows, targets = measured(rng, 30)
    scores = interval_scores(kind, **rows, targets=targets)
    apart = (np.abs(scores - radius) > 1e-9) & (radius >= 0)
    low, high = interval(kind, **rows, radius=radius).T
    np.testing.assert_array_equal(((low <= targets) & (targets <= high))[apart], (scores <= radius)[apart])
    assert (low <= high).all() or kind == "normalised"


@pytest.mark.parametrize("kind", INTERVALS)
def test_intervals_of_extreme_rows_are_finite(kind):
    """Targets at float32's ends, no spread at all, quantiles that agree."""
    largest = np.finfo(np.float32).max
    row = {name: np.array([0.0, largest, 0.0, -largest], np.float32) for name in ("mean", "low", "high")}
    row["std"] = np.array([0.0, largest, 1e-45, 0.0], np.float32)
    scores = interval_scores(kind, **row, targets=np.array([0.0, -largest, largest, largest], np.float32))
    assert np.isfinite(scores).all()
    assert np.isfinite(interval(kind, **row, radius=float(scores.max()))).all()


@pytest.mark.parametrize("coverage", [0.8, 0.9, 0.95])
def test_normalised_intervals_are_crepes_and_mapies(coverage):
    """Two other libraries' split conformal regression, given the same means and stds."""
    rng = np.random.default_rng(6)
    (calibration, targets), (rows, _) = measured(rng, 250), measured(rng, 100)
    radius = radius_of(interval_scores("normalised", **calibration, targets=targets), coverage)
    found = interval("normalised", **rows, radius=radius)
    oracle = crepes.ConformalRegressor().fit(targets - calibration["mean"], sigmas=calibration["std"])
    np.testing.assert_allclose(
        found, oracle.predict_int(rows["mean"], sigmas=rows["std"], confidence=coverage), rtol=1e-12
    )
    score = ResidualNormalisedScore(residual_estimator=Column(1), prefit=True)
    other = SplitConformalRegressor(Column(0), confidence_level=coverage, conformity_score=score, prefit=True)
    other.conformalize(np.stack([calibration["mean"], calibration["std"]], axis=1), targets)
    _, expected = other.predict_interval(np.stack([rows["mean"], rows["std"]], axis=1))
    np.testing.assert_allclose(found, expected[:, :, 0], rtol=1e-12)


@pytest.mark.parametrize("coverage", [0.8, 0.9, 0.95])
def test_conformalised_quantiles_are_mapies(coverage):
    """MAPIE's symmetric correction of the same two quantiles."""
    rng = np.random.default_rng(8)
    (calibration, targets), (rows, _) = measured(rng, 250), measured(rng, 100)

    def columns(record):
        return np.stack([record["low"], record["high"], record["mean"]], axis=1)

    oracle = ConformalizedQuantileRegressor([Column(0), Column(1), Column(2)], confidence_level=coverage, prefit=True)
    oracle.conformalize(columns(calibration), targets)
    _, expected = oracle.predict_interval(columns(rows), symmetric_correction=True)
    radius = radius_of(interval_scores("quantiles", **calibration, targets=targets), coverage)
    np.testing.assert_allclose(interval("quantiles", **rows, radius=radius), expected[:, :, 0], rtol=1e-12)


SPLITS, CALIBRATION, FRESH = 200, 199, 300


def set_scores_of_truth(kind, rng):
    """Scores of true classes of as many exchangeable rows as all splits need."""
    probabilities, labels = labelled(rng, SPLITS * (CALIBRATION + FRESH), 8)
    return set_scores(kind, probabilities, rng.random(len(labels)))[np.arange(len(labels)), labels]


def interval_scores_of_truth(kind, rng):
    """Scores of true targets of as many exchangeable rows as all splits need."""
    rows, targets = measured(rng, SPLITS * (CALIBRATION + FRESH))
    return interval_scores(kind, **rows, targets=targets)


@pytest.mark.parametrize("coverage", [0.8, 0.9, 0.95])
@pytest.mark.parametrize(
    ("scores_of_truth", "kind"),
    [(set_scores_of_truth, kind) for kind in SETS] + [(interval_scores_of_truth, kind) for kind in INTERVALS],
)
def test_coverage_lies_in_its_exact_band_as_often_as_it_should(scores_of_truth, kind, coverage):
    """Of 300 fresh rows, BetaBinomial(300, k, n + 1 − k) are covered: 200 splits against its central 95 %."""
    rng = np.random.default_rng(9)
    scores = scores_of_truth(kind, rng).reshape(SPLITS, CALIBRATION + FRESH)
    rank = coverage_rank(coverage, CALIBRATION)
    radius = np.sort(scores[:, :CALIBRATION], axis=1)[:, rank - 1 : rank]
    covered = (scores[:, CALIBRATION:] <= radius).sum(axis=1)
    law = scipy.stats.betabinom(FRESH, rank, CALIBRATION + 1 - rank)
    low, high = law.ppf(0.025), law.ppf(0.975)
    inside = int(((low <= covered) & (covered <= high)).sum())
    assert scipy.stats.binomtest(inside, SPLITS, law.cdf(high) - law.cdf(low - 1)).pvalue > 1e-3
    assert abs(covered.mean() - law.mean()) < 4 * law.std() / np.sqrt(SPLITS)


def test_intervals_cover_what_their_scores_promise():
    """The whole way of a split, by both kinds: the share of targets inside is that of scores up to the radius."""
    rng = np.random.default_rng(10)
    (calibration, targets), (rows, fresh) = measured(rng, 499), measured(rng, 5000)
    for kind in INTERVALS:
        radius = radius_of(interval_scores(kind, **calibration, targets=targets), 0.9)
        low, high = interval(kind, **rows, radius=radius).T
        inside = (low <= fresh) & (fresh <= high)
        assert inside.mean() == (interval_scores(kind, **rows, targets=fresh) <= radius).mean()
        assert abs(inside.mean() - 0.9) < 4 * np.sqrt(0.09 / 499 + 0.09 / 5000)
