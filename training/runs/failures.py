"""What fails after inference costs no fit: it is left out, with the reason, and the version is published all the same."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import NamedTuple, TypeVar

Result = TypeVar("Result")


class Failure(NamedTuple):
    """What stands in the place of a result."""

    sentence: str


def attempt(what: str, make: Callable[[], Result], missing: list[str]) -> Result | Failure:
    """The result of `make`; where that raises, a failure, whose sentence is added to `missing`.

    Args:
        what: is made, as the sentence's subject: "the picture …".
    """
    try:
        return make()
    # Of whatever kind: hours of sampling are worth more than any picture of them.
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        sentence = (
            f"{what[:1].upper()}{what[1:]} could not be made: {type(error).__name__}: {error} "
            f"(in {place.name}). Nothing else depends on it."
        )
        missing.append(sentence)
        return Failure(sentence)
