"""Baselines against scikit-learn's dummy models, and the notes on what does not beat them and on classes never predicted."""

import json

import numpy as np
import pytest
from scipy import stats
from sklearn.dummy import DummyClassifier, DummyRegressor
from sklearn.metrics import accuracy_score, brier_score_loss, log_loss, root_mean_squared_error

from abstain.models.bundles.data_record import DataRecord, data_claims
from abstain.models.bundles.manifest import read_manifest
from abstain.training.evaluate import rows_to_test
from abstain.training.evaluation.baselines import class_baseline, recorded_baseline, training_baseline
from abstain.training.evaluation.checks import baseline_notes, rare_class_notes
from abstain.training.evaluation.metrics import classification_terms

NAMES = ("fine", "fraud")


def labels(rng, rows, shares=(0.95, 0.05)):
    """Independent classes."""
    return rng.choice(len(shares), rows, p=shares)


# ---- the baselines ---------------------------------------------------------------------------------------------------


def test_the_baseline_of_classes_is_that_of_scikit_learn():
    """Accuracy of the majority class; log loss and Brier score of the training frequencies."""
    rng = np.random.default_rng(0)
    train, y = labels(rng, 600, (0.2, 0.5, 0.3)), labels(rng, 200, (0.3, 0.4, 0.3))
    dummy = DummyClassifier(strategy="prior").fit(np.zeros((600, 1)), train)
    empty = np.zeros((200, 1))
    found = training_baseline(train, ("a", "b", "c")).quality(y)
    assert (found.guess, found.to_json()["class"]) == ("b", "b")
    assert found.metrics["accuracy"] == pytest.approx(accuracy_score(y, dummy.predict(empty)))
    assert found.metrics["nll"] == pytest.approx(log_loss(y, dummy.predict_proba(empty)))
    assert found.metrics["brier"] == pytest.approx(
        brier_score_loss(y, dummy.predict_proba(empty), labels=[0, 1, 2], scale_by_half=False)
    )


def test_the_baseline_of_numbers_is_that_of_scikit_learn():
    """RMSE of the training mean, and the log density of the normal with the training part's standard deviation."""
    rng = np.random.default_rng(1)
    train, y = rng.normal(3e6, 20.0, 500), rng.normal(3e6 + 5, 25.0, 300)
    dummy = DummyRegressor().fit(np.zeros((500, 1)), train)
    found = training_baseline(train, ()).quality(y)
    assert found.to_json()["mean"] == pytest.approx(train.mean(), rel=1e-12)
    assert found.metrics["rmse"] == pytest.approx(root_mean_squared_error(y, dummy.predict(np.zeros((300, 1)))))
    assert found.metrics["nll"] == pytest.approx(-stats.norm.logpdf(y, train.mean(), train.std()).mean())


def test_a_class_without_training_rows_counts_as_half_a_row():
    """So that the log-likelihood of its test rows is finite."""
    baseline = class_baseline(np.array([9.0, 0.0]), NAMES)
    np.testing.assert_allclose(baseline.shares, np.array([9, 0.5]) / 9.5)
    assert np.isfinite(baseline.terms(np.array([0, 1]))["nll"]).all()


@pytest.mark.parametrize("name", ["digits", "wave"])
def test_a_version_knows_the_baseline_of_its_fit(store, name):
    """The class rows, or the target's mean and standard deviation, give the metrics that the fit wrote down."""
    manifest = read_manifest(store / name / "1")
    rows, _ = rows_to_test(manifest, name)
    found, known = recorded_baseline(manifest).quality(rows.y).to_json(), manifest.metrics["baseline"]
    assert sorted(found) == sorted(known)
    assert found.pop("class", None) == known.pop("class", None)
    assert found == pytest.approx(known, rel=1e-6)
    assert ("class_rows" in json.loads((store / name / "1" / "manifest.json").read_text())["data"]) == (
        name == "digits"
    )


def test_a_bundle_of_an_earlier_version_has_no_baseline_of_classes(digits):
    """It did not write down how many training rows each class had."""
    data = digits.manifest.data.model_copy(update={"class_rows": ()})
    assert recorded_baseline(digits.manifest.model_copy(update={"data": data})) is None


@pytest.mark.parametrize("rows", [(5, 4), (5, 5, 0), (10,), (11, 0)])
def test_class_rows_that_cannot_be_are_refused(rows):
    """One number for each class, and together the training rows; negative ones are refused by type."""
    record = {"source": "a", "settings": {}, "fingerprint": "", "train_rows": 10, "calibration_rows": 1, "test_rows": 1}
    (claim,) = [claim for claim in data_claims(DataRecord(**record, class_rows=rows), 2) if not claim.holds]
    assert claim.field == "data.class_rows"
    assert all(claim.holds for claim in data_claims(DataRecord(**record, class_rows=(7, 3)), 2))
    with pytest.raises(ValueError, match="greater than or equal to 0"):
        DataRecord(**record, class_rows=(11, -1))


# ---- metrics that are no better --------------------------------------------------------------------------------------


def terms_of(chance, y):
    """The terms of probabilities of fraud."""
    return classification_terms(np.stack([1 - chance, chance], axis=1), y)


def test_an_accuracy_that_the_majority_class_has_alone_is_noted():
    """The best model of a rare event: better likelihood and Brier score, but hardly any better accuracy."""
    rng = np.random.default_rng(2)
    chance = 0.3 * rng.beta(0.3, 1.5, 4_000)
    y = (rng.random(4_000) < chance).astype(int)
    baseline = training_baseline(y, NAMES)
    (note,) = baseline_notes(terms_of(chance, y), baseline, y)
    same = 1 - y.mean()
    assert note == (
        "not shown on 4000 test rows to be better than a baseline that always predicts 'fine': accuracy "
        f"{same:.4g} against {same:.4g} (difference 0, standard error 0); judge the model by its other metrics"
    )


def test_a_model_that_beats_the_baseline_gets_no_note():
    """In classes and in numbers."""
    rng = np.random.default_rng(3)
    chance = rng.random(500)
    y = (rng.random(500) < chance).astype(int)
    assert baseline_notes(terms_of(chance, y), training_baseline(y, NAMES), y) == ()
    numbers = rng.normal(size=500)
    close = {
        "squared_error": 0.01 * rng.chisquare(1, 500),
        "nll": -stats.norm.logpdf(0.1 * rng.normal(size=500), 0, 0.1),
    }
    assert baseline_notes(close, training_baseline(numbers, ()), numbers) == ()


def test_a_regression_that_is_no_better_than_the_mean_is_noted():
    """With both root mean squared errors, and the difference of their squares with its standard error."""
    rng = np.random.default_rng(4)
    y = rng.normal(10, 2, 300)
    baseline = training_baseline(y, ())
    off = y - 10.3
    terms = {"squared_error": off**2, "nll": -stats.norm.logpdf(off, 0, 2)}
    (note,) = baseline_notes(terms, baseline, y)
    rmse = np.sqrt((off**2).mean())
    gap = off**2 - baseline.terms(y)["squared_error"]
    assert (
        f"always predicts the mean of the training part, {y.mean():.4g}: rmse {rmse:.4g} against {y.std():.4g}" in note
    )
    expected = f"squared errors {gap.mean():.2g}, standard error {gap.std(ddof=1) / np.sqrt(300):.2g}"
    assert expected in note
    assert "; nll " in note


def test_noise_is_called_better_than_the_baseline_as_rarely_as_stated():
    """Accuracies of coins that are right as often as the majority class: in about 1 % of fits the note is missing."""
    rng = np.random.default_rng(5)
    missing = 0
    for _ in range(500):
        y = labels(rng, 400, (0.7, 0.3))
        baseline = training_baseline(labels(rng, 400, (0.7, 0.3)), NAMES)
        right = rng.random(400) < 0.7
        known = baseline.terms(y)
        found = known | {"accuracy": right.astype(float)}
        missing += "accuracy" not in baseline_notes(found, baseline, y)[0]
    # Binomial(500, 0.01): more than 18 with probability 3e-6.
    assert missing <= 18


# ---- classes that are hardly ever predicted --------------------------------------------------------------------------


def noted(y, predicted, names=NAMES):
    """The note on these rows, or an empty text."""
    return "".join(rare_class_notes(names, np.asarray(predicted), np.asarray(y), weighted=False))


def test_a_class_that_is_hardly_ever_predicted_is_named():
    """Forty frauds of which four are predicted, and one false alarm."""
    y = np.repeat([0, 1], [760, 40])
    predicted = np.zeros(800, int)
    predicted[[0, 760, 761, 762, 763]] = 1
    note = noted(y, predicted)
    assert note.startswith("hardly ever predicted on 800 test rows: 'fraud' (predicted 5, true 40); ")
    assert "threshold that suits the cost of missing it; or fit with more rows of it" in note
    assert 'data.class_weights = "balanced"' in note
    weighted = "".join(rare_class_notes(NAMES, predicted, y, weighted=True))
    assert "class_weights" not in weighted
    # A fifth of the rows is not hardly ever.
    predicted[764:767] = 1
    assert noted(y, predicted) == ""


@pytest.mark.parametrize(("rows", "named"), [(3, False), (7, False), (8, True), (20, True)])
def test_few_rows_do_not_show_it(rows, named):
    """With none predicted, the exact chance is 1 / 2^rows; of two classes it must be at most 1 / 200."""
    y = np.repeat([0, 1], [200, rows])
    assert (stats.binomtest(rows, rows, 0.5, alternative="greater").pvalue <= 0.005) == named
    assert bool(noted(y, np.zeros(len(y), int))) == named


def test_classes_predicted_as_often_as_they_occur_are_named_as_rarely_as_stated():
    """Predictions of the right frequencies that know nothing: at most 1 % of fits have the note."""
    rng = np.random.default_rng(6)
    shares = (0.8, 0.1, 0.05, 0.05)
    found = sum(bool(noted(labels(rng, 150, shares), labels(rng, 150, shares), tuple("abcd"))) for _ in range(1_000))
    # Binomial(1000, 0.01): more than 29 with probability 2e-7.
    assert found <= 29


def test_more_classes_than_fit_in_a_note_are_counted():
    """Five by name; and a class that is predicted well is not among them."""
    y = np.repeat(np.arange(9), 60)
    note = noted(y, np.zeros(540, int), tuple(f"c{label}" for label in range(9)))
    assert "'c5' (predicted 0, true 60) and 3 more; " in note
    assert "'c0'" not in note
    assert "'c6'" not in note
