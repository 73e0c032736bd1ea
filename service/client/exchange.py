"""The course of a call, without HTTP: what to send, when to wait, when to give up. `client` runs it, with or without asyncio.

A course is a generator. It yields a `Send` or a `Wait`, gets a `Reply` or a `Failure` for each `Send`, and returns the result.

A request is sent again after 429 and 503, which the server gives before it computes, and after a connection that failed before
the request was sent. It waits as long as `Retry-After` says, else 0.1, 0.2, 0.4 … 8 seconds, each reduced by up to a half at
random, so that clients that were refused together do not come back together.
"""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, TypeVar, cast
from urllib.parse import quote

import orjson

from abstain.models.errors import AbstainError, InputError, clip_repr
from abstain.service.client.errors import (
    AccessRefused,
    DeadlineExceeded,
    RequestError,
    Unreachable,
    error_of,
    failed,
    shift_rows,
)
from abstain.service.client.facts import (
    ModelVersion,
    Readiness,
    ServedModel,
    model_versions,
    record_of,
    served_model,
)
from abstain.service.client.pauses import backoff, stated_pause
from abstain.service.client.results import ServedPredictions
from abstain.service.client.rows import Rows, rows_to_send
from abstain.service.predict.class_columns import CLASS_FIELDS

T = TypeVar("T")
MAX_ROWS = 10_000
"""Rows of one request until the server says its own limit: the default of `ABSTAIN_MAX_ROWS`."""
LONGEST_ID = 200
_AGAIN = frozenset({429, 503})
_TOO_MANY = re.compile(r"at most ([\d,]+) rows")


class Send(NamedTuple):
    """A request to send now; all of it may take `seconds`."""

    method: str
    path: str
    headers: dict[str, str]
    content: bytes | None
    seconds: float


class Wait(NamedTuple):
    """A pause of some seconds."""

    seconds: float


class Reply(NamedTuple):
    """A response; the names of its headers are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Failure(NamedTuple):
    """No response: why, whether the time was over, and whether the server may have got the request."""

    why: str
    late: bool
    sent: bool


Course = Generator[Send | Wait, Reply | Failure | None, T]


@dataclass
class Session:
    """What a client knows and keeps between calls.

    Attributes:
        timeout: seconds for a whole call, with all its requests and waits.
        retries: how often a request is sent again.
        max_rows: the largest number of rows of one request.
        models: the facts of models that were asked for.
        classes: the classes of each version by its digest; empty if the key may not ask for them.
    """

    timeout: float
    retries: int
    max_rows: int = MAX_ROWS
    models: dict[str | None, ServedModel] = field(default_factory=dict[str | None, ServedModel])
    classes: dict[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])


class Deadline:
    """The end of a call."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._end = time.monotonic() + seconds

    def left(self) -> float:
        """Returns the seconds that are left; 0 or less after the end."""
        return self._end - time.monotonic()

    def error(self, request_id: str, why: str = "no response in time") -> DeadlineExceeded:
        """Makes the error of a call that takes too long."""
        fix = "set a longer timeout, or send fewer rows"
        expected = f"a result within {self._seconds:g} s"
        return cast("DeadlineExceeded", failed(DeadlineExceeded, why, request_id, expected=expected, fix=fix))


# ---- calls -----------------------------------------------------------------------------------------------------------


def predict(
    session: Session,
    rows: object,
    *,
    model: str | None,
    options: Mapping[str, Any],
    request_id: str | None,
    timeout: float | None,
) -> Course[ServedPredictions]:
    """Sends the rows, in as many requests as the server's limits need, and joins the predictions in their order."""
    deadline = Deadline(session.timeout if timeout is None else timeout)
    own_id = _check_id(request_id) or uuid.uuid4().hex
    options = {key: value for key, value in options.items() if value is not None}
    given = to_send = rows_to_send(rows)
    may_be_old = given.columns is not None and model in session.models
    if given.columns is not None:
        to_send = yield from _fit_columns(session, given, model, deadline)
    parts: list[dict[str, Any]] = []
    done, size, reference = 0, session.max_rows, model
    while not parts or done < len(to_send):
        part = slice(done, done + size)
        named = options if reference is None else {**options, "model": reference}
        part_id = own_id if len(to_send) <= size and not parts else f"{own_id[: LONGEST_ID - 20]}-{done}"
        headers = {"Content-Type": "application/json", "X-Request-Id": part_id}
        reply = yield from _ask(session, "POST", "/predict", headers, to_send.body(part, named), deadline)
        if reply.status != 200:
            error = error_of(reply.status, reply.body, part_id)
            smaller = _smaller(error, reply.status, min(size, len(to_send)))
            if smaller is None and reply.status == 400 and may_be_old and not parts:
                # The model may have a new version with other columns.
                may_be_old = False
                session.models.pop(model, None)
                to_send = yield from _fit_columns(session, given, model, deadline)
                continue
            if smaller is None:
                raise shift_rows(error, done)
            size = smaller
            session.max_rows = smaller if reply.status == 400 else session.max_rows
            continue
        parts.append(_read(_part, reply, part_id))
        done += size
        # All rows are predicted by one version, also if another one becomes the default meanwhile.
        reference = f"{parts[0]['model']['name']}:{parts[0]['model']['version']}"
    _forget_changed(session, model, parts[0]["model"]["digest"])
    classes = yield from _class_names(session, parts[0], deadline)
    return _join(parts, to_send, classes)


def list_models(session: Session) -> Course[tuple[ModelVersion, ...]]:
    """Asks for every version in the server's store."""
    return (yield from _get(session, "/models", Deadline(session.timeout), model_versions))


def describe_model(session: Session, name: str) -> Course[ServedModel]:
    """Asks for the facts of a served version, and keeps them."""
    return (yield from _describe(session, name, Deadline(session.timeout)))


def describe_rollout(session: Session, name: str) -> Course[dict[str, Any]]:
    """Asks for the rollout of a model."""
    path = f"/models/{quote(name, safe='')}/rollout"
    return (yield from _get(session, path, Deadline(session.timeout), dict))


def live(session: Session) -> Course[bool]:
    """Asks whether a worker runs; False if there is no connection."""
    try:
        yield from _get(session, "/livez", Deadline(session.timeout), dict, retries=0)
    except RequestError:
        return False
    return True


def ready(session: Session) -> Course[Readiness]:
    """Asks whether all workers are ready, without waiting for them."""
    own_id = uuid.uuid4().hex
    headers = {"X-Request-Id": own_id}
    reply = yield from _ask(session, "GET", "/readyz", headers, None, Deadline(session.timeout), retries=0)
    if reply.status not in {200, 503} or b'"ready"' not in reply.body:
        raise error_of(reply.status, reply.body, own_id)
    return _read(partial(record_of, Readiness), reply, own_id)


# ---- parts of calls --------------------------------------------------------------------------------------------------


def _fit_columns(session: Session, rows: Rows, model: str | None, deadline: Deadline) -> Course[Rows]:
    """Selects the model's columns; sends numbers only to a model whose columns have no names.

    A key without the scope `read` may not ask for the names. Then all columns are sent, and the server checks them.
    """
    known = session.models.get(model)
    if known is not None:
        try:
            return _select(rows, known)
        except InputError:
            del session.models[model]  # the model may have a new version with other columns
    try:
        known = yield from _describe(session, model, deadline)
    except AccessRefused as error:
        if error.code != "missing_scope":
            raise
        return rows
    return _select(rows, known)


def _select(rows: Rows, model: ServedModel) -> Rows:
    if not model.columns:
        return rows.without_names()
    categories = [column.name for column in model.columns if column.kind == "category"]
    return rows.select([column.name for column in model.columns], categories)


def _describe(session: Session, name: str | None, deadline: Deadline) -> Course[ServedModel]:
    reference = name
    if name is None:
        versions = yield from _get(session, "/models", deadline, model_versions)
        names = sorted({version.name for version in versions})
        if len(names) != 1:
            raise InputError(
                where="model", expected=f"one of {', '.join(names) or 'none'}", found="none", fix="set model="
            )
        reference = names[0]
    model = yield from _get(session, f"/models/{quote(str(reference), safe='@:')}", deadline, served_model)
    session.models[name] = model
    session.max_rows = model.max_rows
    return model


def _forget_changed(session: Session, name: str | None, digest: str) -> None:
    """Forgets the facts of a model if a response is of another version."""
    known = session.models.get(name)
    if known is not None and known.digest != digest:
        del session.models[name]


def _get(
    session: Session, path: str, deadline: Deadline, make: Callable[[dict[str, Any]], T], retries: int | None = None
) -> Course[T]:
    own_id = uuid.uuid4().hex
    reply = yield from _ask(session, "GET", path, {"X-Request-Id": own_id}, None, deadline, retries)
    if reply.status != 200:
        raise error_of(reply.status, reply.body, own_id)
    return _read(make, reply, own_id)


def _ask(
    session: Session,
    method: str,
    path: str,
    headers: dict[str, str],
    content: bytes | None,
    deadline: Deadline,
    retries: int | None = None,
) -> Course[Reply]:
    """Sends a request until there is a response that is final; returns it, whatever its status."""
    own_id = headers["X-Request-Id"]
    left = session.retries if retries is None else retries
    for attempt in range(left + 1):
        if deadline.left() <= 0:
            raise deadline.error(own_id)
        reply = yield Send(method, path, headers, content, deadline.left())
        if isinstance(reply, Failure):
            error = _failure(reply, own_id, deadline)
            if reply.late or reply.sent or attempt == left:
                raise error
            pause = backoff(attempt)
        else:
            reply = cast("Reply", reply)
            if reply.status not in _AGAIN or attempt == left:
                return reply
            error = error_of(reply.status, reply.body, own_id)
            pause = stated_pause(reply.headers.get("retry-after", ""))
            pause = backoff(attempt) if pause is None else pause
        if pause >= deadline.left():
            error.add_note(f"not sent again: a pause of {pause:.3g} s would end after the timeout")
            raise error
        yield Wait(pause)
    raise AssertionError("the last attempt returns or raises")


def _failure(failure: Failure, request_id: str, deadline: Deadline) -> RequestError:
    if failure.late:
        return deadline.error(request_id)
    what = f"the connection broke: {failure.why}" if failure.sent else f"no connection: {failure.why}"
    fix = "check the URL, and that the server runs"
    return failed(Unreachable, what, request_id, fix=None if failure.sent else fix)


def _smaller(error: AbstainError, status: int, rows: int) -> int | None:
    """Returns how many rows to send at a time after a refusal of too many rows or bytes; None for any other refusal."""
    if status == 413 and error.code == "body_too_large" and rows > 1:
        return (rows + 1) // 2
    found = _TOO_MANY.search(str(error)) if status == 400 and error.code == "invalid_input" else None
    limit = int(found[1].replace(",", "")) if found else 0
    return limit if 0 < limit < rows else None


def _read(make: Callable[[dict[str, Any]], T], reply: Reply, request_id: str) -> T:
    """Makes a record of the body of a response.

    Raises:
        RequestError: it is not JSON of this form, for example because another program answers at this address.
    """
    try:
        return make(orjson.loads(reply.body))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise error_of(reply.status, reply.body, request_id) from error


def _part(content: dict[str, Any]) -> dict[str, Any]:
    """Checks the form of a response of `/predict`; a TypeError or a KeyError says that it has another one."""
    model, rows = content["model"], content["predictions"]
    if not {"name", "version", "digest"} <= model.keys() or not all(isinstance(row, dict) for row in rows):
        raise TypeError
    if not {"id", "percentile", "coverage", "draws"} <= content.keys():
        raise TypeError
    return content


def _class_names(session: Session, part: Mapping[str, Any], deadline: Deadline) -> Course[tuple[str, ...]]:
    """Returns the classes of a response that has a number for each class; asks the server once for each version.

    They name columns, and nothing else: if the server does not say them, the predictions are returned without them.
    """
    digest = part["model"]["digest"]
    if not any(isinstance(row.get(name), list) for row in part["predictions"][:1] for name in CLASS_FIELDS):
        return ()
    if digest not in session.classes:
        known = next((model for model in session.models.values() if model.digest == digest), None)
        if known is None:
            try:
                path = f"/models/{quote('{name}:{version}'.format(**part['model']), safe=':')}"
                known = yield from _get(session, path, deadline, served_model, retries=0)
            except RequestError as error:
                if error.code != "missing_scope":
                    return ()
        session.classes[digest] = known.class_names if known and known.digest == digest else ()
    return session.classes[digest]


def _join(parts: Sequence[Mapping[str, Any]], rows: Rows, classes: tuple[str, ...]) -> ServedPredictions:
    digests = {part["model"]["digest"] for part in parts}
    if len(digests) > 1:
        what = "the model changed between two requests"
        raise failed(RequestError, what, expected="one version", found=len(digests), fix="predict again")
    predictions = [row for part in parts for row in part["predictions"]]
    if len(predictions) != len(rows):
        raise failed(RequestError, "the response", expected=f"{len(rows)} rows", found=len(predictions))
    ids = tuple(part["id"] for part in parts)
    head = {**parts[0], **parts[0]["model"]}
    more = {"request_ids": ids, "raw": predictions, "class_names": classes, "_frame_index": rows.index}
    return record_of(ServedPredictions, head, **more)


def _check_id(request_id: str | None) -> str | None:
    """Returns an id that a header can carry.

    Raises:
        InputError: it is empty, too long, or has other characters than printable ASCII.
    """
    if request_id is None:
        return None
    if not (0 < len(request_id) <= LONGEST_ID and request_id.isascii() and request_id.isprintable()):
        expected = f"1 to {LONGEST_ID} printable ASCII characters"
        raise InputError(where="request_id", expected=expected, found=clip_repr(request_id))
    return request_id
