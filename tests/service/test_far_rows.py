"""Rows that float32 can hardly hold: `/predict` and `/v2` give the same finite verdict, and the same refusals.

Of a table, of images and of a regression, with random draws and fitted densities: no fit is needed to serve them.
"""

import asyncio
from types import SimpleNamespace

import httpx
import numpy as np
import pytest

from abstain.models.decisions.calibration import calibrate
from abstain.service.http import build_app
from abstain.service.live import Live
from abstain.service.process import Process, Traffic
from abstain.service.settings import Settings
from abstain.training.calibration.pipeline import decision_of
from abstain.training.config.calibration import CalibrationConfig
from tests.helpers.feature_score_cases import CASES, predictor_of

KINDS = ("mlp", "lenet", "regression")
LARGEST = float(np.finfo(np.float32).max)
SIZES = (1e15, 1e30, -1e30, 1e38, -3e38, LARGEST)
GROWING = (1e4, 1e8, 1e12, 1e20, 1e30, 1e38)


class OneModel:
    """A `LiveVersions` of one live version that was never on a disk."""

    def __init__(self, live):
        self.live = live

    def find(self, _text):
        """The version."""
        return self.live

    def hindrances(self):
        """None."""
        return []


def live_of(kind):
    """A live version of a kind of model, with the default decision."""
    predictor, rows = predictor_of(kind, (8,)), CASES[kind][1]
    model = CASES[kind][0]
    decision = decision_of(CalibrationConfig(), model)
    calibration = calibrate(predictor(rows.x[:200]), rows.y[:200], decision=decision, percentile=99.0)
    manifest = SimpleNamespace(model=model, digest="sha256:0")
    return Live(kind, 1, SimpleNamespace(manifest=manifest, calibration=calibration), predictor)


@pytest.fixture(scope="module", params=KINDS)
def ask(request, tmp_path_factory):
    """Sends rows to both routes; returns the two answers, each with its code."""
    live, folder = live_of(request.param), tmp_path_factory.mktemp("far")
    process = Process(1, 1, folder)
    app = build_app(Settings(store=folder), process, Traffic(), OneModel(live), None, lambda *_: None)
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

    def ask(cells):
        return asyncio.run(both(cells))

    ask.live = live
    return ask


def with_cells(live, value, places):
    """A training row as JSON numbers, some of them replaced."""
    row = [repr(float(cell)) for cell in CASES[live.name][1].x[0].ravel()]
    for place in places:
        row[place] = value
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
def test_both_routes_reject_rows_far_beyond_every_training_row(ask, where):
    """With 200, the same verdict, and numbers that are finite; each of the rows among ordinary neighbours."""
    live = ask.live
    places = range(live.bundle.manifest.model.features) if where == "all" else [1]
    rows = [with_cells(live, repr(size), places) for size in SIZES]
    first, second = ask([with_cells(live, "0.0", []), *rows])
    assert (first.status_code, second.status_code) == (200, 200), (first.text, second.text)
    told = first.json()["predictions"]
    assert np.isfinite(numbers(told)).all()
    assert "null" not in second.text
    found = columns(second)
    assert all(np.isfinite(values).all() for values in found.values())
    assert [row["reject"] for row in told[1:]] == [True] * len(SIZES)
    assert found["reject"].tolist() == [row["reject"] for row in told]
    for name in live.bundle.calibration.all_scores:
        values = [row["scores"][name]["value"] for row in told]
        np.testing.assert_allclose(found[f"score_{name}"], np.clip(values, -LARGEST, LARGEST), rtol=1e-6)


def test_the_farther_of_two_rows_never_has_less_evidence(ask):
    """The decision score grows with the distance, at every size that float32 holds, on both routes."""
    rows = [with_cells(ask.live, repr(size), [1]) for size in GROWING]
    first, second = ask(rows)
    name = ask.live.bundle.calibration.decision.name
    values = np.array([row["scores"][name]["value"] for row in first.json()["predictions"]])
    assert (np.diff(values) > 0).all(), values
    assert (np.diff(columns(second)[f"score_{name}"]) >= 0).all()


def test_scores_beyond_every_calibration_row_are_called_extrapolated(ask):
    """Exactly those whose p-value is 1/(n + 1); a calibration row has none but its own score's largest."""
    live, x = ask.live, CASES[ask.live.name][1].x
    calibration = live.bundle.calibration
    inside = [[repr(float(cell)) for cell in row.ravel()] for row in x[:20]]
    first, _ = ask([*inside, with_cells(live, "1e30", [1])])
    rows = first.json()["predictions"]
    for row in rows:
        for name, score in row["scores"].items():
            assert score["extrapolated"] is (score["p_value"] == 1 / (calibration.rows + 1)), name
    assert not any(row["scores"]["range"]["extrapolated"] for row in rows[:-1])
    assert rows[-1]["scores"]["range"]["extrapolated"]
    assert rows[-1]["scores"][calibration.decision.name]["extrapolated"]


@pytest.mark.parametrize("cell", ["1e39", "-3.5e38", "1e999", "NaN", "Infinity", "9" * 50])
def test_numbers_beyond_float32_are_refused_by_row_and_feature_on_both_routes(ask, cell):
    """In the same words."""
    first, second = ask([with_cells(ask.live, "0.0", []), with_cells(ask.live, cell, [4])])
    assert (first.status_code, second.status_code) == (400, 400)
    shape = ask.live.bundle.manifest.model.feature_shape
    place = "".join(f"[{index}]" for index in np.unravel_index(4, shape))
    assert first.json()["error"].startswith("inputs[1][4]: expected a finite number within float32's range")
    said = second.json()["error"]
    assert said.startswith((f"inputs[1]{place}: expected", "inputs[1][4]: expected"))
    assert said.split(": ", 1)[1] == first.json()["error"].split(": ", 1)[1]
