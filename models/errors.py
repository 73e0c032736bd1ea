"""Every error abstain raises on purpose.

    AbstainError             what, where, expected, found, and what to do
    ├── InputError           a row, or a parameter of a request, is wrong
    ├── UnknownModel         no such model, version or label
    ├── BundleError          a version on disk is damaged, or of another schema
    │   └── SignatureError   … or is not signed by a trusted key
    ├── StoreError           the store cannot do what was asked
    ├── CalibrationError     too few calibration rows for the percentile or coverage asked
    ├── ConfigError          a config file, or a --set, is wrong        (raised by training)
    ├── DataError            a data source is wrong                     (raised by training and by offline scoring)
    └── FitError             inference did not come to a posterior      (raised by training)

HTTP codes are given to these in `service/errors.py`, exit codes in `service/commands/cli.py`, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class AbstainError(Exception):
    """An error of abstain, kept in parts; `str` renders them as one printable line.

    Attributes:
        code: names the kind of error for programs, in snake_case; stable.
        what: what is wrong; empty where `expected` and `found` say it.
        where: the file, field, row or setting at fault.
        expected: what would have been right.
        found: what was there instead.
        fix: what to do about it.
    """

    code: str = "error"

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
        self.what, self.where, self.fix = what, where, fix
        self.expected, self.found = expected, found
        self.code = code or self.code

    def __str__(self) -> str:
        """The parts as one line: `where: what: expected …, found …; fix`."""
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
    """No such model, version or label."""

    code = "unknown_model"


class BundleError(AbstainError):
    """A version on disk is damaged, or of another schema."""

    code = "invalid_bundle"


class SignatureError(BundleError):
    """A version on disk is not signed by a trusted key."""

    code = "untrusted_bundle"


class StoreError(AbstainError):
    """The store cannot do what was asked."""

    code = "store_error"


class CalibrationError(AbstainError):
    """There are too few calibration rows for the percentile or the coverage asked."""

    code = "calibration_too_small"


class ConfigError(AbstainError):
    """A config file, or a `--set`, is wrong."""

    code = "invalid_config"


class DataError(AbstainError):
    """A data source is wrong."""

    code = "invalid_data"


class FitError(AbstainError):
    """Inference did not come to a posterior."""

    code = "fit_failed"


def printable(text: str) -> str:
    """The text with escapes in place of what is not printable: names of files and keys may hold anything.

    A line break could forge a line of the log, an escape sequence could command the reader's terminal, and half a surrogate
    pair, as Python has it for bytes that are no UTF-8, cannot be sent as JSON.
    """
    if text.isprintable():
        return text
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in text)


def clip_repr(value: object, limit: int = 60) -> str:
    """`repr`, cut where an error message would drown in it; the type's name where there is none (10**5000)."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):
        text = f"a value of type {type(value).__name__}"
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def suggest(name: str, known: Iterable[str]) -> str | None:
    """The nearest of the known names as a question, for the `fix` of an error; None where none is near."""
    near = get_close_matches(name, list(known), n=1)
    return f"did you mean {near[0]!r}?" if near else None
