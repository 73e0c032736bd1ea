"""Evaluation: every figure against its formula written out, and whole versions on sources of all kinds."""

import dataclasses
import math

import jax
import numpy as np
import pytest
from scipy import stats
from scipy.special import logsumexp
from sklearn.datasets import load_digits
from sklearn.metrics import roc_auc_score

from abstain.models.decisions.judging import judge
from abstain.models.decisions.ranks import less_tolerance, threshold
from abstain.models.errors import CalibrationError, DataError
from abstain.models.prediction.posterior import Posterior
from abstain.models.prediction.predictive import Prediction, Predictor
from abstain.models.prediction.summaries import widen
from abstain.progress import no_progress
from abstain.training.config.data import DataConfig
from abstain.training.config.reading import read_config
from abstain.training.data.dataset import split
from abstain.training.data.ood_sets import match_intensity
from abstain.training.data.rows import Rows
from abstain.training.data.sources import read_source
from abstain.training.evaluate import (
    evaluate_version,
    find_twin,
    one_draw,
    predict_rows,
    prediction_quality,
    reject_rates,
)
from abstain.training.evaluation.metrics import classification_quality
from abstain.training.evaluation.mixtures import (
    draw_moments,
    mixture_crps,
    mixture_log_density,
    probability_integral_transform,
)
from abstain.training.evaluation.quality import check_finite_predictions, ood_detection, score_detection, twin_detection
from abstain.training.evaluation.records import JudgedRows
from abstain.training.fit import fit
from abstain.training.report.printout import format_evaluation
from tests.helpers.fits import silent
from tests.helpers.paths import CONFIGS

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def wave_rows():
    """Five hundred test rows of `wave`."""
    return read_source("wave", DataConfig(test_size=500), classify=False).test


@pytest.fixture(scope="module")
def wave_prediction(wave, wave_rows):
    """The predictions of the serving code."""
    return wave.predictor((256,))(wave_rows.x)


@pytest.fixture
def evaluation(store, tmp_path):
    """Evaluates `digits` on arrays of the test's own."""

    def evaluation(model="digits", percentile=None, ood=None, twin_model=None, **arrays):
        np.savez(tmp_path / "rows.npz", **arrays)
        return evaluate_version(store, model, str(tmp_path / "rows.npz"), percentile, ood or {}, twin_model=twin_model)

    return evaluation


@pytest.fixture
def evaluate(evaluation):
    """The same, as JSON."""
    return lambda *args, **options: evaluation(*args, **options).to_json()


IMAGES, LABELS = load_digits(return_X_y=True)
IMAGES = IMAGES.reshape(-1, 8, 8)[:300]
LABELS = LABELS[:300]

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
    found = prediction_quality(wave.posterior, wave_prediction, wave_rows)
    assert list(found) == ["rmse", "nll", "crps", "coverage_95", "interval_width"]
    assert found["rmse"] == pytest.approx(np.sqrt(np.mean((means.mean(axis=1) - wave_rows.y) ** 2)), rel=1e-5)
    log_density = logsumexp(stats.norm.logpdf(wave_rows.y[:, None], means, stds), axis=1) - np.log(means.shape[1])
    np.testing.assert_allclose(log_density, mixture_log_density(means, stds, wave_rows.y), rtol=1e-9)
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


def test_where_targets_fall_is_the_mixtures_distribution_function(wave, wave_rows, wave_prediction):
    """The mean over draws of the normal distribution function, in the target's units."""
    means, stds = by_hand(wave, wave_rows.x)
    expected = stats.norm.cdf(wave_rows.y[:, None], means, stds).mean(axis=1)
    found = probability_integral_transform(wave.posterior, wave_prediction.summary, wave_rows)
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_a_widened_prediction_is_reported_as_it_is_served(wave, wave_rows, wave_prediction):
    """After variance scaling NLL and CRPS are those of the mixture spread about its mean by the factor."""
    means, stds = by_hand(wave, wave_rows.x)
    centre = means.mean(axis=1, keepdims=True)
    found = prediction_quality(
        wave.posterior, wave_prediction._replace(summary=widen(wave_prediction.summary, 2.0)), wave_rows
    )
    spread, wider = centre + 2 * (means - centre), 2 * stds
    assert found["nll"] == pytest.approx(-mixture_log_density(spread, wider, wave_rows.y).mean(), rel=1e-4)
    assert found["crps"] == pytest.approx(mixture_crps(spread, wider, wave_rows.y).mean(), rel=1e-4)


# ---- telling the strange from the familiar ---------------------------------------------------------------------------


def scored(bundle, **scores):
    """A prediction with these scores, and a summary that nothing here looks at."""
    rows = len(next(iter(scores.values())))
    summary = bundle.predictor((1,))(np.zeros((1, *bundle.manifest.model.feature_shape))).summary
    return Prediction(type(summary)(*(np.repeat(leaf, rows, axis=0) for leaf in summary)), scores)


def detection(calibration, familiar, strange, percentile=None):
    """How well each score tells two sets apart, from their predictions."""
    return ood_detection(
        *(JudgedRows(np.empty(0), found, judge(calibration, found, percentile)) for found in (familiar, strange))
    )


def test_reject_rates_and_detection_follow_the_percentile(wave):
    """Each score's share above its own threshold + τ at the requested percentile, the decision's under `reject`."""
    ascending = wave.calibration.ascending
    familiar = scored(wave, **{name: values.astype(np.float32) for name, values in ascending.items()})
    strange = scored(wave, **{name: 2 * values.astype(np.float32) for name, values in ascending.items()})
    for percentile, rank in ((None, 496), (90.0, 451), (50.0, 251)):
        rates = reject_rates(wave.calibration, familiar, percentile)
        scale = wave.manifest.model.preprocessing.target_scale
        units = {"std": scale, "total_std": scale}
        expected = {
            name: pytest.approx(
                (less_tolerance(values, units.get(name, 1.0)) > threshold(values, percentile or 99.0)).mean()
            )
            for name, values in ascending.items()
        }
        assert rates == expected | {"reject": pytest.approx((500 - rank) / 500)}
        found = detection(wave.calibration, familiar, strange, percentile)
        assert found.decision == found.scores["std"]
        limit = threshold(ascending["std"], percentile or 99.0)
        assert limit == ascending["std"][rank - 1]
        assert found.scores["std"] == score_detection(
            ascending["std"].astype(np.float32), 2 * ascending["std"].astype(np.float32), 2 * ascending["std"] > limit
        )


def test_familiar_rows_are_rejected_at_the_stated_rate(wave, wave_prediction):
    """Each score rejects 10 % of 500 fresh rows at the 90th percentile, within four standard deviations."""
    # Beta-binomial: 500 new rows against the 451st smallest of 500.
    spread = stats.betabinom(500, 50, 451).std() / 500
    for name, rate in reject_rates(wave.calibration, wave_prediction, 90.0).items():
        # Most rows are within the range, and one feature's subspace leaves nothing: tied, none can be turned away.
        tied = name in {"range", "subspace", "local_subspace"}
        assert tied or abs(rate - 50 / 501) < 4 * spread


def test_a_twin_has_the_scores_of_one_network_and_no_threshold(digits):
    """AUROC, AUPR and FPR95 of 1 − the largest probability and of the entropy."""
    one = Predictor(one_draw(digits.posterior, 3), (256,))
    familiar, strange = one(IMAGES), one(16 - IMAGES)
    found = twin_detection(familiar, strange)
    assert set(found) == {"max_probability", "entropy"}
    truth = np.repeat([0, 1], 300)
    for name, values in (
        ("max_probability", [1 - np.asarray(part.summary.mean).max(axis=1) for part in (familiar, strange)]),
        ("entropy", [np.asarray(part.summary.entropy) for part in (familiar, strange)]),
    ):
        assert found[name].auroc == pytest.approx(roc_auc_score(truth, np.concatenate(values)))


# ---- the same intensity ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(8, 8), (6, 6, 3)])
def test_matched_images_cannot_be_separated_by_intensity(shape):
    """Mean intensities far apart have an AUROC of one half afterwards, set by set of any size; each image one factor."""
    familiar = 10 + 200 * RNG.random((150, *shape)) * RNG.beta(2, 5, (150, *(1 for _ in shape)))
    strange = 10 + 40 * RNG.random((90, *shape)) * RNG.beta(2, 2, (90, *(1 for _ in shape)))
    matched = match_intensity(strange, familiar)

    def auroc(images):
        means = [x.reshape(len(x), -1).mean(axis=1) for x in (familiar, images)]
        return roc_auc_score(np.repeat([0, 1], [150, 90]), np.concatenate(means))

    assert auroc(strange) < 0.3
    assert auroc(matched) == pytest.approx(0.5, abs=0.01)
    black, white = familiar.min(), familiar.max()
    assert matched.min() >= np.float32(black)
    assert matched.max() <= np.float32(white) + 1e-3
    for before, after in zip(strange, matched, strict=True):
        free = (after < white - 1e-3) & (before > black + 0.1)
        factors = (after[free] - black) / (before[free] - black)
        assert factors == pytest.approx(np.full(free.sum(), factors.mean()), rel=1e-3)


def test_the_kth_darkest_gets_the_kth_familiar_mean():
    """Sets of one size: the sorted means are the familiar ones', and the order among the strange stays; uint8 too."""
    familiar = (100 * RNG.random((40, 8, 8)) * RNG.random((40, 1, 1))).astype(np.uint8)
    strange = (200 * RNG.random((40, 8, 8)) * RNG.random((40, 1, 1))).astype(np.uint8)
    means = match_intensity(strange, familiar).mean(axis=(1, 2))
    np.testing.assert_allclose(np.sort(means), np.sort(familiar.mean(axis=(1, 2))), rtol=2e-3)
    assert (np.argsort(means) == np.argsort(strange.mean(axis=(1, 2)), kind="stable")).all()


def test_black_images_stay_black_and_saturated_ones_stay_in_range():
    """A black image stays black; one lit pixel becomes at most white; nothing is NaN."""
    familiar = 200 + 55 * RNG.random((10, 4, 4))
    familiar[0, 0, 0] = 0
    strange = np.zeros((3, 4, 4))
    strange[1, 2, 2], strange[2, 1, 1] = 1e-30, 3
    matched = match_intensity(strange, familiar)
    assert (matched[0] == 0).all()
    assert np.isfinite(matched).all()
    assert matched[2, 1, 1] == pytest.approx(familiar.max())
    assert np.delete(matched[2].ravel(), 5).max() == 0


# ---- whole versions --------------------------------------------------------------------------------------------------


def test_a_version_evaluates_as_it_did_when_it_was_fitted(store, digits, wave):
    """The test rows of the set of the fit give the manifest's metrics."""
    for bundle, source in ((digits, "digits"), (wave, "wave")):
        found = evaluate_version(store, f"{bundle.manifest.name}:1", source, None, {}).to_json()
        assert found["rows"] == bundle.manifest.data.test_rows
        assert found["percentile"] == 99.0
        # The bins of the reliability diagram and the table of classes are the manifest's alone, for those who draw them.
        drawn = {"reliability", "classes"}
        recorded = {key: value for key, value in bundle.manifest.metrics.items() if key not in drawn}
        assert {key: found[key] for key in recorded} == recorded


def test_a_test_part_is_enough_to_evaluate(evaluate, digits):
    """x_test and y_test alone, in any dtype and with text labels, give the metrics of the serving code."""
    probabilities = np.asarray(digits.predictor((256,))(IMAGES).summary.mean)
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
    """Rows that the model was not fitted with are all evaluated, however few."""
    assert evaluate(x=IMAGES, y=LABELS)["rows"] == 300


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
    predictor = digits.predictor((256,))
    expected = detection(digits.calibration, predictor(IMAGES), predictor(noise)).to_json()
    assert found["noise"] == expected
    assert set(expected) == {*digits.calibration.scores, "reject"}
    assert expected["reject"] == expected["mutual_information"]
    assert found["noise"]["entropy"]["auroc"] > 0.8
    assert all(figures["auroc"] == pytest.approx(0.5) for figures in found["same"].values())
    assert set(found) == {"noise", "noise_same_intensity", "same", "same_same_intensity"}
    assert (
        found["noise_same_intensity"]
        == detection(digits.calibration, predictor(IMAGES), predictor(match_intensity(noise, IMAGES))).to_json()
    )


@pytest.mark.parametrize(
    ("arrays", "ood", "message"),
    [
        ({"x_test": IMAGES, "y_test": LABELS + 5}, None, r"y_test, row 5: expected a class 0 … 9, found 10"),
        ({"x_test": IMAGES[:, :4], "y_test": LABELS}, None, r"feature shape: expected \(8, 8\), found \(4, 8\)"),
        ({"x_test": IMAGES}, None, "array y_test is missing: found x_test"),
        ({"x_test": IMAGES, "y_test": LABELS}, {"x": "wave"}, r"wave: rows: expected shape \(8, 8\), found"),
        ({"x_test": IMAGES, "y_test": LABELS}, {"x": "none.npz"}, r"none.npz: no such file"),
    ],
)
def test_wrong_rows_are_refused(evaluate, arrays, ood, message):
    """Foreign labels, another shape, missing labels and missing files are named."""
    with pytest.raises(DataError, match=message):
        evaluate(ood=ood, **arrays)


def test_a_percentile_beyond_the_calibration_rows_is_refused(evaluate):
    """500 calibration rows have no 99.9th percentile; the message says how many would."""
    with pytest.raises(CalibrationError, match=r"99.9th percentile .*: expected at least 999 rows, found 500 rows"):
        evaluate(percentile=99.9, x_test=IMAGES, y_test=LABELS)


def test_quality_of_classes_uses_the_served_probabilities(digits):
    """`prediction_quality` picks the classifier's figures by what was predicted."""
    prediction = digits.predictor((256,))(IMAGES)
    expected = classification_quality(np.asarray(prediction.summary.mean), LABELS)
    assert prediction_quality(digits.posterior, prediction, Rows(IMAGES, LABELS)) == expected


# ---- after the headline ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hard():
    """Digits half of which are hidden: some right, some wrong, some rejected; no row of the class 7."""
    images, labels = IMAGES[LABELS != 7].copy(), LABELS[LABELS != 7]
    images[::3, :4] = 0
    return images, labels


def exact_interval(share, rows):
    """SciPy's exact binomial interval of a share of some rows."""
    ends = stats.binomtest(round(share * rows), int(rows)).proportion_ci(0.95, "exact")
    return pytest.approx([ends.low, ends.high])


def test_parts_and_classes_are_their_rows_by_hand(evaluation, digits, hard):
    """Accepted, rejected and each class: the figures of exactly those rows; a class without rows is left out."""
    images, labels = hard
    record = evaluation(x_test=images, y_test=labels, percentile=90.0)
    found = record.to_json()
    prediction = digits.predictor((256,))(images)
    judgement = judge(digits.calibration, prediction, 90.0)
    probabilities, reject = np.asarray(prediction.summary.mean), judgement.reject
    assert 0 < reject.sum() < len(labels)
    for part, chosen in (("accepted", ~reject), ("rejected", reject)):
        own = classification_quality(probabilities[chosen], labels[chosen])
        expected = {"rows": chosen.sum()} | {name: own[name] for name in ("accuracy", "nll", "brier")}
        assert expected.items() <= found[part].items()
        assert found[part]["accuracy_interval"] == exact_interval(own["accuracy"], chosen.sum())
    assert found["accepted"]["accuracy"] > found["rejected"]["accuracy"]
    members = [digits.manifest.model.class_names[label] for label in sorted(set(labels))]
    assert list(found["per_class"]) == members == list("012345689")
    inside = [judgement.members[row, label] for row, label in enumerate(labels)]
    for name, figures in found["per_class"].items():
        own = [row for row, label in enumerate(labels) if str(label) == name]
        assert figures["rows"] == len(own)
        assert figures["accuracy"] == np.mean([probabilities[row].argmax() == labels[row] for row in own])
        assert figures["reject_rate"] == np.mean([reject[row] for row in own])
        assert figures["set_coverage"] == np.mean([inside[row] for row in own])
        for share in ("accuracy", "reject_rate", "set_coverage"):
            assert figures[f"{share}_interval"] == exact_interval(figures[share], len(own))
        answered = [row for row in range(len(labels)) if str(probabilities[row].argmax()) == name]
        assert figures["predicted"] == len(answered)
        assert figures["precision"] == np.mean([str(labels[row]) == name for row in answered])
        assert figures["precision_interval"] == exact_interval(figures["precision"], len(answered))
    counts = np.array(digits.manifest.data.class_rows)
    assert found["baseline"]["class"] == digits.manifest.model.class_names[counts.argmax()]
    assert found["baseline"]["accuracy"] == np.mean(labels == counts.argmax())
    assert found["baseline"]["nll"] == pytest.approx(-np.log(counts / counts.sum())[labels].mean())
    assert found["conformal"]["coverage"] == np.mean(inside)
    assert found["conformal"]["mean_size"] == np.mean(judgement.members.sum(axis=1))
    low, high = found["conformal"]["coverage_interval"]
    assert low < np.mean(inside) < high
    for part, chosen in (("accepted", ~reject), ("rejected", reject)):
        hits = [value for value, own in zip(inside, chosen, strict=True) if own]
        assert found[f"coverage_{part}"] == np.mean(hits)
        exact = stats.binomtest(int(sum(hits)), len(hits)).proportion_ci(0.95, "exact")
        assert found[f"coverage_{part}_interval"] == pytest.approx([exact.low, exact.high])
    assert found["coverage_accepted"] > found["coverage_rejected"]
    text = format_evaluation(record)
    assert f"baseline: always {found['baseline']['class']!r}; nll and brier of the class frequencies" in text
    assert f"of the accepted rows: {found['coverage_accepted']:.1%}" in text
    assert f"of the rejected rows: {found['coverage_rejected']:.1%}" in text


def test_intervals_lie_about_their_figures(evaluation, hard, store):
    """Every headline metric has an interval about it, of a classifier and of a regression; the reject rate's is exact."""
    images, labels = hard
    for record, names in (
        (evaluation(x_test=images, y_test=labels), ["accuracy", "nll", "brier", "ece", "aurc"]),
        (evaluate_version(store, "wave", "wave", None, {}), ["rmse", "nll", "crps", "coverage_95", "interval_width"]),
    ):
        found = record.to_json()
        assert sorted(found["intervals"]) == sorted([*names, "reject"])
        for name in names:
            low, high = found["intervals"][name]
            assert low < found[name] < high
        assert found["intervals"]["reject"] == exact_interval(found["reject_rate"]["reject"], found["rows"])
        share = "accuracy" if "accuracy" in found else "coverage_95"
        assert found["intervals"][share] == exact_interval(found[share], found["rows"])
        if share == "accuracy":
            reference = found["ece_if_calibrated"]
            assert 0 < reference["mean"] < reference["quantile_95"] < 0.2
            assert f"shows an ece of {reference['mean']:.4f} on average" in format_evaluation(record)


def test_the_twin_is_the_middle_network_of_the_posterior(evaluate, digits):
    """The twin is the eleventh of 20 draws, with its own quality and scores."""
    found = evaluate(x_test=IMAGES, y_test=LABELS)["twin"]
    middle = Predictor(one_draw(digits.posterior, 10), (256,))(IMAGES)
    expected = classification_quality(np.asarray(middle.summary.mean), LABELS)
    assert found == {"model": "digits:1, draw 11 of 20", "draws": 1, **expected, "ood": {}}


def test_a_twin_may_be_another_version(evaluate, store):
    """`twin_model` names it: its figures are those of its own evaluation; a regression is no twin of a classifier."""
    found = evaluate(x_test=IMAGES, y_test=LABELS, twin_model="digits:2")
    other = evaluate("digits:2", x_test=IMAGES, y_test=LABELS)
    assert found["twin"]["model"] == "digits:2"
    assert found["twin"]["draws"] == 20
    for name in ("accuracy", "nll", "brier", "ece", "aurc"):
        # Without its densities a version's draws are summed in another order.
        assert found["twin"][name] == pytest.approx(other[name], rel=1e-5)
    with pytest.raises(
        DataError, match=r"wave:1: feature_shape of the twin: expected \(8, 8\), as the model has it, found"
    ):
        evaluate(x_test=IMAGES, y_test=LABELS, twin_model="wave")


def test_one_network_has_no_twin(digits, store):
    """A posterior of one draw is its own deterministic twin."""
    single = dataclasses.replace(digits, posterior=one_draw(digits.posterior, 0))
    assert find_twin(store, "digits:1", single, None, [("rows", IMAGES)], no_progress) is None


def test_no_figure_is_nan(evaluate, store, tmp_path):
    """One row, all rejected or none: every number that is reported is finite, and what no row speaks of is left out."""

    def numbers(tree):
        if isinstance(tree, dict):
            return [found for value in tree.values() for found in numbers(value)]
        if isinstance(tree, list):
            return [found for value in tree for found in numbers(value)]
        return [tree] if isinstance(tree, float) else []

    np.savez(tmp_path / "one.npz", x=IMAGES[:1])
    one = evaluate(x_test=IMAGES[:1], y_test=LABELS[:1], ood={"one": str(tmp_path / "one.npz")})
    for found in (one, evaluate_version(store, "wave", "wave", None, {"same": "wave"}).to_json()):
        assert all(map(math.isfinite, numbers(found)))
    parts = sorted((one["accepted"], one["rejected"]), key=len)
    assert parts[0] == {"rows": 0}
    assert parts[1]["rows"] == 1
    assert ("coverage_accepted" in one) == bool(one["accepted"]["rows"])
    assert ("coverage_rejected" in one) == bool(one["rejected"]["rows"])


def test_rows_without_a_finite_prediction_are_refused(digits):
    """If a network overflows float32, the error names the set, the first such row and the value."""
    large = Posterior(
        digits.posterior.model, jax.tree.map(lambda leaf: leaf * np.float32(1e15), digits.posterior.draws)
    )
    images = IMAGES.copy()
    images[:270] = 0
    # Zeros in, biases out, finite even so large; a lit picture's products are not.
    images[281] *= 1e30
    with pytest.raises(DataError, match=r"far.npz: row \d+: expected a finite prediction, found \w+ .*nan"):
        predict_rows(Predictor(large, (256,)), images, "far.npz", no_progress)
    assert predict_rows(digits.predictor((256,)), IMAGES, "near.npz", no_progress).summary.mean.shape == (300, 10)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_the_row_that_is_not_finite_is_named(wave, value):
    """One score of one row is enough, and the message says which."""
    values = np.arange(9, dtype=np.float32)
    values[4] = value
    with pytest.raises(DataError, match=rf"rows: row 4: expected a finite prediction, found std {value}"):
        check_finite_predictions(scored(wave, std=values, total_std=np.ones(9, np.float32)), "rows")


ALL = (
    "not the data that the model was fitted with: all {} rows are evaluated; calibration rows of this version are not "
    "recognised: remove them yourself, because on them the rates are right by construction"
)
TRAINED_ON = (
    "{} of {} rows equal rows that the model was trained on, 0 were expected by chance: the metrics are better than on "
    "new rows"
)


def test_another_file_is_evaluated_whole_and_its_training_rows_are_counted(tmp_path):
    """The file of the fit is evaluated on its test part, another file on all rows, unless it has a test part."""
    settings = ("steps=5", "draws=2", "reports=1", "data.calibration_size=120", "data.inputs=range")
    config = read_config(CONFIGS / "digits-vi.toml", settings)
    where = tmp_path / "rows.npz"
    np.savez(where, x=IMAGES, y=LABELS)
    fit(config, str(where), tmp_path / "store", silent, report=False)

    def notes(**arrays):
        np.savez(tmp_path / "other.npz", **arrays)
        return list(evaluate_version(tmp_path / "store", "digits", str(tmp_path / "other.npz"), None, {}).notes)

    assert evaluate_version(tmp_path / "store", "digits", str(where), None, {}).notes == ()
    assert notes(x=IMAGES, y=LABELS) == []
    assert notes(x=IMAGES[::-1], y=LABELS[::-1]) == [ALL.format(300), TRAINED_ON.format(120, 300)]
    dataset = split(read_source(str(where), config.data, classify=True), config.data, config.seed)
    new, known = dataset.test, dataset.train
    assert notes(x=new.x, y=new.y) == [ALL.format(60)]
    assert notes(x_test=new.x, y_test=new.y) == []
    assert notes(x_test=known.x[:50], y_test=known.y[:50]) == [TRAINED_ON.format(50, 50)]
