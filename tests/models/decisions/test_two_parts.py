"""Decisions of novelty and ambiguity: by hand, and the rate that they promise on simulated rows."""

import numpy as np
import pytest

from abstain.models.decisions.calibration import ErrorLimit, calibrate
from abstain.models.decisions.decision import Decision
from abstain.models.decisions.expected_rates import expected_part_rates
from abstain.models.decisions.judging import judge
from abstain.models.errors import CalibrationError
from abstain.models.prediction.predictive import Prediction
from abstain.models.prediction.summaries import ClassificationSummary

SINGLE = Decision(scores=("std",))
SEVERAL = Decision(scores=("std", "energy"), rule="weighted")


def scored(std, energy, unsure):
    """A two-class prediction with these scores."""
    mean, zeros = np.full((len(std), 2), 0.5, np.float32), np.zeros(len(std), np.float32)
    scores = {"std": std, "energy": energy, "max_probability": unsure}
    return Prediction(
        ClassificationSummary(mean, np.zeros_like(mean), zeros, zeros, zeros),
        {name: np.asarray(values, np.float32) for name, values in scores.items()},
    )


def calibrated(prediction, decision=SINGLE, **settings):
    """The calibration of these rows, all labels 0."""
    reference = {name: np.asarray(values) for name, values in prediction.scores.items()}
    labels = np.zeros(len(prediction.summary.mean), int)
    return calibrate(
        prediction, labels, decision=decision, ambiguity="max_probability", reference=reference, **settings
    )


def test_a_decision_of_two_parts_by_hand():
    """Nine rows at the 70th percentile, so three turns: novelty takes 9, ambiguity 9, novelty 8."""
    ascending = np.arange(1.0, 10.0)
    calibration = calibrated(scored(ascending, ascending, ascending[::-1]), percentile=70.0, coverage=0.5)
    rows = [(8.0, 9.0), (8.5, 0.0), (0.0, 9.5), (8.5, 9.5), (99.0, 0.0), (7.9, 8.9)]
    judgement = judge(calibration, scored(*zip(*[(n, n, a) for n, a in rows], strict=True)))
    assert judgement.parts.novel.tolist() == [False, True, False, True, True, False]
    assert judgement.parts.ambiguous.tolist() == [False, False, True, True, False, False]
    assert judgement.reject.tolist() == [False, True, True, True, True, False]
    assert (judgement.decision, judgement.parts.novelty) == ("combined", "std")
    assert (judgement.parts.novelty_limit, judgement.parts.ambiguity_limit) == (8.0, 9.0)
    np.testing.assert_allclose(judgement.scores["combined"].p_value, [0.4, 0.3, 0.2, 0.2, 0.1, 0.4])
    assert judgement.main_scores[1:3] == ["std", "max_probability"]


def test_several_scores_are_the_novelty_part():
    """Their combined evidence is the score `novelty`, as it is `combined` without ambiguity, with the same p-values."""
    rng = np.random.default_rng(0)
    prediction = scored(*rng.normal(size=(3, 200)))
    new = scored(*rng.normal(1, 1, size=(3, 50)))
    reference = {name: np.asarray(values) for name, values in prediction.scores.items()}
    alone = judge(calibrate(prediction, np.zeros(200, int), decision=SEVERAL, reference=reference), new)
    both = judge(calibrated(prediction, SEVERAL), new)
    assert list(both.scores) == ["std", "energy", "max_probability", "novelty", "combined"]
    np.testing.assert_array_equal(both.scores["novelty"].value, alone.scores["combined"].value)
    np.testing.assert_array_equal(both.scores["novelty"].p_value, alone.scores["combined"].p_value)
    assert both.evidence.keys() == alone.evidence.keys() == {"std", "energy"}


@pytest.mark.parametrize("percentile", [80.0, 90.0, 95.0, 99.0])
@pytest.mark.parametrize("decision", [SINGLE, SEVERAL], ids=["single", "several"])
def test_the_reject_rate_is_the_stated_one(percentile, decision):
    """The mean over splits of a law without ties, within four standard errors; each reject has a reason."""
    rng, rows, rates = np.random.default_rng(int(percentile)), 99, []
    for _ in range(200):
        base = rng.normal(size=(3, rows + 300)) + rng.normal(size=rows + 300)
        calibration = calibrated(scored(*base[:, :rows]), decision, percentile=percentile, novelty_share=0.7)
        judgement = judge(calibration, scored(*base[:, rows:]))
        np.testing.assert_array_equal(judgement.reject, judgement.parts.novel | judgement.parts.ambiguous)
        rates.append(judgement.reject.mean())
    # Seven hundredths in ten thousand of the rate are lost: rows within the tolerance of a threshold are accepted.
    assert np.mean(rates) == pytest.approx(1 - percentile / 100, abs=4 * np.std(rates) / np.sqrt(len(rates)) + 1e-3)


def test_a_verdict_does_not_depend_on_the_batch():
    """Each row alone is decided as in the batch, and NaN is rejected by both parts."""
    rng = np.random.default_rng(1)
    calibration = calibrated(scored(*rng.normal(size=(3, 300))), SEVERAL, percentile=90.0)
    values = rng.normal(size=(3, 60))
    whole = judge(calibration, scored(*values))
    alone = [judge(calibration, scored(*values[:, [row]])) for row in range(60)]
    assert whole.reject.tolist() == [judgement.reject[0] for judgement in alone]
    assert whole.parts.novel.tolist() == [judgement.parts.novel[0] for judgement in alone]
    with np.errstate(invalid="ignore"):
        broken = judge(calibration, scored([np.nan], [np.nan], [np.nan]))
    assert (broken.reject[0], broken.parts.novel[0], broken.parts.ambiguous[0]) == (True, True, True)


def test_thresholds_per_class_are_refused():
    """They would need turns within each class."""
    with pytest.raises(CalibrationError, match="per_class: expected false for a decision of novelty and ambiguity"):
        calibrated(scored(*np.random.default_rng(2).normal(size=(3, 300))), per_class=True)


# ---- a limit of the error --------------------------------------------------------------------------------------------


def drawn(rng, rows):
    """Rows of a law whose novelty has three values: at the middle one half of the answers are wrong, and none else is."""
    novelty = rng.choice(3, rows, p=[0.7, 0.285, 0.015])
    wrong = (novelty == 1) & (rng.random(rows) < 0.5)
    return scored(novelty, novelty, rng.random(rows)), wrong.astype(int)


def test_a_limit_holds_if_many_rows_tie_at_the_novelty_threshold():
    """Rows that tie with it are novel, because their error is not certified: of what is accepted, nothing is wrong here."""
    rng = np.random.default_rng(3)
    for _ in range(20):
        calibration = calibrated_with(*drawn(rng, 400), ErrorLimit(0.05, 0.95), percentile=95.0)
        assert calibration.risk.threshold is not None
        prediction, wrong = drawn(rng, 2000)
        judgement = judge(calibration, prediction)
        assert not wrong[~judgement.reject].any()
        assert judgement.parts.novel.tolist() == (prediction.scores["std"] >= 1).tolist()
        accepted = ~judge(calibration, rows_of(calibration)).reject
        assert accepted.sum() == calibration.risk.accepted_rows


def calibrated_with(prediction, labels, limit, **settings):
    """The calibration of rows with these labels, all predicted as 0, and a limit of the error."""
    reference = {name: np.asarray(values) for name, values in prediction.scores.items()}
    return calibrate(
        prediction,
        labels,
        decision=SINGLE,
        ambiguity="max_probability",
        error_limit=limit,
        reference=reference,
        **settings,
    )


def rows_of(calibration):
    """The calibration rows as new rows."""
    return scored(*(calibration.scores[name] for name in ("std", "energy", "max_probability")))


def test_a_limit_needs_a_score():
    """It would have no effect."""
    with pytest.raises(CalibrationError, match="ambiguity: expected a score, with a limit of the error"):
        calibrate(scored(*np.zeros((3, 99))), np.zeros(99, int), decision=SINGLE, error_limit=ErrorLimit(0.1, 0.9))


def test_each_part_has_its_expected_share():
    """By hand: of nine rows at the 70th percentile, novelty takes two and ambiguity one."""
    ascending = np.arange(1.0, 10.0)
    calibration = calibrated(scored(ascending, ascending, ascending[::-1]), percentile=70.0, coverage=0.5)
    assert expected_part_rates(calibration) == {"novel": pytest.approx(0.2), "ambiguous": pytest.approx(0.1)}
    alone = calibrate(
        scored(ascending, ascending, ascending), np.zeros(9, int), decision=SINGLE, percentile=70.0, coverage=0.5
    )
    assert expected_part_rates(alone) == {}


def test_the_expected_shares_are_those_of_new_rows():
    """Of 100,000 new rows, each part rejects about the share of the 4,000 calibration rows that it would reject."""
    rng = np.random.default_rng(3)
    calibration = calibrated(scored(*rng.normal(size=(3, 4000))), percentile=80.0, novelty_share=0.7)
    parts = judge(calibration, scored(*rng.normal(size=(3, 100_000)))).parts
    expected = expected_part_rates(calibration)
    error = 5 * np.sqrt(0.25 / 4000)
    assert parts.novel.mean() == pytest.approx(expected["novel"], abs=error)
    assert parts.ambiguous.mean() == pytest.approx(expected["ambiguous"], abs=error)


def test_rows_that_tie_with_the_limit_are_not_expected_to_be_rejected():
    """Novelty is 0 for 97 % of the rows; and every row is certified, yet a new one may be more ambiguous."""
    rng = np.random.default_rng(5)
    rare = np.where(rng.random(1000) < 0.97, 0.0, rng.random(1000))
    calibration = calibrated(scored(rare, rare, rng.random(1000)), percentile=90.0, novelty_share=0.8)
    assert expected_part_rates(calibration)["novel"] < 0.05
    limited = calibrated(
        scored(rng.random(1000), rng.random(1000), rng.random(1000)), error_limit=ErrorLimit(0.02, 0.95)
    )
    assert limited.risk.accepted_rows == limited.risk.familiar_rows
    assert expected_part_rates(limited) == {"novel": pytest.approx(11 / 1001), "ambiguous": pytest.approx(1 / 1001)}
