"""`Client` and `AsyncClient` against a real server, and against connections that fail, are slow or are encrypted."""

import asyncio
import socket
import ssl
import subprocess
import sys
import threading
from contextlib import contextmanager

import httpx
import numpy as np
import pandas as pd
import pytest

import abstain
from abstain.models.bundles.shortfalls import texts
from abstain.service.predict.response import FIELDS
from tests.helpers.certificates import write_certificate
from tests.helpers.paths import PROJECT
from tests.helpers.processes import PATIENCE

IMAGES = np.random.default_rng(0).integers(0, 17, (60, 8, 8)).astype(np.float64)
POINTS = np.random.default_rng(1).normal(size=(30, 1)) * 3
KEY = "abstain_secret-of-nobody-else"


@pytest.fixture(scope="module")
def client(server):
    """A client of the server."""
    with abstain.Client(server.url, timeout=PATIENCE) as client:
        yield client


def by_hand(server, rows, model, **options) -> dict:
    """The response to a request without the client."""
    body = {"inputs": rows.tolist(), "model": model, **options}
    return httpx.post(f"{server.url}/predict", json=body, timeout=PATIENCE).json()


@pytest.mark.parametrize(("model", "rows"), [("digits", IMAGES), ("wave", POINTS)])
def test_the_predictions_are_those_of_the_response(server, client, model, rows):
    """Every field of every row, as records, as columns and as a DataFrame; the version and the levels that were used."""
    options = {"percentile": 95.0, "coverage": 0.8}
    found, expected = client.predict(rows, model=model, **options), by_hand(server, rows, model, **options)
    assert (found.name, found.version, found.digest) == tuple(expected["model"].values())
    assert (found.percentile, found.coverage, found.draws) == (95.0, 0.8, expected["draws"])
    assert (found.max_error, found.confidence) == (None, None)
    task = "classification" if model == "digits" else "regression"
    assert found.fields == tuple(expected["predictions"][0]) == FIELDS[task]
    assert list(found.raw) == expected["predictions"]
    frame = found.to_pandas()
    for at, (row, sent) in enumerate(zip(found, expected["predictions"], strict=True)):
        for name, value in sent.items():
            record = getattr(row, name)
            if name == "scores":
                assert {score: {"evidence": None, **own} for score, own in value.items()} == {
                    score: vars(own) for score, own in record.items()
                }
                assert found.scores["std"].p_value[at] == value["std"]["p_value"] == frame["scores.std.p_value"][at]
            else:
                assert (list(record) if isinstance(value, list) else record) == value
                column = getattr(found, name, None) if name != "aleatoric_std" else found.column(name)
                if isinstance(value, dict):
                    assert {key: own[at] for key, own in column.items()} == value
                elif column is not None:
                    own = column[at]
                    assert (list(own) if isinstance(value, list) else own) == value
    assert found.reject.dtype == bool
    assert repr(found) == f"ServedPredictions({model}:1, {len(rows)} rows, {found.reject.sum()} rejected)"
    assert found[2:4] == (found[2], found[3])


def test_some_fields_and_an_id(client):
    """A field that was not asked for is None in a row, and an error as a column."""
    found = client.predict(IMAGES[:3], model="digits@stable", fields=["label", "prediction_set"], request_id="mine-7")
    assert found.request_ids == ("mine-7",)
    assert found[0].reject is None
    assert isinstance(found.prediction_set[0], tuple)
    assert list(found.to_pandas().columns) == ["label", "prediction_set"]
    with pytest.raises(abstain.InputError, match="fields: expected one of label, prediction_set, found 'reject'; ask"):
        _ = found.reject


def test_the_index_of_a_frame_is_kept(client):
    """The columns of a model without names are its numbers in their order."""
    frame = pd.DataFrame({"x": POINTS[:3, 0]}, index=["a", "b", "c"])
    found = frame.join(client.predict(frame, model="wave").to_pandas()[["mean", "reject", "interval.0"]])
    assert list(found.index) == ["a", "b", "c"]
    np.testing.assert_allclose(found["mean"], client.predict(POINTS[:3], model="wave").mean, rtol=1e-5)


def test_more_rows_than_a_request_may_have(server, client):
    """They are sent in three requests, and joined."""
    with abstain.Client(server.url, timeout=PATIENCE) as own:
        own._session.max_rows = 13
        found = own.predict(POINTS, model="wave", fields=["mean", "reject"])
    assert len(found.request_ids) == 3
    np.testing.assert_allclose(found.mean, client.predict(POINTS, model="wave").mean, rtol=1e-5, atol=1e-6)


def test_what_is_served_is_described(client, digits, wave):
    """The versions in the store, the facts of a version, and the state of the server."""
    assert [(own.name, own.version, own.labels, own.state) for own in client.models()] == [
        ("digits", 1, ("stable",), "ready"),
        ("digits", 2, (), "idle"),
        ("wave", 1, (), "ready"),
    ]
    model = client.model("digits@stable")
    assert (model.name, model.version, model.versions, model.digest) == ("digits", 1, (1,), digits.manifest.digest)
    assert (model.task, model.feature_shape, model.columns) == ("classification", (8, 8), ())
    assert (model.class_names, model.fields) == (digits.manifest.model.class_names, FIELDS["classification"])
    assert (model.percentile, model.draws, model.max_rows) == (digits.calibration.percentile, 20, 10_000)
    assert client.model("wave").shortfalls == tuple(texts(wave.manifest.shortfalls))
    assert client.ready()
    assert client.ready().why == ()
    assert client.live()


@pytest.mark.parametrize(
    ("rows", "options", "kind", "text"),
    [
        ([[0.0]], {"model": "nope"}, abstain.UnknownModel, r"^model: expected one of digits, wave, found 'nope'"),
        ([[None]], {"model": "wave"}, abstain.InputError, r"^inputs\[0\]\[0\]: expected a number, found null"),
        ([[0.0, 1]], {"model": "wave"}, abstain.InputError, r"^inputs\[0\]: expected 1 number, found 2"),
        ([], {"model": "wave"}, abstain.InputError, "^inputs: expected at least one row, found none"),
        ([[0.0]], {"model": "wave", "percentile": 99.99}, abstain.CalibrationError, "calibration"),
        (
            [[0.0]],
            {"model": "wave", "coverage": 2},
            abstain.InputError,
            "^coverage: expected a number above 0 and below 1",
        ),
        ([[0.0]], {"model": "wave", "fields": ["men"]}, abstain.InputError, "did you mean 'mean'"),
        ([[0.0]], {}, abstain.InputError, "^model: expected one of digits, wave"),
    ],
)
def test_a_refusal_is_the_error_of_the_server(client, rows, options, kind, text):
    """Its class and its text; the async client raises the same."""
    with pytest.raises(kind, match=text) as caught:
        client.predict(rows, **options)

    async def same() -> None:
        async with abstain.AsyncClient(client.url) as own:
            await own.predict(rows, **options)

    with pytest.raises(kind) as again:
        asyncio.run(same())
    assert str(again.value) == str(caught.value)


def test_the_async_client_does_the_same(client):
    """Several calls at once over one client."""

    async def ask() -> tuple:
        async with abstain.AsyncClient(client.url, timeout=PATIENCE) as own:
            many = await asyncio.gather(*(own.predict(POINTS[at : at + 3], model="wave") for at in range(8)))
            return many, await own.models(), await own.model("wave"), await own.ready(), await own.live()

    many, models, model, ready, live = asyncio.run(ask())
    expected = client.predict(POINTS, model="wave").mean
    for at, found in enumerate(many):
        np.testing.assert_allclose(found.mean, expected[at : at + 3], rtol=1e-5)
    assert (models, model, ready, live) == (client.models(), client.model("wave"), client.ready(), True)


# ---- connections -----------------------------------------------------------------------------------------------------


@contextmanager
def answering(*answers: bytes, pause: float = 0.0, context: ssl.SSLContext | None = None):
    """A server that gives one answer per connection, each byte of a body after a pause; its URL, and the requests that it got."""
    requests, stop = [], threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            for answer in answers:
                try:
                    connection, _ = listening.accept()
                    with context.wrap_socket(connection, server_side=True) if context else connection as own:
                        requests.append(own.recv(65536))
                        head, end, body = answer.partition(b"\r\n\r\n")
                        own.sendall(head + end)
                        for part in [body[at : at + 1] for at in range(len(body))] if pause else [body]:
                            own.sendall(part)
                            if stop.wait(pause):
                                return
                except OSError:
                    continue  # the client has refused the certificate, or has gone

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield f"http{'s' if context else ''}://127.0.0.1:{listening.getsockname()[1]}", requests
        finally:
            stop.set()
    thread.join(10)


def response(status: str, body: str, *headers: str) -> bytes:
    """A response of HTTP/1.1, after which the connection is closed."""
    head = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Connection: close", *headers]
    return ("\r\n".join([*head, "", body])).encode()


MODELS = response("200 OK", '{"models":[]}')


def test_the_key_is_sent_and_never_shown():
    """It is in the header of each request, and in no text of the client or of its errors."""
    refused = response(
        "401 Unauthorized", '{"error": "key: expected a key", "code": "unknown_key", "where": "key", "id": "a"}'
    )
    with answering(MODELS, refused, b"HTTP/1.1 200 broken\r\nno header\r\n\r\n") as (url, requests):
        client = abstain.Client(url, KEY, retries=0)
        assert client.models() == ()
        with pytest.raises(abstain.AccessRefused, match=r"^key: expected a key") as first:
            client.models()
        with pytest.raises(abstain.Unreachable, match=r"^the connection broke: ") as second:
            client.models()
    assert all(f"X-API-Key: {KEY}\r\n".encode() in request for request in requests)
    shown = [repr(client), *(repr(caught.value) + str(caught.value) for caught in (first, second))]
    with pytest.raises(abstain.ConfigError) as third:
        abstain.Client(url, f"{KEY}\n")
    assert KEY not in "".join([*shown, str(third.value), repr(vars(third.value)), str(third.getrepr())])
    assert repr(client) == f"Client({url!r})"


def test_a_refused_request_is_sent_again_over_http():
    """After the time that the server states."""
    busy = response("503 Service Unavailable", '{"error": "draining", "code": "draining"}', "Retry-After: 0")
    with answering(busy, busy, MODELS) as (url, requests):
        assert abstain.Client(url).models() == ()
        assert len(requests) == 3


@pytest.mark.parametrize(
    "call",
    [
        lambda url: abstain.Client(url, timeout=0.3).models(),
        lambda url: asyncio.run(abstain.AsyncClient(url, timeout=0.3).models()),
    ],
)
def test_a_response_that_trickles_is_given_up(call):
    """The timeout is that of the whole call, also if a byte arrives from time to time."""
    late = pytest.raises(abstain.DeadlineExceeded, match=r"expected a result within 0\.3 s")
    with answering(MODELS, pause=0.1) as (url, _), late:
        call(url)


def test_no_server_is_an_error_and_not_live():
    """After the retries; `live` says so without an error."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    client = abstain.Client(url, retries=1)
    assert not client.live()
    for call in (client.models, client.ready, lambda: client.predict([[1.0]])):
        with pytest.raises(abstain.Unreachable, match=r"^no connection: .*; check the URL, and that the server runs"):
            call()
    assert not asyncio.run(abstain.AsyncClient(url).live())


def test_a_server_that_is_not_ready_says_why():
    """The 503 of `/readyz` is no error."""
    body = '{"ready": false, "workers_ready": 0, "workers": 1, "why": ["digits:1 is loading"]}'
    with answering(response("503 Service Unavailable", body)) as (url, _):
        ready = abstain.Client(url).ready()
    assert (bool(ready), ready.why) == (False, ("digits:1 is loading",))


def test_a_certificate_is_checked(tmp_path):
    """By the authorities of the system, by a file, or not at all if the caller says so."""
    files = write_certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*files)
    with answering(MODELS, MODELS, MODELS, context=context) as (url, _):
        with pytest.raises(abstain.Unreachable, match="certificate verify failed"):
            abstain.Client(url, retries=0).models()
        assert abstain.Client(url, verify=files[0]).models() == ()
        assert abstain.Client(url, verify=False).models() == ()
    with pytest.raises(abstain.ConfigError, match="verify: expected a file of certificates in PEM"):
        abstain.Client(url, verify=tmp_path / "none.crt")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"url": "models.example.org"}, "url: expected a URL such as https://models.example.org:3000, found 'models"),
        ({"url": "ftp://a"}, "expected a URL such as"),
        ({"url": "https://a?key=1"}, "expected a URL such as"),
        ({"url": "https://me:secret@a"}, "url: expected no user name or password, found one; give key="),
        ({"timeout": 0}, "timeout: expected seconds above 0, found 0"),
        ({"retries": -1}, "retries: expected 0 or more, found -1"),
        ({"key": ""}, "key: expected printable ASCII without spaces"),
    ],
)
def test_a_wrong_argument_is_refused(options, text):
    """At once; a password in a URL is not shown."""
    with pytest.raises(abstain.ConfigError) as caught:
        abstain.Client(**{"url": "http://127.0.0.1", **options})
    assert text in str(caught.value)
    assert "secret" not in str(caught.value)


def test_the_client_imports_nothing_that_it_does_not_need():
    """Neither what computes nor what serves; tables import their own packages."""
    code = """
import sys, abstain
abstain.Client("http://127.0.0.1:1"), abstain.AsyncClient("http://127.0.0.1:1"), abstain.RequestError, abstain.ServedPredictions
heavy = ("jax", "jaxlib", "flax", "bentoml", "starlette", "pyarrow", "pandas", "scipy", "pydantic", "orbax", "jaxtyping")
print([name for name in heavy if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
