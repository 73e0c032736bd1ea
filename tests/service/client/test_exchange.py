"""What a client sends, when it waits and when it gives up: courses that are run without HTTP and without a clock."""

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import orjson
import pytest

from abstain.models.errors import AbstainError, CalibrationError, DataError, InputError, UnknownModel
from abstain.service.client import exchange
from abstain.service.client.errors import (
    AccessRefused,
    DeadlineExceeded,
    NotReady,
    RequestError,
    TooManyRequests,
    Unreachable,
    error_of,
)
from abstain.service.client.exchange import Failure, Reply, Send, Session, Wait
from abstain.service.errors import HTTPError


def error_body(error: AbstainError, own_id: str = "id-1") -> bytes:
    """The body that the server makes of an error."""
    parts = {
        key: None if (value := getattr(error, key)) is None else str(value)
        for key in ("where", "expected", "found", "fix")
    }
    return orjson.dumps({"error": str(error), "code": error.code, "id": own_id, **parts})


def refused(status: int, error: AbstainError | None = None, **headers: str) -> Reply:
    """A response with an error."""
    return Reply(status, headers, error_body(error or HTTPError(status, "no")))


def answered(send: Send, digest: str = "d", version: int = 1) -> Reply:
    """The response to a request for predictions: each row's prediction is its first number."""
    content = orjson.loads(send.content or b"{}")
    rows = content.get("inputs", content.get("data"))
    body = {
        "id": send.headers["X-Request-Id"],
        "model": {"name": "m", "version": version, "digest": digest},
        "percentile": 99.0,
        "coverage": 0.9,
        "draws": 3,
        "predictions": [{"mean": row[0], "reject": False} for row in rows],
    }
    return Reply(200, {}, orjson.dumps(body))


class Run:
    """Runs a course; each request gets the next of some replies, or is answered by a function."""

    def __init__(self, replies=()) -> None:
        self.replies, self.sent, self.waits = list(replies), [], []

    def __call__(self, course):
        """The result of the course."""
        reply = None
        try:
            while True:
                step = course.send(reply)
                reply = None
                if isinstance(step, Wait):
                    self.waits.append(step.seconds)
                else:
                    self.sent.append(step)
                    reply = self.replies.pop(0) if isinstance(self.replies, list) and self.replies else answered(step)
                    reply = reply(step) if callable(reply) else reply
        except StopIteration as end:
            return end.value


def predict(session: Session | None = None, rows=((1.0,), (2.0,)), model="m", request_id=None, timeout=None, **options):
    """The course of a prediction."""
    return exchange.predict(
        session or Session(60, 5), rows, model=model, options=options, request_id=request_id, timeout=timeout
    )


def test_one_request_is_sent_if_all_is_well():
    """With the rows, the options that are given, and an id."""
    run = Run()
    found = run(predict(percentile=95.0, coverage=None, request_id="mine"))
    (send,) = run.sent
    assert (send.method, send.path) == ("POST", "/predict")
    assert orjson.loads(send.content) == {"inputs": [[1], [2]], "percentile": 95.0, "model": "m"}
    assert send.headers == {"Content-Type": "application/json", "X-Request-Id": "mine"}
    assert (found.request_ids, found.mean.tolist(), run.waits) == (("mine",), [1, 2], [])


@pytest.mark.parametrize("status", [429, 503])
def test_a_refused_request_is_sent_again_after_the_stated_time(status):
    """`Retry-After` in seconds, as a date, and a date that is past; the request and its id are the same."""
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=20), usegmt=True)
    past = format_datetime(datetime.now(UTC) - timedelta(seconds=20), usegmt=True)
    stated = [{"retry-after": value} for value in ("3", later, past)]
    run = Run([refused(status, **headers) for headers in stated])
    assert len(run(predict(Session(1000, 3)))) == 2
    assert run.waits[0] == 3
    assert 15 < run.waits[1] <= 20
    assert run.waits[2] == 0
    assert len({(send.content, send.headers["X-Request-Id"]) for send in run.sent}) == 1


@pytest.mark.parametrize("header", [{}, {"retry-after": "soon"}, {"retry-after": "-1"}, {"retry-after": "9" * 400}])
def test_without_a_stated_time_the_waits_grow(header):
    """0.1, 0.2, 0.4 … at most 8 s, each reduced by up to a half."""
    run = Run([refused(503, **header)] * 9)
    run(predict(Session(1000, 9)))
    for wait, longest in zip(run.waits, [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 8, 8], strict=True):
        assert longest / 2 <= wait <= longest


@pytest.mark.parametrize(("status", "kind"), [(429, TooManyRequests), (503, NotReady)])
def test_after_the_last_attempt_the_refusal_is_the_error(status, kind):
    """One request more than the retries; with the status, and the id of the server."""
    run = Run([refused(status)] * 3)
    with pytest.raises(kind, match=r"^no\n") as caught:
        run(predict(Session(60, 2)))
    assert (len(run.sent), caught.value.status, caught.value.request_id) == (3, status, "id-1")


def test_a_wait_beyond_the_timeout_is_not_waited():
    """The refusal is raised at once, with a note."""
    run = Run([refused(429, **{"retry-after": "100"})])
    with pytest.raises(TooManyRequests) as caught:
        run(predict(Session(60, 5)))
    assert (len(run.sent), run.waits) == (1, [])
    assert "not sent again: a pause of 100 s would end after the timeout" in caught.value.__notes__


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 413, 415, 421, 500, 502, 504])
def test_other_statuses_are_final(status):
    """The same request would get them again, or was computed."""
    run = Run([refused(status)])
    with pytest.raises(AbstainError):
        run(predict(rows=[[1.0]]))
    assert (len(run.sent), run.waits) == (1, [])


def test_a_connection_is_tried_again_only_if_nothing_was_sent():
    """The server may have computed, or may still compute, what was sent."""
    run = Run([Failure("refused", late=False, sent=False)] * 2)
    assert len(run(predict())) == 2
    assert len(run.sent) == 3
    run = Run([Failure("reset", late=False, sent=True)])
    with pytest.raises(Unreachable, match=r"^the connection broke: reset$"):
        run(predict())
    assert len(run.sent) == 1
    run = Run([Failure("refused", late=False, sent=False)] * 2)
    with pytest.raises(Unreachable, match=r"^no connection: refused; check the URL, and that the server runs$"):
        run(predict(Session(60, 1)))


def test_the_timeout_ends_a_call(monkeypatch):
    """It counts all requests and waits: each request gets the time that is left."""
    now = 0.0
    monkeypatch.setattr(exchange.time, "monotonic", lambda: now)

    def slow(_send):
        nonlocal now
        now += 6
        return refused(503, **{"retry-after": "0"})

    run = Run([slow, slow])
    with pytest.raises(NotReady) as caught:
        run(predict(Session(60, 9), timeout=10))
    assert "not sent again: a pause of 0 s would end after the timeout" in caught.value.__notes__
    assert [send.seconds for send in run.sent] == [10, 4]
    with pytest.raises(DeadlineExceeded, match=r"^no response in time: expected a result within 60 s; set a longer"):
        Run([Failure("slow", late=True, sent=True)])(predict())


# ---- pieces ----------------------------------------------------------------------------------------------------------

ROWS = [[float(number)] for number in range(25)]


def test_more_rows_than_the_limit_are_sent_in_pieces_in_their_order():
    """All to the version of the first piece, each with its own id."""
    run = Run()
    found = run(predict(Session(60, 5, max_rows=10), ROWS, model=None, request_id="mine"))
    assert found.mean.tolist() == list(range(25))
    contents = [orjson.loads(send.content) for send in run.sent]
    assert [len(content["inputs"]) for content in contents] == [10, 10, 5]
    assert [content.get("model") for content in contents] == [None, "m:1", "m:1"]
    assert found.request_ids == ("mine-0", "mine-10", "mine-20")
    assert [found[row].mean for row in (0, 24, -1)] == [0, 24, 24]


def test_the_limit_is_learned_from_the_refusal():
    """Of rows exactly, for later calls, too; of bytes by halving."""
    too_many = InputError(where="inputs", expected="at most 10 rows", found=25, fix="send them in several requests")
    session, run = Session(60, 5), Run([refused(400, too_many)])
    assert run(predict(session, ROWS)).mean.tolist() == list(range(25))
    assert [len(orjson.loads(send.content)["inputs"]) for send in run.sent] == [25, 10, 10, 5]
    run = Run()
    run(predict(session, ROWS))
    assert len(run.sent) == 3

    def small_bodies(send):
        return refused(413) if len(orjson.loads(send.content)["inputs"]) > 7 else answered(send)

    run = Run([small_bodies] * 9)
    assert run(predict(Session(60, 5), ROWS)).mean.tolist() == list(range(25))
    assert [len(orjson.loads(send.content)["inputs"]) for send in run.sent] == [25, 13, 7, 7, 7, 4]
    with pytest.raises(RequestError) as caught:
        Run([refused(413)])(predict(rows=[[1.0]]))
    assert (caught.value.code, caught.value.status) == ("body_too_large", 413)


def test_an_error_in_a_later_piece_counts_the_rows_from_the_first():
    """The server counts those of one request."""
    wrong = InputError(where="inputs[4][0]", expected="a number", found="null")
    with pytest.raises(InputError, match=r"^inputs\[24\]\[0\]: expected a number, found null\n"):
        Run([answered, answered, refused(400, wrong)])(predict(Session(60, 5, max_rows=10), ROWS))
    wrong = DataError("column 'age'", where="data, row 3", expected="a number", found="null")
    with pytest.raises(DataError, match=r"^data, row 13: column 'age': expected a number, found null\n"):
        Run([answered, refused(400, wrong)])(predict(Session(60, 5, max_rows=10), ROWS))


def test_pieces_of_two_versions_are_not_joined():
    """A restarted server may have replaced the version under the same number."""
    replies = [answered, lambda send: answered(send, digest="other")]
    with pytest.raises(RequestError, match=r"^the model changed between two requests: expected one version, found 2"):
        Run(replies)(predict(Session(60, 5, max_rows=15), ROWS))
    missing = [lambda send: answered(send._replace(content=b'{"inputs":[[1]]}'))]
    with pytest.raises(RequestError, match="expected 25 rows, found 1"):
        Run(missing)(predict(rows=ROWS))


# ---- tables ----------------------------------------------------------------------------------------------------------

MODEL = {
    "name": "m",
    "version": 1,
    "versions": [1],
    "digest": "d",
    "task": "regression",
    "feature_shape": [2],
    "columns": [{"name": "age", "categories": []}, {"name": "job", "categories": ["cook", "nurse"]}],
    "class_names": [],
    "target_name": "y",
    "fields": ["mean"],
    "decision": "std",
    "percentile": 99.0,
    "coverage": 0.9,
    "draws": 3,
    "calibration_rows": 500,
    "sound": True,
    "shortfalls": [],
    "max_rows": 2,
    "of a newer server": 1,
}
RECORDS = [{"job": "nurse", "id": 7, "age": age} for age in (1.0, 2.0, 3.0)]


def described(**facts) -> Reply:
    """The response to a request for the facts of a model."""
    return Reply(200, {}, orjson.dumps({**MODEL, **facts}))


def test_records_are_sent_as_the_models_columns():
    """Which the server is asked for once, and again after a response of another version."""
    session, run = Session(60, 5), Run([described()])
    found = run(predict(session, RECORDS))
    assert [send.path for send in run.sent] == ["/models/m", "/predict", "/predict"]
    assert orjson.loads(run.sent[1].content) == {
        "columns": ["age", "job"],
        "data": [[1, "nurse"], [2, "nurse"]],
        "model": "m",
    }
    assert found.mean.tolist() == [1, 2, 3]
    run = Run([lambda send: answered(send, digest="new"), lambda send: answered(send, digest="new"), described()])
    run(predict(session, RECORDS))
    run(predict(session, RECORDS[:1]))
    assert [send.path for send in run.sent] == ["/predict", "/predict", "/models/m", "/predict"]


def test_a_version_with_other_columns_is_asked_for_again():
    """After an error of the server about the columns, and where the rows lack a column of the old version."""
    job = described(columns=[{"name": "job", "categories": ["nurse"]}])
    for rows, refusals in (
        (RECORDS[:1], [refused(400, InputError("columns are missing", where="columns"))]),
        ([{"job": "nurse"}], []),
    ):
        session = Session(60, 5)
        Run([described()])(predict(session, RECORDS[:1]))
        run = Run([*refusals, job])
        run(predict(session, rows))
        assert [send.path for send in run.sent] == ["/predict"] * len(refusals) + ["/models/m", "/predict"]
        assert orjson.loads(run.sent[-1].content)["columns"] == ["job"]
    session = Session(60, 5)
    run = Run([described(), refused(400, InputError("no", where="columns"))])
    with pytest.raises(InputError):
        run(predict(session, RECORDS[:1]))
    assert len(run.sent) == 2


def test_a_model_without_names_and_a_key_that_may_not_read():
    """Numbers only for the one; all columns for the other, and the server checks them."""
    run = Run([described(columns=[])])
    run(predict(rows=[{"a": 1, "b": 2}]))
    assert orjson.loads(run.sent[1].content)["inputs"] == [[1, 2]]
    run = Run([refused(403, HTTPError(403, "no", code="missing_scope"))])
    run(predict(rows=RECORDS[:1]))
    assert orjson.loads(run.sent[1].content)["columns"] == ["job", "id", "age"]
    with pytest.raises(AccessRefused):
        Run([refused(401, HTTPError(401, "no", code="unknown_key"))])(predict(rows=RECORDS))


def of_classes(send: Send, digest: str = "d") -> Reply:
    """A response with a probability for each of two classes."""
    body = orjson.loads(answered(send, digest).body)
    body["predictions"] = [{"label": "a", "probabilities": [0.75, 0.25]} for _ in body["predictions"]]
    return Reply(200, {}, orjson.dumps(body))


def test_the_classes_are_asked_for_once_for_each_version():
    """Only if a response has a number for each class; not at all if the columns were asked for."""
    session = Session(60, 5)
    run = Run([of_classes, described(class_names=["a", "b"]), of_classes, answered])
    assert [run(predict(session)).class_names for _ in range(3)] == [("a", "b"), ("a", "b"), ()]
    assert [send.path for send in run.sent] == ["/predict", "/models/m:1", "/predict", "/predict"]
    run = Run([lambda send: of_classes(send, "e"), described(class_names=["a", "c"], digest="e")])
    assert run(predict(session)).class_names == ("a", "c")
    run = Run([described(class_names=["a", "b"]), of_classes])
    assert run(predict(rows=RECORDS[:2])).class_names == ("a", "b")
    assert [send.path for send in run.sent] == ["/models/m", "/predict"]


def test_predictions_are_not_lost_if_the_classes_are_not_told():
    """A key without the scope `read` is not tried again; after another failure the next call asks again."""
    session = Session(60, 5)
    run = Run([of_classes, refused(403, HTTPError(403, "no", code="missing_scope")), of_classes])
    found = [run(predict(session)) for _ in range(2)]
    assert [(len(one), one.class_names) for one in found] == [(2, ()), (2, ())]
    assert list(found[0].to_pandas()) == ["label", "probabilities.0", "probabilities.1"]
    assert len(run.sent) == 3
    run = Run([of_classes, refused(503), of_classes, described(class_names=["a", "b"])])
    session = Session(60, 5)
    assert [run(predict(session)).class_names for _ in range(2)] == [(), ("a", "b")]


def test_the_only_model_is_found_by_itself():
    """As the server does it for a request that names none."""

    def models(*names: str) -> Reply:
        return Reply(200, {}, orjson.dumps({"models": [{"name": name, "versions": [{}]} for name in names]}))

    version = {"version": 1, "labels": [], "state": "ready", "digest": None, "method": None, "why": None}
    one = orjson.dumps({"models": [{"name": "m", "versions": [{**version, "sound": True, "shortfalls": []}]}]})
    run = Run([Reply(200, {}, one), described()])
    run(predict(rows=RECORDS[:1], model=None))
    assert [send.path for send in run.sent] == ["/models", "/models/m", "/predict"]
    assert "model" not in orjson.loads(run.sent[2].content)
    both = orjson.dumps(
        {"models": [{"name": n, "versions": [{**version, "sound": True, "shortfalls": []}]} for n in ("a", "b")]}
    )
    with pytest.raises(InputError, match=r"^model: expected one of a, b, found none; set model=$"):
        Run([Reply(200, {}, both)])(predict(rows=RECORDS, model=None))


# ---- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "error", "kind"),
    [
        (400, InputError(where="inputs[3][5]", expected="a number", found="null"), InputError),
        (
            400,
            InputError("duplicate key", where="body", expected="each key once", found="'a'", fix="leave one out"),
            InputError,
        ),
        (400, CalibrationError("too few", expected="at least 999 rows", found=500), CalibrationError),
        (400, DataError("column 'a'; b", where="row 1", fix="a; b"), DataError),
        (404, UnknownModel(where="model", expected="one of a", found="'b'"), UnknownModel),
        (404, UnknownModel("m:2 is not served", fix="give it a label"), UnknownModel),
        (404, HTTPError(404, "no such route: /x"), RequestError),
        (401, HTTPError(401, where="key", expected="a key", found="none", code="missing_key"), AccessRefused),
        (403, HTTPError(403, where="key", expected="a scope", code="missing_scope"), AccessRefused),
        (421, HTTPError(421, where="Host", found="'evil'"), AccessRefused),
        (429, HTTPError(429, "the queue is full", code="queue_full"), TooManyRequests),
        (503, HTTPError(503, "draining", code="draining"), NotReady),
        (504, HTTPError(504, "no result within 30 s"), DeadlineExceeded),
        (500, HTTPError(500, "unexpected KeyError"), RequestError),
        (415, HTTPError(415, where="Content-Type", expected="application/json", found="none"), RequestError),
    ],
)
def test_every_error_of_a_server_keeps_its_parts(status, error, kind):
    """The class, the code, each part and the text are those of the server's error; the id is a note."""
    found = error_of(status, error_body(error), "own")
    assert type(found) is kind
    assert str(found) == str(error)
    assert {**vars(found), "expected": str(found.expected)} | {"__notes__": 0} == {
        **{key: value for key, value in vars(error).items() if key not in {"headers", "status"}},
        "expected": str(error.expected),
        "found": None if error.found is None else str(error.found),
        **({"status": status, "request_id": "id-1"} if isinstance(found, RequestError) else {}),
        "__notes__": 0,
    }
    assert found.__notes__ == ["request id id-1"]


@pytest.mark.parametrize(
    "body", [b"", b"<html>Bad Gateway</html>", b"[1]", b'{"detail": "x"}', b'{"error": 1, "code": 2}', b"\xff"]
)
def test_a_response_of_another_server_is_shown(body):
    """Such as a proxy's page."""
    found = error_of(502, body, "own")
    assert type(found) is RequestError
    assert str(found).startswith("the response is not one of abstain: expected a JSON object, found HTTP status 502")
    assert (found.status, found.request_id) == (502, "own")


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"null", b"{}", b'{"models": [1], "ready": 1, "model": 2, "predictions": 3}']
)
@pytest.mark.parametrize(
    "call", [exchange.list_models, lambda own: exchange.describe_model(own, "m"), exchange.ready, predict]
)
def test_a_success_of_another_form_is_an_error(call, body):
    """Another program may answer at this address."""
    with pytest.raises(RequestError, match=r"^the response is not one of abstain: .*found HTTP status 200"):
        Run([Reply(200, {}, body)])(call(Session(60, 0)))


@pytest.mark.parametrize("own", ["", "x" * 201, "a\nb", "é"])
def test_an_id_that_no_header_can_carry_is_refused(own):
    """Before anything is sent."""
    run = Run()
    with pytest.raises(InputError, match=r"^request_id: expected 1 to 200 printable ASCII characters"):
        run(predict(request_id=own))
    assert run.sent == []
