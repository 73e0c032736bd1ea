"""What real clients of the protocol send of a table is answered as the same rows as records.

`tests/record_client_bodies.py` recorded the requests with tritonclient and MLServer.
"""

import base64
import json

import httpx
import numpy as np
import pytest

from tests.helpers.paths import PROJECT
from tests.helpers.processes import PATIENCE
from tests.service.open_inference.test_open_inference import HEADER_LENGTH, infer

RECORDED = json.loads((PROJECT / "tests" / "data" / "client_bodies.json").read_text("utf-8"))


@pytest.fixture(scope="module")
def client(crew_url):
    """A connection to a server of `crew`."""
    with httpx.Client(base_url=crew_url, timeout=PATIENCE) as connection:
        yield connection


@pytest.mark.parametrize("name", RECORDED)
def test_a_recorded_request_equals_its_records(client, name):
    """Label, probabilities to the last bit of float32, and the reject flag, which an unseen category sets."""
    recorded = RECORDED[name]
    body = base64.b64decode(recorded["base64"]) if "base64" in recorded else recorded["body"].encode()
    headers = {HEADER_LENGTH: str(recorded["length"])} if "length" in recorded else {}
    _, outputs = infer(client, body, headers, "/v2/models/crew/infer")
    response = client.post("/predict", json={"model": "crew", "records": recorded["records"]})
    assert response.status_code == 200, response.text
    rows = response.json()["predictions"]
    assert outputs["label"].tolist() == [row["label"] for row in rows]
    assert outputs["reject"].tolist() == [row["reject"] for row in rows]
    assert rows[3]["reject"]
    np.testing.assert_array_equal(outputs["probabilities"], np.float32([row["probabilities"] for row in rows]))
