"""Invalid requests get the status of the contract and an error that names the problem, and the connection stays open.

After every invalid request, a valid one must succeed over the same connection.
"""

import http.client
import json
import socket
import time

import httpx
import numpy as np
import pytest

from abstain.service.access.guard import SAFE_HEADERS
from tests.helpers.json_trees import ERROR_KEYS
from tests.helpers.processes import PATIENCE

JSON = {"Content-Type": "application/json"}
ACCEPTED = "application/json, text/csv or application/vnd.apache.arrow.stream"
ROW = json.dumps([7] * 64)
LIMIT = 32 * 1024 * 1024
HUGE = 100_000_000
"""The size of a body that is refused without being read, in bytes."""


class Line:
    """One connection to the server; the test fails if the server closes it."""

    def __init__(self, address: tuple[str, int]) -> None:
        self.connection = http.client.HTTPConnection(*address, timeout=PATIENCE)
        self.connection.connect()
        self.socket = self.connection.sock

    def send(self, body: bytes | str | None, headers: dict, method: str = "POST", path: str = "/predict"):
        """Returns status, headers and JSON of the response; a body of None is not sent."""
        content = body.encode() if isinstance(body, str) else body
        self.connection.request(method, path, content, headers)
        response = self.connection.getresponse()
        return response.status, response.headers, json.loads(response.read())

    def refused(self, body: bytes | str | None, headers: dict | None = None, **where: str) -> tuple[int, str]:
        """Returns status and text of an error, after a valid request has succeeded over this connection."""
        code, _, content = self.send(body, JSON if headers is None else headers, **where)
        assert list(content) == ERROR_KEYS
        self.check_open()
        return code, content["error"]

    def check_open(self) -> None:
        """Checks that a valid request succeeds over the same connection."""
        code, _, content = self.send(f'{{"inputs":[{ROW}],"model":"digits","fields":["index"]}}', JSON)
        assert (code, len(content["predictions"])) == (200, 1)
        assert self.connection.sock is self.socket


@pytest.fixture
def line(server):
    """A new connection."""
    line = Line(server.address)
    yield line
    line.connection.close()


def digits(rows: str, more: str = "") -> str:
    """A body for `digits` with these rows and further keys."""
    return f'{{"model":"digits","inputs":[{rows}]{more}}}'


def with_cell(cell: str) -> str:
    """A body with a valid row, and a row with this cell in column 5."""
    return digits(f"{ROW},[{','.join(['1'] * 5 + [cell] + ['2'] * 58)}]")


def raw(address: tuple[str, int], *parts: bytes, until: bytes | None = None) -> bytes:
    """The server's response to the bytes of one connection, to its end or until it contains `until`."""
    with socket.create_connection(address, timeout=PATIENCE) as line:
        for part in parts:
            line.sendall(part)
        response = b""
        while until is None or until not in response:
            more = line.recv(65536)
            if not more:
                break
            response += more
    return response


def head(length: int | None, *more: str) -> bytes:
    """The head of a `POST /predict`."""
    lines = ["POST /predict HTTP/1.1", "Host: localhost", "Content-Type: application/json", *more]
    if length is not None:
        lines.append(f"Content-Length: {length}")
    return "\r\n".join([*lines, "", ""]).encode()


@pytest.mark.parametrize(
    ("cell", "found"),
    [
        ("NaN", "a finite number within float32's range, found nan"),
        ("Infinity", "a finite number within float32's range, found inf"),
        ("-Infinity", "a finite number within float32's range, found -inf"),
        ("1e999", "a finite number within float32's range, found inf"),
        ("-1e999", "a finite number within float32's range, found -inf"),
        ("1e39", "a finite number within float32's range, found 1e+39"),
        ('"99"', "a number, found the string '99'"),
        ('"abc"', "a number, found the string 'abc'"),
        ("null", "a number, found null"),
        ("true", "a number, found true"),
        ("false", "a number, found false"),
        ("{}", "a number, found an object"),
        ("[1]", "a number, found a list of 1"),
        ("[" * 300 + "]" * 300, "a number, found a list of 1"),
        ("9" * 400, "a finite number within float32's range, found an integer of 400 digits"),
        ("-" + "9" * 400, "a finite number within float32's range, found an integer of 400 digits"),
    ],
)
def test_an_invalid_cell_is_400_and_named(line, cell, found):
    """Row 1, column 5, what was expected and what was found."""
    assert line.refused(with_cell(cell)) == (400, f"inputs[1][5]: expected {found}")


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (digits("[1,2,3]"), "inputs[0]: expected 64 numbers, found 3"),
        (digits(f"{ROW},[1,2]"), "inputs[1]: expected 64 numbers, found 2"),
        (digits(f"{ROW},[]"), "inputs[1]: expected 64 numbers, found 0"),
        (digits(f"{ROW},7"), "inputs[1]: expected a list of 64 numbers, found the number 7"),
        (digits(f"{ROW},null"), "inputs[1]: expected a list of 64 numbers, found null"),
        (digits(""), "inputs: expected at least one row, found none"),
        (digits(ROW[1:-1]), "inputs[0]: expected a list of 64 numbers, found the number 7"),
        (digits(str([[7] * 8] * 7)), "inputs[0]: expected 8 lists, found 7"),
        (digits(str([[7] * 8] * 7 + [[7] * 9])), "inputs[0][7]: expected 8 numbers, found 9"),
        (digits(json.dumps([[7] * 8] * 7 + [[7] * 7 + ["7"]])), "inputs[0][7][7]: expected a number, found the"),
        ('{"model":"digits","inputs":{}}', "inputs: expected a list of rows, found an object"),
        ('{"model":"digits","inputs":null}', "inputs: expected a list of rows, found null"),
        ('{"model":"digits"}', "body: inputs: expected a list of rows, found no key 'inputs'"),
        (digits(",".join([ROW] * 10_001)), "inputs: expected at most 10000 rows, found 10001; send them in several"),
    ],
)
def test_rows_of_another_shape_are_400_and_named(line, body, text):
    """The first invalid row, what was expected and what was found."""
    code, error = line.refused(body)
    assert code == 400
    assert error.startswith(text)


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ("", "body: expected JSON, found an empty body"),
        (None, "body: expected JSON, found an empty body"),
        ("   ", "body: expected JSON, found an empty body"),
        ("hello", "body: expected JSON, found "),
        ("inputs=1", "body: expected JSON, found "),
        (b"\x00", "body: expected JSON, found "),
        ('{"model":"digits","inputs":[[1,2', "body: expected JSON, found "),
        (digits(ROW) + "}", "body: expected JSON, found "),
        ("[1]", "body: expected a JSON object, found a list of 1"),
        ('"x"', "body: expected a JSON object, found the string 'x'"),
        ("null", "body: expected a JSON object, found null"),
        (b'{"model":"caf\xe9","inputs":[[1]]}', "body: expected JSON in UTF-8, found an invalid byte at position 13"),
        (digits(ROW).encode("utf-16"), "body: expected JSON in UTF-8, found an invalid byte at position 0"),
        (digits(ROW).encode("utf-16-be"), "body: expected JSON, found "),
        (digits("[" * 100_000 + "]" * 100_000), "body: expected JSON, found "),
        (digits(ROW, ',"model":"wave"'), "body: duplicate key: expected each key once, found 'model'"),
        (digits(ROW, f',"inputs":[{ROW}]'), "body: duplicate key: expected each key once, found 'inputs'"),
        (digits(ROW, f',"\\u0069nputs":[{ROW}]'), "body: duplicate key: expected each key once, found 'inputs'"),
        (digits(ROW + ',{"a":1,"a":2}'), "body: duplicate key: expected each key once, found 'a'"),
        (
            digits(ROW, ',"rows":1'),
            "body: unknown key: expected one of inputs, records, columns, data, model, percentile",
        ),
        (
            digits(ROW, ',"percentil":99'),
            "body: unknown key: expected one of inputs, records, columns, data, model, percentile, coverage, max_error, "
            "fields, found 'percentil'; did you mean 'percentile'?",
        ),
    ],
)
def test_a_body_that_is_not_a_request_is_400(line, body, text):
    """Not JSON, not UTF-8, not an object, duplicate or unknown keys."""
    code, error = line.refused(body)
    assert code == 400
    assert error.startswith(text)


@pytest.mark.parametrize("depth", [900, 990, 1010, 1022, 2000])
def test_objects_nested_deeply_are_400(line, depth):
    """No limit of a parser becomes a server error."""
    code, error = line.refused(digits(ROW + "," + '{"a":' * depth + "1" + "}" * depth))
    assert code == 400
    assert error.startswith(("inputs[1]: expected a list of 64 numbers", "body: expected "))


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ("0", "0"),
        ("100", "100"),
        ("-1", "-1"),
        ("101", "101"),
        ("1e999", "inf"),
        ("NaN", "nan"),
        ('"99"', "the string '99'"),
        ("true", "true"),
        ("null", "null"),
        ("[99]", "a list of 1"),
    ],
)
def test_a_percentile_outside_its_range_is_400(line, value, found):
    """Strictly between 0 and 100, and a number."""
    code, error = line.refused(digits(ROW, f',"percentile":{value}'))
    assert (code, error) == (400, f"percentile: expected a number above 0 and below 100, found {found}")


@pytest.mark.parametrize(("value", "found"), [("0", "0"), ("1", "1"), ("90", "90"), ("-0.5", "-0.5"), ("null", "null")])
def test_a_coverage_outside_its_range_is_400(line, value, found):
    """Strictly between 0 and 1, and a number."""
    code, error = line.refused(digits(ROW, f',"coverage":{value}'))
    assert (code, error) == (400, f"coverage: expected a number above 0 and below 1, found {found}")


@pytest.mark.parametrize(
    ("level", "text"),
    [
        ('"percentile":99.99', "the 99.99th percentile needs a larger calibration part: expected at least 9999 rows"),
        ('"percentile":99.9', "the 99.9th percentile needs a larger calibration part: expected at least 999 rows"),
        ('"coverage":0.9999', "coverage 0.9999 needs a larger calibration part: expected at least 9999 rows"),
    ],
)
def test_a_level_beyond_the_calibration_part_is_400_with_the_number_needed(line, level, text):
    """500 rows are too few for the 99.9th percentile; the error gives the number needed."""
    code, error = line.refused(digits(ROW, f",{level}"))
    assert code == 400
    assert error.startswith(f"{text}, found 500 rows")


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ("[]", "fields: expected a list of field names, found a list of 0"),
        ('"label"', "fields: expected a list of field names, found the string 'label'"),
        ("null", "fields: expected a list of field names, found null"),
        ("[1]", "fields: expected a list of field names, found the number 1"),
        ('["std","std"]', "fields: expected each field once, found 2 fields, 1 of them different"),
        ('["label","mean"]', "fields: expected some of label, index, probabilities, std, "),
    ],
)
def test_invalid_fields_are_400(line, fields, text):
    """An empty list, unknown or duplicate fields, or no list."""
    code, error = line.refused(digits(ROW, f',"fields":{fields}'))
    assert code == 400
    assert error.startswith(text)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("nope", "model: expected one of digits, wave, found 'nope'"),
        ("Digits", "model: expected one of digits, wave, found 'Digits'; did you mean 'digits'?"),
        ("digits:9", "digits has no version 9: expected 1, found 9"),
        ("digits:2", "digits:2 is not served: expected one of 1, found 'digits:2'; give it a label: abstain label"),
        ("digits@canary", "digits has no label 'canary': expected stable, found canary"),
        ("wave@stable", "wave has no label 'stable'; abstain label wave:VERSION LABEL sets one"),
        ("../digits", "no such model: expected name, name:version or name@label, found '../digits'"),
        ("digits/1", "no such model: "),
        ("digits:1/../../x", "no such model: "),
        ("a\"b'c", "no such model: "),
        ("d:i:g", "no such model: "),
        ("digits:0", "no such model: "),
        ("digits:-1", "no such model: "),
        ("digits:1@stable", "no such model: "),
        ("digits@", "no such model: "),
        ("digits:99999999999999999999", "no such model: "),
        ("", "no such model: "),
        (" digits", "no such model: "),
        ("digits\n", "no such model: "),
        ("digits\u0000", "no such model: "),
        ("\U0001f600", "no such model: "),
        ("x" * 100_000, "no such model: "),
    ],
)
def test_an_unknown_model_is_404(line, name, text):
    """Names, versions and labels that are not served, and invalid names; the error cuts long names."""
    code, error = line.refused(json.dumps({"inputs": [[7] * 64], "model": name}))
    assert code == 404
    assert error.startswith(text)
    assert len(error) < 300


def test_a_lone_surrogate_is_refused(line):
    """UTF-8 cannot encode it; the response is valid JSON."""
    assert line.refused('{"inputs":[[1]],"model":"\\ud800"}')[0] in {400, 404}


@pytest.mark.parametrize("value", ["null", "1", "true", '["digits"]', '{"name":"digits"}'])
def test_a_model_that_is_not_a_string_is_400(line, value):
    """The name of a model is a string."""
    code, error = line.refused(f'{{"inputs":[{ROW}],"model":{value}}}')
    assert code == 400
    assert error.startswith("model: expected a string, found ")


def test_a_missing_model_is_400_if_two_are_served(line):
    """The error lists their names."""
    assert line.refused(f'{{"inputs":[{ROW}]}}') == (400, "model: expected one of digits, wave, found no key 'model'")


@pytest.mark.parametrize(
    "content_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "application/jsonp"]
)
def test_another_content_type_is_415(line, content_type):
    """The error names the content type, although the body is valid."""
    code, error = line.refused(digits(ROW), {"Content-Type": content_type})
    assert (code, error) == (415, f"Content-Type: expected {ACCEPTED}, found {content_type}")


def test_a_table_in_another_encoding_is_415(line):
    """Its bytes would be other text."""
    code, error = line.refused(b"x\n1\n", {"Content-Type": "text/csv; charset=latin-1"})
    assert (code, error) == (415, "Content-Type: expected text/csv in UTF-8, found text/csv; charset=latin-1")


@pytest.mark.parametrize(
    ("path", "body", "kind", "text"),
    [
        ("/predict?model=digits", b"x\n1\n", "text/csv", "body: rows: expected shape (8, 8), found shape (1,)"),
        ("/predict", b"x\n1\n", "text/csv", "model: expected one of digits, wave, found no key 'model'"),
        (
            "/predict?model=wave&rows=1",
            b"x\n1\n",
            "text/csv",
            "query: unknown parameter: expected one of model, percentile",
        ),
        ("/predict?model=wave&fields=nope", b"x\n1\n", "text/csv", "fields: expected some of mean, std,"),
        ("/predict?model=wave", b"x\nold\n", "text/csv; charset=UTF-8", "body, row 0: column 'x' must be numeric"),
        (
            "/predict?model=wave",
            b"\xff" * 99,
            "application/vnd.apache.arrow.stream",
            "body: cannot be read: expected va",
        ),
    ],
)
def test_a_wrong_table_is_400(line, path, body, kind, text):
    """The column, the setting or the damage is named."""
    code, error = line.refused(body, {"Content-Type": kind}, path=path)
    assert code == 400
    assert error.startswith(text)


def test_records_for_a_model_without_names_are_400(line):
    """Pixels have no names."""
    text = "the model has no named columns: expected rows of numbers under the key inputs, found rows with names"
    assert line.refused('{"model":"digits","records":[{"x":1}]}') == (400, f"records: {text}")
    assert line.refused('{"model":"digits","columns":["x"],"data":[[1]]}') == (400, f"columns: {text}")


def test_no_content_type_is_415(line):
    """The error says that there is none."""
    assert line.refused(digits(ROW), {}) == (415, f"Content-Type: expected {ACCEPTED}, found none")


@pytest.mark.parametrize("content_type", ["application/json; charset=utf-8", "Application/JSON", "application/json;"])
def test_the_content_type_is_read_as_http_defines_it(line, content_type):
    """Parameters and case do not matter."""
    assert line.send(digits(ROW), {"Content-Type": content_type})[0] == 200


@pytest.mark.parametrize(
    ("method", "path", "code", "text"),
    [
        ("POST", "/nope", 404, "no such route: /nope"),
        ("POST", "/predict/", 404, "no such route: /predict/"),
        ("PUT", "/predict", 405, "method: expected POST, found PUT"),
        ("POST", "/livez", 405, "method: expected "),
    ],
)
@pytest.mark.parametrize("size", [10, 20_000_000])
def test_an_unread_body_does_not_disturb_the_connection(line, method, path, code, text, size):
    """After an error before the body is read, the next request works, however long the body is."""
    found, error = line.refused(b"x" * size, method=method, path=path)
    assert found == code
    assert error.startswith(text)


def test_a_large_body_of_another_content_type_does_not_disturb_the_connection(line):
    """It gets 415, and the next request works."""
    assert line.refused(b"x" * 20_000_000, {"Content-Type": "text/plain"})[0] == 415


def test_get_predict_is_405(line):
    """The error names the allowed method."""
    assert line.refused(None, {}, method="GET") == (405, "method: expected POST, found GET")


@pytest.mark.parametrize("model", ["digits", "wave"])
@pytest.mark.parametrize("size", ["1e30", "-3e38", "3.4028234663852886e38"])
def test_features_at_the_limit_of_float32_get_finite_predictions(line, model, size):
    """More tests of such rows are in test_far_rows.py."""
    width = {"digits": 64, "wave": 1}[model]
    rows = f"[{','.join(['1'] * width)}],[{','.join([size] * width)}]"
    code, _, content = line.send(f'{{"model":"{model}","inputs":[{rows}]}}', JSON)
    assert code == 200, content
    assert "NaN" not in json.dumps(content)
    assert "null" not in json.dumps(content)
    assert np.isfinite([row["entropy"] for row in content["predictions"]]).all()
    line.check_open()


def test_pipelined_requests_get_their_responses_in_order(server):
    """Four valid and invalid requests are written at once; each gets its own response."""
    good, wrong = digits(ROW, ',"fields":["index"]').encode(), with_cell("NaN").encode()
    last = head(len(good), "X-Request-Id: the-last", "Connection: close") + good
    responses = raw(server.address, head(len(wrong)) + wrong + head(len(good)) + good + head(0) + last)
    assert [part.split()[0] for part in responses.split(b"HTTP/1.1 ")[1:]] == [b"400", b"200", b"400", b"200"]
    assert b'"id":"the-last"' in responses


def refusal_text(found: int | str) -> str:
    """The error for a body that is too long."""
    return f"body: expected at most {LIMIT} bytes, found {found}"


@pytest.mark.parametrize("headers", [JSON, {**JSON, "Expect": "100-continue"}], ids=["plain", "expecting"])
def test_http_client_reads_413_for_a_body_too_long(server, headers):
    """A client that writes all 100 MB before it reads gets the response, not a reset; then the connection closes."""
    connection = http.client.HTTPConnection(*server.address, timeout=PATIENCE)
    connection.request("POST", "/predict", b" " * HUGE, headers)
    response = connection.getresponse()
    assert response.status == 413
    assert response.headers["Connection"] == "close"
    assert json.loads(response.read())["error"] == refusal_text(HUGE)
    connection.close()


def test_httpx_reads_413_for_a_body_too_long(server):
    """Its next request succeeds over a new connection."""
    with httpx.Client(base_url=server.url, timeout=PATIENCE) as client:
        response = client.post("/predict", content=b" " * HUGE, headers=JSON)
        assert (response.status_code, response.json()["error"]) == (413, refusal_text(HUGE))
        assert client.get("/livez").status_code == 200


def pieces():
    """100 MB in parts, without a total length."""
    piece = b" " * 65536
    return (piece for _ in range(HUGE // len(piece)))


def test_http_client_reads_413_for_a_chunked_body_too_long(server):
    """The limit also holds for a body without a length, and the client can read the response."""
    connection = http.client.HTTPConnection(*server.address, timeout=PATIENCE)
    connection.request("POST", "/predict", pieces(), {**JSON, "Transfer-Encoding": "chunked"}, encode_chunked=True)
    response = connection.getresponse()
    assert response.status == 413
    assert response.headers["Connection"] == "close"
    assert json.loads(response.read())["error"] == refusal_text("more")
    connection.close()


def test_httpx_reads_413_for_a_chunked_body_too_long(server):
    """Its next request succeeds."""
    with httpx.Client(base_url=server.url, timeout=PATIENCE) as client:
        response = client.post("/predict", content=pieces(), headers=JSON)
        assert (response.status_code, response.json()["error"]) == (413, refusal_text("more"))
        assert client.get("/livez").status_code == 200


@pytest.mark.parametrize("more", [(), ("Expect: 100-continue",)], ids=["plain", "expecting"])
def test_413_is_sent_before_the_body(server, more):
    """The server responds to the head at once, without `100 Continue` and without a byte of the body."""
    started = time.monotonic()
    response = raw(server.address, head(HUGE, *more), until=b"found 100000000")
    assert time.monotonic() - started < 1.5
    assert response.startswith(b"HTTP/1.1 413 ")
    assert b"\r\nconnection: close\r\n" in response.lower()


def test_413_closes_the_connection(server):
    """The server waits for the body only for a short time, and sends nothing after the response."""
    assert b'found 100000000","code":"body_too_large","where":"body",' in raw(server.address, head(HUGE))


def test_a_body_as_long_as_the_limit_is_read(line):
    """A body that is one byte longer is refused."""
    padded = digits(ROW).ljust(LIMIT)
    assert line.send(padded, JSON)[0] == 200
    line.check_open()
    code, _, content = line.send(padded + " ", JSON)
    assert (code, content["error"]) == (413, refusal_text(LIMIT + 1))


def test_a_client_that_expects_100_continue_gets_it(server):
    """Before a body within the limit; then the server responds."""
    body = digits(ROW).encode()
    with socket.create_connection(server.address, timeout=PATIENCE) as line:
        line.sendall(head(len(body), "Expect: 100-continue", "Connection: close"))
        assert line.recv(65536) == b"HTTP/1.1 100 Continue\r\n\r\n"
        line.sendall(body)
        response = b"".join(iter(lambda: line.recv(65536), b""))
    assert response.startswith(b"HTTP/1.1 200 ")


def test_a_chunked_body_is_accepted(server):
    """A body needs no length."""
    body = digits(ROW).encode()
    chunks = (body[start : start + 10] for start in range(0, len(body), 10))
    assert httpx.post(f"{server.url}/predict", content=chunks, headers=JSON, timeout=PATIENCE).status_code == 200


@pytest.mark.parametrize(
    "sent",
    [
        head(1000) + b'{"inputs"',
        head(None, "Transfer-Encoding: chunked") + b'5\r\n{"inp\r\n',
        b"POST /predict HTTP/1.1\r\nHost: localh",
        head(-1),
        head(None, "Transfer-Encoding: chunked") + b"not hexadecimal\r\n",
        head(5, "Content-Length: 100000000") + b"hello",
        b"hello\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ],
    ids=["half body", "half chunk", "half head", "negative length", "bad chunk", "two lengths", "no HTTP", "TLS"],
)
def test_a_client_that_disconnects_or_sends_no_http_does_not_disturb_others(server, line, sent):
    """Other connections continue."""
    with socket.create_connection(server.address, timeout=PATIENCE) as broken:
        broken.sendall(sent)
        line.check_open()
    line.check_open()


def test_an_error_response_is_json(server):
    """It has a content type and a length, and contains no server name or traceback."""
    response = httpx.post(f"{server.url}/predict", content=with_cell("NaN"), headers=JSON, timeout=PATIENCE)
    assert response.headers["content-type"] == "application/json"
    assert int(response.headers["content-length"]) == len(response.content)
    safe = {name.decode() for name, _ in SAFE_HEADERS}
    assert set(response.headers) == {"date", "content-type", "content-length"} | safe
