"""Rows with an unseen category rank above all others: counts over whole pools, the law of the rate, and rows by hand."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from abstain.models.decisions.calibration import ErrorLimit, calibrate, check_calibration
from abstain.models.decisions.decision import Decision
from abstain.models.decisions.expected_rates import expected_part_rates
from abstain.models.decisions.judging import judge
from abstain.models.decisions.unseen import TOP
from abstain.models.errors import CalibrationError
from abstain.models.prediction.predictive import Prediction
from abstain.models.prediction.summaries import ClassificationSummary
from abstain.training.calibration.record import reject_rate_bounds

SINGLE = {"decision": Decision(scores=("std",))}
RULES = {
    "single": SINGLE,
    **{rule: {"decision": Decision(scores=("std", "energy"), rule=rule)} for rule in ("min", "weighted", "harmonic")},
    "two parts": SINGLE | {"ambiguity": "max_probability", "novelty_share": 0.7},
    "two parts, several scores": {
        "decision": Decision(scores=("std", "energy"), rule="harmonic"),
        "ambiguity": "max_probability",
        "novelty_share": 0.3,
    },
}


def scored(values, unseen, labels=0):
    """Predictions of two classes with these scores `[3, rows]`, and these numbers of unseen categories."""
    rows = len(unseen)
    mean = np.full((rows, 2), 0.4, np.float32)
    mean[np.arange(rows), labels] = 0.6
    zeros = np.zeros(rows, np.float32)
    scores = dict(zip(("std", "energy", "max_probability"), np.asarray(values, np.float32), strict=True))
    summary = ClassificationSummary(mean, np.zeros_like(mean), zeros, zeros, zeros)
    return Prediction(summary, scores | {"unseen": np.asarray(unseen, np.float32)})


def take(prediction, rows):
    """Some rows of a prediction."""
    summary = type(prediction.summary)(*(leaf[rows] for leaf in prediction.summary))
    return Prediction(summary, {name: values[rows] for name, values in prediction.scores.items()})


def calibrated(prediction, targets=None, **settings):
    """The calibration of these rows; the reference rows have no unseen category."""
    reference = {name: np.random.default_rng(9).normal(size=50).astype(np.float32) for name in prediction.scores}
    reference["unseen"] = np.zeros(50, np.float32)
    targets = np.zeros(len(prediction.scores["std"]), int) if targets is None else targets
    return calibrate(prediction, targets, reference=reference, **settings)


def drawn(rng, rows, unseen):
    """Scores that depend on each other, of rows of which the first are unseen, then shuffled."""
    values = rng.normal(size=(3, rows)) + rng.normal(size=rows)
    counts = np.zeros(rows)
    counts[:unseen] = rng.integers(1, 4, unseen)
    order = rng.permutation(rows)
    return scored(values, counts[order])


def verdicts(pool, settings, percentile=90.0):
    """Whether each row of a pool is rejected when it is the new one and all others are the calibration rows."""
    rows = len(pool.scores["std"])
    result = []
    for new in range(rows):
        calibration = calibrated(take(pool, np.delete(np.arange(rows), new)), percentile=percentile, **settings)
        result.append(judge(calibration, take(pool, np.array([new]))).reject[0])
    return np.array(result)


@pytest.mark.parametrize("unseen", [0, 3, 4, 11])
@pytest.mark.parametrize("rule", RULES)
def test_of_a_pool_exactly_the_stated_share_is_rejected_or_all_unseen_rows_if_they_are_more(rule, unseen):
    """Of 30 rows three at the 90th percentile: what the rate is on average, without Monte Carlo error."""
    pool = drawn(np.random.default_rng(unseen), 30, unseen)
    rejected = verdicts(pool, RULES[rule])
    assert rejected.sum() == max(3, unseen)
    assert rejected[pool.scores["unseen"] > 0].all()


def test_the_mean_rate_over_calibration_parts_is_that_of_the_law():
    """E max(T, M)/(n + 1), M being binomial: where unseen rows are nearly as many as the rate, their spread adds to it."""
    share, rng, rows, rates = 0.04, np.random.default_rng(0), 99, []
    for _ in range(60):
        values = rng.normal(size=(3, rows + 200)) + rng.normal(size=rows + 200)
        pool = scored(values, rng.random(rows + 200) < share)
        calibration = calibrated(take(pool, np.arange(rows)), percentile=95.0, **RULES["two parts"])
        rates.append(judge(calibration, take(pool, np.arange(rows, rows + 200))).reject.mean())
    counts = np.arange(rows + 2)
    expected = (stats.binom.pmf(counts, rows + 1, share) * np.maximum(counts, 5)).sum() / (rows + 1)
    assert np.mean(rates) == pytest.approx(expected, abs=4 * np.std(rates) / np.sqrt(len(rates)) + 1e-3)


def test_p_values_by_hand():
    """Nine rows of which two are unseen: a seen row ranks below both, an unseen one ties with them, whatever its score."""
    calibration = calibrated(
        scored([np.arange(1.0, 10.0)] * 3, [0, 0, 1, 0, 2, 0, 0, 0, 0]), percentile=50.0, coverage=0.5
    )
    judgement = judge(calibration, scored([[0.0, 99.0, 8.5, 8.5, -5.0]] * 3, [0, 0, 0, 3, 1]))
    score = judgement.scores["std"]
    np.testing.assert_allclose(score.p_value, [1.0, 0.3, 0.4, 0.3, 0.3])
    np.testing.assert_allclose(score.percentile, 100 * (1 - score.p_value))
    np.testing.assert_array_equal(score.value, np.float32([0, 99, 8.5, 8.5, -5]))
    assert score.threshold[0] == 7
    assert score.above.tolist() == [False, True, True, True, False]
    assert not score.extrapolated.any()
    assert judgement.reject.tolist() == [False, True, True, True, True]
    assert judgement.main_scores == ["std", "std", "std", "unseen", "unseen"]
    count = judgement.scores["unseen"]
    assert count.above.tolist() == [False, False, False, True, True]
    assert set(count.threshold.tolist()) == {0.0}
    # At the 90th percentile one row is allowed, and two are unseen: a seen row is accepted at any score.
    extreme = judge(calibration, scored([[1e30, 0.0]] * 3, [0, 1]), percentile=90.0)
    assert extreme.reject.tolist() == [False, True]
    assert extreme.scores["std"].threshold.tolist() == [TOP, TOP]


def test_unseen_is_novel_in_a_decision_of_two_parts():
    """Both parts rank the row first; only its own ambiguity makes it ambiguous. A part without another row has no limit."""
    ascending = np.arange(1.0, 10.0)
    prediction = scored([ascending, ascending, ascending[::-1]], [0, 1, 0, 0, 0, 0, 0, 0, 0])
    settings = RULES["two parts"] | {"novelty_share": 0.5, "coverage": 0.5}
    calibration = calibrated(prediction, percentile=80.0, **settings)
    judgement = judge(calibration, scored([[0, 99, 0, 0], [0, 99, 0, 0], [0, 0, 8.5, 99]], [1, 0, 0, 1]))
    # Two turns: novelty takes the unseen row, ambiguity that of 9.
    assert judgement.parts.novel.tolist() == [True, False, False, True]
    assert judgement.parts.ambiguous.tolist() == [False, False, False, True]
    assert (judgement.parts.novelty_limit, judgement.parts.ambiguity_limit) == (np.inf, 9.0)
    assert calibration.part_limits == {"max_probability": 9.0}
    np.testing.assert_allclose(judgement.scores["combined"].p_value[[0, 3]], 0.2)
    assert np.isfinite([score.value for score in judgement.scores.values()]).all()
    assert expected_part_rates(calibration) == {"novel": pytest.approx(0.2), "ambiguous": pytest.approx(0.1)}


def test_with_a_percentile_per_class_the_rate_holds_within_each():
    """Class 0 has no unseen row, class 1 more than the rate: there exactly these are rejected."""
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], 50)
    unseen = np.where((labels == 1) & (np.arange(100) % 5 == 0), 1, 0)
    calibration = calibrated(scored(rng.normal(size=(3, 100)), unseen, labels), percentile=90.0, per_class=True)
    assert calibration.expected_reject_rate == pytest.approx((0.1 + 0.2) / 2)
    new = scored([[9.0, 9.0, 0.0, 0.0]] * 3, [0, 0, 1, 1], np.array([0, 1, 0, 1]))
    judgement = judge(calibration, new)
    assert judgement.reject.tolist() == [True, False, True, True]
    np.testing.assert_allclose(judgement.scores["std"].p_value, [1 / 51, 11 / 51, 1 / 51, 11 / 51])


def test_an_error_limit_counts_no_unseen_row_as_accepted():
    """All unseen rows are wrong: the others certify the limit, as they do alone."""
    rng = np.random.default_rng(0)
    prediction = scored(rng.normal(size=(3, 400)), np.arange(400) % 4 == 0)
    targets = np.where(np.arange(400) % 4 == 0, 1, 0)
    calibration = calibrated(
        prediction, targets, percentile=95.0, ambiguity="max_probability", error_limit=ErrorLimit(0.02, 0.9)
    )
    assert (calibration.risk.familiar_rows, calibration.risk.accepted_rows, calibration.risk.errors) == (300, 300, 0)
    assert calibration.expected_reject_rate == pytest.approx(0.25)
    assert expected_part_rates(calibration)["novel"] == pytest.approx(101 / 401)
    judgement = judge(calibration, prediction)
    np.testing.assert_array_equal(judgement.reject, prediction.scores["unseen"] > 0)
    np.testing.assert_array_equal(judgement.parts.novel, judgement.reject)


@pytest.mark.parametrize("unseen", [2, 12])
@pytest.mark.parametrize("rule", ["single", "two parts"])
def test_the_coverage_among_accepted_rows_counts_none_of_them(rule, unseen):
    """Every row of a pool is the new one: of those accepted, at least the stated share is covered, and not much more."""
    rng = np.random.default_rng(unseen)
    pool = drawn(rng, 40, unseen)
    # What the sets miss are unseen rows, whose probability of the true class is the least.
    mean = np.stack([rng.uniform(0.51, 1, 40), np.zeros(40)], axis=1).astype(np.float32)
    mean[pool.scores["unseen"] > 0, 0] = 0.505
    mean[:, 1] = 1 - mean[:, 0]
    pool = pool._replace(summary=pool.summary._replace(mean=mean))
    settings = RULES[rule] | {"coverage": 0.8, "coverage_among": "accepted", "percentile": 90.0}
    accepted, covered = [], []
    for new in range(40):
        calibration = calibrated(take(pool, np.delete(np.arange(40), new)), **settings)
        judgement = judge(calibration, take(pool, np.array([new])))
        accepted.append(not judgement.reject[0])
        covered.append(bool(judgement.members[0, 0]))
    accepted, covered = np.array(accepted), np.array(covered)
    assert accepted.sum() == 40 - max(4, unseen)
    assert covered[accepted].sum() == np.ceil(0.8 * accepted.sum())


@pytest.mark.parametrize("share", [0.05, 0.1, 0.13])
def test_the_bounds_hold_the_rate_in_95_percent_of_calibration_parts(share):
    """The rate is max(B, q) exactly: no rows need be drawn, only the number of unseen ones and, given it, B."""
    rng, rows, inside = np.random.default_rng(0), 199, []
    for _ in range(1_000):
        # B is the probability beyond the T-th highest of n uniform levels, the unseen rows being the highest share.
        levels = np.sort(rng.random(rows))
        rate, unseen = max(1 - levels[-20], share), int((levels > 1 - share).sum())
        low, high = reject_rate_bounds(90.0, rows, unseen=unseen)
        inside.append(low <= rate <= high)
    assert np.mean(inside) >= 0.95 - 3 * np.sqrt(0.95 * 0.05 / len(inside))


def test_a_calibration_without_the_counts_is_refused_for_a_model_that_needs_them():
    """Else nothing would reject unseen rows; and no decision may be named after them."""
    calibration = calibrated(scored([np.arange(20.0)] * 3, np.zeros(20)), percentile=90.0)
    check_calibration(calibration, "classification", (), "here", classes=2, rejects_unseen=True)
    with pytest.raises(CalibrationError, match="scores"):
        check_calibration(calibration, "classification", (), "here", classes=2)
    without = replace(calibration, scores={name: v for name, v in calibration.scores.items() if name != "unseen"})
    with pytest.raises(CalibrationError, match="the score unseen too"):
        check_calibration(without, "classification", (), "here", classes=2, rejects_unseen=True)
    named = replace(calibration, decision=Decision(scores=("unseen",)))
    with pytest.raises(CalibrationError, match="decision"):
        check_calibration(named, "classification", (), "here", classes=2, rejects_unseen=True)
