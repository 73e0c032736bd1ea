"""The record of a manifest for the rows of a fit, and checks of its numbers."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import BaseModel, ConfigDict, Field, JsonValue, NonNegativeInt

from abstain.models.bundles.plausible import Claim, within
from abstain.models.files.reading import ColumnKind, FileDialect, Reading, reading_of
from abstain.models.prediction.posterior import Model

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
    dialect: FileDialect | None = Field(default=None, exclude_if=lambda dialect: dialect is None)
    """How the source was written, if it is a text table; None, and not written, for others, and in earlier versions."""


def reading_of_fit(data: DataRecord, model: Model) -> Reading:
    """Returns how a fitted model reads a table: with the keys of its fit, its columns' kinds, and its source's dialect.

    Raises:
        BundleError: a key has a value that no fit writes.
    """
    return reading_of(data.settings).model_copy(update={"dialect": data.dialect, "kinds": column_kinds(model)})


def column_kinds(model: Model) -> dict[str, ColumnKind]:
    """Returns the kinds of a fitted model's columns, and of its target, by name."""
    target: ColumnKind = "category" if model.class_names else "number"
    features: dict[str, ColumnKind] = dict.fromkeys(model.feature_names, "number")
    return {
        model.target_name: target,
        **features,
        **{column.name: column.kind for column in model.preprocessing.columns},
    }


def data_claims(data: DataRecord, classes: int) -> Iterator[Claim]:
    """Yields the plausibility checks of the record of a model with some number of classes; Pydantic has checked its types."""
    for part in ("train", "calibration", "test"):
        yield within(f"data.{part}_rows", getattr(data, f"{part}_rows"), 0, MOST_ROWS)
    if data.class_rows:
        expected = f"{classes} numbers that add up to data.train_rows, {data.train_rows}"
        found = f"{len(data.class_rows)} numbers that add up to {sum(data.class_rows)}"
        holds = len(data.class_rows) == classes and sum(data.class_rows) == data.train_rows
        yield Claim("data.class_rows", holds, expected, found)
