"""`/docs.json` is complete and true: every route is in it, and every response has a status and a body that it describes."""

import asyncio
import io
import re

import httpx
import jwt
import pyarrow as pa
import pytest
from starlette.applications import Starlette

from abstain.models.errors import StoreError
from abstain.service import control, http
from abstain.service.access.api_keys import add_key
from abstain.service.live_versions import LiveVersions
from abstain.service.predict.table_bodies import ARROW, CSV, MEDIA_TYPES, QUERY
from abstain.service.process import Process, Traffic
from abstain.service.settings import Settings
from tests.helpers.documented import DOCUMENT, OPERATIONS, SCHEMAS, check, route_of
from tests.helpers.json_schema import faults
from tests.helpers.processes import PATIENCE

ROW = [0.0] * 64
PREDICT = {"inputs": [ROW], "model": "digits"}
TENSOR = {"name": "inputs", "datatype": "FP32", "shape": [1, 8, 8], "data": ROW}
NURSE = {"age": 31, "job": "nurse", "night": True, "since": "2024-03-01"}
GAPS = {"since": None, "job": 1, "age": None, "night": "false"}
TABLE = {"columns": list(NURSE), "data": [list(NURSE.values()), [None, "pilot", None, "2012-05-01T10:00:00Z"]]}
COLUMN_TENSORS = [
    {"name": "age", "datatype": "FP64", "shape": [2, 1], "data": [31, None]},
    {"name": "job", "datatype": "BYTES", "shape": [2], "data": ["nurse", None], "parameters": {"content_type": "str"}},
    {"name": "night", "datatype": "BOOL", "shape": [2, 1], "data": [[True], [False]]},
    {"name": "since", "datatype": "BYTES", "shape": [2, 1], "data": ["2024-03-01", None]},
]
INFER_COLUMNS = {"parameters": {"content_type": "pd", "percentile": 95}, "inputs": COLUMN_TENSORS}
VALUES = {"model": "digits", "version": "1", "file": "app.js"}
CONTROL = {own for own, operation in OPERATIONS.items() if operation["tags"] == ["control"]}
"""Operations that need an admin key; `tests/service/following/test_control.py` has their 200."""
STATUSES_WITHOUT_A_TEST = {500, 504}
"""Faults of the server, and requests that take too long: other tests provoke them, in the one place that answers all routes."""


@pytest.fixture(scope="module")
def client(server):
    """A client without the checks of abstain's own."""
    with httpx.Client(base_url=server.url, timeout=PATIENCE) as client:
        yield client


@pytest.fixture
def build(tmp_path):
    """Builds the application of a worker in this process, with an empty store; and a key with each scope."""
    keys = tmp_path / "keys.json"
    scopes = {scope: add_key(keys, scope, (scope,)) for scope in ("predict", "read", "metrics", "admin")}
    scopes["slow"] = add_key(keys, "slow", ("admin",), rate=1e-3)

    async def fail(*_) -> None:
        raise StoreError("a bug")

    def make(**settings):
        process, versions = Process(1, 1, tmp_path), LiveVersions(tmp_path)
        own = Settings(store=tmp_path, **settings)
        return http.build_app(own, process, Traffic(), versions, fail, lambda *_: None)

    return make, keys, scopes


def ask_all(app, requests) -> list[httpx.Response]:
    """The responses of an application in this process."""

    async def ask() -> list[httpx.Response]:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return [await client.request(method, path, **more) for method, path, more in requests]

    return asyncio.run(ask())


def every_route():
    """A request to each operation of the document."""
    for method, path in OPERATIONS:
        body = {"content": b"{}", "headers": {"Content-Type": "application/json"}} if method == "POST" else {}
        yield method, path.format(**VALUES), body


def test_every_route_is_documented_and_no_other(build, monkeypatch):
    """With its methods; HEAD belongs to GET."""
    found = []

    def record(routes, **more):
        found.extend(routes)
        return Starlette(routes=routes, **more)

    monkeypatch.setattr(http, "Starlette", record)
    build[0]()
    assert {(method, route.path) for route in found for method in route.methods - {"HEAD"}} == set(OPERATIONS)


def test_the_document_is_our_own(client):
    """Title and version are abstain's; it is what the server sends; names are unique, and all references lead somewhere."""
    import abstain

    assert client.get("/docs.json").json() == DOCUMENT
    assert DOCUMENT["info"]["title"] == "abstain"
    assert DOCUMENT["info"]["version"] == abstain.__version__
    names = [operation["operationId"] for operation in OPERATIONS.values()]
    assert len(set(names)) == len(names)
    assert {*re.findall(r"#/components/schemas/(\w+)", str(DOCUMENT))} == set(SCHEMAS)
    for (_, path), operation in OPERATIONS.items():
        own = [parameter["name"] for parameter in operation["parameters"] if parameter["in"] == "path"]
        assert own == re.findall(r"\{(\w+)\}", path)


def test_no_default_is_one_that_the_server_refuses(client):
    """The document has no defaults; each key of a request, and null in place of its value, is valid if the server takes it."""
    assert "'default'" not in str(DOCUMENT)
    schema = SCHEMAS["PredictRequest"]
    values = {"percentile": [95, 0, 100, "x"], "coverage": [0.5, 1], "fields": [["label"], [], ["label"] * 2, [1]]}
    bodies = [{**PREDICT, key: value} for key, all_values in values.items() for value in [*all_values, None]]
    bodies += [{**PREDICT, "inputs": []}, {**PREDICT, "inputs": None}, {**PREDICT, "other": 1}, {"model": "digits"}]
    bodies += [
        PREDICT,
        {**PREDICT, "model": None},
        {**PREDICT, "max_error": None},
        {**PREDICT, "inputs": [[ROW[:8]] * 8]},
    ]
    for body in bodies:
        response = client.post("/predict", json=body)
        check(response)
        assert (response.status_code == 200) == (not any(faults(body, schema, SCHEMAS))), body


def test_every_route_answers_as_documented(client):
    """200 on every route, with a body of its schema."""
    bodies = {"infer": {"inputs": [TENSOR]}, "predict": PREDICT, "index": {"ready": True}}
    without_rollout = client.get("/models/digits/rollout")
    assert without_rollout.status_code == 404
    check(without_rollout)
    for method, path in OPERATIONS.keys() - CONTROL - {("GET", "/models/{model}/rollout")}:
        body = {"json": bodies[path.rsplit("/", 1)[1]]} if method == "POST" else {}
        response = client.request(method, path.format(**VALUES), **body)
        assert response.status_code == 200, (path, response.text)
        check(response)
    check(client.post("/predict", json={"inputs": [[0.0]], "model": "wave"}))
    binary = {"inputs": [TENSOR], "parameters": {"binary_data_output": True}}
    assert client.post("/v2/models/digits/infer", json=binary).headers["content-type"] == "application/octet-stream"
    check(client.post("/v2/models/digits/infer", json=binary))
    check(client.get("/", headers={"If-None-Match": client.get("/").headers["etag"]}))


@pytest.fixture(scope="module")
def crew(crew_url):
    """A client of the server of a table, without the checks of abstain's own."""
    with httpx.Client(base_url=crew_url, timeout=PATIENCE) as client:
        yield client


@pytest.mark.parametrize(
    ("body", "valid"),
    [
        ({"records": [NURSE, GAPS]}, True),
        ({"records": [NURSE], "model": "crew", "percentile": 95, "fields": ["reject"]}, True),
        (TABLE, True),
        ({**TABLE, "coverage": 0.8}, True),
        ({"inputs": [[31, 1, 1, 1.6e9]]}, True),
        ({"records": [NURSE], "inputs": [[31, 1, 1, 1.6e9]]}, False),
        ({"records": [NURSE], **TABLE}, False),
        ({"records": []}, False),
        ({"records": [{**NURSE, "age": [31]}]}, False),
        ({"records": [{**NURSE, "age": {}}]}, False),
        ({"records": [[31]]}, False),
        ({"records": NURSE}, False),
        ({"columns": TABLE["columns"]}, False),
        ({"data": TABLE["data"]}, False),
        ({**TABLE, "columns": [*NURSE, "age"]}, False),
        ({**TABLE, "data": []}, False),
        ({**TABLE, "data": [NURSE]}, False),
        ({**TABLE, "data": [[31, "nurse", [], None]]}, False),
        ({**TABLE, "fields": []}, False),
    ],
)
def test_rows_with_names_are_as_documented(crew, body, valid):
    """Exactly one form of rows; the schema accepts what the server takes, and refuses what it refuses whatever the model."""
    response = crew.post("/predict", json=body)
    check(response)
    assert (response.status_code == 200) == valid, response.text
    assert (not any(faults(body, SCHEMAS["PredictRequest"], SCHEMAS))) == valid


def test_tables_as_bodies_are_as_documented(crew):
    """The media types, and the settings in the URL, whose list is separated by commas."""
    operation = OPERATIONS["POST", "/predict"]
    assert [*operation["requestBody"]["content"]] == ["application/json", *MEDIA_TYPES]
    query = {parameter["name"]: parameter for parameter in operation["parameters"] if parameter["in"] == "query"}
    assert tuple(query) == QUERY
    assert (query["fields"]["style"], query["fields"]["explode"]) == ("form", False)
    settings = {"model": "crew", "percentile": 95, "coverage": 0.8, "fields": ["label", "reject"]}
    for name, value in settings.items():
        assert list(faults(value, query[name]["schema"], SCHEMAS)) == []
    sink = io.BytesIO()
    rows = pa.Table.from_pylist([NURSE, {**NURSE, "age": None}])
    with pa.ipc.new_stream(sink, rows.schema) as writer:
        writer.write_table(rows)
    text = b"age,job,night,since\n31,nurse,true,2024-03-01\n,nurse,true,2024-03-01\n"
    answers = []
    for media_type, body in ((CSV, text), (ARROW, sink.getvalue())):
        response = crew.post(
            "/predict",
            params={**settings, "fields": "label,reject"},
            content=body,
            headers={"Content-Type": media_type},
        )
        assert response.status_code == 200, response.text
        check(response)
        answers.append(response.json()["predictions"])
        for wrong in ({"percentile": 100}, {"coverage": 1}, {"fields": "label,label"}, {"max_error": 0}, {"other": 1}):
            refused = crew.post("/predict", params=wrong, content=body, headers={"Content-Type": media_type})
            assert refused.status_code == 400, wrong
            check(refused)
    assert answers[0] == answers[1]
    assert list(answers[0][0]) == settings["fields"]
    in_url = crew.post("/predict", params={"percentile": 95}, json={"records": [NURSE]})
    assert (in_url.status_code, in_url.json()["error"]) == (
        400,
        "query: percentile: expected no settings in the URL of a JSON body, found '95'; put it into the body",
    )
    assert crew.post("/predict", params={"trace": 1}, json={"records": [NURSE]}).status_code == 200
    check(crew.post("/predict", content=b"<a/>", headers={"Content-Type": "application/xml"}))


def test_the_columns_of_a_table_are_as_documented(crew):
    """Of the model, of the inputs and of the configuration of `/v2`; and a request with a tensor for each column."""
    for path in ("/models/crew", "/v2/models/crew", "/v2/models/crew/config", "/v2/models/crew/versions/1"):
        response = crew.get(path)
        assert response.status_code == 200
        check(response)
    # A schema without closed objects would accept any column.
    columns = crew.get("/models/crew").json()["columns"]
    tensors = crew.get("/v2/models/crew").json()["inputs"]
    assert {key for column in columns for key in column} == set(SCHEMAS["ModelColumn"]["properties"])
    own = {key for tensor in tensors for key in tensor.get("parameters", {})}
    assert own == set(SCHEMAS["TensorParameters"]["properties"])
    for body in (INFER_COLUMNS, {"inputs": COLUMN_TENSORS[::-1]}):
        assert list(faults(body, SCHEMAS["InferRequest"], SCHEMAS)) == []
        response = crew.post("/v2/models/crew/infer", json=body)
        assert response.status_code == 200, response.text
        check(response)
    unknown = {**COLUMN_TENSORS[0], "parameters": {"codec": "np"}}
    wrong = {"inputs": [unknown, *COLUMN_TENSORS[1:]]}
    assert any(faults(wrong, SCHEMAS["InferRequest"], SCHEMAS))
    refused = crew.post("/v2/models/crew/infer", json=wrong)
    assert refused.status_code == 400
    check(refused)


def test_requests_are_as_documented():
    """Those of the tests above are valid."""
    assert list(faults(PREDICT, SCHEMAS["PredictRequest"], SCHEMAS)) == []
    assert list(faults({"inputs": [TENSOR]}, SCHEMAS["InferRequest"], SCHEMAS)) == []


def test_every_refusal_is_as_documented(client, build, monkeypatch):
    """Each status but those of faults, on every route that documents it; and no other status on any route."""
    monkeypatch.setattr(control, "WAIT_SECONDS", 0.01)  # No main process is there to follow an order.
    make, keys, scopes = build
    json_type = {"Content-Type": "application/json"}
    wrong = [("POST", "/predict", {"content": b"{", "headers": json_type})]
    wrong += [("POST", f"/v2/models/digits{version}/infer", {"content": b"{"}) for version in ("", "/versions/1")]
    wrong += [("POST", "/v2/repository/index", {"content": b"["})]
    wrong += [("POST", "/predict", {"json": {**PREDICT, "model": "nope"}}), ("POST", "/predict", {"content": b"{}"})]
    coded = {"content": b"{}", "headers": {"Content-Encoding": "br"}}
    wrong += [("POST", f"/v2/models/digits{version}/infer", coded) for version in ("", "/versions/1")]
    for method, path in OPERATIONS:
        if "{" in path:
            wrong.append((method, path.format(**{**VALUES, "model": "nope", "file": "nope", "version": "x"}), {}))
            # A path with unprintable characters.
            wrong.append((method, path.format(**{**VALUES, "model": "a%00", "file": "a%00"}), {}))
    found = [client.request(method, path, **more) for method, path, more in wrong]

    def with_headers(**headers):
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return [
            (method, path, {**more, "headers": {**more.get("headers", {}), **named}})
            for method, path, more in every_route()
        ]

    guarded = make(keys=keys)
    found += ask_all(guarded, with_headers())
    found += ask_all(guarded, with_headers(X_API_Key="unknown"))
    for scope in ("predict", "read", "metrics"):
        found += ask_all(guarded, with_headers(X_API_Key=scopes[scope]))
    found += ask_all(guarded, 2 * with_headers(X_API_Key=scopes["slow"]))
    found += ask_all(guarded, with_headers(Host="evil.example.org"))
    found += ask_all(guarded, with_headers(Origin="https://evil.example.org"))
    found += ask_all(make(max_body_bytes=1), every_route())
    admin = {"headers": {"X-API-Key": scopes["admin"]}, "json": {"label": "stable", "version": 1}}
    for app, name in ((make(keys=keys, max_body_bytes=1), "digits"), (guarded, "no name")):
        found += ask_all(app, [(method, path.format(model=name), admin) for method, path in CONTROL])
    # No identity provider is there to say who has signed a token.
    token = jwt.encode({"sub": "a"}, "secret" * 8)
    provided = make(oidc_issuer="http://127.0.0.1:9/", oidc_audience="abstain", oidc_jwks="http://127.0.0.1:9/keys")
    found += ask_all(provided, with_headers(X_API_Key=token))
    for response in found:
        check(response)
    statuses = {}
    for response in found:
        own = route_of(response.request.method, response.request.url.path)
        statuses.setdefault(own, set()).add(response.status_code)
    missing = {
        own: {int(status) for status in operation["responses"]} - found_statuses - STATUSES_WITHOUT_A_TEST - {200, 304}
        for own, operation in OPERATIONS.items()
        for found_statuses in [statuses[own]]
    }
    assert {own: left for own, left in missing.items() if left} == {}
