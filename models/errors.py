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


class AbstainError(Exception):
    """Says what is wrong and where, what was expected, what was found and what to do about it: one line, all printable."""

    def __init__(
        self,
        what: str,
        *,
        where: str | None = None,
        expected: object = None,
        found: object = None,
        fix: str | None = None,
    ) -> None:
        sentence = f"{where}: {what}" if where else what
        details = [f"{word} {value}" for word, value in (("expected", expected), ("found", found)) if value is not None]
        if details:
            sentence += f": {', '.join(details)}"
        if fix:
            sentence += f"; {fix}"
        super().__init__(printable(sentence))


class InputError(AbstainError):
    """A row, or a parameter of a request, is wrong."""


class UnknownModel(AbstainError):
    """No such model, version or label."""


class BundleError(AbstainError):
    """A version on disk is damaged, or of another schema."""


class SignatureError(BundleError):
    """A version on disk is not signed by a trusted key."""


class StoreError(AbstainError):
    """The store cannot do what was asked."""


class CalibrationError(AbstainError):
    """There are too few calibration rows for the percentile or the coverage asked."""


class ConfigError(AbstainError):
    """A config file, or a `--set`, is wrong."""


class DataError(AbstainError):
    """A data source is wrong."""


class FitError(AbstainError):
    """Inference did not come to a posterior."""


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
