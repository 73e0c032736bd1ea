"""The Open Inference Protocol v2: the same numbers as `/predict` in every form, and an error for every fault.

`POST /predict` is the oracle of the numbers; `service/test_http.py` compares it with a simple loop.
"""

import gzip
import http.client
import json
import re
import zlib

import httpx
import numpy as np
import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from abstain.models.errors import AbstainError, InputError
from abstain.models.prediction.posterior import Model
from abstain.models.prediction.preprocessing import Preprocessing
from abstain.models.tables.columns import Column
from abstain.service.batcher import MAX_BATCHES
from abstain.service.compression import accepted_coding
from abstain.service.errors import status_of
from abstain.service.open_inference.outputs import (
    NameColumn,
    Output,
    RequestedOutput,
    all_in_binary,
    encode,
    encode_row,
    make_records,
    outputs_of,
    select_rows,
    to_wire_type,
)
from abstain.service.open_inference.routes import route_template
from abstain.service.open_inference.tensors import DATATYPES, InferRequest, Signature, decode
from tests.helpers.json_trees import ERROR_KEYS
from tests.helpers.paths import PROJECT
from tests.helpers.processes import PATIENCE

HEADER_LENGTH = "Inference-Header-Content-Length"
LIMIT = 32 * 1024 * 1024
INFER = "/v2/models/digits/infer"
ROWS = np.random.default_rng(0).integers(0, 17, (5, 8, 8))
REGRESSION = ("mean", "std", "aleatoric_std", "epistemic_std", "entropy")
CLASSIFICATION = ("probabilities", "std", "entropy", "aleatoric_entropy", "mutual_information")


def tensor(rows: np.ndarray = ROWS, datatype: str = "FP32", **more) -> dict:
    """The input tensor in JSON, with flat data."""
    data = rows.ravel().tolist()
    return {"name": "inputs", "shape": list(rows.shape), "datatype": datatype, "data": data, **more}


def request_body(**more) -> bytes:
    """A valid request in JSON, with optional other keys."""
    return json.dumps({"inputs": [tensor()], **more}).encode()


def binary(rows: np.ndarray = ROWS, datatype: str = "FP32", **more) -> tuple[bytes, dict[str, str]]:
    """The body and header of a request with a binary tensor."""
    data = rows.astype(DATATYPES[datatype]).tobytes()
    sent = {key: value for key, value in tensor(rows, datatype).items() if key != "data"}
    head = orjson.dumps({"inputs": [{**sent, "parameters": {"binary_data_size": len(data)}}], **more})
    return head + data, {HEADER_LENGTH: str(len(head))}


def read(headers, body: bytes) -> tuple[dict, dict[str, np.ndarray | list]]:
    """The JSON of a response, and its outputs as arrays; BYTES as a list of strings."""
    length = int(headers.get(HEADER_LENGTH, len(body)))
    content, tail = json.loads(body[:length]), body[length:]
    outputs = {}
    for output in content["outputs"]:
        size = output.get("parameters", {}).get("binary_data_size")
        dtype = {"FP32": "<f4", "INT64": "<i8", "BOOL": "?", "BYTES": object}[output["datatype"]]
        if size is None:
            values = np.array(output["data"], dtype)
        elif dtype is object:
            values = np.array(strings(tail[:size]), object)
        else:
            values = np.frombuffer(tail[:size], dtype)
        tail = tail[size or 0 :]
        outputs[output["name"]] = values.reshape(output["shape"])
    assert tail == b""
    return content, outputs


def strings(data: bytes) -> list[str]:
    """The elements of a BYTES tensor."""
    elements = []
    while data:
        size = int.from_bytes(data[:4], "little")
        elements.append(data[4 : 4 + size].decode())
        data = data[4 + size :]
    return elements


def infer(client, body: bytes, headers: dict | None = None, path: str = INFER) -> tuple[dict, dict[str, np.ndarray]]:
    """The response of a request that must succeed; not compressed unless the headers accept it."""
    response = client.post(path, content=body, headers={"Accept-Encoding": "identity", **(headers or {})})
    assert response.status_code == 200, response.text
    return read(response.headers, response.content)


def predict(client, rows: np.ndarray, model: str = "digits", **more) -> list[dict]:
    """The predictions of `POST /predict` for the rows."""
    response = client.post("/predict", json={"inputs": rows.tolist(), "model": model, **more})
    assert response.status_code == 200, response.text
    return response.json()["predictions"]


def assert_same(outputs: dict[str, np.ndarray], predictions: list[dict], names: tuple[str, ...]) -> None:
    """Checks that every value of the outputs equals that of `/predict`."""
    for name in names:
        np.testing.assert_array_equal(outputs[name], np.float32([row[name] for row in predictions]), name)
    assert outputs["reject"].tolist() == [row["reject"] for row in predictions]
    for score in predictions[0]["scores"]:
        np.testing.assert_array_equal(
            outputs[f"score_{score}"], np.float32([row["scores"][score]["value"] for row in predictions]), score
        )


@pytest.fixture(scope="module")
def client(server):
    """A client with one connection."""
    with httpx.Client(base_url=server.url, timeout=PATIENCE) as client:
        yield client


@pytest.fixture(scope="module")
def signature(digits) -> Signature:
    """The facts of `digits` that decoding needs."""
    model = digits.manifest.model
    return Signature(model, outputs_of(model, digits.calibration), ("digits",))


@pytest.fixture(scope="module")
def decode_digits(signature):
    """Decodes a body for `digits`."""

    def decode_body(body: bytes, headers: dict[str, str] | None = None, max_bytes: int = LIMIT) -> InferRequest:
        lower = {name.lower(): value for name, value in (headers or {}).items()}
        return decode(lower, body, signature, max_rows=10_000, max_bytes=max_bytes)

    return decode_body


@pytest.mark.parametrize(
    ("datatype", "ends"),
    [
        ("INT8", (-128, 127)),
        ("INT32", (-(2**31), 2**31 - 1)),
        ("INT64", (-(2**63), 2**63 - 1)),
        ("UINT64", (0, 2**64 - 1)),
    ],
)
def test_the_smallest_and_the_largest_integers_are_accepted(decode_digits, datatype, ends):
    """Exactly, flat and nested; WRONG_TENSORS checks that the next integer is refused."""
    for data in ([*ends] * 32, [[*ends] * 32]):
        sent = {"name": "inputs", "datatype": datatype, "shape": [1, 64], "data": data}
        request = decode_digits(json.dumps({"inputs": [sent]}).encode())
        np.testing.assert_array_equal(request.rows.ravel()[:2], np.float32(ends))


@pytest.mark.parametrize("binary_output", [True, False])
@pytest.mark.parametrize("coding", [None, "gzip", "deflate"])
def test_json_binary_and_predict_give_the_same_numbers(client, digits, coding, binary_output):
    """All forms of the same rows and outputs, compressed or not, give the same bits as `/predict`."""
    predictions = predict(client, ROWS, percentile=95, coverage=0.8)
    parameters = {"percentile": 95, "coverage": 0.8, "binary_data_output": binary_output}
    bodies = [
        (request_body(parameters=parameters), {}),
        (json.dumps({"inputs": [tensor() | {"data": ROWS.tolist()}], "parameters": parameters}).encode(), {}),
        (request_body(inputs=[tensor(ROWS.reshape(5, 64), "UINT8")], parameters=parameters), {}),
        *(binary(ROWS, datatype, parameters=parameters) for datatype in DATATYPES),
        binary(ROWS.reshape(5, 64), parameters=parameters),
    ]
    pack = {None: bytes, "gzip": gzip.compress, "deflate": zlib.compress}[coding]
    for body, headers in bodies:
        more = {} if coding is None else {"Content-Encoding": coding, "Accept-Encoding": coding}
        content, outputs = infer(client, pack(body), {**headers, **more})
        assert content["parameters"] == {"digest": digits.manifest.digest, "percentile": 95, "coverage": 0.8}
        assert (content["model_name"], content["model_version"], "id" in content) == ("digits", "1", False)
        assert outputs["label"].tolist() == [row["label"] for row in predictions]
        assert outputs["index"].tolist() == [row["index"] for row in predictions]
        decision = digits.calibration.decision.name
        np.testing.assert_array_equal(
            outputs["p_value"], np.float32([row["scores"][decision]["p_value"] for row in predictions])
        )
        assert_same(outputs, predictions, CLASSIFICATION)


def test_the_outputs_of_a_regression_equal_predict(client):
    """Mean, parts of the variance, quantiles and the ends of the interval."""
    points = np.random.default_rng(1).uniform(-3, 4, (40, 1))
    predictions = predict(client, points, "wave", coverage=0.5)
    body, headers = binary(points, "FP64", parameters={"coverage": 0.5, "binary_data_output": True})
    _, outputs = infer(client, body, headers, "/v2/models/wave/infer")
    assert_same(outputs, predictions, REGRESSION)
    np.testing.assert_array_equal(
        outputs["quantiles"], np.float32([list(row["quantiles"].values()) for row in predictions])
    )
    ends = np.stack([outputs["lower"], outputs["upper"]], axis=1)
    np.testing.assert_array_equal(ends, np.float32([row["interval"] for row in predictions]))


@pytest.mark.parametrize("rows", [1, 33, 300, 700])
def test_any_number_of_rows_is_answered_in_order(client, rows):
    """Few rows are decided in the event loop and many in a thread; outputs stay aligned with rows."""
    images = np.random.default_rng(rows).integers(0, 17, (rows, 8, 8))
    body, headers = binary(images, "UINT8", outputs=[{"name": "probabilities", "parameters": {"binary_data": True}}])
    _, outputs = infer(client, body, headers)
    predictions = predict(client, images, fields=["probabilities"])
    np.testing.assert_array_equal(outputs["probabilities"], np.float32([row["probabilities"] for row in predictions]))


def test_only_the_requested_outputs_are_sent_each_in_its_form(client):
    """In the requested order, JSON and binary mixed, with the id of the request."""
    requested = [{"name": "reject"}, {"name": "label", "parameters": {"binary_data": True}}, {"name": "std"}]
    content, outputs = infer(client, request_body(id="café-1", outputs=requested))
    assert content["id"] == "café-1"
    assert list(outputs) == ["reject", "label", "std"]
    assert ["data" in output for output in content["outputs"]] == [True, False, True]
    predictions = predict(client, ROWS)
    assert outputs["label"].tolist() == [row["label"] for row in predictions]
    np.testing.assert_array_equal(outputs["std"], np.float32([row["std"] for row in predictions]))
    assert all(type(number) in {bool, float} for output in content["outputs"] for number in output.get("data", []))


def test_without_requested_outputs_all_are_sent(client, signature):
    """In binary with `binary_data_output`, which each output can override."""
    content, _ = infer(client, request_body(outputs=[], parameters={"binary_data_output": True}))
    assert [output["name"] for output in content["outputs"]] == list(signature.outputs)
    assert all("binary_data_size" in output["parameters"] for output in content["outputs"])
    requested = {"outputs": [{"name": "std", "parameters": {"binary_data": False}}, {"name": "index"}]}
    content, _ = infer(client, request_body(parameters={"binary_data_output": True}, **requested))
    assert ["data" in output for output in content["outputs"]] == [True, False]


def test_a_raw_binary_request_is_only_rows(client):
    """With a JSON length of 0 the body is FP32, and the response is binary."""
    content, outputs = infer(client, ROWS.astype("<f4").tobytes(), {HEADER_LENGTH: "0"})
    assert_same(outputs, predict(client, ROWS), CLASSIFICATION)
    assert all("data" not in output for output in content["outputs"])


@pytest.mark.parametrize(
    "path", ["digits@stable/infer", "digits:1/infer", "digits/versions/1/infer", "digits%40stable/infer"]
)
@pytest.mark.parametrize("kind", [None, "application/json", "application/octet-stream", "text/plain"])
def test_a_model_can_be_named_in_every_way_with_any_content_type(client, path, kind):
    """The path names the model and a header gives the length of the JSON; the content type does not matter."""
    content, _ = infer(client, request_body(), {"Content-Type": kind} if kind else {}, f"/v2/models/{path}")
    assert (content["model_name"], content["model_version"]) == ("digits", "1")


def test_the_body_may_repeat_the_model_name(client):
    """KServe's Python client writes `model_name` into every request; a name that differs from the path is refused."""
    assert infer(client, request_body(model_name="digits"))[0]["model_name"] == "digits"
    response = client.post(INFER, content=request_body(model_name="wave"))
    assert response.status_code == 400
    assert response.json()["error"] == "model_name: expected digits, as in the path, found 'wave'"


@pytest.mark.parametrize(
    ("accept", "coding"),
    [
        ("", None),
        ("identity", None),
        ("*", None),
        ("br", None),
        ("gzip", "gzip"),
        ("deflate", "deflate"),
        ("gzip, deflate, br", "gzip"),
        ("deflate;q=0.9, gzip;q=0.5", "deflate"),
        ("gzip;q=0", None),
        ("GZIP;q=0.5,", "gzip"),
        ("gzip;q=x", None),
    ],
)
def test_responses_are_compressed_only_on_request(accept, coding):
    """With the coding that the client prefers."""
    assert accepted_coding(accept) == coding


def test_documents_of_the_server_and_its_models(client, signature, digits):
    """Server and model metadata, model configuration and repository index, in Triton's format."""
    server = client.get("/v2").json()
    assert server["name"] == "abstain"
    assert {"binary_tensor_data", "model_configuration", "statistics"} <= set(server["extensions"])
    model = client.get("/v2/models/digits").json()
    assert (model["name"], model["versions"], model["platform"]) == ("digits", ["1"], "abstain_bundle")
    assert model["inputs"] == [{"name": "inputs", "datatype": "FP32", "shape": [-1, 8, 8]}]
    assert [output["name"] for output in model["outputs"]] == list(signature.outputs)
    assert model["outputs"][2] == {"name": "probabilities", "datatype": "FP32", "shape": [-1, 10]}
    assert model["parameters"] == {"digest": digits.manifest.digest}
    assert client.get("/v2/models/digits/versions/1").json() == model
    config = client.get("/v2/models/digits/config").json()
    assert config["max_batch_size"] == 10_000
    assert config["input"] == [{"name": "inputs", "data_type": "TYPE_FP32", "dims": [8, 8]}]
    assert config["output"][0] == {"name": "label", "data_type": "TYPE_STRING", "dims": []}
    assert json.loads(config["parameters"]["class_names"]["string_value"]) == list(signature.model.class_names)
    index = client.post("/v2/repository/index").json()
    states = [(entry["name"], entry["version"], entry["state"]) for entry in index]
    assert states == [("digits", "1", "READY"), ("digits", "2", "UNAVAILABLE"), ("wave", "1", "READY")]
    ready = client.post("/v2/repository/index", json={"ready": True}).json()
    assert [entry["state"] for entry in ready] == ["READY", "READY"]
    assert client.post("/v2/repository/index", json={"redy": True}).status_code == 400


def test_metadata_describes_the_outputs_of_a_response(client):
    """For both tasks: name, type and shape of each output, except the batch axis."""
    for model, rows in (("digits", ROWS), ("wave", np.ones((5, 1)))):
        metadata = client.get(f"/v2/models/{model}").json()["outputs"]
        content, _ = infer(client, request_body(inputs=[tensor(rows)]), path=f"/v2/models/{model}/infer")
        found = [{key: output[key] for key in ("name", "datatype", "shape")} for output in content["outputs"]]
        assert found == [{**output, "shape": [5, *output["shape"][1:]]} for output in metadata]


def test_live_and_ready(client):
    """The server and its models report that they are live and ready."""
    assert client.get("/v2/health/live").json() == {"live": True}
    assert client.get("/v2/health/ready").json() == {"ready": True}
    for path in ("digits", "digits/versions/1", "digits@stable"):
        response = client.get(f"/v2/models/{path}/ready")
        assert (response.status_code, response.json()) == (200, {"name": "digits", "ready": True})


@pytest.mark.parametrize("model", ["nope", "digits@nope", "digits:9", "digits/versions/9", "digits/versions/x", "a b"])
@pytest.mark.parametrize("what", ["", "/ready", "/config", "/stats", "/infer"])
def test_an_unknown_model_or_version_is_404(client, model, what):
    """On every route of a model."""
    response = client.request("POST" if what == "/infer" else "GET", f"/v2/models/{model}{what}")
    assert response.status_code == 404
    assert list(response.json()) == ERROR_KEYS


def test_unknown_routes_and_methods_are_refused(client):
    """404 and 405, in the format of the protocol."""
    assert client.post("/v2/repository/models/digits/load").status_code == 403
    assert client.post("/v2/repository/models/digits/loads").status_code == 404
    assert client.get("/v2/models").status_code == 404
    assert client.get(INFER).json()["error"] == "method: expected POST, found GET"
    assert client.post("/v2/health/live").status_code == 405


def test_statistics_count_the_requests_of_a_worker(client, server):
    """Rows, program calls and failures; one connection is served by one worker."""

    def counts() -> tuple[int, int, int, int]:
        stats = client.get("/v2/models/digits/stats").json()["model_stats"][0]
        spans = stats["inference_stats"]
        assert (stats["name"], stats["version"]) == ("digits", "1")
        assert spans["queue"]["count"] == spans["compute_infer"]["count"] == spans["success"]["count"]
        # Two batches of a large request may be computed at the same time.
        assert spans["compute_infer"]["ns"] <= MAX_BATCHES * spans["success"]["ns"]
        return stats["inference_count"], stats["execution_count"], spans["success"]["count"], spans["fail"]["count"]

    before = counts()
    infer(client, request_body())
    infer(client, *binary(np.zeros((300, 64))))
    assert client.post(INFER, content=b"{}").status_code == 400
    assert tuple(np.subtract(counts(), before)) == (305, 3, 2, 1)
    all_stats = client.get("/v2/models/stats").json()["model_stats"]
    assert [(stats["name"], stats["version"]) for stats in all_stats] == [("digits", "1"), ("wave", "1")]


def test_metrics_count_by_route_and_rows_by_model(client):
    """The label is the route's template, never the path."""
    infer(client, request_body(), path="/v2/models/digits/versions/1/infer")
    client.get("/v2/models/another-one-9/ready")
    text = client.get("/metrics").text
    assert 'abstain_requests_total{code="200",route="/v2/models/{model}/versions/{version}/infer"}' in text
    assert 'abstain_requests_total{code="404",route="/v2/models/{model}/ready"}' in text
    assert "another-one-9" not in text
    assert {route_template(path) for path in ("/v2/models/a/b/infer", "/v2/models", "/v2/models//infer", "")} == {
        "other"
    }


WRONG_TENSORS = [
    ({"name": "x"}, "inputs: name: expected inputs, found the string 'x'"),
    ({"datatype": "BYTES"}, "inputs: datatype: expected FP32, or one of FP16, FP32, "),
    ({"datatype": None}, "inputs: datatype: expected FP32, or one of "),
    ({"shape": [5, 63]}, "inputs: shape: expected [n, 8, 8] or [n, 64], found [5, 63]"),
    ({"shape": [5]}, "inputs: shape: expected [n, 8, 8] or [n, 64], found [5]"),
    ({"shape": []}, "inputs: shape: expected [n, 8, 8] or [n, 64], found []"),
    ({"shape": [5.0, 64]}, "inputs: shape: expected [n, 8, 8] or [n, 64], found [5.0, 64]"),
    ({"shape": [True, 64]}, "inputs: shape: expected [n, 8, 8] or [n, 64], found [True, 64]"),
    ({"shape": [-1, 64]}, "inputs: expected at least one row, found -1"),
    ({"shape": [0, 64], "data": []}, "inputs: expected at least one row, found 0"),
    ({"shape": [10_001, 64]}, "inputs: expected at most 10000 rows, found 10001; send them in several requests"),
    ({"shape": [4, 64]}, "inputs: data: expected 256 numbers, found 320"),
    ({"data": None}, "inputs: data: expected a list of 320 numbers, found null"),
    ({"data": "5"}, "inputs: data: expected a list of 320 numbers, found the string '5'"),
    ({"data": []}, "inputs: data: expected 320 numbers, found 0"),
    ({"data": [[1] * 64] * 4}, "inputs: data: expected 5 rows, found 4"),
    ({"data": [[1] * 64] * 4 + [[1] * 63]}, "inputs[4]: expected 64 numbers, found 63"),
    ({"data": [0] * 319 + ["1"]}, "inputs[4][7][7]: expected a number, found the string '1'"),
    ({"data": [0] * 319 + [True]}, "inputs[4][7][7]: expected a number, found true"),
    ({"data": [0] * 64 + [None] * 256}, "inputs[1][0][0]: expected a number, found null"),
    (
        {"data": [0] * 319 + [float("nan")]},
        "inputs[4][7][7]: expected a finite number within float32's range, found nan",
    ),
    (
        {"data": [float("-inf")] + [0] * 319},
        "inputs[0][0][0]: expected a finite number within float32's range, found -inf",
    ),
    ({"data": [1e39] + [0] * 319}, "inputs[0][0][0]: expected a finite number within float32's range, found 1e+39"),
    ({"data": [0] * 319 + [[1]]}, "inputs[4][7][7]: expected a number, found a list of 1"),
    ({"data": [0] * 319 + [{}]}, "inputs[4][7][7]: expected a number, found an object"),
    ({"data": [[[0] * 8] * 8] * 4 + [[[0] * 8] * 7 + [[0] * 7 + ["7"]]]}, "inputs[4][7][7]: expected a number, found"),
    ({"datatype": "UINT8", "data": [0] * 319 + [256]}, "inputs[4][7][7]: expected an integer from 0 to 255 (UINT8)"),
    (
        {"datatype": "INT64", "data": [0] * 319 + [0.5]},
        "inputs[4][7][7]: expected an integer from -9223372036854775808",
    ),
    (
        {"datatype": "INT32", "data": [0] * 319 + [2**31]},
        "inputs[4][7][7]: expected an integer from -2147483648 to 214",
    ),
    ({"datatype": "INT32", "data": [16777216.5] + [0] * 319}, "inputs[0][0][0]: expected an integer from -2147483648"),
    ({"datatype": "INT64", "data": [2**63] + [0] * 319}, "inputs[0][0][0]: expected an integer from -922337203685477"),
    (
        {"datatype": "UINT64", "data": [-1] + [0] * 319},
        "inputs[0][0][0]: expected an integer from 0 to 184467440737095",
    ),
    (
        {"datatype": "UINT64", "data": [2**64] + [0] * 319},
        "inputs[0][0][0]: expected an integer from 0 to 184467440737",
    ),
    (
        {"datatype": "UINT8", "data": [[[0] * 8] * 8] * 4 + [[[0] * 8] * 7 + [[0] * 7 + [256]]]},
        "inputs[4][7][7]: expected an integer from 0 to 255 (UINT8), found 256",
    ),
    ({"datatype": "FP16", "data": [65505] + [0] * 319}, "inputs[0][0][0]: expected a number from -65504.0 to 65504.0"),
    ({"parameters": {"binary_data_size": 1280}}, "inputs: data: expected either data or binary_data_size, found both"),
    (
        {"parameters": {"shared_memory_region": "x"}},
        "inputs: parameters: unknown key: expected one of binary_data_size",
    ),
    ({"parameters": []}, "inputs: parameters: expected a JSON object, found a list of 0"),
    ({"more": 1}, "inputs: unknown key: expected one of name, shape, datatype, parameters, data, found 'more'"),
]
WRONG_BODIES = [
    (b"", "body: expected JSON, found an empty body"),
    (b"hello", "body: expected JSON, found "),
    (b"[]", "body: expected a JSON object, found a list of 0"),
    (b"\xff\xfe", "body: expected JSON in UTF-8, found an invalid byte at position 0; if binary data follows"),
    (b'{"inputs":' + b"[" * 5000 + b"]" * 5000 + b"}", "body: expected JSON, found "),
    (b'{"id":"\\ud800","inputs":[]}', "inputs: expected one tensor, named inputs, found 0"),
    (request_body()[:-1] + b',"inputs":[]}', "body: duplicate key: expected each key once, found 'inputs'"),
    (
        request_body(more=1),
        "body: unknown key: expected one of id, model_name, parameters, inputs, outputs, found 'more'",
    ),
    (b"{}", "body: inputs: expected a list of one tensor, named inputs, found no key 'inputs'"),
    (request_body(inputs={}), "inputs: expected a list of one tensor, named inputs, found an object"),
    (request_body(inputs=[]), "inputs: expected one tensor, named inputs, found 0"),
    (request_body(inputs=[tensor(), tensor()]), "inputs: expected one tensor, named inputs, found 2"),
    (request_body(inputs=[1]), "inputs: expected a JSON object, found the number 1"),
    (request_body(id=7), "body: id: expected a string, found the number 7"),
    (request_body(id="\ud800"), "body: id: expected Unicode text, found '\\ud800'"),
    (request_body(id=None), "body: id: expected a string, found null"),
    (request_body(parameters={"percentile": 100}), "parameters: percentile: expected a number above 0 and below 100,"),
    (request_body(parameters={"percentile": "99"}), "parameters: percentile: expected a number above 0 and below 100,"),
    (
        request_body(parameters={"coverage": True}),
        "parameters: coverage: expected a number above 0 and below 1, found t",
    ),
    (
        request_body(parameters={"percentile": 99.99999}),
        "the 99.99999th percentile needs a larger calibration part: expected at least ",
    ),
    (
        request_body(parameters={"timeout": 5}),
        "parameters: unknown key: expected one of percentile, coverage, max_error, binary_",
    ),
    (
        request_body(parameters={"binary_data_output": 1}),
        "parameters: binary_data_output: expected true or false, found",
    ),
    (request_body(outputs={}), "body: outputs: expected a list of outputs, found an object"),
    (request_body(outputs=["label"]), "outputs[0]: expected a JSON object, found the string 'label'"),
    (request_body(outputs=[{"name": "lable"}]), "found the string 'lable'; did you mean 'label'?"),
    (request_body(output=[]), "found 'output'; did you mean 'outputs'?"),
    (request_body(outputs=[{"name": "std"}, {"name": "x"}]), "outputs[1]: name: expected one of label, index, prob"),
    (request_body(outputs=[{"name": "std"}] * 2), "outputs[1]: name: expected each output once, found 'std'"),
    (request_body(outputs=[{}]), "outputs[0]: name: expected one of label, index, "),
    (
        request_body(outputs=[{"name": "label", "parameters": {"classification": 3}}]),
        "outputs[0]: classification: expected no classification parameter, because this server does not have the classif",
    ),
    (
        request_body(outputs=[{"name": "label", "parameters": {"binary_data": 1}}]),
        "outputs[0]: parameters: binary_data: expected true or false, found the number 1",
    ),
    *((request_body(inputs=[tensor() | change]), text) for change, text in WRONG_TENSORS),
]


@pytest.fixture
def line(server):
    """One connection: after each refused request, a valid one must succeed over it."""
    connection = http.client.HTTPConnection(*server.address, timeout=PATIENCE)
    connection.connect()
    own = connection.sock

    def send(body: bytes, headers: dict[str, str] | None = None) -> tuple[int, dict]:
        connection.request("POST", INFER, body, headers or {})
        response = connection.getresponse()
        return response.status, json.loads(response.read())

    def refused(body: bytes, headers: dict[str, str] | None = None) -> tuple[int, str]:
        status, content = send(body, headers)
        assert list(content) == ERROR_KEYS
        assert send(request_body(outputs=[{"name": "index"}]))[0] == 200
        assert connection.sock is own
        return status, content["error"]

    yield refused
    connection.close()


def test_invalid_json_is_400_and_named(line):
    """Every error says what, where, expected and found; the connection stays open."""
    for body, text in WRONG_BODIES:
        status, error = line(body)
        assert status == 400, (body[:200], error)
        assert text in error


def test_invalid_binary_data_is_400_and_named(line):
    """Too short, too long, of another size than the JSON says, or with a value that is not finite."""
    body, headers = binary()
    length = int(headers[HEADER_LENGTH])
    for sent, where, text in (
        (body[:-1], headers, "inputs: binary data: expected 1280 bytes after the JSON, found 1279; give the length"),
        (body + b"x", headers, "inputs: binary data: expected 1280 bytes after the JSON, found 1281; give the length"),
        (body[:length], {}, "inputs: binary data: expected 1280 bytes after the JSON, found 0"),
        (body, {}, "body: expected JSON"),
        (body, {HEADER_LENGTH: "x"}, f"{HEADER_LENGTH}: expected a number of bytes, at most the body's "),
        (body, {HEADER_LENGTH: "-1"}, f"{HEADER_LENGTH}: expected a number of bytes, at most the body's "),
        (
            body,
            {HEADER_LENGTH: str(len(body) + 1)},
            f"{HEADER_LENGTH}: expected a number of bytes, at most the body's ",
        ),
        (body, {HEADER_LENGTH: str(length - 1)}, "body: expected JSON, found "),
        (
            body.replace(b"1280", b"1281"),
            headers,
            "inputs: binary_data_size: expected 1280, for FP32 of shape [5, 8, 8]",
        ),
        (
            body.replace(b"1280", b'"12"'),
            headers,
            "inputs: binary_data_size: expected 1280, for FP32 of shape [5, 8, 8]",
        ),
        (
            body.replace(b"FP32", b"INT8"),
            headers,
            "inputs: binary_data_size: expected 320, for INT8 of shape [5, 8, 8]",
        ),
        (
            request_body() + b"1234",
            {HEADER_LENGTH: str(len(request_body()))},
            "inputs: binary data: expected the parameter",
        ),
        (b"\0" * 255, {HEADER_LENGTH: "0"}, "body: expected rows of 64 FP32, 256 bytes each, found 255 bytes"),
        (b"", {HEADER_LENGTH: "0"}, "body: expected JSON, found an empty body"),
    ):
        status, error = line(sent, where)
        assert status == 400, error
        assert text in error
    for datatype, value in (("FP32", np.nan), ("FP32", -np.inf), ("FP16", np.inf), ("FP64", 1e39)):
        rows = ROWS.astype(float)
        rows[3, 1, 2] = value
        found = f"inputs[3][1][2]: expected a finite number within float32's range, found {value:.5g}"
        assert line(*binary(rows, datatype)) == (400, found)


def test_invalid_compression_is_refused(line):
    """Damaged, incomplete, followed by other bytes, not supported, or a bomb: the limit is for the decompressed body."""
    good = request_body()
    for coding, sent, status, text in (
        ("gzip", good, 400, "body: expected gzip data, as Content-Encoding says, found other or damaged bytes"),
        ("gzip", gzip.compress(good)[:-9], 400, "body: expected complete gzip data, found incomplete data"),
        ("gzip", gzip.compress(good) + b"x", 400, "body: expected complete gzip data, found bytes after its end"),
        ("gzip", b"", 400, "body: expected complete gzip data, found incomplete data"),
        ("deflate", zlib.compress(good)[:-9], 400, "body: expected complete deflate data, found incomplete data"),
        ("br", good, 415, "Content-Encoding: expected gzip or deflate, found 'br'"),
        ("gzip, gzip", good, 415, "Content-Encoding: expected gzip or deflate, found 'gzip, gzip'"),
        (
            "gzip",
            gzip.compress(bytes(LIMIT + 1)),
            413,
            f"body: expected at most {LIMIT} bytes after decompression, found",
        ),
        ("deflate", zlib.compress(bytes(10 * LIMIT)), 413, f"body: expected at most {LIMIT} bytes after decompression"),
    ):
        code, error = line(sent, {"Content-Encoding": coding})
        assert (code, error[: len(text)]) == (status, text)


def test_a_body_too_long_is_413_before_it_is_read(server):
    """By its Content-Length, as for `/predict`."""
    connection = http.client.HTTPConnection(*server.address, timeout=PATIENCE)
    connection.request("POST", INFER, b" " * (LIMIT + 1))
    response = connection.getresponse()
    assert (response.status, response.headers["Connection"]) == (413, "close")
    connection.close()


def test_rows_that_overflow_the_network_get_finite_numbers_or_an_error(line, client):
    """The error names the row."""
    for model, width in (("digits", 64), ("wave", 1)):
        body, headers = binary(np.full((2, width), 3e38), parameters={"binary_data_output": True})
        response = client.post(f"/v2/models/{model}/infer", content=body, headers=headers)
        if response.status_code == 200:
            _, outputs = read(response.headers, response.content)
            assert all(np.isfinite(values).all() for values in outputs.values() if values.dtype.kind == "f")
        else:
            assert response.json()["error"].startswith("inputs[0]: the prediction overflows float32")


def test_a_binary_tensor_is_a_view_of_the_body(decode_digits):
    """No number is copied or becomes a Python object before rows are padded to a bucket."""
    body, headers = binary()
    rows = decode_digits(body, headers).rows
    assert not rows.flags.owndata
    assert (rows.dtype, rows.shape) == (np.float32, (5, 8, 8))
    np.testing.assert_array_equal(rows, ROWS)


def test_every_form_decodes_to_the_same_rows(decode_digits):
    """JSON flat, nested and half nested, with binary outputs or not, and raw deflate, which some clients call deflate."""
    bare = zlib.compressobj(wbits=-15)
    packed = bare.compress(request_body()) + bare.flush()
    for body, headers in (
        (request_body(), {}),
        (request_body(parameters={"binary_data_output": True}), {}),
        (request_body(inputs=[tensor() | {"data": ROWS.tolist()}]), {}),
        (request_body(inputs=[tensor() | {"data": ROWS.reshape(5, 64).tolist()}]), {}),
        (request_body(inputs=[tensor() | {"data": ROWS.astype(float).ravel().tolist()}]), {}),
        (packed, {"Content-Encoding": "deflate"}),
        (b" \n" + request_body() + b"\n", {}),
    ):
        rows = decode_digits(body, headers).rows
        assert rows.dtype == np.float32
        np.testing.assert_array_equal(rows, ROWS)


def test_codes_of_categories_are_checked_as_for_predict(digits):
    """A column of categories accepts only codes, also in binary, and the error lists them."""
    columns = (Column(name="size"), Column(name="colour", categories=("red", "blue")))
    table = digits.manifest.model.model_copy(
        update={
            "feature_shape": (2,),
            "feature_names": ("size", "colour"),
            "preprocessing": Preprocessing(columns=columns),
        }
    )
    signature = Signature(table, {"label": Output("BYTES")}, ("table",))
    body, headers = binary(np.array([[1.0, 1.0], [2.5, 2.0]]))
    with pytest.raises(
        InputError, match=re.escape("inputs[1][1] (colour): expected a category's code (0 = red, 1 = bl")
    ):
        decode({HEADER_LENGTH.lower(): headers[HEADER_LENGTH]}, body, signature, max_rows=10, max_bytes=LIMIT)
    assert isinstance(table, Model)


def test_names_are_bytes_after_their_length():
    """The length in four bytes, little-endian, then UTF-8; in JSON the name itself."""
    column = NameColumn(("é", "b", ""), np.array([0, 2, 1, 0]))
    outputs = {"label": Output("BYTES")}
    headers, body = encode({"model_name": "m"}, {"label": column}, (RequestedOutput("label", True),), outputs, "")
    content, tail = json.loads(body[: int(headers[HEADER_LENGTH])]), body[int(headers[HEADER_LENGTH]) :]
    assert tail == b"\2\0\0\0\xc3\xa9" + b"\0\0\0\0" + b"\1\0\0\0b" + b"\2\0\0\0\xc3\xa9"
    assert content["outputs"][0]["parameters"] == {"binary_data_size": len(tail)}
    _, body = encode({}, {"label": column}, (RequestedOutput("label", False),), outputs, "")
    assert json.loads(body)["outputs"][0]["data"] == ["é", "", "b", "é"]


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(["FP32", "inputs"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
PATHS = [
    ("id",), ("parameters",), ("parameters", "percentile"), ("inputs",), ("inputs", 0), ("inputs", 0, "shape"),
    ("inputs", 0, "shape", 1), ("inputs", 0, "datatype"), ("inputs", 0, "name"), ("inputs", 0, "parameters"),
    ("inputs", 0, "parameters", "binary_data_size"), ("inputs", 0, "data"), ("inputs", 0, "data", 7), ("outputs",),
    ("outputs", 0), ("outputs", 0, "name"), ("outputs", 0, "parameters"), ("outputs", 0, "parameters", "binary_data"),
]  # fmt: skip
patient = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.mark.parametrize("model", ["digits", "wave"])
@pytest.mark.parametrize("head", [{"model_name": "a"}, {"model_name": "a", "id": "7", "parameters": {"x": 0.5}}])
def test_a_row_of_records_equals_its_encoded_outputs(request, model, head):
    """Bytes and headers are equal for every row; rows with numbers that are not finite are marked."""
    bundle = request.getfixturevalue(model)
    outputs = outputs_of(bundle.manifest.model, bundle.calibration)
    random, rows = np.random.default_rng(0), 5
    columns = {
        name: NameColumn(bundle.manifest.model.class_names, random.integers(0, 10, rows))
        if datatype == "BYTES"
        else to_wire_type(random.integers(0, 2, (rows, *shape)).astype(float), Output(datatype, shape))
        for name, (datatype, shape) in outputs.items()
    }
    columns["entropy"][3] = np.inf
    records = make_records(columns, outputs)
    assert records.finite.tolist() == [True, True, True, False, True]
    for row in range(rows):
        own = {name: select_rows(values, slice(row, row + 1)) for name, values in columns.items()}
        assert encode_row(head, records, row, outputs) == encode(head, own, all_in_binary(outputs), outputs, "")


def check_decoded(decode_digits, body: bytes, headers: dict[str, str]) -> None:
    """Checks that a body gives valid rows or a client error."""
    request, status = None, 0
    try:
        request = decode_digits(body, headers)
    except AbstainError as error:
        status = status_of(error)
    if request is None:
        assert status in {400, 413, 415}
        return
    assert (request.rows.dtype, request.rows.shape[1:]) == (np.float32, (8, 8))
    assert np.isfinite(request.rows).all()
    assert request.outputs
    assert request.id is None or request.id.encode() is not None


@patient
@given(
    st.binary(max_size=200),
    st.none() | st.integers(0, 250).map(str) | st.text(max_size=5),
    st.sampled_from(["", "gzip", "deflate"]),
)
def test_any_bytes_are_rows_or_a_client_error(decode_digits, body, length, coding):
    """With any headers."""
    headers = {"Content-Encoding": coding} | ({} if length is None else {HEADER_LENGTH: length})
    check_decoded(decode_digits, body, headers)


@patient
@given(st.sampled_from(PATHS), JUNK, st.booleans())
def test_any_value_anywhere_is_rows_or_a_client_error(decode_digits, position, junk, ascii_only):
    """A valid request with one of its values replaced."""
    content = json.loads(
        request_body(id="a", parameters={"percentile": 99}, outputs=[{"name": "std", "parameters": {}}])
    )
    content["inputs"][0]["parameters"] = {}
    inner = content
    for key in position[:-1]:
        inner = inner[key]
    inner[position[-1]] = junk
    text = json.dumps(content, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
    check_decoded(decode_digits, text, {})


@patient
@given(st.integers(0, 1500), st.binary(max_size=4), st.integers(0, 3), st.sampled_from(sorted(DATATYPES)))
def test_a_binary_request_with_changed_bytes_is_rows_or_a_client_error(
    decode_digits, position, junk, dropped, datatype
):
    """Bytes are replaced, inserted or removed, in the JSON or in the data."""
    body, headers = binary(ROWS, datatype)
    check_decoded(decode_digits, body[:position] + junk + body[position + dropped :], headers)


def test_the_requests_of_the_guide_work(server):
    """The body of the curl command, and the Python code for binary data; Triton's client is not a dependency."""
    guide = (PROJECT / "docs" / "open-inference.md").read_text("utf-8")
    body = re.search(r"-d '(\{.*?\})'", guide, re.DOTALL).group(1)
    content, outputs = read(
        {}, httpx.post(f"{server.url}/v2/models/wave/infer", content=body, timeout=PATIENCE).content
    )
    assert content["id"] == "a-1"
    assert {name: values.shape for name, values in outputs.items()} == {"mean": (2,), "reject": (2,)}
    script = next(code for code in re.findall(r"```python\n(.*?)```", guide, re.DOTALL) if "http.client" in code)
    names: dict = {}
    exec(script.replace('"127.0.0.1", 3000', repr(server.url.removeprefix("http://"))), names)  # noqa: S102
    np.testing.assert_allclose(names["probabilities"].sum(axis=1), 1, atol=1e-5)
