"""Shortfalls: reasons why a fit cannot be relied on, each with the code of the check that found it.

Manifests, responses and printed output contain only the sentences. The code is for programs, for example to select the
shortfalls that a new calibration checks again. When a manifest is read, `recognise` finds the code; only this function
parses a sentence.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import PlainSerializer, PlainValidator
from pydantic_core import PydanticCustomError

ShortfallCode = Literal[
    "accepts_far_rows",
    "acceptance",
    "behind_the_mode",
    "constant_decision",
    "divergences",
    "e_bfmi",
    "energy_variance",
    "ess",
    "learned_nothing",
    "no_error_limit",
    "not_finite",
    "r_hat",
    "still_member",
    "unchecked_chains",
]
"""The checks that a fit can fail."""

_BEGINNINGS: dict[ShortfallCode, re.Pattern[str]] = {
    "accepts_far_rows": re.compile(r"its decision accepts rows far outside the training data: "),
    "acceptance": re.compile(r"chain \d+ hardly moves: "),
    "behind_the_mode": re.compile(r"its draws predict far worse than the mode they were made around: "),
    "constant_decision": re.compile(r"its decision score, "),
    "divergences": re.compile(r"\d+ of \d+ transitions diverged, "),
    "e_bfmi": re.compile(r"chain \d+ moves slowly between energies: "),
    "energy_variance": re.compile(r"the steps were too large: their energy variance is "),
    "ess": re.compile(
        r"the samples of predictions (have too small an effective size|are worth too few independent ones): "
    ),
    "learned_nothing": re.compile(r"it has learned nothing that "),
    "no_error_limit": re.compile(r"it rejects every row: no threshold limits the error "),
    "not_finite": re.compile(r"metrics on the test part that are not finite: "),
    "r_hat": re.compile(r"the chains disagree about predictions: "),
    "still_member": re.compile(r"member \d+ (never moved: |left the numbers at every step )"),
    "unchecked_chains": re.compile(r"The diagnostics of the chains could not be made: "),
}
"""The beginning of each check's sentence, in this version of abstain and all earlier ones."""


@dataclass(frozen=True)
class Shortfall:
    """One reason why a fit cannot be relied on.

    Attributes:
        code: the code of the check that found it; None for a sentence that this version does not recognise, because
            another version of abstain, or another program, wrote it.
        text: the sentence, for people.
    """

    code: ShortfallCode | None
    text: str

    def __str__(self) -> str:
        return self.text


def recognise(text: str) -> Shortfall:
    """Converts a manifest's sentence to a shortfall; the beginning of the sentence gives the code."""
    return Shortfall(next((code for code, beginning in _BEGINNINGS.items() if beginning.match(text)), None), text)


def texts(shortfalls: Iterable[Shortfall]) -> list[str]:
    """Returns the sentences of shortfalls."""
    return [shortfall.text for shortfall in shortfalls]


def _read(value: Any) -> Shortfall:
    if isinstance(value, Shortfall):
        return value
    if isinstance(value, str):
        return recognise(value)
    raise PydanticCustomError("string_type", "Input should be a valid string")


ShortfallSentence = Annotated[Shortfall, PlainValidator(_read), PlainSerializer(str, return_type=str)]
"""A shortfall as a field of a record; in JSON it is a sentence."""
