"""Coverage among the accepted rows and within each true class: exact on every pool of rows, with ties and without.

The exact statement is about a pool of n + 1 rows, each of which may be the new one with the same probability: of those that
are accepted as new rows, at least the share `coverage` must be covered. `shares` counts it by making every row the new one.
"""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from abstain.models.decisions.calibration import ErrorLimit, calibrate, check_calibration
from abstain.models.decisions.decision import Decision
from abstain.models.decisions.judging import judge
from abstain.models.decisions.radii import MOST_RADII, find_radii, largest_radius, sort_rows, take_turns, turns_of
from abstain.models.errors import CalibrationError
from abstain.models.prediction.predictive import Prediction
from abstain.models.prediction.summaries import ClassificationSummary, RegressionSummary
from tests.helpers.records import altered

SEED = 14
"""Of pools on which leaving out the rows that may be accepted would be noticed."""
SINGLE = Decision(scores=("std",))
SEVERAL = Decision(scores=("std", "entropy"), rule="weighted")


def numbers(std, total_std):
    """Predictions of mean 0 and standard deviation 1 with these scores."""
    zeros, ones = np.zeros(len(std), np.float32), np.ones(len(std), np.float32)
    summary = RegressionSummary(zeros, ones, zeros, zeros, np.zeros((len(std), 3), np.float32))
    return Prediction(summary, {"std": np.asarray(std, np.float32), "total_std": np.asarray(total_std, np.float32)})


def classes(probabilities, std, entropy):
    """Predictions with these probabilities of each class and these scores."""
    mean = np.asarray(probabilities, np.float32)
    zeros = np.zeros(len(mean), np.float32)
    scores = {"std": std, "entropy": entropy, "max_probability": 1 - mean.max(axis=1)}
    return Prediction(
        ClassificationSummary(mean, np.zeros_like(mean), zeros, zeros, zeros),
        {name: np.asarray(values, np.float32) for name, values in scores.items()},
    )


def rows_of(prediction, chosen):
    """The predictions of the chosen rows."""
    summary = type(prediction.summary)(*(np.asarray(part)[chosen] for part in prediction.summary))
    return Prediction(summary, {name: values[chosen] for name, values in prediction.scores.items()})


def covered(judgement, targets):
    """Whether each set or interval contains the target."""
    if judgement.members is not None:
        return judgement.members[np.arange(len(targets)), targets]
    return (judgement.interval[:, 0] <= targets) & (targets <= judgement.interval[:, 1])


def shares(prediction, targets, **terms):
    """Makes every row the new one in turn, with the others as calibration part: whether it is accepted, and covered."""
    found = []
    for row in range(len(targets)):
        others = np.delete(np.arange(len(targets)), row)
        calibration = calibrate(rows_of(prediction, others), targets[others], **terms)
        judgement = judge(calibration, rows_of(prediction, [row]))
        found.append((not judgement.reject[0], covered(judgement, targets[[row]])[0]))
    return np.array(found).T


def tied(rng, rows):
    """Scores that are apart, equal, or within the tolerance of the next one but not of the one after it."""
    if rng.random() < 0.5:
        return rng.integers(1, 5, rows) * (1 + 6e-5 * rng.integers(0, 4, rows))
    return 1 + 6e-5 * rng.integers(0, rng.integers(3, 20), rows)


@pytest.mark.parametrize("share", [None, 0.3, 0.7])
def test_of_every_pool_the_accepted_rows_are_covered(share):
    """With ties of every kind; rows that are hardly accepted have large residuals, or all have the same law."""
    rng = np.random.default_rng(SEED)
    for pool in range(8):
        std, total_std = tied(rng, 14), tied(rng, 14)
        targets = rng.integers(-6, 7, 14) * np.where(std > np.median(std), 1.0, pool % 2)
        terms = {"percentile": float(rng.choice([50, 70, 80, 90])), "coverage": float(rng.choice([0.5, 0.7]))}
        terms |= {"coverage_among": "accepted", "decision": SINGLE}
        terms |= {"ambiguity": "total_std", "novelty_share": share} if share else {}
        accepted, inside = shares(numbers(std, total_std), targets, **terms)
        assert (accepted & inside).sum() >= terms["coverage"] * accepted.sum() - 1e-9


@pytest.mark.parametrize(("share", "sets"), [(None, "lac"), (0.5, "aps")])
def test_of_every_pool_the_accepted_rows_of_each_class_are_covered(share, sets):
    """Each class by itself, with a combination of scores, and ties of scores and probabilities."""
    rng = np.random.default_rng(SEED)
    for _ in range(5):
        tenths, targets = rng.integers(1, 10, 20), rng.permutation(20) % 2
        prediction = classes(np.stack([tenths, 10 - tenths], axis=1) / 10, tied(rng, 20), tied(rng, 20))
        terms = {"percentile": 80.0, "coverage": 0.6, "decision": SEVERAL, "sets": sets}
        terms |= {"coverage_among": "accepted", "coverage_per_class": True, "reference": prediction.scores}
        terms |= {"ambiguity": "max_probability", "novelty_share": share} if share else {}
        accepted, inside = shares(prediction, targets, **terms)
        for label in (0, 1):
            own = accepted & (targets == label)
            assert (own & inside).sum() >= 0.6 * own.sum() - 1e-9


@pytest.mark.parametrize("share", [None, 0.6])
def test_without_ties_no_more_rows_are_covered_than_needed(share):
    """Of the accepted rows of a pool exactly ⌈|A|·coverage⌉ are covered: no radius is larger than it must be."""
    rng = np.random.default_rng(4)
    for percentile, coverage in ((80.0, 0.9), (90.0, 0.8)):
        std, total_std = rng.permutation(30) + 1.0, rng.permutation(30) + 1.0
        terms = {"decision": SINGLE} | ({"ambiguity": "total_std", "novelty_share": share} if share else {})
        terms |= {"percentile": percentile, "coverage": coverage, "coverage_among": "accepted"}
        accepted, inside = shares(numbers(std, total_std), rng.normal(size=30) * std, **terms)
        kept = math.ceil(Fraction(str(percentile)) / 100 * 30)
        assert accepted.sum() == kept
        assert (accepted & inside).sum() == math.ceil(kept * Fraction(str(coverage)))


def test_coverage_over_all_rows_fails_where_this_holds():
    """The contrast: rejected rows have the large residuals, so accepted ones are covered too often, and here by all."""
    std = np.arange(1.0, 61)
    targets = np.where(std > 48, 100.0, np.arange(60) / 60)
    accepted, inside = shares(numbers(std, std), targets, decision=SINGLE, percentile=80.0, coverage=0.8)
    assert inside[accepted].all()
    assert not inside[~accepted].all()


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 2)), min_size=6, max_size=14), st.sampled_from([0.3, 0.5, 0.8])
)
def test_the_largest_radius_is_that_of_the_worst_choice(rows, coverage):
    """Against every choice of the rows that may count."""
    values, kinds = (np.array(part) for part in zip(*sorted(rows), strict=True))
    surely, maybe = kinds == 0, np.flatnonzero(kinds == 1)
    if math.ceil((surely.sum() + 1) * Fraction(str(coverage))) > surely.sum():
        return
    radii = []
    for choice in range(2 ** len(maybe)):
        counted = surely.copy()
        counted[[row for bit, row in enumerate(maybe) if choice >> bit & 1]] = True
        own = np.sort(values[counted])
        radii.append(own[min(math.ceil((len(own) + 1) * Fraction(str(coverage))), len(own)) - 1])
    assert largest_radius(values.astype(float), surely, kinds == 1, coverage) == max(radii)


def test_the_radius_of_a_class_is_that_of_its_rows():
    """By a plain loop: the ⌈(n_c + 1)·coverage⌉-th smallest of 1 − p of the rows of the class, also the rare one."""
    rng = np.random.default_rng(5)
    probabilities, targets = rng.dirichlet(np.ones(3), 200), np.where(np.arange(200) < 12, 2, np.arange(200) % 2)
    prediction = classes(probabilities, np.zeros(200), np.zeros(200))
    calibration = calibrate(prediction, targets, decision=SINGLE, percentile=50.0, coverage_per_class=True)
    for coverage in (0.9, 0.5):
        members = judge(calibration, prediction, coverage=coverage).members
        for label in range(3):
            own = np.sort(1 - prediction.summary.mean[targets == label, label].astype(np.float64))
            radius = own[math.ceil((len(own) + 1) * Fraction(str(coverage))) - 1]
            known = 1 - prediction.summary.mean[:, label].astype(np.float64)
            np.testing.assert_array_equal(members[:, label], known <= radius + 1e-5 * (1 - known) + 1e-7)


@pytest.mark.parametrize("terms", [{"coverage_per_class": True}, {"coverage_among": "accepted"}], ids=str)
def test_a_request_changes_percentile_and_coverage(terms):
    """The radii are those of a calibration with these settings, and only some are kept."""
    rng = np.random.default_rng(6)
    prediction, targets = classes(rng.dirichlet(np.ones(2), 300), *rng.normal(size=(2, 300))), rng.integers(0, 2, 300)
    calibration = calibrate(prediction, targets, decision=SINGLE, percentile=90.0, **terms)
    for percentile, coverage in ((80.0, 0.5), (95.0, 0.8)):
        other = calibrate(prediction, targets, decision=SINGLE, percentile=percentile, coverage=coverage, **terms)
        found = judge(calibration, prediction, percentile, coverage).members
        np.testing.assert_array_equal(found, judge(other, prediction).members)
    for coverage in np.linspace(0.2, 0.6, 2 * MOST_RADII):
        judge(calibration, rows_of(prediction, [0]), coverage=float(coverage))
    assert calibration.radii.cache_info().currsize == MOST_RADII


def test_nan_and_rejected_rows_have_sets_too():
    """A score that is not a number is rejected; its interval is finite."""
    rng = np.random.default_rng(7)
    calibration = calibrate(
        numbers(rng.random(99), rng.random(99)), rng.normal(size=99), decision=SINGLE, coverage_among="accepted"
    )
    judgement = judge(calibration, numbers([np.nan, 9.0, 0.1], [0.0, 0.0, 0.0]))
    assert judgement.reject.tolist() == [True, True, False]
    assert np.isfinite(judgement.interval).all()


@pytest.mark.parametrize(
    ("terms", "message"),
    [
        (
            {"coverage_per_class": True, "coverage": 0.9},
            r"^coverage: 0\.9 needs .* of the class with index 1: expected at least 9 rows, found 8 rows",
        ),
        (
            {"coverage_among": "accepted", "percentile": 50.0, "coverage": 0.99},
            r"^coverage: 0\.99 .* rows that are accepted at the 50th percentile: expected at least 99 rows, found 50 rows",
        ),
        (
            {"coverage_among": "accepted", "coverage_per_class": True, "percentile": 95.0, "coverage": 0.8},
            r"^coverage: .* index 1 that are accepted at the 95th percentile: expected at least 4 rows, found 3 rows",
        ),
        (
            {"coverage_among": "accepted", "per_class": True, "percentile": 20.0},
            'coverage_among: expected "all" with per_class',
        ),
        (
            {"coverage_among": "accepted", "error_limit": ErrorLimit(0.1, 0.9), "ambiguity": "max_probability"},
            'coverage_among: expected "all" with max_error',
        ),
    ],
)
def test_what_cannot_hold_is_refused(terms, message):
    """Too few rows of a class, or accepted ones, and settings by which targets decide who is accepted."""
    targets = (np.arange(100) < 8).astype(int)
    prediction = classes(
        np.eye(2)[np.arange(100) % 2] / 2 + 0.25, np.where(np.arange(100) < 5, 9, np.arange(100) / 100), np.zeros(100)
    )
    with pytest.raises(CalibrationError, match=message):
        calibrate(prediction, targets, **{"decision": SINGLE, "percentile": 80.0} | terms)


def test_numbers_have_no_classes():
    """Of a regression, coverage within each class is refused."""
    with pytest.raises(CalibrationError, match="coverage_per_class: expected a model of classes"):
        calibrate(numbers(np.ones(99), np.ones(99)), np.ones(99), decision=SINGLE, coverage_per_class=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"true_classes": np.zeros(5, int)}, "true_classes: expected 100 class indices below 2, found int64"),
        ({"true_classes": np.full(100, 2)}, "true_classes: expected 100 class indices below 2"),
        ({"true_classes": np.zeros(100)}, "true_classes: expected 100 class indices below 2, found float64"),
        (
            {"true_classes": np.zeros(100, int)},
            "coverage: 0.5 needs more calibration rows of the class with index 1 that are accepted at the 80th percentile",
        ),
        ({"per_class": True}, 'coverage_among: expected "all" with per_class'),
    ],
)
def test_a_stored_calibration_is_checked(change, message):
    """Arrays of another shape, type or class, and too few rows of a class."""
    rng = np.random.default_rng(8)
    prediction = classes(rng.dirichlet(np.ones(2), 100), rng.normal(size=100), np.zeros(100))
    terms = {"coverage": 0.5, "coverage_among": "accepted", "coverage_per_class": True, "percentile": 80.0}
    calibration = calibrate(prediction, np.arange(100) % 2, decision=SINGLE, **terms)
    check_calibration(calibration, "classification", (), "here", classes=2)
    fresh = altered(calibration, **change)
    for cached in ("radii", "turns"):
        fresh.__dict__.pop(cached, None)
    with pytest.raises(CalibrationError, match=message):
        check_calibration(fresh, "classification", (), "here", classes=2)


# ---- simulated rows, as in `benchmarks/conditional_coverage.py` -----------------------------------------------------


def mean_and_error(hits, rows):
    """The share of rows that are covered, and its standard error over splits with different numbers of rows."""
    hits, rows = np.array(hits), np.array(rows)
    mean = hits.sum() / rows.sum()
    return mean, np.sqrt(np.sum((hits - mean * rows) ** 2)) / rows.sum()


@pytest.mark.parametrize("terms", [{}, {"ambiguity": "total_std", "novelty_share": 0.7}], ids=["one", "two parts"])
def test_simulated_coverage_of_accepted_rows(terms):
    """Within four standard errors of the stated range; over all rows, residuals that grow with the score cover too many."""
    rng, found = np.random.default_rng(9), {"accepted": ([], []), "all": ([], [])}
    for _ in range(60):
        std = rng.normal(size=599)
        total_std = 0.5 * std + rng.normal(size=599)
        targets = rng.normal(size=599) * np.exp(0.6 * std + 0.4 * total_std)
        prediction = numbers(std, total_std)
        for among, (hits, rows) in found.items():
            calibration = calibrate(
                rows_of(prediction, slice(99)),
                targets[:99],
                decision=SINGLE,
                percentile=80.0,
                coverage_among=among,
                **terms,
            )
            judgement = judge(calibration, rows_of(prediction, slice(99, None)))
            inside = covered(judgement, targets[99:])[~judgement.reject]
            hits.append(inside.sum())
            rows.append(len(inside))
    mean, error = mean_and_error(*found["accepted"])
    assert 0.9 - 4 * error <= mean <= 0.9 + 1 / 80 + 4 * error
    mean, error = mean_and_error(*found["all"])
    assert mean > 0.9 + 1 / 80 + 4 * error


def test_simulated_coverage_of_a_rare_class():
    """A class of 2 % that the model hardly predicts: covered as stated, and over all rows far less often."""
    rng, found = np.random.default_rng(10), {True: ([], []), False: ([], [])}
    for _ in range(40):
        targets = np.where(rng.random(2500) < 0.02, 2, rng.integers(0, 2, 2500))
        logits = rng.normal(size=(2500, 3)) + np.where(targets[:, None] == 2, [0, 0, 1.0], 2.5 * np.eye(3)[targets])
        mean = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        prediction = classes(mean, rng.normal(size=2500), np.zeros(2500))
        for per_class, (hits, rows) in found.items():
            known = rows_of(prediction, slice(1500))
            calibration = calibrate(
                known, targets[:1500], decision=SINGLE, percentile=90.0, coverage=0.8, coverage_per_class=per_class
            )
            inside = covered(judge(calibration, rows_of(prediction, slice(1500, None))), targets[1500:])
            hits.append(inside[targets[1500:] == 2].sum())
            rows.append((targets[1500:] == 2).sum())
    mean, error = mean_and_error(*found[True])
    # At least 10 calibration rows of the class in each of these splits.
    assert 0.8 - 4 * error <= mean <= 0.8 + 1 / 11 + 4 * error
    mean, error = mean_and_error(*found[False])
    assert mean < 0.8 - 4 * error


def test_only_the_radius_rows_set_the_radius():
    """By hand: of the nine accepted of ten rows, the four that set the radius."""
    nonconformity, score = np.arange(10.0), np.arange(10.0)[::-1]
    rows = sort_rows(nonconformity, None, np.array([1, 3, 5, 7]))
    assert rows.nonconformity.tolist() == [1, 3, 5, 7]
    turns = take_turns(score[None], score[None] - 1e-6, turns_of(score), np.zeros(10, int))
    assert find_radii(rows, turns, 85.0, 0.6, 0).clear.tolist() == [5.0]
    assert find_radii(rows, None, 85.0, 0.6, 0).clear.tolist() == [5.0]
    # Row 1 has the second largest score, so it is rejected at the 80th percentile, and the other three remain.
    assert find_radii(rows, turns, 80.0, 0.7, 0).clear.tolist() == [7.0]
    assert find_radii(rows, turns, 80.0, 0.7, 0).rows == (3,)
