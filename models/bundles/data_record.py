"""The record of a manifest for the rows of a fit, and checks of its numbers."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import BaseModel, ConfigDict, Field, JsonValue, NonNegativeInt

from abstain.models.bundles.plausible import Claim, within

MOST_ROWS = 10**9


class DataRecord(BaseModel):
    """The source of the rows, the config's settings for them, and the sha256 of the arrays."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    source: str
    settings: dict[str, JsonValue]
    fingerprint: str
    train_rows: int
    calibration_rows: int
    test_rows: int
    class_rows: tuple[NonNegativeInt, ...] = Field(default=(), exclude_if=lambda rows: not rows)
    """The training rows of each class, which a baseline predicts; empty for numbers, and in bundles of earlier versions."""


def data_claims(data: DataRecord, classes: int) -> Iterator[Claim]:
    """Yields the plausibility checks of the record of a model with some number of classes; Pydantic has checked its types."""
    for part in ("train", "calibration", "test"):
        yield within(f"data.{part}_rows", getattr(data, f"{part}_rows"), 0, MOST_ROWS)
    if data.class_rows:
        expected = f"{classes} numbers that add up to data.train_rows, {data.train_rows}"
        found = f"{len(data.class_rows)} numbers that add up to {sum(data.class_rows)}"
        holds = len(data.class_rows) == classes and sum(data.class_rows) == data.train_rows
        yield Claim("data.class_rows", holds, expected, found)
