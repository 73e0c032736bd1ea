"""The facts of a version that the console shows: its inputs, its calibration, and its fit."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from jaxtyping import Float
from pydantic import BaseModel, FiniteFloat, NonNegativeInt, ValidationError

from abstain.models.bundles.bundle import Bundle
from abstain.models.bundles.manifest import Manifest
from abstain.models.bundles.shortfalls import texts
from abstain.models.decisions.expected_rates import expected_part_rates
from abstain.models.decisions.unseen import below_top
from abstain.models.prediction.preprocessing import in_data_units
from abstain.models.tables.columns import Column
from abstain.service.column_descriptions import range_record

QUANTILES = 101


def describe(name: str, version: int, bundle: Bundle) -> dict[str, Any]:
    """Returns the response of `GET /console/models/{model}/versions/{version}`; every number in it is finite."""
    manifest = bundle.manifest
    model, calibration, settings = manifest.model, bundle.calibration, manifest.calibration
    conditional = settings.conditional_coverage
    return {
        "name": name,
        "version": version,
        "digest": manifest.digest,
        "created": manifest.created,
        "task": model.likelihood_functions.task,
        "feature_shape": model.feature_shape,
        "features": features(bundle),
        "records": bool(model.preprocessing.columns),
        "ranges": "training" if range_record(bundle) is not None else "estimated",
        "class_names": model.class_names,
        "target_name": model.target_name,
        "decision": settings.decision,
        "combination": settings.combination.scores if settings.combination else (),
        "ambiguity": settings.ambiguity,
        "novelty": calibration.novelty_name,
        "part_rates": expected_part_rates(calibration),
        "per_class": settings.per_class,
        "percentile": settings.percentile,
        "expected_reject_rate": calibration.expected_reject_rate,
        "limits_error": calibration.risk is not None,
        "risk": settings.risk.model_dump(mode="json", include={"max_error", "confidence"}) if settings.risk else None,
        "coverage": settings.coverage,
        "coverage_bounds": settings.coverage_bounds,
        "coverage_rows": conditional.model_dump(mode="json", include={"among", "per_class"}) if conditional else None,
        "calibration_rows": settings.rows,
        "scores": {
            name: {"quantiles": quantiles(below_top(ascending)), "threshold": settings.thresholds[name]}
            for name, ascending in calibration.ascending.items()
            if name in settings.thresholds
        },
        "reliability": reliability(manifest),
        "classes": classes(manifest),
        "draws": manifest.draws,
        "method": manifest.method.model_dump(mode="json"),
        "network": manifest.model.network.model_dump(mode="json"),
        "likelihood": model.likelihood,
        "data": manifest.data.model_dump(mode="json"),
        "metrics": manifest.metrics,
        "shortfalls": texts(manifest.shortfalls),
        "notes": manifest.notes,
        "seed": manifest.seed,
        "packages": manifest.packages,
        "git_commit": manifest.git_commit,
        "report": "report.html" in manifest.files,
    }


def quantiles(ascending: Float[np.ndarray, " rows"]) -> list[float]:
    """Returns the scores at 0, 1, … 100 % of the calibration rows; between two rows, the lower score."""
    rows = np.linspace(0, len(ascending) - 1, QUANTILES).astype(int)
    return ascending[rows].astype(float).tolist()


def features(bundle: Bundle) -> list[dict[str, Any]]:
    """Describes each column of a flat row: name, kind, categories, range of the training rows, a typical value and what a gap means.

    The range is that of the score `range` if the bundle has it, else an estimate from the preprocessing parameters. `missing`
    is the value, or the category's code, that replaces a gap, and a date is in seconds since 1970-01-01 00:00 UTC; None if the model was not fitted on a table.
    """
    model = bundle.manifest.model
    names = model.feature_names or ("",) * model.features
    columns = model.preprocessing.columns or tuple(Column(name=name) for name in names)
    return [
        {
            "name": column.name,
            "kind": column.kind,
            "categories": column.categories,
            "low": 0.0 if column.categories else low,
            "high": len(column.categories) - 1.0 if column.categories else high,
            "typical": column.missing if math.isfinite(column.missing) else middle,
            "missing": column.missing if math.isfinite(column.missing) else None,
        }
        for column, low, high, middle in zip(columns, *_ranges(bundle), strict=True)
    ]


def _ranges(bundle: Bundle) -> tuple[list[float], list[float], list[float]]:
    """Returns the lower end, the upper end and the middle of each column's range."""
    model = bundle.manifest.model
    shift, scale = (
        np.broadcast_to(np.asarray(values, float), (model.features,))
        for values in (model.preprocessing.shift, model.preprocessing.scale)
    )
    record = range_record(bundle)
    if record is not None:
        low, high = np.asarray(record.low, float), np.asarray(record.high, float)
    elif len(model.preprocessing.shift) == 1:
        low, high = shift, shift + scale
    else:
        low, high = shift - 3 * scale, shift + 3 * scale
    middle = (low + high) / 2 if len(model.preprocessing.shift) == 1 else shift
    low, high, middle = (in_data_units(model.preprocessing, values) for values in (low, high, middle))
    return low.tolist(), high.tolist(), middle.tolist()


def reliability(manifest: Manifest) -> list[dict[str, float]] | None:
    """Reads the bins of the reliability diagram of the test part from the manifest; `report.html` draws the same bins.

    Returns:
        The mean confidence, accuracy and number of rows of each bin; None if the manifest has no valid bins, for example
        for regressions.
    """
    try:
        bins = _Bins.model_validate(manifest.metrics.get("reliability"))
    # A manifest of another program may have any value there.
    except ValidationError:
        return None
    if not len(bins.rows) == len(bins.confidence) == len(bins.accuracy) > 0:
        return None
    return [
        {"confidence": confidence, "accuracy": accuracy, "rows": rows}
        for confidence, accuracy, rows in zip(bins.confidence, bins.accuracy, bins.rows, strict=True)
    ]


def classes(manifest: Manifest) -> list[dict[str, Any]] | None:
    """Reads the table of classes of the test part from the manifest.

    Returns:
        For each class its name, the number of its rows, the number of rows predicted as it, its accuracy (recall) and its
        precision, each None without such rows; None if the manifest has no valid table, as for regressions and bundles of
        earlier versions.
    """
    names = manifest.model.class_names
    try:
        table = _Classes.model_validate(manifest.metrics.get("classes"))
    # A manifest of another program may have any value there.
    except ValidationError:
        return None
    columns = (table.rows, table.predicted, table.accuracy, table.precision)
    if not names or any(len(column) != len(names) for column in columns):
        return None
    keys = ("name", "rows", "predicted", "accuracy", "precision")
    return [dict(zip(keys, row, strict=True)) for row in zip(names, *columns, strict=True)]


class _Classes(BaseModel):
    """The columns of `metrics.classes`."""

    rows: list[NonNegativeInt]
    predicted: list[NonNegativeInt]
    accuracy: list[FiniteFloat | None]
    precision: list[FiniteFloat | None]


class _Bins(BaseModel):
    """The columns of `metrics.reliability` that the console draws."""

    rows: list[NonNegativeInt]
    confidence: list[FiniteFloat]
    accuracy: list[FiniteFloat]
