"""Coverage within each class and among accepted rows, from the settings to the bundle, the report and the requests."""

import json
import shutil

import numpy as np
import pytest

import abstain
from abstain.models.bundles.bundle import load
from abstain.models.decisions.judging import judge
from abstain.models.errors import BundleError, CalibrationError, ConfigError
from abstain.training.calibrate import calibrate_version
from abstain.training.calibration.coverage_settings import check_coverage_settings
from abstain.training.calibration.pipeline import check_calibration_settings
from abstain.training.calibration.record import beta_bounds
from abstain.training.config.calibration import CalibrationConfig
from abstain.training.config.reading import read_config
from abstain.training.evaluate import evaluate_version
from abstain.training.fit import load_dataset
from abstain.training.report.printout import format_evaluation
from tests.helpers.hostile_bundles import sign
from tests.helpers.paths import CONFIGS


def settings_of(**settings):
    """A config's table [calibration]."""
    return CalibrationConfig.model_validate(settings)


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        ("wave", {"coverage_per_class": True}, "calibration.coverage_per_class: expected a likelihood of classes"),
        ("wave", {"sets": "aps"}, "calibration.sets: expected a likelihood of classes, found normal; leave it out"),
        (
            "digits",
            {"intervals": "quantiles"},
            "calibration.intervals: expected a likelihood of numbers, found categor",
        ),
        (
            "digits",
            {"coverage_per_class": True, "coverage": 0.99},
            "calibration.coverage_per_class: expected at least 99 calibration rows of each class at coverage 0.99, "
            "found 50 of class 0",
        ),
        (
            "digits",
            {"coverage_among": "accepted", "percentile": 50.0, "coverage": 0.998},
            "calibration.coverage_among: expected at least 499 accepted calibration rows at coverage 0.998, "
            "found 250 of 500 rows at the 50th percentile",
        ),
        ("digits", {"coverage_among": "accepted", "per_class": True}, 'expected "all" with calibration.per_class'),
        (
            "digits",
            {"coverage_among": "accepted", "max_error": 0.1},
            'expected "all" with calibration.max_error, found "accepted"; leave out one of them; abstain evaluate',
        ),
    ],
)
def test_what_cannot_hold_is_refused_before_a_fit(store, kind, settings, message):
    """Each error names the key, what would do, and the class."""
    model = load(store / kind / "1").manifest.model
    with pytest.raises((ConfigError, CalibrationError), match=message):
        check_calibration_settings(settings_of(**settings), model, np.arange(500) % 10)


def test_the_number_of_rows_in_the_error_is_enough(store):
    """For every class, and of accepted rows."""
    model = load(store / "digits" / "1").manifest.model
    check_coverage_settings(settings_of(coverage_per_class=True, coverage=0.99), model, np.arange(990) % 10)
    settings = settings_of(coverage_among="accepted", percentile=50.0, coverage=0.998)
    check_coverage_settings(settings, model, np.zeros(999, int))


@pytest.fixture(scope="module")
def conditional(store, tmp_path_factory):
    """A store with the digits: version 2 with both settings, 3 with a shared budget among the accepted rows."""
    root = tmp_path_factory.mktemp("conditional")
    (root / "digits").mkdir()
    shutil.copytree(store / "digits" / "1", root / "digits" / "1")
    both = ("coverage_per_class=true", 'coverage_among="accepted"', "percentile=90", "coverage=0.8")
    calibrate_version(root, "digits:1", "digits", both)
    calibrate_version(
        root, "digits:1", "digits", ('coverage_among="accepted"', "novelty_share=0.7", "percentile=90", "coverage=0.8")
    )
    return root


@pytest.fixture(scope="module")
def data():
    """The digits' rows."""
    return load_dataset(read_config(CONFIGS / "digits-vi.toml"), None)


def test_the_bundle_states_what_holds(conditional, data):
    """The rows by class, the exact bounds, and the true class of each calibration row."""
    bundle = load(conditional / "digits" / "2")
    record, calibration = bundle.manifest.calibration, bundle.calibration
    np.testing.assert_array_equal(calibration.true_classes, data.calibration.y)
    stated = record.conditional_coverage
    assert (stated.among, stated.per_class, record.coverage_bounds) == ("accepted", True, None)
    values = np.sort(calibration.all_scores[record.decision])
    below = calibration.all_scores[record.decision] < values[int(np.ceil(0.9 * (len(values) + 1))) - 1]
    counts = np.bincount(data.calibration.y[below], minlength=10)
    assert list(stated.class_rows.values()) == counts.tolist()
    assert stated.rows == counts.sum()
    assert stated.class_bounds["3"] == beta_bounds(0.8, int(counts[3]))
    shared = load(conditional / "digits" / "3")
    assert shared.manifest.calibration.conditional_coverage.model_dump() == {
        "among": "accepted",
        "per_class": False,
        "rows": int(below.sum()),
        "class_rows": {},
        "class_bounds": {},
    }
    assert shared.manifest.calibration.coverage_bounds == beta_bounds(0.8, int(below.sum()))
    assert shared.calibration.true_classes is None


def test_other_bundles_do_not_mention_it(conditional, store):
    """No key in the manifest, and no array."""
    manifest = json.loads((store / "digits" / "1" / "manifest.json").read_text())
    assert "conditional_coverage" not in manifest["calibration"]
    assert load(conditional / "digits" / "1").calibration.has_one_radius


def test_sets_are_those_of_the_accepted_rows_of_the_class(conditional, data):
    """By a plain loop over the classes, for rows without ties at the threshold, at the model's settings and at others."""
    bundle = load(conditional / "digits" / "2")
    calibration, rows = bundle.calibration, data.test.x[:60]
    loaded = abstain.load("digits:2", store=conditional)
    score = calibration.all_scores[calibration.decision_name]
    for percentile, coverage in ((90.0, 0.8), (80.0, 0.7)):
        predictions = loaded.predict(rows, percentile=percentile, coverage=coverage)
        known = score < np.sort(score)[int(np.ceil(percentile / 100 * (len(score) + 1))) - 1]
        radii = []
        for label in range(10):
            own = np.sort(calibration.nonconformity[known & (data.calibration.y == label)])
            radii.append(own[int(np.ceil(coverage * (len(own) + 1) - 1e-9)) - 1])
        expected = 1 - predictions.probabilities.astype(np.float64) <= np.array(radii) + 1e-6
        found = np.array([[name in names for name in map(str, range(10))] for names in predictions.prediction_set])
        accepted = ~predictions.reject
        assert accepted.sum() > 30
        np.testing.assert_array_equal(found[accepted], expected[accepted])


def test_a_request_for_too_much_names_the_class(conditional, data):
    """It gets the code of status 400, with the number of rows needed."""
    with pytest.raises(
        CalibrationError,
        match=r"coverage: .* of the class with index \d that are accepted at .* at least 999 rows.* raise the percentile",
    ) as error:
        abstain.load("digits:2", store=conditional).predict(data.test.x[:1], coverage=0.999)
    assert error.value.code == "calibration_too_small"


def predicted(root, x):
    """The predictions of version 2, in the batches of an evaluation."""
    return load(root / "digits" / "2").predictor((256,))(x)


def test_the_report_and_the_evaluation_state_it(conditional, data):
    """The guarantee with its rows and bounds, and the measured coverage by part and of the worst class, with numbers of rows."""
    report = (conditional / "digits" / "2" / "report.html").read_text()
    assert "among the accepted rows; no statement holds for rejected rows" in report
    assert "Coverage by true class" in report
    assert "% requested of accepted rows of each true class" in report
    assert "With 95 % probability over calibration parts" in (conditional / "digits" / "3" / "report.html").read_text()
    result = evaluate_version(conditional, "digits:2", "digits", None, {})
    text, found = format_evaluation(result), result.to_json()
    assert "80.0% requested of accepted rows of each true class;" in " ".join(text.split())
    judgement = judge(load(conditional / "digits" / "2").calibration, predicted(conditional, data.test.x))
    inside = judgement.members[np.arange(len(data.test.y)), data.test.y]
    own = [inside[~judgement.reject & (data.test.y == label)] for label in range(10)]
    worst = int(np.argmin([part.mean() for part in own]))
    shown = text.split(f"lowest for accepted rows of true class {worst}: ")[1].splitlines()[0]
    assert shown.startswith(f"{own[worst].mean():.1%} ")
    assert shown.endswith(f", {len(own[worst])} rows")
    assert f"{found['accepted']['rows']:,} rows" in text.split("of the accepted rows:")[1].splitlines()[0]
    assert f"accepted rows of true class {worst}, the lowest" in report
    assert "lowest for true class" in format_evaluation(evaluate_version(conditional, "digits:1", "digits", None, {}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"per_class": False, "among": "all"}, 'conditional_coverage: expected per_class, or among "accepted"'),
        ({"per_class": False}, "class_rows: expected every class, with per_class, else none"),
        ({"rows": 10**6}, "conditional_coverage.rows: expected at most 500"),
        ({"rows": 3}, "class_rows: expected 3 together"),
        ({"class_bounds": {"3": (0.1, 0.2)}}, "class_bounds: expected every class"),
        (
            {"per_class": False, "class_rows": {}, "class_bounds": {}},
            "calibration: expected some of .*found .*'true_cl",
        ),
        (None, "calibration: expected some of .*found .*'true_cl"),
    ],
)
def test_a_hostile_manifest_is_refused(conditional, tmp_path, change, message):
    """Values that no calibration writes, with a correct digest."""
    shutil.copytree(conditional / "digits" / "2", tmp_path / "2")
    record = json.loads((tmp_path / "2" / "manifest.json").read_text())["calibration"]
    if change is None:
        del record["conditional_coverage"]
    else:
        record["conditional_coverage"] |= change
    sign(tmp_path / "2", calibration=record)
    with pytest.raises(BundleError, match=message):
        load(tmp_path / "2")


def test_a_manifest_with_the_settings_of_another_calibration_is_refused(conditional, tmp_path):
    """Thresholds within predicted classes, and a coverage per class without the true classes."""
    foreign = json.loads((conditional / "digits" / "2" / "manifest.json").read_text())["calibration"]
    for version, changes, message in (
        ("2", {"calibration__per_class": True}, 'coverage_among: expected "all" with per_class'),
        (
            "3",
            {"calibration__conditional_coverage": foreign["conditional_coverage"]},
            "calibration: expected some of .*true_classes",
        ),
    ):
        shutil.copytree(conditional / "digits" / version, tmp_path / version)
        sign(tmp_path / version, **changes)
        with pytest.raises(BundleError, match=message):
            load(tmp_path / version)
