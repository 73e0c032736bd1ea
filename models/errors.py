"""All error classes of abstain.

    AbstainError             what, where, expected, found, and how to fix it
    ├── InputError           a row, or a parameter of a request, is wrong
    ├── UnknownModel         the model, version or label does not exist
    ├── BundleError          a version on disk is damaged, or its schema is not supported
    │   └── SignatureError   … or is not signed by a trusted key
    ├── StoreError           an operation on the store failed
    ├── CalibrationError     too few calibration rows for the requested percentile or coverage
    ├── ConfigError          a config file, or a --set, is wrong        (raised by training)
    ├── DataError            a data source is wrong                     (raised by training and by offline scoring)
    └── FitError             inference found no posterior               (raised by training)

Only `service/errors.py` maps them to HTTP codes, and only `service/commands/cli.py` to exit codes.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any, TypeVar, cast


class AbstainError(Exception):
    """An error of abstain, stored in parts; `str` renders them as one printable line.

    Attributes:
        code: the error's name for programs, in snake_case; stable.
        what: the fault; empty if `expected` and `found` are enough.
        where: the file, field, row or setting with the error.
        expected: the right value.
        found: the value found instead.
        fix: how to fix it.
    """

    code: str = "error"
    usual_fix: str | None = None
    """What to do where an error does not say it."""

    def __init__(
        self,
        what: str = "",
        *,
        where: str | None = None,
        expected: object = None,
        found: object = None,
        fix: str | None = None,
        code: str | None = None,
    ) -> None:
        super().__init__(what)
        self.what, self.where, self.fix = what, where, fix or self.usual_fix
        self.expected, self.found = expected, found
        self.code = code or self.code

    def __str__(self) -> str:
        """Renders the parts as one line: `where: what: expected …, found …; fix`."""
        sentence = ": ".join(part for part in (self.where, self.what) if part)
        details = [
            f"{word} {value}"
            for word, value in (("expected", self.expected), ("found", self.found))
            if value is not None
        ]
        if details:
            sentence += f": {', '.join(details)}"
        if self.fix:
            sentence += f"; {self.fix}"
        return printable(sentence)


class InputError(AbstainError):
    """A row, or a parameter of a request, is wrong."""

    code = "invalid_input"


class UnknownModel(AbstainError):
    """The model, version or label does not exist."""

    code = "unknown_model"


class BundleError(AbstainError):
    """A version on disk is damaged, or its schema is not supported."""

    code = "invalid_bundle"
    usual_fix = "restore this version from a copy, or publish a new one"


class SignatureError(BundleError):
    """A version on disk is not signed by a trusted key."""

    code = "untrusted_bundle"


class StoreError(AbstainError):
    """An operation on the store failed."""

    code = "store_error"


class CalibrationError(AbstainError):
    """There are too few calibration rows for the requested percentile or coverage."""

    code = "calibration_too_small"


class ConfigError(AbstainError):
    """A config file, or a `--set`, is wrong."""

    code = "invalid_config"


class DataError(AbstainError):
    """A data source is wrong."""

    code = "invalid_data"


class FitError(AbstainError):
    """Inference found no posterior."""

    code = "fit_failed"


def printable(text: str) -> str:
    """Replaces unprintable characters by escapes, because names of files and keys may contain any character.

    A line break could forge a line of the log, an escape sequence could control the reader's terminal, and a lone
    surrogate, which Python makes of bytes that are not UTF-8, cannot be sent as JSON.
    """
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def clip_repr(value: object, limit: int = 60) -> str:
    """Returns `repr(value)`, cut to at most `limit` characters; the type's name if `repr` fails, as for 10**5000."""
    try:
        text = repr(_first_parts(value, [limit]))
    except (ValueError, RecursionError):
        text = f"a value of type {type(value).__name__}"
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


Kind = TypeVar("Kind", bound=AbstainError)
Result = TypeVar("Result")


def convert(error: AbstainError, kind: type[Kind], where: str | None = None) -> Kind:
    """Makes an error of another class with the same parts; `where` comes before the error's own place."""
    place = ": ".join(part for part in (where, error.where) if part)
    return kind(error.what, where=place or None, expected=error.expected, found=error.found, fix=error.fix)


class ErrorCollector:
    """Calls functions, keeps the `DataError`s that they raise, and so lets one error name all faults of a file."""

    def __init__(self) -> None:
        self.errors: list[DataError] = []

    def __call__(self, function: Callable[..., Result], *arguments: Any, **options: Any) -> Result:
        """Returns the function's result; after an error None, which is never used, because `collect_errors` raises."""
        try:
            return function(*arguments, **options)
        except DataError as error:
            self.errors.append(error)
            return cast("Result", None)


MOST_FAULTS = 20
"""The largest number of faults that one error lists."""


@contextmanager
def collect_errors(where: str, what: str) -> Generator[ErrorCollector]:
    """Raises the errors that its block collects: one as it is, several as one error that lists them.

    Args:
        where: the file that all of them are about.
        what: what they have in common: `columns cannot be read`.

    Raises:
        DataError: at least one was collected.
    """
    collector = ErrorCollector()
    yield collector
    errors = collector.errors
    if len(errors) == 1:
        raise errors[0]
    if errors:
        texts = [str(error).removeprefix(where).lstrip(",: ") for error in errors[:MOST_FAULTS]]
        listed = " | ".join(f"({number}) {text}" for number, text in enumerate(texts, 1))
        more = f" | and {len(errors) - MOST_FAULTS} more" if len(errors) > MOST_FAULTS else ""
        raise DataError(f"{len(errors)} {what}: {listed}{more}", where=where)


def drop_config_advice(error: AbstainError, instead: str | None = None) -> None:
    """Replaces advice about the config of a fit (`data.KEY`), for readers who have a fitted model and no config."""
    if "data." in (error.fix or ""):
        error.fix = instead


def suggest(name: str, known: Iterable[str]) -> str | None:
    """Returns a question for the `fix` of an error, with the nearest known name; None if no name is near."""
    near = get_close_matches(name, list(known), n=1)
    return f"did you mean {near[0]!r}?" if near else None


def _first_parts(value: object, left: list[int]) -> object:
    """Returns as much of a nested list, tuple or text as `left[0]` characters can show; millions of numbers take seconds."""
    left[0] -= 1
    if type(value) in {str, bytes}:
        value = cast("str | bytes", value)
        return value[: left[0] + 2] if left[0] >= 0 else value[:1]
    if type(value) not in {list, tuple}:
        return value
    parts: list[object] = []
    for part in cast("list[object]", value):
        if left[0] < 0:
            break
        parts.append(_first_parts(part, left))
    return parts if isinstance(value, list) else tuple(parts)
