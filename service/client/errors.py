"""The errors of a client, made from the responses of a server.

A row or a parameter that the server refuses is an `InputError`, `DataError`, `CalibrationError` or `UnknownModel`, as without
a server. All other failures are:

    RequestError             what, where, expected, found and fix, and also the HTTP status and the id of the request
    ├── AccessRefused        401, 403, 421: no key, a wrong one, or one without the scope; or a host name not allowed
    ├── TooManyRequests      429: the queue is full, or the key exceeds its rate
    ├── NotReady             503: the version is loading or failed, or the server is about to stop
    ├── DeadlineExceeded     504, or the client's own timeout
    └── Unreachable          no response: no connection, or a connection that broke
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, cast

import orjson

from abstain.models.errors import AbstainError, CalibrationError, DataError, InputError, UnknownModel, printable

_LONGEST_TEXT = 2000
"""Characters of a response that is no error of abstain, which an error shows."""
_LISTED_ROW = re.compile(r"((?:faults: |\| )\(\d+\) (?:records|data)\[)(\d+)(?=\])")
"""The row of a fault in an error that lists several."""
_ROW = re.compile(r"^(?P<before>[a-z]+\[)(?P<row>\d+)(?=\])|(?P<word>\brow )(?P<number>\d+)\b")


class RequestError(AbstainError):
    """A request that was not answered, and that is not the fault of its rows; the parts are those of `AbstainError`.

    Attributes:
        status: the HTTP status; None if there was no response.
        request_id: the id of the request, which the server's log has, too.
    """

    code = "request_failed"
    status: int | None = None
    request_id: str | None = None


class AccessRefused(RequestError):
    """The server refuses the caller: no key, an unknown one, or one without the scope; or a host name that is not allowed."""


class TooManyRequests(RequestError):
    """The server's queue is full, or the key exceeds its rate, and all attempts or the timeout are used up."""


class NotReady(RequestError):
    """The version is loading or failed, or the server is about to stop, and all attempts or the timeout are used up."""


class DeadlineExceeded(RequestError):
    """The server or the client had no result in time."""

    code = "deadline_exceeded"


class Unreachable(RequestError):
    """There is no connection, or it broke before the response was complete."""

    code = "unreachable"


_BY_CODE: dict[str, type[AbstainError]] = {
    kind.code: kind for kind in (InputError, CalibrationError, DataError, UnknownModel)
}
_BY_STATUS: dict[int, type[RequestError]] = {
    401: AccessRefused,
    403: AccessRefused,
    421: AccessRefused,
    429: TooManyRequests,
    503: NotReady,
    504: DeadlineExceeded,
}


def error_of(status: int, body: bytes, request_id: str) -> AbstainError:
    """Makes the error of a response with a status other than 200.

    Args:
        request_id: the id that the client has sent; the response's own is used if it has one.
    """
    content = _error_content(body)
    if content is None:
        # Of a proxy, or of another server.
        shown = printable(body[:_LONGEST_TEXT].decode("utf-8", "replace").strip())
        found = f"HTTP status {status}" + (f": {shown}" if shown else "")
        error = _BY_STATUS.get(status, RequestError)(
            "the response is not one of abstain", expected="a JSON object", found=found, fix="check the URL"
        )
    else:
        kind = _BY_CODE.get(content["code"] or "") if status in {400, 404} else None
        parts = {key: content[key] for key in ("where", "expected", "found", "fix")}
        error = (kind or _BY_STATUS.get(status, RequestError))(_what(content), code=content["code"], **parts)
        request_id = content["id"] or request_id
    if isinstance(error, RequestError):
        error.status, error.request_id = status, request_id
    error.add_note(f"request id {printable(request_id)}")
    return error


def failed(kind: type[RequestError], what: str, request_id: str | None = None, **parts: Any) -> RequestError:
    """Makes the error of a request without a response."""
    error = kind(what, **parts)
    error.request_id = request_id
    return error


def shift_rows(error: AbstainError, rows: int) -> AbstainError:
    """Returns the error with its place counted in all rows, for a request that began `rows` rows after the first."""
    if rows and error.where:
        error.where = _ROW.sub(lambda match: _shifted(match, rows), error.where, count=1)
        error.what = _LISTED_ROW.sub(lambda match: f"{match[1]}{int(match[2]) + rows}", error.what)
    return error


def _shifted(match: re.Match[str], rows: int) -> str:
    before, number = match["before"] or match["word"], match["row"] or match["number"]
    return f"{before}{int(number) + rows}"


def _error_content(body: bytes) -> dict[str, str | None] | None:
    """Returns the parts of an error of abstain, all of them text or None; None for any other body."""
    try:
        content = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    if not isinstance(content, dict):
        return None
    content = cast("Mapping[str, Any]", content)
    if not isinstance(content.get("error"), str) or not isinstance(content.get("code"), str):
        return None
    keys = ("error", "code", "where", "expected", "found", "fix", "id")
    return {key: value if isinstance(value := content.get(key), str) else None for key in keys}


def _what(content: Mapping[str, str | None]) -> str:
    """Returns the fault itself, without the parts that `AbstainError` adds to the text again."""
    text = content["error"] or ""
    details = ", ".join(f"{word} {content[word]}" for word in ("expected", "found") if content[word] is not None)
    end = (f"; {content['fix']}" if content["fix"] else "", f": {details}" if details else "")
    for part in end:
        text = text.removesuffix(part)
    where = content["where"]
    if text == where or (details and text == details):
        return ""
    return text.removeprefix(f"{where}: ") if where else text
