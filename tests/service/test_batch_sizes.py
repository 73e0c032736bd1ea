"""Predictions over HTTP do not depend on the batch: they equal those of `abstain predict`, and those with other neighbours.

Rounding is tested here, so `make test` compiles these programs as the service does.
"""

import json

import httpx
import numpy as np
import pytest

from abstain.models.prediction.predictive import BUCKETS
from abstain.service.commands.predict_file import predict_file
from abstain.training.config.reading import read_config
from abstain.training.fit import load_dataset
from tests.helpers.json_trees import numbers, words
from tests.helpers.paths import CONFIGS
from tests.helpers.processes import PATIENCE

SIZES = (1, 2, 7, 8, 9, 33, 300)


@pytest.fixture(scope="module")
def rows():
    """For each model of the store, rows of its data and rows far from it."""
    digits = load_dataset(read_config(CONFIGS / "digits-vi.toml"), None).test.x[:150]
    noise = np.random.default_rng(0).integers(0, 17, digits.shape)
    return {
        "digits": np.stack([digits, noise], axis=1).reshape(-1, 8, 8).astype(np.uint8),
        "wave": np.random.default_rng(1).uniform(-3, 4, (300, 1)),
    }


@pytest.fixture(scope="module")
def client(server):
    """A client with one connection."""
    with httpx.Client(base_url=server.url, timeout=PATIENCE) as client:
        yield client


def predictions(client: httpx.Client, rows: np.ndarray, model: str) -> list[dict]:
    """The predictions of the response to `POST /predict`."""
    response = client.post("/predict", json={"inputs": rows.tolist(), "model": model})
    assert response.status_code == 200, response.text
    return response.json()["predictions"]


@pytest.mark.parametrize("model", ["digits", "wave"])
def test_http_equals_offline_scoring(client, model, rows, tmp_path, request):
    """`abstain predict` gives the same predictions for a file as HTTP for its rows, in any batch: equal words, close numbers."""
    rows = rows[model]
    np.savez(tmp_path / "rows.npz", x=rows)
    predict_file(request.getfixturevalue(model), tmp_path / "rows.npz", tmp_path / "out.jsonl")
    offline = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    for size in SIZES:
        online = predictions(client, rows[:size], model)
        assert words(online) == words(offline[:size])
        np.testing.assert_allclose(numbers(online), numbers(offline[:size]), rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("model", ["digits", "wave"])
def test_a_prediction_is_bit_identical_within_a_bucket(client, model, rows):
    """With any neighbours and at any position; between buckets, equal within 1e-6."""
    rows = rows[model]
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
