"""`abstain calibrate`: which rows it takes, what it says of them, and what of the old version goes into the new one."""

import json
import shutil

import jax
import numpy as np
import pytest

from abstain.models.bundles.bundle import load
from abstain.models.bundles.manifest import read_manifest, write_manifest
from abstain.models.bundles.shortfalls import recognise
from abstain.models.bundles.store import versions
from abstain.models.prediction.temperature import Recalibration
from abstain.training.calibrate import new_settings
from abstain.training.calibration import recalibration
from abstain.training.calibration.temperature import Candidate
from abstain.training.config.reading import read_config
from abstain.training.fit import load_dataset
from tests.helpers.paths import CONFIGS

DIGITS = load_dataset(read_config(CONFIGS / "digits-vi.toml"), None)
TEST = DIGITS.test


@pytest.fixture
def own(store, tmp_path):
    """A store of its own, with `digits:1` and `wave:1`."""
    for name in ("digits", "wave"):
        shutil.copytree(store / name / "1", tmp_path / "store" / name / "1")
    return tmp_path / "store"


@pytest.fixture
def calibrate(run, own):
    """Runs `abstain calibrate` on that store."""
    return lambda *arguments: run("calibrate", *arguments, "--store", own, "--no-report")


def saved(path, **arrays):
    """The path of an .npz with these arrays."""
    np.savez(path, **arrays)
    return path


def test_the_fits_own_data_calibrate_on_the_part_kept_for_it(calibrate, own):
    """Draws and densities to the bit, the same calibration rows, another percentile and coverage; the old one stays."""
    before = read_manifest(own / "digits" / "1")
    code, out, err = calibrate("digits", "--data", "digits", "--percentile", 95, "--coverage", 0.8)
    kept = "calibrated anew on 500 rows of digits, the calibration part of the fit"
    assert (code, out, err) == (0, "digits:2\n", kept)
    assert read_manifest(own / "digits" / "1") == before
    old, new = load(own / "digits" / "1"), load(own / "digits" / "2")
    for one, other in ((old.posterior.draws, new.posterior.draws), (old.feature_scores, new.feature_scores)):
        assert jax.tree.all(jax.tree.map(np.array_equal, one, other))
    for name, values in old.calibration.scores.items():
        np.testing.assert_array_equal(values, new.calibration.scores[name])
    terms = new.manifest.calibration
    assert (terms.percentile, terms.coverage, terms.rows) == (95.0, 0.8, 500)
    assert new.manifest.notes[-1] == f"draws of digits:1, {kept}"
    assert {**new.manifest.metrics, "reject_rate": 0} == {**before.metrics, "reject_rate": 0}


@pytest.mark.parametrize("ending", ["", "_calibration"])
def test_new_rows_calibrate_however_few_a_fit_would_need(calibrate, own, tmp_path, ending):
    """300 rows, of which a fit would keep 500 for calibration: all of them are taken, and none was trained on."""
    path = saved(tmp_path / "new.npz", **{f"x{ending}": TEST.x[:300], f"y{ending}": TEST.y[:300]})
    code, out, err = calibrate("digits", "--data", path, "--json")
    assert (code, json.loads(out)["name"], json.loads(out)["version"]) == (0, "digits", 2)
    assert (err, json.loads(out)["notes"]) == ("", [])
    found = load(own / "digits" / "2")
    assert (found.calibration.rows, found.manifest.data.calibration_rows) == (300, 300)
    expected = found.predictor((256,))(TEST.x[:300]).scores["std"]
    np.testing.assert_array_equal(found.calibration.scores["std"], expected)
    assert found.manifest.notes[-1].startswith("draws of digits:1, calibrated anew on 300 rows of new.npz")


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64])
def test_rows_that_were_trained_on_are_refused(calibrate, own, tmp_path, dtype):
    """Training rows in another order or type, or a few among many new ones; the error counts them and names one."""
    some = np.random.default_rng(0).permutation(len(DIGITS.train))[:200]
    x, y = DIGITS.train.x[some].astype(dtype), DIGITS.train.y[some]
    code, _, err = calibrate("digits", "--data", saved(tmp_path / "old.npz", x=x, y=y))
    assert code == 1
    assert "rows to calibrate on: expected rows that the model was not trained on, or about 0.0% that equal" in err
    assert "found 200 of 200 rows equal rows that the model was trained on, the first is row 0; remove them" in err
    mixed = {"x": np.concatenate([TEST.x.astype(dtype), x[:20]]), "y": np.concatenate([TEST.y, y[:20]])}
    code, _, err = calibrate("digits", "--data", saved(tmp_path / "mixed.npz", **mixed))
    assert code == 1
    assert (
        f"found 20 of {len(TEST) + 20} rows equal rows that the model was trained on, the first is row {len(TEST)}"
        in err
    )
    assert versions(own, "digits") == [1]


def test_a_version_keeps_its_hashes_and_an_old_one_has_none(calibrate, own, tmp_path):
    """A calibration anew hands them on; without them a note says that new rows are taken to be new."""
    new = saved(tmp_path / "new.npz", x=TEST.x[:300], y=TEST.y[:300])
    assert calibrate("digits", "--data", new)[0] == 0
    hashes = [(own / "digits" / version / "rows" / "trained.npz").read_bytes() for version in ("1", "2")]
    assert hashes[0] == hashes[1]
    shutil.rmtree(own / "digits" / "2" / "rows")
    write_manifest(own / "digits" / "2", read_manifest(own / "digits" / "2"))
    code, _, err = calibrate("digits:2", "--data", new)
    assert code == 0
    assert err.startswith("note: the rows are taken to be new, because this version has no hashes")


def test_rows_of_another_shape_are_refused(calibrate, own, tmp_path):
    """Both shapes; nothing is published."""
    code, _, err = calibrate("digits", "--data", saved(tmp_path / "n.npz", x=TEST.x[:, :7], y=TEST.y))
    assert code == 1
    assert "n.npz: feature shape: expected (8, 8), found (7, 8)" in err
    assert versions(own, "digits") == [1]


def test_other_training_rows_are_refused(calibrate, own, tmp_path):
    """A source in parts, none of them for calibration, that is not the fit's."""
    parts = {"x_train": TEST.x[:200], "y_train": TEST.y[:200], "x_test": TEST.x[200:], "y_test": TEST.y[200:]}
    code, _, err = calibrate("digits", "--data", saved(tmp_path / "n.npz", **parts))
    assert code == 1
    assert "rows to calibrate on: expected the data that the model was fitted with, or new rows" in err
    assert "found other training rows" in err
    assert versions(own, "digits") == [1]


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--set", "percentile=0", "percentile: expected a number greater than 0, found 0"),
        ("--set", "percentile=100", "percentile: expected a number less than 100, found 100"),
        ("--coverage", 0, "coverage: expected a number greater than 0, found 0.0"),
        ("--coverage", 1, "coverage: expected a number less than 1, found 1.0"),
        (
            "--percentile",
            99.9,
            "calibration.percentile: the 99.9th percentile needs a larger calibration part: expected at least 999 rows, "
            "found 500 rows; set data.calibration_size = 999, if the source has so many rows, or calibrate with more rows; "
            "or set calibration.percentile = 99.5",
        ),
        ("--coverage", 0.999, "calibration.coverage: coverage 0.999 needs a larger calibration part"),
    ],
)
def test_terms_that_cannot_be_are_refused(calibrate, own, option, value, message):
    """0 is a number that was given, and no percentile."""
    code, _, err = calibrate("digits", "--data", "digits", option, value)
    assert code == 1
    assert message in err
    assert versions(own, "digits") == [1]


def test_metrics_that_the_calibration_changes_are_not_those_of_before(calibrate, own, tmp_path, monkeypatch):
    """New rows have no test part: another temperature keeps only what predicted classes say, the same one all except the rates."""
    needed = Candidate(Recalibration(kind="pooled", factor=1.5), gain=9.0, deviation=4.0)
    monkeypatch.setattr(recalibration, "fit_recalibration", lambda *_: needed)
    path = saved(tmp_path / "new.npz", x=TEST.x[:300], y=TEST.y[:300])
    assert calibrate("digits", "--data", path)[0] == 0
    assert calibrate("digits:1", "--data", path, "--set", 'recalibrate="auto"')[0] == 0
    before, same, other = (read_manifest(own / "digits" / str(version)) for version in (1, 2, 3))
    assert same.metrics == {name: value for name, value in before.metrics.items() if name != "reject_rate"}
    assert other.calibration.recalibration == needed.recalibration
    assert other.metrics == {name: before.metrics[name] for name in ("accuracy", "baseline", "classes")}


def test_a_version_from_before_keeps_its_recalibration(digits):
    """Its settings, or their absence, and no new default; unless another one is requested."""
    for old in ({}, {"decision": "std"}, {"decision": "std", "recalibrate": "none"}):
        record = digits.manifest.calibration.model_copy(update={"settings": old})
        manifest = digits.manifest.model_copy(update={"calibration": record})
        assert new_settings(manifest, ()).recalibrate == "none"
        assert new_settings(manifest, ('recalibrate="auto"',)).recalibrate == "auto"


def test_a_version_falls_short_of_what_its_own_calibration_lacks(calibrate, own):
    """A decision that is the same for every row is one version's; what the draws lack is also the next one's."""
    folder, learned = own / "wave" / "1", recognise("it has learned nothing that shows on 50 test rows: …")
    constant = recognise("its decision score, std, is the same for every calibration row (0), so that …")
    write_manifest(folder, read_manifest(folder).model_copy(update={"shortfalls": (learned, constant)}))
    code, _, err = calibrate("wave", "--data", "wave")
    assert code == 0
    assert err.startswith(f"falls short: {learned.text} calibrated anew on ")
    assert read_manifest(own / "wave" / "2").shortfalls == (learned,)


@pytest.mark.parametrize(
    ("override", "text"),
    [
        (
            "class_weights=balanced",
            "a key of [data], which only a fit reads; fit again with it: abstain fit CONFIG.toml",
        ),
        ("data.class_weights=balanced", "--set data.class_weights=…"),
        ("method.steps=5", "found a key of [method], which only a fit reads"),
        ("seed=3", "found a key that only a fit reads; fit again with it: abstain fit CONFIG.toml --set seed=…"),
    ],
)
def test_a_key_that_only_a_fit_reads_is_refused(calibrate, override, text):
    """The text names the key's table and the command that reads it."""
    code, out, err = calibrate("digits", "--data", "digits", "--set", override)
    assert (code, out) == (1, "")
    assert err.startswith(f"abstain: --set {override.partition('=')[0]}: expected a key of [calibration], found a key")
    assert text in err
