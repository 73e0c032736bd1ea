"""Shortfalls: what a fit lacks to be relied on, each with the code of the check that found it.

A manifest holds their sentences alone, and so do all answers and printouts. The code is for the program: which shortfalls
a new calibration checks again, say. Where a manifest is read, `recognise` gives it back; that is the one place where
a sentence is taken apart.
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
    "ess": re.compile(r"the samples of predictions are worth too few independent ones: "),
    "learned_nothing": re.compile(r"it has learned nothing that "),
    "not_finite": re.compile(r"metrics on the test part that are not finite: "),
    "r_hat": re.compile(r"the chains disagree about predictions: "),
    "still_member": re.compile(r"member \d+ left the numbers at every step "),
    "unchecked_chains": re.compile(r"The diagnostics of the chains could not be made: "),
}
"""How each check's sentence begins, in this version and in all earlier ones."""


@dataclass(frozen=True)
class Shortfall:
    """One thing that a fit lacks.

    Attributes:
        code: of the check that found it; None where an earlier or later version of abstain, or another program, wrote a
            sentence that this one does not know.
        text: the sentence, for people.
    """

    code: ShortfallCode | None
    text: str

    def __str__(self) -> str:
        return self.text


def recognise(text: str) -> Shortfall:
    """The shortfall that a manifest's sentence stands for, its code found by how the sentence begins."""
    return Shortfall(next((code for code, beginning in _BEGINNINGS.items() if beginning.match(text)), None), text)


def texts(shortfalls: Iterable[Shortfall]) -> list[str]:
    """The sentences of some shortfalls."""
    return [shortfall.text for shortfall in shortfalls]


def _read(value: Any) -> Shortfall:
    if isinstance(value, Shortfall):
        return value
    if isinstance(value, str):
        return recognise(value)
    raise PydanticCustomError("string_type", "Input should be a valid string")


ShortfallSentence = Annotated[Shortfall, PlainValidator(_read), PlainSerializer(str, return_type=str)]
"""A shortfall as a field of a record: a sentence in its JSON."""
