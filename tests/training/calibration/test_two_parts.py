"""Decisions of novelty and ambiguity, from the settings to the bundle, the server, the command and the metrics."""

import json
import shutil

import httpx
import numpy as np
import pytest

import abstain
from abstain.models.bundles.bundle import load
from abstain.models.errors import ConfigError
from abstain.service.commands.predict_file import predict_file
from abstain.training.calibrate import calibrate_version
from abstain.training.calibration.pipeline import choose_ambiguity
from abstain.training.config.calibration import CalibrationConfig
from abstain.training.config.reading import read_config
from abstain.training.fit import load_dataset
from tests.helpers.paths import CONFIGS
from tests.helpers.processes import PATIENCE
from tests.helpers.servers import start_server, stop_server


def settings_of(**settings):
    """A config's table [calibration]."""
    return CalibrationConfig.model_validate(settings)


def test_a_share_or_a_score_asks_for_ambiguity(digits, wave):
    """The other of the two is the default; without both, and with a share of 1, there is no such part."""
    classes, numbers = digits.manifest.model, wave.manifest.model
    assert choose_ambiguity(settings_of(), classes)[0] is None
    assert choose_ambiguity(settings_of(novelty_share=1.0), classes)[0] is None
    assert choose_ambiguity(settings_of(novelty_share=0.7), classes) == ("max_probability", 0.7)
    assert choose_ambiguity(settings_of(novelty_share=0.7), numbers) == ("total_std", 0.7)
    assert choose_ambiguity(settings_of(ambiguity="entropy"), classes) == ("entropy", 0.5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ambiguity": "entropi"}, "calibration.ambiguity: expected one of .*found entropi; did you mean 'entropy'"),
        ({"ambiguity": "vim"}, "calibration.ambiguity: expected one of"),
        ({"ambiguity": "std", "decision": "std"}, "expected a score that calibration.decision does not use"),
        (
            {"ambiguity": "std", "novelty_share": 1.0},
            "calibration.novelty_share: expected a number above 0 and below 1",
        ),
        ({"novelty_share": 0.5, "per_class": True}, "calibration.per_class: expected false with calibration.ambiguity"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(digits, settings, message):
    """Each error names the key, and what would do."""
    with pytest.raises(ConfigError, match=message):
        choose_ambiguity(settings_of(**settings), digits.manifest.model)


@pytest.fixture(scope="module")
def two_parts(store, tmp_path_factory):
    """A store with a digits model of one part, and a second version of two parts."""
    root = tmp_path_factory.mktemp("parts")
    (root / "digits").mkdir()
    shutil.copytree(store / "digits" / "1", root / "digits" / "1")
    calibrate_version(
        root, "digits:1", "digits", ('decision=["vim", "subspace"]', "novelty_share=0.5", "percentile=90")
    )
    return root


@pytest.fixture(scope="module")
def rows():
    """Forty test digits, and twenty of them that turn into noise."""
    test = load_dataset(read_config(CONFIGS / "digits-vi.toml"), None).test.x[:60].astype(float)
    noise = np.random.default_rng(0).integers(0, 17, (20, 8, 8))
    share = np.linspace(0, 1, 20)[:, None, None]
    return np.concatenate([test[:40], (1 - share) * test[40:] + share * noise])


def test_the_manifest_names_both_parts(two_parts):
    """And an earlier version, and one without ambiguity, have none."""
    record = load(two_parts / "digits" / "2").manifest.calibration
    assert (record.decision, record.ambiguity, record.novelty_share) == ("combined", "max_probability", 0.5)
    assert {"novelty", "combined"} <= record.thresholds.keys()
    before = load(two_parts / "digits" / "1").manifest.calibration
    assert (before.ambiguity, before.novelty_share) == (None, None)


def test_every_door_says_which_part_rejects(two_parts, rows, tmp_path):
    """The Python API, `abstain predict`, `/predict`, `/v2` and the metrics agree."""
    predictions = abstain.load("digits:2", store=two_parts).predict(rows)
    np.testing.assert_array_equal(predictions.reject, predictions.novel | predictions.ambiguous)
    assert predictions.novel.any()
    assert predictions.ambiguous.any()
    assert not predictions.reject[:40].all()
    assert {"novel", "ambiguous"} <= set(predictions.to_pandas().columns)
    np.savez(tmp_path / "rows.npz", x=rows)
    predict_file(load(two_parts / "digits" / "2"), tmp_path / "rows.npz", tmp_path / "offline.jsonl")
    offline = [json.loads(line) for line in (tmp_path / "offline.jsonl").read_text().splitlines()]
    server = start_server(two_parts, tmp_path)
    try:
        body = {"inputs": rows.tolist(), "model": "digits:2"}
        online = httpx.post(f"{server.url}/predict", json=body, timeout=PATIENCE).json()["predictions"]
        few = httpx.post(f"{server.url}/predict", json={**body, "fields": ["novel"]}, timeout=PATIENCE).json()
        tensor = {"name": "inputs", "datatype": "FP32", "shape": [60, 8, 8], "data": rows.ravel().tolist()}
        asked = {"inputs": [tensor], "outputs": [{"name": name} for name in ("reject", "novel", "ambiguous")]}
        url = f"{server.url}/v2/models/digits/versions/2"
        outputs = httpx.post(f"{url}/infer", json=asked, timeout=PATIENCE).json()["outputs"]
        metrics = httpx.get(f"{server.url}/metrics", timeout=PATIENCE).text
    finally:
        stop_server(server)
    for name in ("reject", "novel", "ambiguous"):
        expected = getattr(predictions, name).tolist()
        assert [row[name] for row in online] == [row[name] for row in offline] == expected
        assert next(output["data"] for output in outputs if output["name"] == name) == expected
    assert [row["novel"] for row in few["predictions"]] == predictions.novel.tolist()
    counted = {
        part: float(line.split()[-1])
        for part in ("novel", "ambiguous")
        for line in metrics.splitlines()
        if line.startswith("abstain_rejected_by_part_total") and f'part="{part}"' in line
    }
    assert counted == {part: 3 * getattr(predictions, part).sum() for part in ("novel", "ambiguous")}


def test_the_reasons_begin_with_their_part(two_parts, rows):
    """Novelty first; an accepted row has none."""
    predictions = abstain.load("digits:2", store=two_parts).predict(rows)
    for novel, ambiguous, reasons in zip(predictions.novel, predictions.ambiguous, predictions.reasons, strict=True):
        assert any(reason.startswith("novel: ") for reason in reasons) is bool(novel)
        assert any(reason.startswith("ambiguous: max_probability above") for reason in reasons) is bool(ambiguous)


def test_the_next_calibration_keeps_both_parts(two_parts):
    """The settings are in the manifest, and `--set` changes one of them."""
    calibrate_version(two_parts, "digits:2", "digits", ("novelty_share=0.8",))
    record = load(two_parts / "digits" / "3").manifest.calibration
    assert (record.ambiguity, record.novelty_share, record.percentile) == ("max_probability", 0.8, 90.0)
