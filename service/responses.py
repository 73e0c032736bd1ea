"""Responses: JSON documents, and errors as `{"error": …, "code": …, "where": …, "id": …, "expected": …, "found": …, "fix": …}`."""

from __future__ import annotations

import logging
import random
from collections.abc import Awaitable, Callable
from typing import Any

import orjson
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Scope

from abstain.models.errors import AbstainError, printable
from abstain.service.bodies import BodyRefusal
from abstain.service.errors import CODES, HTTPError, UnreadBody, status_of

log = logging.getLogger("abstain.http")

Handler = Callable[[Request], Awaitable[Response]]
LONGEST_ID = 200
"""Characters of a client's request id that go into responses and the log."""
_ID = "abstain.request_id"


def json_response(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Makes a response with a JSON document."""
    return Response(orjson.dumps(content), status, headers, "application/json")


def request_id(scope: Scope) -> str:
    """Returns the id of a request for its responses and the log: the client's `X-Request-Id`, or a random one.

    The id is made at the first call and kept in the scope's state: all later calls for the same request return it.
    """
    state: dict[str, Any] = scope.setdefault("state", {})
    if _ID not in state:
        given = Headers(scope=scope).get("x-request-id")
        state[_ID] = printable(given[:LONGEST_ID]) if given else f"{random.getrandbits(128):032x}"
    return state[_ID]


def refuse(request: Request, error: HTTPError) -> BodyRefusal:
    """Makes the error response to a request without reading its body."""
    content = _parts(request, error)
    return BodyRefusal(orjson.dumps(content), error.status, error.headers, "application/json")


def _content(request: Request, text: str, code: str, **parts: object) -> dict[str, str | None]:
    """Makes the body of an error; the parts that an error does not have are null."""
    known = {key: None if value is None else printable(str(value)) for key, value in parts.items()}
    where, own_id = known.get("where"), request_id(request.scope)
    more = {key: known.get(key) for key in ("expected", "found", "fix")}
    return {"error": text, "code": code, "where": where, "id": own_id, **more}


def _parts(request: Request, error: AbstainError) -> dict[str, str | None]:
    parts = {"where": error.where, "expected": error.expected, "found": error.found, "fix": error.fix}
    return _content(request, str(error), error.code, **parts)


def _error(
    request: Request, status: int, text: str, headers: dict[str, str] | None = None, code: str | None = None
) -> Response:
    content = _content(request, text, code or CODES.get(status, "error"))
    return json_response(content, status, headers)


async def _abstain_error(request: Request, error: AbstainError) -> Response:
    status = status_of(error)
    content = _parts(request, error)
    if status == 500:
        log.error(
            "%s %s: %s (id %s)", request.method, request.url.path, error, request_id(request.scope), exc_info=error
        )
    return json_response(content, status, error.headers if isinstance(error, HTTPError) else None)


async def _unread_body(request: Request, error: UnreadBody) -> Response:
    return refuse(request, error)


async def _http_exception(request: Request, error: HTTPException) -> Response:
    if error.status_code == 404:
        routes = "predictions are at POST /predict and POST /v2/models/NAME/infer; the console is at /"
        return _error(request, 404, f"no such route: {request.url.path[:200]}; {routes}")
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "")
        return _error(request, 405, f"method: expected {allowed}, found {request.method}", {"Allow": allowed})
    return _error(request, error.status_code, error.detail)


async def _client_disconnect(request: Request, _disconnect: ClientDisconnect) -> Response:
    return _error(request, 400, "the client disconnected before its body was read", code="client_disconnected")


async def _unexpected(request: Request, error: Exception) -> Response:
    return _error(request, 500, f"unexpected {type(error).__name__}; the server's log has the details")


ERRORS: dict[type[Exception], Callable[[Request, Any], Awaitable[Response]]] = {
    UnreadBody: _unread_body,
    AbstainError: _abstain_error,
    HTTPException: _http_exception,
    ClientDisconnect: _client_disconnect,
    Exception: _unexpected,
}
"""The handler of each error class. The first class that matches is used: special ones stand before general ones."""


async def respond_to_error(request: Request, error: Exception) -> Response:
    """Makes the response of the first handler that matches the error."""
    matching = next(error_class for error_class in ERRORS if isinstance(error, error_class))
    return await ERRORS[matching](request, error)


def is_unexpected(error: Exception) -> bool:
    """Whether only the last handler matches: a bug of abstain, which the log must show with its traceback."""
    return not isinstance(error, tuple(error_class for error_class in ERRORS if error_class is not Exception))
