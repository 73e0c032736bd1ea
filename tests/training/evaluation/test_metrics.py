"""Metrics and their intervals, each against its formula written out, a naive loop, or another library."""

import math

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import average_precision_score, log_loss, roc_auc_score

from abstain.models.decisions.records import ScoreJudgement
from abstain.training.evaluation.bootstrap import (
    auroc_interval,
    calibrated_ece,
    central_interval,
    classification_intervals,
    mean_intervals,
    resample_rows,
    share_interval,
)
from abstain.training.evaluation.metrics import (
    adaptive_calibration_error,
    area_under_risk_coverage,
    classification_quality,
    classification_terms,
    classwise_calibration_error,
    equal_mass_starts,
    expected_calibration_error,
    risk_at_coverage,
    separation,
)
from abstain.training.evaluation.quality import deciding_ranks, score_detection
from abstain.training.evaluation.results import Separation

RNG = np.random.default_rng(0)

# ---- classification --------------------------------------------------------------------------------------------------


def test_classification_quality_is_its_formulas():
    """Accuracy, NLL in nats, and the Brier score summed over classes, in float64 and by scikit-learn."""
    probabilities = RNG.dirichlet([0.5, 1, 2], 400).astype(np.float32)
    labels = RNG.integers(0, 3, 400)
    found = classification_quality(probabilities, labels)
    exact = probabilities.astype(float)
    assert found["accuracy"] == np.mean([np.argmax(row) == label for row, label in zip(exact, labels, strict=True)])
    assert found["nll"] == pytest.approx(log_loss(labels, exact / exact.sum(axis=1, keepdims=True)), rel=1e-5)
    brier = np.mean([((row - np.eye(3)[label]) ** 2).sum() for row, label in zip(exact, labels, strict=True)])
    assert found["brier"] == pytest.approx(brier, rel=1e-12)
    assert list(found) == ["accuracy", "nll", "brier", "ece", "aurc"]


def test_a_class_given_no_probability_costs_a_finite_nll():
    """A true class of probability 0 counts as float32's smallest normal number, so that the mean stays finite."""
    found = classification_quality(np.float32([[1, 0], [1, 0]]), np.array([1, 0]))
    assert found["nll"] == pytest.approx(-np.log(np.finfo(np.float32).tiny) / 2)


@pytest.mark.parametrize("rows", [1, 7, 15, 400])
def test_ece_is_the_gap_in_bins_of_equal_mass(rows):
    """Rows in order of confidence, cut into fifteen bins as equal as can be, |accuracy − confidence| weighted by size."""
    confidence = RNG.uniform(0.3, 1, rows)
    correct = confidence**2 > RNG.random(rows)
    order = sorted(range(rows), key=confidence.__getitem__)
    larger, size = rows % 15, rows // 15
    gap, start = 0.0, 0
    for number in range(15):
        rows_of_bin = order[start : start + size + (number < larger)]
        start += len(rows_of_bin)
        gap += abs(sum(correct[row] - confidence[row] for row in rows_of_bin)) / rows
    assert expected_calibration_error(confidence, correct) == pytest.approx(gap, rel=1e-10)


def test_ece_of_the_sure_and_wrong_is_known():
    """Always sure and half right is off by one half; as often right as sure is off by nothing."""
    half = np.arange(300) % 2 == 0
    assert expected_calibration_error(np.ones(300), half) == pytest.approx(0.5)
    assert expected_calibration_error(np.full(300, 0.5), half) == pytest.approx(0.0)


def test_aurc_is_the_mean_risk_over_coverages():
    """The mean over k of the share of errors among the k most confident rows."""
    confidence = RNG.permutation(60) / 60
    correct = RNG.random(60) < 0.7
    order = np.argsort(-confidence)
    risks = [np.mean(~correct[order[:k]]) for k in range(1, 61)]
    assert area_under_risk_coverage(confidence, correct) == pytest.approx(np.mean(risks), rel=1e-12)
    assert area_under_risk_coverage(np.array([0.9, 0.8]), np.array([True, False])) == 0.25


@pytest.mark.parametrize(("rows", "bins"), [(400, 15), (40, 7), (5, 15)])
def test_ace_is_its_double_loop(rows, bins):
    """Class by class, rows in order of that class's probability in bins of equal mass, |frequency − mean| averaged."""
    probabilities = RNG.dirichlet([0.5, 1, 2, 0.2], rows).astype(np.float32)
    labels = RNG.integers(0, 4, rows)
    gaps = [
        abs(np.mean(labels[part] == label) - probabilities[part, label].astype(float).mean())
        for label in range(4)
        for part in np.array_split(np.argsort(probabilities[:, label], kind="stable"), bins)
        if len(part)
    ]
    assert adaptive_calibration_error(probabilities, labels, bins) == pytest.approx(np.mean(gaps), rel=1e-9)


def test_classwise_ece_is_its_double_loop():
    """Class by class, bins (j/15, (j + 1)/15], their gaps weighted by their share of the rows; 0 and 1 have a bin."""
    probabilities = np.concatenate([RNG.dirichlet([0.5, 1, 2], 300), np.eye(3), [[0.2, 0.2, 0.6]]])
    labels = RNG.integers(0, 3, len(probabilities))
    total = 0.0
    for label in range(3):
        values = probabilities[:, label]
        for number in range(15):
            low, high = number / 15, (number + 1) / 15
            inside = (values > low) & (values <= high) | ((number == 0) & (values == 0))
            if inside.any():
                total += inside.mean() * abs(np.mean(labels[inside] == label) - values[inside].mean())
    assert classwise_calibration_error(probabilities, labels) == pytest.approx(total / 3, rel=1e-9)


def test_calibration_errors_of_the_perfect_and_the_sure_and_wrong_are_known():
    """One-hot and always right: 0 by all three. One-hot and always wrong, of two classes: 1 by class-wise ECE and ECE."""
    labels = np.arange(60) % 2
    right, wrong = np.eye(2)[labels], np.eye(2)[1 - labels]
    for probabilities, expected in ((right, 0.0), (wrong, 1.0)):
        assert classwise_calibration_error(probabilities, labels) == expected
        assert classification_quality(probabilities, labels)["ece"] == expected
    assert adaptive_calibration_error(right, labels) == 0.0


@pytest.mark.parametrize("rows", [1, 14, 15, 16, 100])
def test_bins_of_equal_mass_are_numpys(rows):
    """The bins begin where `array_split` cuts, empty ones left out."""
    parts = [part for part in np.array_split(np.arange(rows), 15) if len(part)]
    assert equal_mass_starts(rows).tolist() == [part[0] for part in parts]


# ---- selection -------------------------------------------------------------------------------------------------------


def test_risk_at_coverage_is_the_mean_loss_of_the_surest():
    """The number of rows is ⌈c·n⌉ in exact arithmetic: 95 % of 20 rows are 19, although .95 · 20 is a little more in binary."""
    confidence, losses = RNG.permutation(20) / 20, RNG.random(20)
    order = sorted(range(20), key=lambda row: -confidence[row])
    found = risk_at_coverage(confidence, losses)
    expected = {"0.5": 10, "0.8": 16, "0.9": 18, "0.95": 19, "0.99": 20}
    assert list(found) == list(expected)
    for coverage, count in expected.items():
        assert found[coverage] == pytest.approx(np.mean([losses[row] for row in order[:count]]))
    assert set(risk_at_coverage(np.ones(1), np.ones(1)).values()) == {1.0}


# ---- telling the strange from the familiar ---------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 5, 40])
def test_no_figure_depends_on_the_order_of_tied_rows(steps):
    """Confidences of a few values, right ones first, last or anyhow: ECE, ACE and AURC are those of tie groups' means."""
    rng = np.random.default_rng(2)
    labels = rng.integers(0, 2, 203)
    first = rng.integers(0, steps, 203) / steps
    probabilities = np.stack([first, 1 - first], axis=1).astype(np.float32)
    confidence = probabilities.max(axis=1).astype(np.float64)
    correct = probabilities.argmax(axis=1) == labels
    orders = [np.argsort(correct, kind="stable"), np.argsort(~correct, kind="stable"), rng.permutation(203)]
    for figure in (
        lambda rows: expected_calibration_error(confidence[rows], correct[rows]),
        lambda rows: adaptive_calibration_error(probabilities[rows], labels[rows]),
        lambda rows: area_under_risk_coverage(confidence[rows], correct[rows]),
        lambda rows: risk_at_coverage(confidence[rows], 1.0 - correct[rows])["0.8"],
    ):
        *found, anyhow = [figure(rows) for rows in orders]
        assert found == pytest.approx([anyhow] * 2, abs=1e-12)
    # The mean over orders of a tied group's rows is what each of them counts for.
    drawn = [np.lexsort((rng.random(203), -confidence)) for _ in range(3000)]
    risks = [(np.cumsum(~correct[order]) / np.arange(1, 204)).mean() for order in drawn]
    assert area_under_risk_coverage(confidence, correct) == pytest.approx(np.mean(risks), abs=4 * np.std(risks) / 50)


def test_separation_is_scikit_learns_and_its_formulas():
    """AUROC is the share of pairs in order, AUPR the mean precision at each OOD row, FPR95 a plain share; with ties."""
    familiar, strange = RNG.normal(size=80).round(1), RNG.normal(1, 1, 50).round(1)
    found = separation(familiar, strange)
    truth, values = np.repeat([0, 1], [80, 50]), np.concatenate([familiar, strange])
    assert found.auroc == pytest.approx(roc_auc_score(truth, values))
    assert found.auroc == pytest.approx(np.mean([np.mean((s > familiar) + 0.5 * (s == familiar)) for s in strange]))
    assert found.aupr == pytest.approx(average_precision_score(truth, values))
    precisions = [(strange >= s).sum() / ((strange >= s).sum() + (familiar >= s).sum()) for s in strange]
    assert found.aupr == pytest.approx(np.mean(precisions))
    assert found.fpr95 == np.mean(strange <= np.sort(familiar)[math.ceil(0.95 * (len(familiar) - 1))])


def test_a_perfect_and_a_useless_score_have_known_figures():
    """Sets apart: all ones and no misses. The same set twice: an AUROC of one half, and 95 % pass unseen."""
    values = np.linspace(0, 1, 201)
    apart = score_detection(values, values + 2, values + 2 > 1.5)
    assert apart.separation == Separation(auroc=1.0, aupr=1.0, fpr95=0.0)
    assert apart.detected.share == 1.0
    for interval in (apart.auroc_interval, apart.detected.interval):
        assert interval == (pytest.approx(0.025 ** (1 / 201)), 1.0)
    same = score_detection(values, values, values > 0.9)
    assert same.separation.auroc == pytest.approx(0.5)
    assert same.separation.fpr95 == pytest.approx(0.95, abs=0.01)
    assert same.detected.share == np.mean(values > 0.9)


# ---- intervals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("hits", "rows"), [(0, 10), (1, 10), (7, 20), (10, 10), (297, 1000)])
def test_share_intervals_are_clopper_and_pearsons(hits, rows):
    """Scipy's exact binomial interval."""
    exact = stats.binomtest(hits, rows).proportion_ci(0.95, "exact")
    assert share_interval(hits, rows) == pytest.approx([exact.low, exact.high])


def test_the_aurocs_interval_is_the_outer_of_delongs_by_logits_and_newcombes():
    """The variance of the placements pair by pair in a naive loop, and the quadratic test inverted on a fine grid."""
    familiar, strange = RNG.normal(size=60).round(1), RNG.normal(0.8, 1, 45).round(1)
    wins = np.array([[1.0 if s > f else 0.5 if s == f else 0.0 for f in familiar] for s in strange])
    area, m = wins.mean(), (60 + 45) / 2 - 1
    variance = wins.mean(axis=1).var(ddof=1) / 45 + wins.mean(axis=0).var(ddof=1) / 60
    half = 1.959964 * np.sqrt(variance) / (area * (1 - area))
    logits = [1 / (1 + (1 - area) / area * np.exp(side * half)) for side in (1, -1)]
    a = np.linspace(1e-4, 1 - 1e-4, 200_001)
    model = a * (1 - a) * (1 + m * (1 - a) / (2 - a) + m * a / (1 + a)) / (60 * 45)
    inside = a[(area - a) ** 2 <= 1.959964**2 * model]
    expected = [min(logits[0], inside[0]), max(logits[1], inside[-1])]
    assert auroc_interval(familiar, strange) == pytest.approx(expected, abs=2e-5)


@pytest.mark.parametrize(("strange", "area"), [(2.0, 1.0), (-2.0, 0.0), (0.5, 0.5)])
def test_an_auroc_without_a_variance_has_the_interval_of_independent_pairs(strange, area):
    """All in order, all in the wrong order, all tied: never an interval of no width, never beyond 0 and 1."""
    familiar = np.full(20, 0.5)
    low, high = auroc_interval(familiar, np.full(50, strange))
    exact = share_interval(area * 20, 20)
    assert 0 <= low <= exact[0] <= area <= exact[1] <= high <= 1
    assert high - low > 0.1
    one = auroc_interval(familiar, np.array([strange]))
    assert one[1] - one[0] > 0.9


@pytest.mark.parametrize("area", [0.9, 0.99, 0.999])
def test_auroc_intervals_hold_the_truth_as_often_as_they_say(area):
    """Two normals, 100 rows each, 400 times: no less than 95 % − 4.8 binomial standard errors (1e-6, one-sided)."""
    rng = np.random.default_rng(3)
    apart = stats.norm.ppf(area) * np.sqrt(2)
    found = [auroc_interval(rng.normal(size=100), rng.normal(apart, 1, 100)) for _ in range(400)]
    held = np.mean([low <= area <= high for low, high in found])
    assert held >= 0.95 - 4.8 * np.sqrt(0.95 * 0.05 / 400)


@pytest.mark.parametrize("share", [0.5, 0.99, 0.999])
def test_intervals_of_proportions_hold_the_truth_as_often_as_they_say(share):
    """Accuracy and coverage on 1000 rows by exact sums over all outcomes: at least 95 %, near 1 too."""
    hits = np.arange(1001)
    chance = stats.binom.pmf(hits, 1000, share)
    worth = hits[chance > 1e-12]
    for name in ("accuracy", "coverage_95"):
        ends = [mean_intervals({name: (np.arange(1000) < count).astype(float)}, 1)[name] for count in worth.tolist()]
        held = [low <= share <= high for low, high in ends]
        assert chance[worth][held].sum() >= 0.95


def test_the_ece_of_a_calibrated_model_is_that_of_simulated_answers():
    """Ties included: the same as `expected_calibration_error` of answers drawn anew, within 5 standard errors; seeded."""
    rng = np.random.default_rng(4)
    confidence = np.concatenate([rng.uniform(0.5, 1, 150), np.repeat([0.7, 0.9], 40)])
    found = calibrated_ece(confidence, 2000)
    drawn = [expected_calibration_error(confidence, rng.random(230) < confidence) for _ in range(2000)]
    error = np.hypot(found.std(), np.std(drawn)) / np.sqrt(2000)
    assert abs(found.mean() - np.mean(drawn)) < 5 * error
    assert np.array_equal(found, calibrated_ece(confidence, 2000))
    assert calibrated_ece(np.ones(30)).tolist() == [0.0] * 1000


def test_figures_of_a_decision_by_class_are_of_its_p_values():
    """Scores of two classes on scales apart: each class tells its strange rows apart, and so does the decision."""
    low = {"value": np.float32([1, 2, 3]), "threshold": np.full(3, 3.0), "p_value": np.array([0.9, 0.6, 0.3])}
    high = {"value": np.float32([100, 200]), "threshold": np.full(2, 150.0), "p_value": np.array([0.8, 0.2])}
    both = {name: np.concatenate([low[name], high[name]]) for name in low}
    flags = {"above": np.zeros(5, bool), "extrapolated": np.zeros(5, bool)}
    familiar = ScoreJudgement(**both, **flags, percentile=np.zeros(5))
    far = {"value": np.float32([50, 60, 300]), "threshold": np.array([3.0, 3.0, 150.0]), "p_value": np.full(3, 0.1)}
    strange = ScoreJudgement(**far, percentile=np.zeros(3), above=np.ones(3, bool), extrapolated=np.ones(3, bool))
    assert separation(familiar.value, strange.value).auroc < 0.8
    ranks = deciding_ranks(familiar, strange)
    assert separation(*ranks).auroc == 1.0
    # Beyond all calibration rows: the larger excess is the stranger one.
    assert np.argsort(ranks[1]).tolist() == [0, 1, 2]


def test_with_one_threshold_ranks_are_the_scores_own():
    """The same AUROC as of the values, ties included."""
    values = RNG.normal(size=100).round(1).astype(np.float32)
    p_values = np.array([(values >= value).mean() for value in values])
    flags = values > 0.8, np.zeros(100, bool)
    whole = ScoreJudgement(values, np.zeros(100), np.full(100, 0.8), p_values, *flags)
    first, second = (ScoreJudgement(*(part[cut] for part in whole)) for cut in (slice(60), slice(60, None)))
    assert separation(*deciding_ranks(first, second)) == separation(first.value, second.value)


def test_bootstrap_intervals_are_a_naive_loop_over_the_same_resamples():
    """Every statistic computed anew on each resample's rows has the same quantiles; ECE's moved back by its rise."""
    probabilities = RNG.dirichlet([0.4, 0.6, 0.5], 150)
    labels = np.array([RNG.choice(3, p=row) for row in probabilities])
    terms, confidence = classification_terms(probabilities, labels), probabilities.max(axis=1)
    found = classification_intervals(terms, confidence, 120)
    drawn = np.concatenate(list(resample_rows(150, 120, 0)))
    again = [classification_quality(probabilities[rows], labels[rows]) for rows in drawn]
    whole = classification_quality(probabilities, labels)
    assert list(found) == list(whole)
    assert found["accuracy"] == share_interval(int(terms["accuracy"].sum()), 150)
    for name in ("nll", "brier", "aurc"):
        assert found[name] == pytest.approx(central_interval(np.array([each[name] for each in again])), rel=1e-6)
    eces = np.array([each["ece"] for each in again])
    assert eces.mean() > whole["ece"]
    assert found["ece"] == pytest.approx(central_interval(np.maximum(eces - eces.mean() + whole["ece"], 0)), rel=1e-6)
    assert found == classification_intervals(terms, confidence, 120)


def test_the_rmses_interval_is_of_roots():
    """Roots of the resamples' mean squares, not the mean squares themselves."""
    squares = RNG.random(50) * 9
    drawn = np.concatenate(list(resample_rows(50, 200, 0)))
    expected = central_interval(np.sqrt(squares[drawn].mean(axis=1)))
    assert mean_intervals({"squared_error": squares}, 200)["rmse"] == pytest.approx(expected)


def test_resamples_are_fewer_only_for_very_many_rows():
    """A thousand of ten thousand rows, two hundred of a million: never more than some tens of megabytes at once."""
    for rows, expected in ((7, 1000), (10_000, 1000), (50_000, 400)):
        chunks = list(resample_rows(rows, 1000, 0))
        assert sum(map(len, chunks)) == expected
        assert max(chunk.size for chunk in chunks) <= 2_000_000
        assert all(chunk.min() >= 0 and chunk.max() < rows for chunk in chunks)
