"""Rows near float32's limit: `/predict` and `/v2` give the same finite decisions, and the same errors.

For a table, for images and for a regression, with random draws and fitted feature scores, so that no fit is needed.
"""

import asyncio
from types import SimpleNamespace

import httpx
import numpy as np
import pytest

from abstain.models.bundles.bundle import Bundle
from abstain.models.decisions.calibration import calibrate
from abstain.service.http import build_app
from abstain.service.live import Live
from abstain.service.live_versions import LiveVersions
from abstain.service.process import Process, Traffic
from abstain.service.rollouts.routing import Choice
from abstain.service.settings import Settings
from abstain.training.calibration.pipeline import choose_decision
from abstain.training.config.calibration import CalibrationConfig
from tests.helpers.feature_score_cases import CASES, predictor_of
from tests.helpers.records import stand_in

KINDS = ("mlp", "lenet", "regression")
LARGEST = float(np.finfo(np.float32).max)
SIZES = (1e15, 1e30, -1e30, 1e38, -3e38, LARGEST)
GROWING = (1e4, 1e8, 1e12, 1e20, 1e30, 1e38)


class OneModel(LiveVersions):
    """Stands for `LiveVersions`, with one version that is not on disk."""

    def __init__(self, live):
        self.live = live

    def find(self, _text):
        """Returns the version."""
        return self.live

    def choose(self, _text, _caller):
        """Returns the version; there is no rollout."""
        return Choice(self.live)

    def reasons_not_ready(self):
        """Returns no reasons."""
        return []


async def nothing_described(_scope, _receive, _send):
    """Stands for BentoML's application, which no test here reaches."""


def live_of(kind):
    """A live version of a type of model, with the default decision."""
    predictor, rows = predictor_of(kind, (8,)), CASES[kind][1]
    model = CASES[kind][0]
    decision = choose_decision(CalibrationConfig(), model)
    calibration = calibrate(predictor(rows.x[:200]), rows.y[:200], decision=decision, percentile=99.0)
    manifest = SimpleNamespace(model=model, digest="sha256:0")
    bundle = stand_in(Bundle, manifest=manifest, calibration=calibration)
    return Live(kind, 1, bundle, predictor)


@pytest.fixture(scope="module", params=KINDS)
def send(request, tmp_path_factory):
    """Sends rows to both routes; returns the two responses."""
    live, folder = live_of(request.param), tmp_path_factory.mktemp("far")
    process = Process(1, 1, folder)
    app = build_app(Settings(store=folder), process, Traffic(), OneModel(live), nothing_described, lambda *_: None)
    shape = live.bundle.manifest.model.feature_shape

    async def both(cells: list[list[str]]):
        flat = ",".join(cell for row in cells for cell in row)
        rows = ",".join("[" + ",".join(row) + "]" for row in cells)
        tensor = f'{{"name":"inputs","shape":{[len(cells), *shape]},"datatype":"FP32","data":[{flat}]}}'
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            headers = {"Content-Type": "application/json"}
            first = await client.post("/predict", content=f'{{"inputs":[{rows}]}}', headers=headers)
            second = await client.post(f"/v2/models/{live.name}/infer", content=f'{{"inputs":[{tensor}]}}')
        return first, second

    def send_to_both(cells):
        return asyncio.run(both(cells))

    send_to_both.live = live
    return send_to_both


def with_cells(live, value, columns):
    """A training row as JSON numbers, with a value in some columns."""
    row = [repr(float(cell)) for cell in CASES[live.name][1].x[0].ravel()]
    for column in columns:
        row[column] = value
    return row


def columns(second):
    """The outputs of `/v2` by name, `[rows, …]`."""
    return {
        output["name"]: np.reshape(output["data"], output["shape"])
        for output in second.json()["outputs"]
        if output["datatype"] != "BYTES"
    }


def numbers(tree):
    """All numbers in a piece of JSON."""
    if isinstance(tree, dict):
        return [number for value in tree.values() for number in numbers(value)]
    if isinstance(tree, list):
        return [number for value in tree for number in numbers(value)]
    return [tree] if isinstance(tree, int | float) else []


@pytest.mark.parametrize("where", ["one", "all"])
def test_both_routes_reject_rows_far_beyond_every_training_row(send, where):
    """Status 200, the same decisions, and finite numbers, in one batch with an ordinary row."""
    live = send.live
    changed = range(live.bundle.manifest.model.features) if where == "all" else [1]
    rows = [with_cells(live, repr(size), changed) for size in SIZES]
    first, second = send([with_cells(live, "0.0", []), *rows])
    assert (first.status_code, second.status_code) == (200, 200), (first.text, second.text)
    predictions = first.json()["predictions"]
    assert np.isfinite(numbers(predictions)).all()
    assert "null" not in second.text
    found = columns(second)
    assert all(np.isfinite(values).all() for values in found.values())
    assert [row["reject"] for row in predictions[1:]] == [True] * len(SIZES)
    assert found["reject"].tolist() == [row["reject"] for row in predictions]
    for name in live.bundle.calibration.all_scores:
        values = [row["scores"][name]["value"] for row in predictions]
        np.testing.assert_allclose(found[f"score_{name}"], np.clip(values, -LARGEST, LARGEST), rtol=1e-6)


def test_the_farther_of_two_rows_never_has_less_evidence(send):
    """The decision score grows with the distance, at every size that float32 holds, on both routes."""
    rows = [with_cells(send.live, repr(size), [1]) for size in GROWING]
    first, second = send(rows)
    name = send.live.bundle.calibration.decision.name
    values = np.array([row["scores"][name]["value"] for row in first.json()["predictions"]])
    assert (np.diff(values) > 0).all(), values
    assert (np.diff(columns(second)[f"score_{name}"]) >= 0).all()


def test_scores_beyond_every_calibration_row_are_extrapolated(send):
    """Exactly those with the p-value 1/(n + 1)."""
    live, x = send.live, CASES[send.live.name][1].x
    calibration = live.bundle.calibration
    inside = [[repr(float(cell)) for cell in row.ravel()] for row in x[:20]]
    first, _ = send([*inside, with_cells(live, "1e30", [1])])
    rows = first.json()["predictions"]
    for row in rows:
        for name, score in row["scores"].items():
            assert score["extrapolated"] is (score["p_value"] == 1 / (calibration.rows + 1)), name
    assert not any(row["scores"]["range"]["extrapolated"] for row in rows[:-1])
    assert rows[-1]["scores"]["range"]["extrapolated"]
    assert rows[-1]["scores"][calibration.decision.name]["extrapolated"]


@pytest.mark.parametrize("cell", ["1e39", "-3.5e38", "1e999", "NaN", "Infinity", "9" * 50])
def test_numbers_beyond_float32_are_refused_by_row_and_feature_on_both_routes(send, cell):
    """With the same error text."""
    first, second = send([with_cells(send.live, "0.0", []), with_cells(send.live, cell, [4])])
    assert (first.status_code, second.status_code) == (400, 400)
    shape = send.live.bundle.manifest.model.feature_shape
    position = "".join(f"[{index}]" for index in np.unravel_index(4, shape))
    assert first.json()["error"].startswith("inputs[1][4]: expected a finite number within float32's range")
    error = second.json()["error"]
    assert error.startswith((f"inputs[1]{position}: expected", "inputs[1][4]: expected"))
    assert error.split(": ", 1)[1] == first.json()["error"].split(": ", 1)[1]
