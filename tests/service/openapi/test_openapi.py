"""`/docs.json` is complete and true: every route is in it, and every response has a status and a body that it describes."""

import asyncio
import re

import httpx
import jwt
import pytest
from starlette.applications import Starlette

from abstain.models.errors import StoreError
from abstain.service import http, openapi
from abstain.service.access.api_keys import add_key
from abstain.service.live_versions import LiveVersions
from abstain.service.process import Process, Traffic
from abstain.service.settings import Settings
from tests.helpers.json_schema import faults
from tests.helpers.processes import PATIENCE

DOCUMENT = openapi.document()
SCHEMAS = DOCUMENT["components"]["schemas"]
OPERATIONS = {
    (method.upper(), path): operation
    for path, methods in DOCUMENT["paths"].items()
    for method, operation in methods.items()
}
ROW = [0.0] * 64
PREDICT = {"inputs": [ROW], "model": "digits"}
TENSOR = {"name": "inputs", "datatype": "FP32", "shape": [1, 8, 8], "data": ROW}
VALUES = {"model": "digits", "version": "1", "file": "app.js"}
STATUSES_WITHOUT_A_TEST = {500, 504}
"""Faults of the server, and requests that take too long: other tests provoke them, in the one place that answers all routes."""


def route_of(method: str, path: str) -> tuple[str, str]:
    """The operation that a request belongs to; a path without parameters comes first."""
    for own in sorted(DOCUMENT["paths"], key=lambda own: own.count("{")):
        if re.fullmatch(re.sub(r"\{\w+\}", "[^/]+", own.replace(".", r"\.")), path):
            return method, own
    raise AssertionError(f"no path of the document for {path}")


def check(response: httpx.Response) -> None:
    """Checks that the document has the status and the body of a response."""
    own = route_of(response.request.method, response.request.url.path)
    described = OPERATIONS[own]["responses"]
    assert str(response.status_code) in described, (own, response.status_code, response.text)
    content = described[str(response.status_code)].get("content")
    if content is None:
        assert response.content == b""
        return
    media_type = response.headers["content-type"].partition(";")[0]
    assert media_type in content, (own, media_type)
    if media_type == "application/json":
        assert list(faults(response.json(), content[media_type]["schema"], SCHEMAS)) == []


@pytest.fixture(scope="module")
def client(server):
    """A client without the checks of abstain's own."""
    with httpx.Client(base_url=server.url, timeout=PATIENCE) as client:
        yield client


@pytest.fixture
def build(tmp_path):
    """Builds the application of a worker in this process, with an empty store; and a key with each scope."""
    keys = tmp_path / "keys.json"
    scopes = {scope: add_key(keys, scope, (scope,)) for scope in ("predict", "read", "metrics")}
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
    for method, path in OPERATIONS:
        body = {"json": bodies[path.rsplit("/", 1)[1]]} if method == "POST" else {}
        response = client.request(method, path.format(**VALUES), **body)
        assert response.status_code == 200, (path, response.text)
        check(response)
    check(client.post("/predict", json={"inputs": [[0.0]], "model": "wave"}))
    binary = {"inputs": [TENSOR], "parameters": {"binary_data_output": True}}
    assert client.post("/v2/models/digits/infer", json=binary).headers["content-type"] == "application/octet-stream"
    check(client.post("/v2/models/digits/infer", json=binary))
    check(client.get("/", headers={"If-None-Match": client.get("/").headers["etag"]}))


def test_requests_are_as_documented():
    """Those of the tests above are valid."""
    assert list(faults(PREDICT, SCHEMAS["PredictRequest"], SCHEMAS)) == []
    assert list(faults({"inputs": [TENSOR]}, SCHEMAS["InferRequest"], SCHEMAS)) == []


def test_every_refusal_is_as_documented(client, build):
    """Each status but those of faults, on every route that documents it; and no other status on any route."""
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
