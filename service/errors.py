"""HTTP errors: the default status and code of every error; an `HTTPError` may have its own."""

from __future__ import annotations

from abstain.models.errors import AbstainError, CalibrationError, DataError, InputError, UnknownModel

CODES = {
    400: "bad_request",
    401: "unauthorized",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    413: "body_too_large",
    415: "unsupported_media_type",
    421: "unknown_host",
    429: "too_many_requests",
    500: "internal_error",
    503: "not_ready",
    504: "deadline_exceeded",
}
"""The code for each status, for errors without a code of their own."""
STATUS: dict[type[AbstainError], int] = {
    InputError: 400,
    DataError: 400,
    CalibrationError: 400,
    UnknownModel: 404,
}


class HTTPError(AbstainError):
    """An error with its own HTTP status, and optional response headers; the rest is as in `AbstainError`.

    Args:
        code: by default, the code of the status.
    """

    def __init__(
        self,
        status: int,
        what: str = "",
        headers: dict[str, str] | None = None,
        *,
        where: str | None = None,
        expected: object = None,
        found: object = None,
        fix: str | None = None,
        code: str | None = None,
    ) -> None:
        code = code or CODES.get(status, "error")
        super().__init__(what, where=where, expected=expected, found=found, fix=fix, code=code)
        self.status = status
        self.headers = headers or {}


class UnreadBody(HTTPError):
    """An error that is raised before the body is read to its end; the response is a `BodyRefusal`."""


def status_of(error: AbstainError) -> int:
    """Returns the HTTP status of an error; 500 if no client can have caused it."""
    return error.status if isinstance(error, HTTPError) else STATUS.get(type(error), 500)
