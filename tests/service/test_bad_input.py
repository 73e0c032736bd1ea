"""What is wrong with a request is said with the contract's code and a sentence, and the connection lives on.

Every wrong request is followed by a good one over the same connection: whatever a client sends, the next is answered.
"""

import http.client
import json
import socket
import time

import httpx
import numpy as np
import pytest

from abstain.service.access.guard import SAFE_HEADERS
from tests.helpers.processes import PATIENCE

JSON = {"Content-Type": "application/json"}
ROW = json.dumps([7] * 64)
LIMIT = 32 * 1024 * 1024
HUGE = 100_000_000
"""Bytes of a body that is refused unread."""


class Line:
    """One connection to the server, which fails the test if the server ends it."""

    def __init__(self, address: tuple[str, int]) -> None:
        self.connection = http.client.HTTPConnection(*address, timeout=PATIENCE)
        self.connection.connect()
        self.socket = self.connection.sock

    def send(self, body: bytes | str | None, headers: dict, method: str = "POST", path: str = "/predict"):
        """Code, headers and JSON of the answer; None for a body sends none."""
        content = body.encode() if isinstance(body, str) else body
        self.connection.request(method, path, content, headers)
        response = self.connection.getresponse()
        return response.status, response.headers, json.loads(response.read())

    def refused(self, body: bytes | str | None, headers: dict | None = None, **where: str) -> tuple[int, str]:
        """Code and text of an error, after which a good request has been answered over this connection."""
        code, _, content = self.send(body, JSON if headers is None else headers, **where)
        assert list(content) == ["error", "code", "where", "id"]
        self.answers()
        return code, content["error"]

    def answers(self) -> None:
        """A good request is answered, and no new connection was needed for it."""
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
    """A body about `digits`, its rows and further keys as they are written."""
    return f'{{"model":"digits","inputs":[{rows}]{more}}}'


def with_cell(cell: str) -> str:
    """A body with a good row, and one whose feature 5 is as written."""
    return digits(f"{ROW},[{','.join(['1'] * 5 + [cell] + ['2'] * 58)}]")


def raw(address: tuple[str, int], *parts: bytes, until: bytes | None = None) -> bytes:
    """What the server says to the bytes of one connection, to its end or until the answer holds something."""
    with socket.create_connection(address, timeout=PATIENCE) as line:
        for part in parts:
            line.sendall(part)
        said = b""
        while until is None or until not in said:
            more = line.recv(65536)
            if not more:
                break
            said += more
    return said


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
def test_a_wrong_cell_is_400_and_named(line, cell, found):
    """Row 1, feature 5, what was expected and what was found."""
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
        ('{"model":"digits"}', "body: inputs: expected a list of rows, found no such key"),
        (digits(",".join([ROW] * 10_001)), "inputs: expected at most 10000 rows, found 10001; send them in several"),
    ],
)
def test_rows_of_another_shape_are_400_and_named(line, body, text):
    """The first row at fault, with what it should be and is."""
    code, error = line.refused(body)
    assert code == 400
    assert error.startswith(text)


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ("", "body: expected JSON, found nothing"),
        (None, "body: expected JSON, found nothing"),
        ("   ", "body: expected JSON, found nothing"),
        ("hello", "body: expected JSON, found "),
        ("inputs=1", "body: expected JSON, found "),
        (b"\x00", "body: expected JSON, found "),
        ('{"model":"digits","inputs":[[1,2', "body: expected JSON, found "),
        (digits(ROW) + "}", "body: expected JSON, found "),
        ("[1]", "body: expected a JSON object, found a list of 1"),
        ('"x"', "body: expected a JSON object, found the string 'x'"),
        ("null", "body: expected a JSON object, found null"),
        (b'{"model":"caf\xe9","inputs":[[1]]}', "body: expected JSON in UTF-8, found a wrong byte at 13"),
        (digits(ROW).encode("utf-16"), "body: expected JSON in UTF-8, found a wrong byte at 0"),
        (digits(ROW).encode("utf-16-be"), "body: expected JSON, found "),
        (digits("[" * 100_000 + "]" * 100_000), "body: expected JSON, found "),
        (digits(ROW, ',"model":"wave"'), "body: duplicate key: expected each key once, found 'model'"),
        (digits(ROW, f',"inputs":[{ROW}]'), "body: duplicate key: expected each key once, found 'inputs'"),
        (digits(ROW, f',"\\u0069nputs":[{ROW}]'), "body: duplicate key: expected each key once, found 'inputs'"),
        (digits(ROW + ',{"a":1,"a":2}'), "body: duplicate key: expected each key once, found 'a'"),
        (digits(ROW, ',"rows":1'), "body: unknown key: expected one of inputs, model, percentile, coverage, fields"),
        (digits(ROW, ',"percentil":99'), "body: unknown key: "),
    ],
)
def test_a_body_that_is_no_request_is_400(line, body, text):
    """Not JSON, not UTF-8, not an object, keys twice or unknown."""
    code, error = line.refused(body)
    assert code == 400
    assert error.startswith(text)


@pytest.mark.parametrize("depth", [900, 990, 1010, 1022, 2000])
def test_objects_nested_deeply_are_400(line, depth):
    """No parser's limit becomes the server's fault."""
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
    ("term", "text"),
    [
        ('"percentile":99.99', "the 99.99th percentile needs a larger calibration split: expected at least 9999 rows"),
        ('"percentile":99.9', "the 99.9th percentile needs a larger calibration split: expected at least 999 rows"),
        ('"coverage":0.9999', "coverage 0.9999 needs a larger calibration split: expected at least 9999 rows"),
    ],
)
def test_more_than_the_calibration_split_can_tell_is_400_with_the_number_needed(line, term, text):
    """500 rows cannot tell the 99.9th percentile; the message says how many could."""
    code, error = line.refused(digits(ROW, f",{term}"))
    assert code == 400
    assert error.startswith(f"{text}, found 500 rows")


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ("[]", "fields: expected a list of field names, found a list of 0"),
        ('"label"', "fields: expected a list of field names, found the string 'label'"),
        ("null", "fields: expected a list of field names, found null"),
        ("[1]", "fields: expected a list of field names, found 1"),
        ('["std","std"]', "fields: expected each field once, found 2, of which 1 differ"),
        ('["label","mean"]', "fields: expected some of label, index, probabilities, std, "),
    ],
)
def test_wrong_fields_are_400(line, fields, text):
    """None, unknown ones, or no list."""
    code, error = line.refused(digits(ROW, f',"fields":{fields}'))
    assert code == 400
    assert error.startswith(text)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("nope", "model: expected one of digits, wave, found 'nope'"),
        ("Digits", "model: expected one of digits, wave, found 'Digits'"),
        ("digits:9", "digits has no version 9: expected 1, found 9"),
        ("digits:2", "digits:2 is not served: expected one of 1, found 'digits:2'; give it a label"),
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
    """Names, versions and labels that are not served, and text that is no name at all; nothing is echoed at length."""
    code, error = line.refused(json.dumps({"inputs": [[7] * 64], "model": name}))
    assert code == 404
    assert error.startswith(text)
    assert len(error) < 300


def test_a_lone_surrogate_is_no_name(line):
    """It cannot be said in UTF-8, so it is refused; the answer is JSON all the same."""
    assert line.refused('{"inputs":[[1]],"model":"\\ud800"}')[0] in {400, 404}


@pytest.mark.parametrize("value", ["null", "1", "true", '["digits"]', '{"name":"digits"}'])
def test_a_model_that_is_no_string_is_400(line, value):
    """A name is a string."""
    code, error = line.refused(f'{{"inputs":[{ROW}],"model":{value}}}')
    assert code == 400
    assert error.startswith("model: expected a string, found ")


def test_a_model_left_out_is_400_where_two_are_served(line):
    """The names are listed."""
    assert line.refused(f'{{"inputs":[{ROW}]}}') == (400, "model: expected one of digits, wave, found no such key")


@pytest.mark.parametrize(
    "content_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "application/jsonp"]
)
def test_another_content_type_is_415(line, content_type):
    """What was sent is named, though the body is right."""
    code, error = line.refused(digits(ROW), {"Content-Type": content_type})
    assert (code, error) == (415, f"Content-Type: expected application/json, found {content_type}")


def test_no_content_type_is_415(line):
    """None was sent, and the message says so."""
    assert line.refused(digits(ROW), {}) == (415, "Content-Type: expected application/json, found none")


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
def test_a_body_that_nobody_reads_does_not_spoil_the_connection(line, method, path, code, text, size):
    """Errors that come before the body is read leave the next request whole, however long the body is."""
    found, error = line.refused(b"x" * size, method=method, path=path)
    assert found == code
    assert error.startswith(text)


def test_a_large_body_of_another_content_type_does_not_spoil_the_connection(line):
    """415 is said without reading."""
    assert line.refused(b"x" * 20_000_000, {"Content-Type": "text/plain"})[0] == 415


def test_get_predict_is_405(line):
    """With the method that is allowed."""
    assert line.refused(None, {}, method="GET") == (405, "method: expected POST, found GET")


@pytest.mark.parametrize("model", ["digits", "wave"])
@pytest.mark.parametrize("size", ["1e30", "-3e38", "3.4028234663852886e38"])
def test_features_at_the_edge_of_float32_are_answered(line, model, size):
    """With finite numbers; more of this in test_far_rows.py."""
    width = {"digits": 64, "wave": 1}[model]
    rows = f"[{','.join(['1'] * width)}],[{','.join([size] * width)}]"
    code, _, content = line.send(f'{{"model":"{model}","inputs":[{rows}]}}', JSON)
    assert code == 200, content
    assert "NaN" not in json.dumps(content)
    assert "null" not in json.dumps(content)
    assert np.isfinite([row["entropy"] for row in content["predictions"]]).all()
    line.answers()


def test_good_requests_behind_bad_ones_in_a_pipeline_are_answered_in_order(server):
    """Four requests written at once: each gets its own answer, in the order of writing."""
    good, wrong = digits(ROW, ',"fields":["index"]').encode(), with_cell("NaN").encode()
    last = head(len(good), "X-Request-Id: the-last", "Connection: close") + good
    said = raw(server.address, head(len(wrong)) + wrong + head(len(good)) + good + head(0) + last)
    assert [part.split()[0] for part in said.split(b"HTTP/1.1 ")[1:]] == [b"400", b"200", b"400", b"200"]
    assert b'"id":"the-last"' in said


def refusal_text(found: int | str) -> str:
    """The error of a body that is too long."""
    return f"body: expected at most {LIMIT} bytes, found {found}"


@pytest.mark.parametrize("headers", [JSON, {**JSON, "Expect": "100-continue"}], ids=["plain", "expecting"])
def test_http_client_reads_413_for_a_body_too_long(server, headers):
    """A client that writes all 100 MB before it reads gets the answer, not a reset; the connection closes after it."""
    connection = http.client.HTTPConnection(*server.address, timeout=PATIENCE)
    connection.request("POST", "/predict", b" " * HUGE, headers)
    response = connection.getresponse()
    assert response.status == 413
    assert response.headers["Connection"] == "close"
    assert json.loads(response.read())["error"] == refusal_text(HUGE)
    connection.close()


def test_httpx_reads_413_for_a_body_too_long(server):
    """And its next request is answered, over a new connection."""
    with httpx.Client(base_url=server.url, timeout=PATIENCE) as client:
        response = client.post("/predict", content=b" " * HUGE, headers=JSON)
        assert (response.status_code, response.json()["error"]) == (413, refusal_text(HUGE))
        assert client.get("/livez").status_code == 200


def pieces():
    """100 MB, piece by piece, whose length nobody says."""
    piece = b" " * 65536
    return (piece for _ in range(HUGE // len(piece)))


def test_http_client_reads_413_for_a_chunked_body_too_long(server):
    """The limit also holds for a body that does not say its length, and the answer is read all the same."""
    connection = http.client.HTTPConnection(*server.address, timeout=PATIENCE)
    connection.request("POST", "/predict", pieces(), {**JSON, "Transfer-Encoding": "chunked"}, encode_chunked=True)
    response = connection.getresponse()
    assert response.status == 413
    assert response.headers["Connection"] == "close"
    assert json.loads(response.read())["error"] == refusal_text("more")
    connection.close()


def test_httpx_reads_413_for_a_chunked_body_too_long(server):
    """And its next request is answered."""
    with httpx.Client(base_url=server.url, timeout=PATIENCE) as client:
        response = client.post("/predict", content=pieces(), headers=JSON)
        assert (response.status_code, response.json()["error"]) == (413, refusal_text("more"))
        assert client.get("/livez").status_code == 200


@pytest.mark.parametrize("more", [(), ("Expect: 100-continue",)], ids=["plain", "expecting"])
def test_413_comes_before_the_body(server, more):
    """The head alone is answered, at once, without `100 Continue` and without a byte of the body."""
    started = time.monotonic()
    said = raw(server.address, head(HUGE, *more), until=b"found 100000000")
    assert time.monotonic() - started < 1.5
    assert said.startswith(b"HTTP/1.1 413 ")
    assert b"\r\nconnection: close\r\n" in said.lower()


def test_413_closes_the_connection(server):
    """A client that writes nothing more is waited for, but not for long; nothing is said after the answer."""
    assert b'found 100000000","code":"body_too_large","where":"body",' in raw(server.address, head(HUGE))


def test_a_body_as_long_as_the_limit_is_read(line):
    """One byte more is not."""
    padded = digits(ROW).ljust(LIMIT)
    assert line.send(padded, JSON)[0] == 200
    line.answers()
    code, _, content = line.send(padded + " ", JSON)
    assert (code, content["error"]) == (413, refusal_text(LIMIT + 1))


def test_a_client_that_expects_to_be_asked_is_asked(server):
    """`Expect: 100-continue` before a body of a good size: the server says go on, then answers."""
    body = digits(ROW).encode()
    with socket.create_connection(server.address, timeout=PATIENCE) as line:
        line.sendall(head(len(body), "Expect: 100-continue", "Connection: close"))
        assert line.recv(65536) == b"HTTP/1.1 100 Continue\r\n\r\n"
        line.sendall(body)
        said = b"".join(iter(lambda: line.recv(65536), b""))
    assert said.startswith(b"HTTP/1.1 200 ")


def test_a_chunked_body_is_a_body(server):
    """A length need not be said."""
    body = digits(ROW).encode()
    chunks = (body[start : start + 10] for start in range(0, len(body), 10))
    assert httpx.post(f"{server.url}/predict", content=chunks, headers=JSON, timeout=PATIENCE).status_code == 200


@pytest.mark.parametrize(
    "said",
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
def test_a_client_that_goes_away_or_speaks_no_http_harms_nobody(server, line, said):
    """Its connection is its own; the others go on."""
    with socket.create_connection(server.address, timeout=PATIENCE) as rude:
        rude.sendall(said)
        line.answers()
    line.answers()


def test_an_answer_of_an_error_is_json_of_ours(server):
    """Its type is JSON, its length is said, and no server's name or traceback is in it."""
    response = httpx.post(f"{server.url}/predict", content=with_cell("NaN"), headers=JSON, timeout=PATIENCE)
    assert response.headers["content-type"] == "application/json"
    assert int(response.headers["content-length"]) == len(response.content)
    safe = {name.decode() for name, _ in SAFE_HEADERS}
    assert set(response.headers) == {"date", "content-type", "content-length"} | safe
