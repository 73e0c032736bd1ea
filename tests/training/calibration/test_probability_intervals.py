"""Probability intervals of a model of two classes, from the calibration to the bundle and every response."""

import json
from dataclasses import replace

import httpx
import numpy as np
import pytest
from scipy.optimize import isotonic_regression

import abstain
from abstain.models.bundles.bundle import load
from abstain.models.decisions.calibration import check_calibration
from abstain.models.decisions.decision import Decision
from abstain.models.decisions.judging import judge
from abstain.models.errors import CalibrationError, InputError
from abstain.service.commands.predict_file import predict_file
from abstain.service.open_inference.outputs import Output, outputs_of
from abstain.service.predict.response import check_fields
from abstain.training.config.reading import read_config
from abstain.training.fit import fit
from tests.helpers.fits import silent
from tests.helpers.paths import CONFIGS
from tests.helpers.processes import PATIENCE
from tests.helpers.records import altered
from tests.helpers.servers import start_server, stop_server

FIELD = "probability_interval"


def rows_of(rng, count):
    """Two columns, and labels that the first one makes more probable."""
    x = rng.normal(size=(count, 2))
    return x, (rng.random(count) < 1 / (1 + np.exp(-2 * x[:, 0]))).astype(int)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A store with a quickly fitted model of two classes by one logit."""
    folder = tmp_path_factory.mktemp("two-classes")
    x, y = rows_of(np.random.default_rng(0), 700)
    np.savez(folder / "rows.npz", x=x, y=y, class_names=np.array(["no", "yes"]))
    changes = ("name=two", "likelihood=bernoulli", f"source={folder / 'rows.npz'}", "inputs=standardize", "hidden=[8]")
    small = ("steps=300", "draws=10", "reports=1", "data.test_size=100", "data.calibration_size=200", "percentile=90")
    fit(read_config(CONFIGS / "digits-vi.toml", (*changes, *small)), None, folder / "store", silent, report=False)
    return folder / "store"


@pytest.fixture(scope="module")
def bundle(root):
    """Its one version."""
    return load(root / "two" / "1")


def test_the_interval_is_that_of_two_isotonic_regressions(bundle):
    """Of the calibration rows' labels on the probability before recalibration, by SciPy, with the row added to them."""
    calibration = bundle.calibration
    rng = np.random.default_rng(1)
    prediction = bundle.predictor((8, 32))(rng.normal(size=(20, 2)).astype(np.float32))
    found = judge(calibration, prediction).probability_interval
    served = np.asarray(prediction.summary.mean, np.float64)[:, 1]
    uncertain = calibration.scores["max_probability"].astype(np.float64)
    known = np.where(calibration.labels == 1, 1 - uncertain, uncertain)
    for row, probability in enumerate(served):
        order = np.argsort(np.append(known, probability), kind="stable")
        place = int(np.flatnonzero(order == len(known))[0])
        expected = [isotonic_regression(np.append(calibration.targets, label)[order]).x[place] for label in (0, 1)]
        np.testing.assert_allclose(found[row], expected, atol=1e-6)
    assert (found[:, 0] <= found[:, 1]).all()
    assert (found[served.argmax()] > found[served.argmin()]).all()


def test_every_door_has_the_interval(root, bundle, tmp_path):
    """The Python API, `abstain predict`, `/predict` and `/v2` agree."""
    rows = np.random.default_rng(2).normal(size=(9, 2)).astype(np.float32)
    predictions = abstain.load("two", store=root).predict(rows)
    expected = predictions.probability_interval
    assert expected.shape == (9, 2)
    np.testing.assert_array_equal(predictions.to_pandas()[[f"{FIELD}.0", f"{FIELD}.1"]], expected)
    np.savez(tmp_path / "rows.npz", x=rows)
    for ending in ("jsonl", "csv", "npz", "parquet"):
        predict_file(bundle, tmp_path / "rows.npz", tmp_path / f"offline.{ending}")
    offline = [json.loads(line) for line in (tmp_path / "offline.jsonl").read_text().splitlines()]
    np.testing.assert_array_equal(np.load(tmp_path / "offline.npz")[f"{FIELD}.1"], expected[:, 1])
    server = start_server(root, tmp_path)
    try:
        body = {"inputs": rows.tolist(), "model": "two"}
        online = httpx.post(f"{server.url}/predict", json=body, timeout=PATIENCE).json()["predictions"]
        few = httpx.post(f"{server.url}/predict", json={**body, "fields": [FIELD]}, timeout=PATIENCE).json()
        tensor = {"name": "inputs", "datatype": "FP32", "shape": [9, 2], "data": rows.ravel().tolist()}
        asked = {"inputs": [tensor], "outputs": [{"name": FIELD}]}
        answer = httpx.post(f"{server.url}/v2/models/two/infer", json=asked, timeout=PATIENCE).json()["outputs"][0]
    finally:
        stop_server(server)
    assert [row[FIELD] for row in online] == [row[FIELD] for row in offline] == expected.tolist()
    assert few["predictions"] == [{FIELD: row} for row in expected.tolist()]
    assert (answer["shape"], answer["datatype"]) == ([9, 2], "FP32")
    np.testing.assert_array_equal(np.float32(answer["data"]), np.float32(expected.ravel()))


def test_models_without_intervals_have_no_such_field(bundle, digits, wave):
    """Other likelihoods, and versions from before, neither have it nor take it as a name."""
    model, old = bundle.manifest.model, replace(bundle.calibration, targets=None)
    assert outputs_of(model, bundle.calibration)[FIELD] == Output("FP32", (2,))
    for calibration in (old, digits.calibration, wave.calibration):
        assert calibration.targets is None
    assert FIELD not in outputs_of(model, old)
    assert check_fields(model, None, probability_interval=True)[-1] == FIELD
    assert FIELD not in check_fields(model, None)
    with pytest.raises(InputError, match=f"found '{FIELD}'"):
        check_fields(model, (FIELD,))
    prediction = bundle.predictor((8,))(np.zeros((3, 2), np.float32))
    assert judge(old, prediction).probability_interval is None


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"targets": np.zeros(199, int)}, "200 numbers, each 0 or 1, found int64 (199,)"),
        ({"targets": np.full(200, 2)}, "200 numbers, each 0 or 1"),
        ({"targets": np.zeros(200)}, "200 numbers, each 0 or 1, found float64"),
        ({"labels": None}, "none without two classes, labels and the score max_probability"),
        ({"scores": {"entropy": np.zeros(200, np.float32)}}, "none without two classes"),
    ],
)
def test_stored_targets_that_cannot_be_right_are_refused(bundle, change, expected):
    """Another length or class, no numbers of classes, or nothing that tells the probability: refused by name."""
    calibration = altered(
        bundle.calibration, **{"decision": Decision(scores=("entropy",)), "reference": None, **change}
    )
    with pytest.raises(CalibrationError) as error:
        check_calibration(calibration, "classification", tuple(bundle.manifest.densities), "here", classes=2)
    assert str(error.value).startswith(f"here: targets: expected {expected}")


def test_targets_of_a_model_of_more_classes_are_refused(bundle):
    """Their intervals would have no meaning."""
    with pytest.raises(CalibrationError, match=r"targets: expected none without two classes.*200 rows, 3 classes"):
        check_calibration(bundle.calibration, "classification", tuple(bundle.manifest.densities), "here", classes=3)
