"""Failures after inference: the version is published without the failed part, and a sentence gives the reason."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import NamedTuple, TypeVar

Result = TypeVar("Result")


class Failure(NamedTuple):
    """The sentence that replaces a result."""

    sentence: str


def attempt(what: str, make: Callable[[], Result], missing: list[str]) -> Result | Failure:
    """Calls `make` and returns its result; if it raises, adds a sentence to `missing` and returns a failure.

    Args:
        what: the subject of the sentence, such as "the picture …".
    """
    try:
        return make()
    # Any exception, because a picture that fails must not cost hours of sampling.
    except Exception as error:
        index = traceback.extract_tb(error.__traceback__)[-1]
        sentence = (
            f"{what[:1].upper()}{what[1:]} could not be made: {type(error).__name__}: {error} "
            f"(in {index.name}). Nothing else depends on it."
        )
        missing.append(sentence)
        return Failure(sentence)
