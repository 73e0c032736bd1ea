"""Errors become HTTP here, and nowhere else: every error is `{"error": "what, where, expected, found"}`."""

from __future__ import annotations

from abstain.models.errors import AbstainError, CalibrationError, DataError, InputError, UnknownModel


class HTTPError(AbstainError):
    """An error of the transport: it brings its own code, and may bring headers."""

    def __init__(self, status: int, what: str, headers: dict[str, str] | None = None, **details: object) -> None:
        super().__init__(what, **details)  # type: ignore[arg-type]
        self.status = status
        self.headers = headers or {}


STATUS: dict[type[AbstainError], int] = {
    InputError: 400,
    DataError: 400,
    CalibrationError: 400,
    UnknownModel: 404,
}


def status_of(error: AbstainError) -> int:
    """The HTTP code of an error; 500 for what no client can have caused."""
    return error.status if isinstance(error, HTTPError) else STATUS.get(type(error), 500)
