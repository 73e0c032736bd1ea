"""What clients may know about the columns of a model: names, categories and ranges; never a training row."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from abstain.models.bundles.bundle import Bundle
from abstain.models.prediction.preprocessing import in_data_units
from abstain.models.tables.dates import date_text


def describe_columns(bundle: Bundle) -> list[dict[str, Any]]:
    """Describes each named column, in the order of a row; an empty list if the features have no names.

    `categories` and `unseen` are only given for a category, `range` for other columns: its ends are rounded outwards, and
    it is None if the version does not record it. The ends of a date's range are texts in ISO 8601.
    """
    plan = bundle.manifest.model.row_plan
    if plan is None:
        return []
    described: list[dict[str, Any]] = []
    for column, ends in zip(plan.columns, trained_ranges(bundle), strict=True):
        facts: dict[str, Any] = {"name": column.name, "kind": column.kind, "nullable": plan.nullable}
        if column.kind == "category":
            facts |= {"categories": list(column.categories), "unseen": column.unseen}
        elif column.kind == "date":
            facts["range"] = ends and [date_text(math.floor(ends[0])), date_text(math.ceil(ends[1]))]
        else:
            facts["range"] = ends
        described.append(facts)
    return described


def range_record(bundle: Bundle) -> Any:
    """Returns the record of the score `range`; None if the bundle does not have it."""
    return bundle.feature_scores.records.get("range") if bundle.feature_scores else None


def trained_ranges(bundle: Bundle) -> list[list[float] | None]:
    """Returns the ends of each feature's range in the training part; None where the score `range` does not record it."""
    model = bundle.manifest.model
    record = range_record(bundle)
    if record is None:
        return [None] * model.features
    low, high = (
        in_data_units(model.preprocessing, np.asarray(ends, float).reshape(model.features))
        for ends in (record.low, record.high)
    )
    pairs = np.stack([low, high], axis=1)
    # The arrays of a bundle may hold anything.
    return [pair.tolist() if np.isfinite(pair).all() else None for pair in pairs]
