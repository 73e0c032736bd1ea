"""Rows with an unseen category rank above all others: counts over whole pools, the law of the rate, and rows by hand."""

import numpy as np
import pytest
from scipy import stats

from abstain.models.decisions.calibration import calibrate
from abstain.models.decisions.decision import Decision
from abstain.models.decisions.judging import judge
from abstain.models.prediction.predictive import Prediction
from abstain.models.prediction.summaries import ClassificationSummary

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


@pytest.mark.parametrize("unseen", [0, 1, 3, 4, 5, 11])
@pytest.mark.parametrize("rule", RULES)
def test_of_a_pool_exactly_the_stated_share_is_rejected_or_all_unseen_rows_if_they_are_more(rule, unseen):
    """Of 40 rows four at the 90th percentile: what the rate is on average, without Monte Carlo error."""
    pool = drawn(np.random.default_rng(unseen), 40, unseen)
    rejected = verdicts(pool, RULES[rule])
    assert rejected.sum() == max(4, unseen)
    assert rejected[pool.scores["unseen"] > 0].all()


@pytest.mark.parametrize("share", [0.0, 0.02, 0.05, 0.2])
@pytest.mark.parametrize("rule", ["weighted", "two parts"])
def test_the_mean_rate_over_calibration_parts_is_that_of_the_law(rule, share):
    """E max(T, M)/(n + 1), M being binomial; at most the stated 5 % where unseen rows are fewer."""
    rng, rows, rates = np.random.default_rng(int(100 * share)), 99, []
    for _ in range(150):
        values = rng.normal(size=(3, rows + 200)) + rng.normal(size=rows + 200)
        unseen = rng.random(rows + 200) < share
        pool = scored(values, unseen)
        calibration = calibrated(take(pool, np.arange(rows)), percentile=95.0, **RULES[rule])
        rates.append(judge(calibration, take(pool, np.arange(rows, rows + 200))).reject.mean())
    counts = np.arange(rows + 2)
    expected = (stats.binom.pmf(counts, rows + 1, share) * np.maximum(counts, 5)).sum() / (rows + 1)
    error = np.std(rates) / np.sqrt(len(rates))
    assert np.mean(rates) == pytest.approx(expected, abs=4 * error + 1e-3)
