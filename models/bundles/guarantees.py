"""The manifest's records of what a calibration guarantees in addition to its reject rate, and their plausibility checks."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, NonNegativeInt, PositiveFloat

from abstain.models.bundles.plausible import Claim
from abstain.models.decisions.radii import Among


class RiskRecord(BaseModel):
    """The limit of the ambiguity that bounds the error of accepted rows, and the calibration rows that certify it."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    max_error: Annotated[float, Field(gt=0, lt=1)]
    """The largest share of wrong answers among accepted rows."""
    confidence: Annotated[float, Field(gt=0, lt=1)]
    """The probability, over calibration parts, that the share is not exceeded."""
    error_size: PositiveFloat | None = None
    """For numbers: the largest distance from the target of an answer that is not wrong."""
    threshold: FiniteFloat | None
    """The largest ambiguity of an accepted row; None if none could be certified, so that every row is rejected."""
    accepted_rows: NonNegativeInt
    """The calibration rows that are accepted."""
    errors: NonNegativeInt
    """The wrong answers among them."""
    familiar_rows: NonNegativeInt
    """The calibration rows below the novelty threshold."""
    p_value: Annotated[float, Field(ge=0, le=1)]
    level: Annotated[float, Field(ge=0, le=1)]
    """The largest p-value that certifies a threshold (`models/decisions/risk.py`)."""


class CoverageRecord(BaseModel):
    """The rows over which the coverage holds, if these are not simply all rows (`models/decisions/radii.py`).

    Bounds hold with 95 % probability over calibration parts, for new rows of this kind. They are exact if neither the
    decision scores nor the nonconformity have ties.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    among: Among
    """All rows, or the accepted ones."""
    per_class: bool
    """Whether the coverage holds within each true class."""
    rows: NonNegativeInt
    """The calibration rows that set the radii."""
    class_rows: dict[str, NonNegativeInt] = {}
    """These rows by true class, if the coverage holds within each."""
    class_bounds: dict[str, tuple[float, float]] = {}
    """Bounds of the coverage by true class, if it holds within each."""


def risk_claims(risk: RiskRecord, rows: int) -> Iterator[Claim]:
    """Yields the checks of a limit of the error; `rows` is the number of calibration rows."""
    counts = (risk.errors, risk.accepted_rows, risk.familiar_rows, rows)
    ordered = all(fewer <= more for fewer, more in pairwise(counts))
    yield Claim("calibration.risk", ordered, "errors ≤ accepted_rows ≤ familiar_rows ≤ rows", counts)
    yield Claim("calibration.risk.threshold", (risk.threshold is None) == (not risk.accepted_rows), "one", counts)


def coverage_claims(record: CoverageRecord | None, rows: int, classes: tuple[str, ...]) -> Iterator[Claim]:
    """Yields the checks of the rows over which the coverage holds.

    Args:
        rows: the number of calibration rows.
        classes: the names of the classes; empty for regression.
    """
    if record is None:
        return
    key = "calibration.conditional_coverage"
    stated = record.per_class or record.among == "accepted"
    yield Claim(key, stated, 'per_class, or among "accepted"', "neither")
    yield Claim(f"{key}.rows", record.rows <= rows, f"at most {rows:,}", record.rows)
    names = {*classes} if record.per_class else set[str]()
    for field in ("class_rows", "class_bounds"):
        found: set[str] = {*getattr(record, field)}
        expected = "every class, with per_class, else none"
        yield Claim(f"{key}.{field}", found == names, expected, sorted(found))
    total = sum(record.class_rows.values())
    yield Claim(f"{key}.class_rows", not record.per_class or total == record.rows, f"{record.rows:,} together", total)
