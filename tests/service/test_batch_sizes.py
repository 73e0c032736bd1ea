"""Predictions over HTTP do not depend on the batch: they equal those of `abstain predict`, and those with other neighbours.

Rounding is tested here, so `make test` compiles these programs as the service does.
"""

import json
import shutil

import httpx
import numpy as np
import pytest

from abstain.models.bundles.bundle import load
from abstain.models.prediction.predictive import BUCKETS
from abstain.service.commands.predict_file import predict_file
from tests.helpers.fits import made_once
from tests.helpers.json_trees import numbers, words
from tests.helpers.passengers import fit_passengers, passenger_table
from tests.helpers.paths import PROJECT
from tests.helpers.processes import PATIENCE
from tests.helpers.servers import start_server, stop_server

SIZES = (1, 2, 7, 8, 9, 33, 300)
VERSIONS = {"passengers": "1", "golden": "2"}
RANDOM = np.random.default_rng(1)
ROWS = {
    "passengers": passenger_table()[0][:300] + RANDOM.integers(0, 2, (300, 1)) * RANDOM.uniform(-3, 3, (300, 4)),
    "golden": RANDOM.uniform(-3, 4, (300, 1)),
}
"""Rows of the training data and rows far from it, for a classification and a regression."""


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A store with both models."""
    store = made_once(tmp_path_factory, "passengers", fit_passengers)
    shutil.copytree(PROJECT / "tests" / "data" / "golden" / "2", store / "golden" / "2")
    return store


@pytest.fixture(scope="module")
def client(store, tmp_path_factory):
    """A client of a server of both."""
    server = start_server(store, tmp_path_factory.mktemp("server"), workers=2)
    with httpx.Client(base_url=server.url, timeout=PATIENCE) as client:
        yield client
    stop_server(server)


def predictions(client: httpx.Client, rows: np.ndarray, model: str) -> list[dict]:
    """The predictions of the response to `POST /predict`."""
    response = client.post("/predict", json={"inputs": rows.tolist(), "model": model})
    assert response.status_code == 200, response.text
    return response.json()["predictions"]


@pytest.mark.parametrize("model", ROWS)
def test_http_equals_offline_scoring(client, store, model, tmp_path):
    """`abstain predict` gives the same predictions for a file as HTTP for its rows, in any batch: equal words, close numbers."""
    rows = ROWS[model]
    np.savez(tmp_path / "rows.npz", x=rows)
    predict_file(load(store / model / VERSIONS[model]), tmp_path / "rows.npz", tmp_path / "out.jsonl")
    offline = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    for size in SIZES:
        online = predictions(client, rows[:size], model)
        assert words(online) == words(offline[:size])
        np.testing.assert_allclose(numbers(online), numbers(offline[:size]), rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("model", ROWS)
def test_a_prediction_is_bit_identical_within_a_bucket(client, model):
    """With any neighbours and at any position; between buckets, equal within 1e-6."""
    rows = ROWS[model]
    random, row = np.random.default_rng(2), rows[5]
    reference = predictions(client, row[None], model)[0]
    below = 0
    for bucket in BUCKETS:
        found = []
        for size in sorted({below + 1, (below + bucket) // 2 + 1, bucket}):
            for index in {0, size // 2, size - 1}:
                batch = rows[random.integers(0, len(rows), size)]
                batch[index] = row
                found.append(predictions(client, batch, model)[index])
        assert all(prediction == found[0] for prediction in found)
        np.testing.assert_allclose(numbers(found[0]), numbers(reference), rtol=1e-6, atol=1e-6)
        below = bucket
