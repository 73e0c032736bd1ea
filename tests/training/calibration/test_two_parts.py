"""Decisions of novelty and ambiguity, from the settings to the bundle, the server, the command and the metrics."""

import json
import shutil

import httpx
import numpy as np
import pytest

import abstain
from abstain.models.bundles.bundle import load
from abstain.models.decisions.calibration import REQUESTED_ERRORS
from abstain.models.errors import BundleError, CalibrationError, ConfigError
from abstain.service.commands.predict_file import predict_file
from abstain.training.calibrate import calibrate_version
from abstain.training.calibration.pipeline import check_calibration_settings, choose_ambiguity
from abstain.training.config.calibration import CalibrationConfig
from abstain.training.config.reading import read_config
from abstain.training.fit import load_dataset
from tests.helpers.hostile_bundles import sign
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
    assert choose_ambiguity(settings_of(ambiguity="entropy"), classes) == ("entropy", 0.9)
    assert choose_ambiguity(settings_of(max_error=0.1), classes)[0] == "max_probability"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"ambiguity": "entropi"},
            "calibration.ambiguity: expected a score of the predictions.*found entropi; did you mean 'entropy'",
        ),
        ({"ambiguity": "vim"}, "calibration.ambiguity: expected a score of the predictions"),
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
        root,
        "digits:1",
        "digits",
        ('decision=["vim", "subspace"]', "novelty_share=0.5", "percentile=90"),
        report=False,
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
        assert any(
            reason.startswith("ambiguous: max_probability (1 − the largest probability) above its limit of ")
            for reason in reasons
        ) is bool(ambiguous)


def test_the_next_calibration_keeps_both_parts(two_parts):
    """The settings are in the manifest, and `--set` changes one of them."""
    calibrate_version(two_parts, "digits:2", "digits", ("novelty_share=0.8",), report=False)
    record = load(two_parts / "digits" / "3").manifest.calibration
    assert (record.ambiguity, record.novelty_share, record.percentile) == ("max_probability", 0.8, 90.0)


# ---- a limit of the error --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        ("digits", {"max_error": 0.1, "novelty_share": 0.5}, "calibration.novelty_share: expected no share with"),
        ("digits", {"confidence": 0.9}, "calibration.confidence: expected calibration.max_error too"),
        ("digits", {"max_error": 0.1, "error_size": 1.0}, "calibration.error_size: expected no size for classes"),
        ("wave", {"max_error": 0.1}, "calibration.error_size: expected the largest distance from the target"),
        (
            "digits",
            {"max_error": 0.001},
            "calibration.max_error: expected at least 2995 calibration rows .*found 495 of",
        ),
    ],
)
def test_limits_that_cannot_hold_are_refused_before_a_fit(store, kind, settings, message):
    """Each error names the key, and what would do."""
    model = load(store / kind / "1").manifest.model
    with pytest.raises((ConfigError, CalibrationError), match=message):
        check_calibration_settings(settings_of(**settings), model, np.zeros(500, int))


@pytest.fixture(scope="module")
def limited(store, tmp_path_factory):
    """A store with models whose accepted answers are rarely wrong: classes, and numbers."""
    root = tmp_path_factory.mktemp("limited")
    for name in ("digits", "wave"):
        (root / name).mkdir()
        shutil.copytree(store / name / "1", root / name / "1")
    calibrate_version(root, "digits:1", "digits", ('decision=["vim", "subspace"]', "max_error=0.02"), report=False)
    calibrate_version(root, "wave:1", "wave", ("max_error=0.1", "error_size=0.6", "confidence=0.9"), report=False)
    return root


def test_the_limit_is_that_of_the_plain_rule(limited):
    """Of the calibration rows below the novelty threshold, the least ambiguous ones, with few enough errors."""
    bundle = load(limited / "digits" / "2")
    calibration, risk = bundle.calibration, bundle.manifest.calibration.risk
    data = load_dataset(read_config(CONFIGS / "digits-vi.toml"), None).calibration
    mean = np.asarray(bundle.predictor((256,))(data.x).summary.mean)
    wrong, unsure = mean.argmax(axis=1) != data.y, calibration.scores["max_probability"]
    familiar = calibration.all_scores["combined"] < bundle.manifest.calibration.thresholds["combined"]
    accepted = familiar & (unsure.astype(float) <= risk.threshold)
    assert (risk.familiar_rows, risk.accepted_rows) == (familiar.sum(), accepted.sum())
    assert risk.errors == wrong[accepted].sum()
    assert 0 < risk.accepted_rows < len(data.y)
    assert risk.p_value <= risk.level < 0.05
    assert calibration.expected_reject_rate == pytest.approx(1 - risk.accepted_rows / len(data.y))
    assert bundle.manifest.calibration.reject_rate_bounds is None


def test_a_model_of_numbers_has_a_limit_too(limited):
    """An answer is wrong if it is farther than `error_size` from the target."""
    risk = load(limited / "wave" / "2").manifest.calibration.risk
    assert (risk.max_error, risk.confidence, risk.error_size) == (0.1, 0.9, 0.6)
    assert risk.accepted_rows > 0


def test_a_limited_model_rejects_what_is_novel_or_ambiguous(limited, rows, tmp_path):
    """By the score that decides alone, and by the limit; another percentile is refused, and the command agrees."""
    model = abstain.load("digits:2", store=limited)
    risk = load(limited / "digits" / "2").manifest.calibration.risk
    predictions = model.predict(rows)
    np.testing.assert_array_equal(predictions.ambiguous, predictions.scores["max_probability"].value > risk.threshold)
    assert predictions.decision == "combined"
    assert predictions.novel.any()
    np.testing.assert_array_equal(predictions.reject, predictions.novel | predictions.ambiguous)
    with pytest.raises(abstain.AbstainError, match=r"percentile: expected 99\.0, for which the error of accepted rows"):
        model.predict(rows, percentile=90)
    np.savez(tmp_path / "rows.npz", x=rows)
    predict_file(load(limited / "digits" / "2"), tmp_path / "rows.npz", tmp_path / "offline.jsonl", fdr=0.2)
    offline = [json.loads(line) for line in (tmp_path / "offline.jsonl").read_text().splitlines()]
    assert [row["reject"] for row in offline] == predictions.reject.tolist()


def test_a_request_chooses_another_limit(limited, rows, tmp_path):
    """By Python, over HTTP and in a file: the largest known error that is not above the requested one."""
    bundle, model = load(limited / "digits" / "2"), abstain.load("digits:2", store=limited)
    limits = {limit.max_error: limit for limit in bundle.calibration.other_limits}
    assert set(limits) == set(REQUESTED_ERRORS) - {0.02}
    unsure = model.predict(rows).scores["max_probability"].value
    own, wider = model.predict(rows), model.predict(rows, max_error=0.17)
    np.testing.assert_array_equal(wider.ambiguous, unsure > limits[0.1].threshold)
    np.testing.assert_array_equal(wider.novel, own.novel)
    assert wider.ambiguous.sum() < own.ambiguous.sum()
    np.savez(tmp_path / "rows.npz", x=rows)
    predict_file(bundle, tmp_path / "rows.npz", tmp_path / "offline.jsonl", max_error=0.17)
    offline = [json.loads(line) for line in (tmp_path / "offline.jsonl").read_text().splitlines()]
    assert [row["reject"] for row in offline] == wider.reject.tolist()
    server = start_server(limited, tmp_path)
    try:
        with httpx.Client(base_url=server.url, timeout=PATIENCE) as client:
            body = {"inputs": rows.tolist(), "model": "digits:2", "max_error": 0.17}
            response = client.post("/predict", json=body).json()
            assert (response["max_error"], response["confidence"]) == (0.1, 0.95)
            assert [row["reject"] for row in response["predictions"]] == wider.reject.tolist()
            tensor = {"name": "inputs", "shape": list(rows.shape), "datatype": "FP64", "data": rows.ravel().tolist()}
            infer = {"inputs": [tensor], "parameters": {"max_error": 0.17}}
            answer = client.post("/v2/models/digits/versions/2/infer", json=infer).json()
            assert answer["parameters"]["max_error"] == 0.1
            assert next(out for out in answer["outputs"] if out["name"] == "reject")["data"] == wider.reject.tolist()
            refused = client.post("/predict", json=body | {"percentile": 99.0})
            assert (refused.status_code, refused.json()["error"]) == (
                400,
                "percentile: expected no percentile with max_error, found 99.0; leave out one of them",
            )
            refused = client.post("/predict", json=body | {"max_error": 0.001})
            assert (refused.status_code, refused.json()["code"]) == (400, "calibration_too_small")
            assert "expected at least 2995 calibration rows that are not novel" in refused.json()["error"]
    finally:
        stop_server(server)


def test_a_request_for_a_limit_that_is_not_there_is_refused(limited, two_parts, rows):
    """An error below all that were tested, and a model without any limit."""
    with pytest.raises(abstain.AbstainError, match=r"max_error: expected at least 0\.001, the smallest"):
        abstain.load("digits:2", store=limited).predict(rows, max_error=0.0001)
    with pytest.raises(
        abstain.AbstainError, match="max_error: expected no max_error, because this model was calibrated"
    ):
        abstain.load("digits:2", store=two_parts).predict(rows, max_error=0.1)


def test_a_limit_that_no_threshold_keeps_is_a_shortfall(limited):
    """Every row is rejected, and the version cannot become stable."""
    text = calibrate_version(limited, "wave:1", "wave", ("max_error=0.1", "error_size=0.0001")).shortfalls[-1].text
    assert text.startswith("it rejects every row: no threshold limits the error of accepted rows to 0.1")
    version = max(int(path.name) for path in (limited / "wave").iterdir() if path.name.isdigit())
    assert abstain.load(f"wave:{version}", store=limited).predict(np.zeros((3, 1))).reject.all()
    assert "no limit could be certified" in (limited / "wave" / str(version) / "report.html").read_text()


def test_a_new_calibration_replaces_a_share_by_a_limit_and_the_reverse(two_parts):
    """And a share of 1 leaves both."""
    for change, expected in (
        ("max_error=0.05", ("max_probability", None, True)),
        ("novelty_share=0.6", ("max_probability", 0.6, False)),
        ("novelty_share=1", (None, None, False)),
    ):
        version = calibrate_version(two_parts, "digits", "digits", (change,), report=False).version
        record = load(two_parts / "digits" / str(version)).manifest.calibration
        assert (record.ambiguity, record.novelty_share, record.risk is not None) == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ambiguity": ""}, "ambiguity: expected a score that the decision does not use"),
        ({"ambiguity": "vim"}, "ambiguity: expected a score that the decision does not use"),
        ({"ambiguity": None}, "calibration: expected ambiguity with either novelty_share or risk"),
        ({"novelty_share": 0.5}, "calibration: expected ambiguity with either novelty_share or risk"),
        ({"risk": {"accepted_rows": 10**9}}, "calibration.risk: expected errors ≤ accepted_rows"),
        ({"risk": {"errors": 499}}, "calibration.risk: expected errors ≤ accepted_rows"),
        ({"risk": {"threshold": None}}, "calibration.risk.threshold"),
        ({"risk": {"confidence": 0.5}}, "calibration.other_limits: expected the confidence and the error_size of risk"),
        ({"risk": None}, "calibration.other_limits: expected at most 100, and none without risk"),
    ],
)
def test_a_hostile_manifest_is_refused(limited, tmp_path, change, message):
    """Values that no calibration writes, with a correct digest."""
    shutil.copytree(limited / "digits" / "2", tmp_path / "2")

    record = json.loads((tmp_path / "2" / "manifest.json").read_text())["calibration"]
    for key, value in change.items():
        record[key] = record[key] | value if isinstance(value, dict) else value
    sign(tmp_path / "2", calibration=record)
    with pytest.raises(BundleError, match=message):
        load(tmp_path / "2")
