"""Evaluation: every figure against its formula written out, and whole versions on sources of all kinds."""

import numpy as np
import pytest
from scipy import stats
from scipy.special import logsumexp
from sklearn.datasets import load_digits
from sklearn.metrics import log_loss

from models.calibration import threshold
from models.errors import CalibrationError, DataError
from models.predictive import Prediction, Predictor
from training.config import DataConfig
from training.evaluate import (
    area_under_risk_coverage,
    classification_quality,
    detection,
    draw_moments,
    evaluate_version,
    expected_calibration_error,
    mixture_crps,
    mixture_log_density,
    quality,
    reject_rates,
    score_detection,
)
from training.rows import Rows
from training.sources import read_source

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def wave_rows():
    """Five hundred test rows of `wave`."""
    return read_source("wave", DataConfig(test_size=500), classify=False).test


@pytest.fixture(scope="module")
def wave_prediction(wave, wave_rows):
    """What the served code predicts for them."""
    return Predictor(wave.posterior, (256,))(wave_rows.x)


@pytest.fixture
def evaluate(store, tmp_path):
    """Evaluates `digits` on arrays of the test's own."""

    def evaluate(model="digits", percentile=None, ood=None, **arrays):
        np.savez(tmp_path / "rows.npz", **arrays)
        return evaluate_version(store, model, str(tmp_path / "rows.npz"), percentile, ood or {})

    return evaluate


IMAGES, LABELS = load_digits(return_X_y=True)
IMAGES = IMAGES.reshape(-1, 8, 8)[:300]
LABELS = LABELS[:300]

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


# ---- regression ------------------------------------------------------------------------------------------------------


def by_hand(bundle, x):
    """Mean and std that every draw of the 1-4-1 network predicts for every row, `[rows, draws]`, in float64 numpy."""
    terms, draws = bundle.manifest.model.preprocessing, bundle.posterior.draws
    first, second = (
        {name: leaf.astype(float) for name, leaf in draws["network"][layer].items()} for layer in ("Dense_0", "Dense_1")
    )
    z = (x - terms.shift[0]) / terms.scale[0]
    hidden = np.tanh(np.einsum("ri,dio->rdo", z, first["kernel"]) + first["bias"])
    outputs = np.einsum("rdi,dio->rdo", hidden, second["kernel"])[..., 0] + second["bias"][:, 0]
    means = terms.target_shift + terms.target_scale * outputs
    return means, np.broadcast_to(terms.target_scale * draws["noise"].astype(float), means.shape)


def test_regression_quality_is_of_the_mixture_in_the_targets_units(wave, wave_rows, wave_prediction):
    """RMSE, NLL and CRPS of the mixture over draws, and its central 95 % interval, from the draws by hand."""
    means, stds = by_hand(wave, wave_rows.x)
    found = quality(wave.posterior, wave_prediction, wave_rows)
    assert list(found) == ["rmse", "nll", "crps", "coverage_95", "interval_width"]
    assert found["rmse"] == pytest.approx(np.sqrt(np.mean((means.mean(axis=1) - wave_rows.y) ** 2)), rel=1e-5)
    log_density = logsumexp(stats.norm.logpdf(wave_rows.y[:, None], means, stds), axis=1) - np.log(means.shape[1])
    np.testing.assert_allclose(log_density, mixture_log_density(wave.posterior, wave_rows), rtol=1e-3, atol=1e-4)
    assert found["nll"] == pytest.approx(-log_density.mean(), rel=1e-4)
    assert found["crps"] == pytest.approx(mixture_crps(means, stds, wave_rows.y).mean(), rel=1e-4)
    # Inside the central 95 % interval: the mixture's distribution function at the target lies between the two levels.
    level = stats.norm.cdf(wave_rows.y[:, None], means, stds).mean(axis=1)
    assert found["coverage_95"] == pytest.approx(((level >= 0.025) & (level <= 0.975)).mean(), abs=1 / 500)
    low, high = np.asarray(wave_prediction.summary.quantiles)[:, [0, 2]].T
    assert found["interval_width"] == pytest.approx((high - low).mean(), rel=1e-6)


def test_draws_predict_in_the_targets_units(wave, wave_rows):
    """`draw_moments` are every draw's mean and variance, scaled back from the standardised target."""
    means, stds = by_hand(wave, wave_rows.x)
    found = draw_moments(wave.posterior, wave_rows.x)
    np.testing.assert_allclose(means, found[..., 0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(stds**2, found[..., 1], rtol=1e-4)


def test_crps_is_the_integral_of_the_squared_difference():
    """∫ (F(z) − [z ≥ y])² dz by a fine sum equals the closed form, for targets in and far outside the mixture."""
    means, stds = RNG.normal(size=(4, 6)), RNG.uniform(0.1, 1.5, (4, 6))
    targets = np.array([0.0, 0.7, -3.0, 12.0])
    grid = np.linspace(-25, 25, 200_001)
    for mean, std, y, found in zip(means, stds, targets, mixture_crps(means, stds, targets), strict=True):
        cdf = stats.norm.cdf(grid[:, None], mean, std).mean(axis=1)
        assert found == pytest.approx(np.trapezoid((cdf - (grid >= y)) ** 2, grid), abs=5e-4)
    one = mixture_crps(np.zeros((1, 1)), np.ones((1, 1)), np.zeros(1))[0]
    assert one == pytest.approx((np.sqrt(2) - 1) / np.sqrt(np.pi))


# ---- telling the strange from the familiar ---------------------------------------------------------------------------


def test_detection_is_its_formulas():
    """AUROC is the share of pairs in order, AUPR the mean precision at each OOD row, FPR95 and detection plain shares."""
    familiar, strange = RNG.normal(size=80).round(1), RNG.normal(1, 1, 50).round(1)
    found = score_detection(familiar, strange, 1.3)
    pairs = [np.mean((s > familiar) + 0.5 * (s == familiar)) for s in strange]
    assert found["auroc"] == pytest.approx(np.mean(pairs))
    precisions = [(strange >= s).sum() / ((strange >= s).sum() + (familiar >= s).sum()) for s in strange]
    assert found["aupr"] == pytest.approx(np.mean(precisions))
    assert found["fpr95"] == np.mean(strange <= np.percentile(familiar, 95))
    assert found["detection"] == np.mean(strange > np.float32(1.3))


def test_a_perfect_and_a_useless_score_have_known_figures():
    """Sets apart: all ones and no misses. The same set twice: an AUROC of one half, and 95 % pass unseen."""
    values = np.linspace(0, 1, 201)
    assert score_detection(values, values + 2, 1.5) == {"auroc": 1.0, "aupr": 1.0, "fpr95": 0.0, "detection": 1.0}
    same = score_detection(values, values, 0.9)
    assert same["auroc"] == pytest.approx(0.5)
    assert same["fpr95"] == pytest.approx(0.95, abs=0.01)


def scored(bundle, **scores):
    """A prediction with these scores, and a summary that nothing here looks at."""
    rows = len(next(iter(scores.values())))
    summary = Predictor(bundle.posterior, (1,))(np.zeros((1, *bundle.manifest.model.feature_shape))).summary
    return Prediction(type(summary)(*(np.repeat(leaf, rows, axis=0) for leaf in summary)), scores)


def test_reject_rates_and_detection_follow_the_percentile(wave):
    """Each score's share above its own threshold at the percentile asked, the decision's under `reject`, ties not above."""
    ascending = wave.calibration.scores
    familiar = scored(wave, **{name: values.astype(np.float32) for name, values in ascending.items()})
    strange = scored(wave, **{name: 2 * values.astype(np.float32) for name, values in ascending.items()})
    for percentile, rank in ((None, 496), (90.0, 451), (50.0, 251)):
        rates = reject_rates(wave.calibration, familiar, percentile)
        assert rates == dict.fromkeys(("std", "total_std", "reject"), pytest.approx((500 - rank) / 500))
        found = detection(wave.calibration, familiar, strange, percentile)
        assert found["reject"] == found["std"]
        limit = threshold(ascending["std"], percentile or 99.0)
        assert limit == ascending["std"][rank - 1]
        assert found["std"] == score_detection(ascending["std"], 2 * ascending["std"], limit)


def test_familiar_rows_are_rejected_at_the_stated_rate(wave, wave_prediction):
    """Of 500 fresh rows each score rejects 10 % at the 90th percentile, within four standard deviations."""
    # Beta-binomial: 500 new rows against the 451st smallest of 500.
    spread = stats.betabinom(500, 50, 451).std() / 500
    for rate in reject_rates(wave.calibration, wave_prediction, 90.0).values():
        assert abs(rate - 50 / 501) < 4 * spread


# ---- whole versions --------------------------------------------------------------------------------------------------


def test_a_version_evaluates_as_it_did_when_it_was_fitted(store, digits, wave):
    """On the set it was fitted on, the same test rows give the manifest's own figures."""
    for bundle, source in ((digits, "digits"), (wave, "wave")):
        found = evaluate_version(store, f"{bundle.manifest.name}:1", source, None, {})
        assert found["rows"] == bundle.manifest.data.test_rows
        assert found["percentile"] == 99.0
        assert {key: found[key] for key in bundle.manifest.metrics} == bundle.manifest.metrics


def test_a_test_part_is_enough_to_evaluate(evaluate, digits):
    """With x_test and y_test alone, in any dtype and with labels as text, the figures are those of the served code."""
    probabilities = np.asarray(Predictor(digits.posterior, (256,))(IMAGES).summary.mean)
    expected = classification_quality(probabilities, LABELS)
    found = evaluate(x_test=IMAGES, y_test=LABELS)
    assert {key: found[key] for key in expected} == expected
    assert found["rows"] == 300
    assert evaluate(x_test=IMAGES.astype(np.uint8), y_test=LABELS.astype(str)) == found


@pytest.mark.parametrize("rows", [1, 5])
def test_fewer_rows_than_classes_are_enough(evaluate, rows):
    """The classes are the model's, so a handful of rows can be evaluated."""
    found = evaluate(x_test=IMAGES[:rows], y_test=LABELS[:rows])
    assert found["rows"] == rows


def test_rows_without_parts_need_no_calibration_part(evaluate):
    """Of x and y a fifth is the test part, however large a calibration part the fit once took."""
    assert evaluate(x=IMAGES, y=LABELS)["rows"] == 60


def test_a_source_that_names_its_classes_otherwise_is_not_scored_by_index(evaluate):
    """Class names in another order than the model's are refused, rather than compared by number."""
    names = np.array(list("9876543210"))
    with pytest.raises(DataError, match="class_names"):
        evaluate(x_test=IMAGES, y_test=9 - LABELS, class_names=names)


def test_strange_sets_are_reported_by_name(evaluate, digits, tmp_path):
    """Each OOD set has every score's figures and the decision's, from all rows of x_test, whatever its labels."""
    noise = 16 * np.random.default_rng(1).random((90, 8, 8))
    np.savez(tmp_path / "noise.npz", x_test=noise, x=IMAGES, y=np.array(["?"]))
    np.savez(tmp_path / "same.npz", x=IMAGES)
    ood = {name: str(tmp_path / f"{name}.npz") for name in ("noise", "same")}
    found = evaluate(x_test=IMAGES, y_test=LABELS, ood=ood)["ood"]
    predictor = Predictor(digits.posterior, (256,))
    expected = detection(digits.calibration, predictor(IMAGES), predictor(noise))
    assert found["noise"] == expected
    assert set(expected) == {"std", "entropy", "mutual_information", "max_probability", "reject"}
    assert expected["reject"] == expected["mutual_information"]
    assert found["noise"]["entropy"]["auroc"] > 0.8
    assert [figures["auroc"] for figures in found["same"].values()] == pytest.approx([0.5] * 5)


@pytest.mark.parametrize(
    ("arrays", "ood", "told"),
    [
        ({"x_test": IMAGES, "y_test": LABELS + 5}, None, r"y_test, row 5: expected a class 0 … 9, found 10"),
        ({"x_test": IMAGES[:, :4], "y_test": LABELS}, None, r"feature shape: expected \(8, 8\), found \(4, 8\)"),
        ({"x_test": IMAGES}, None, "array y_test is missing: found x_test"),
        ({"x_test": IMAGES, "y_test": LABELS}, {"x": "wave"}, r"wave: inputs: expected rows of shape \(8, 8\), found"),
        ({"x_test": IMAGES, "y_test": LABELS}, {"x": "none.npz"}, r"none.npz: no such file"),
    ],
)
def test_wrong_rows_are_refused(evaluate, arrays, ood, told):
    """Foreign labels, another shape, missing labels and missing files are told by name."""
    with pytest.raises(DataError, match=told):
        evaluate(ood=ood, **arrays)


def test_a_percentile_beyond_the_calibration_rows_is_refused(evaluate):
    """500 calibration rows have no 99.9th percentile; the message says how many would."""
    with pytest.raises(CalibrationError, match=r"99.9th percentile .*: expected at least 999 rows, found 500 rows"):
        evaluate(percentile=99.9, x_test=IMAGES, y_test=LABELS)


def test_quality_of_classes_comes_from_the_served_probabilities(digits):
    """`quality` picks the classifier's figures by what was predicted."""
    prediction = Predictor(digits.posterior, (256,))(IMAGES)
    expected = classification_quality(np.asarray(prediction.summary.mean), LABELS)
    assert quality(digits.posterior, prediction, Rows(IMAGES, LABELS)) == expected
