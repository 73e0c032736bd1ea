"""What the console needs to know of a version: its inputs, its calibration, and how it was made."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from jaxtyping import Float
from pydantic import BaseModel, FiniteFloat, NonNegativeInt, ValidationError

from abstain.models.bundles.bundle import Bundle, Manifest
from abstain.models.bundles.shortfalls import texts
from abstain.models.prediction.preprocessing import Column, in_data_units

QUANTILES = 101


def describe(name: str, version: int, bundle: Bundle) -> dict[str, Any]:
    """The answer of `GET /console/models/{model}/versions/{version}`; every number in it is finite."""
    manifest = bundle.manifest
    model, calibration, terms = manifest.model, bundle.calibration, manifest.calibration
    return {
        "name": name,
        "version": version,
        "digest": manifest.digest,
        "created": manifest.created,
        "task": model.law.task,
        "feature_shape": model.feature_shape,
        "features": features(bundle),
        "class_names": model.class_names,
        "target_name": model.target_name,
        "decision": terms.decision,
        "combination": terms.combination.scores if terms.combination else (),
        "per_class": terms.per_class,
        "percentile": terms.percentile,
        "coverage": terms.coverage,
        "calibration_rows": terms.rows,
        "scores": {
            name: {"quantiles": quantiles(ascending), "threshold": terms.thresholds[name]}
            for name, ascending in calibration.ascending.items()
            if name in terms.thresholds
        },
        "reliability": reliability(manifest),
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
    """The scores at 0, 1, … 100 % of the calibration rows: of the ECDF's steps, each the row at or below."""
    places = np.linspace(0, len(ascending) - 1, QUANTILES).astype(int)
    return ascending[places].astype(float).tolist()


def features(bundle: Bundle) -> list[dict[str, Any]]:
    """Each feature of a flat row: name, categories, where training rows lie (from, to), and a typical value.

    From the training rows' own range where the bundle has it, else from the terms of preprocessing.
    """
    model = bundle.manifest.model
    names = model.feature_names or ("",) * model.features
    columns = model.preprocessing.columns or tuple(Column(name=name) for name in names)
    return [
        {
            "name": column.name,
            "categories": column.categories,
            "low": 0.0 if column.categories else low,
            "high": len(column.categories) - 1.0 if column.categories else high,
            "typical": column.missing if math.isfinite(column.missing) else middle,
        }
        for column, low, high, middle in zip(columns, *_ranges(bundle), strict=True)
    ]


def _ranges(bundle: Bundle) -> tuple[list[float], list[float], list[float]]:
    """Of each feature: from, to, and the middle."""
    model = bundle.manifest.model
    shift, scale = (
        np.broadcast_to(np.asarray(values, float), (model.features,))
        for values in (model.preprocessing.shift, model.preprocessing.scale)
    )
    record = bundle.densities.records.get("range") if bundle.densities else None
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
    """The reliability diagram of the test part, bin by bin, from the manifest: `report.html` draws the same bins.

    Returns:
        For each bin its mean confidence, its accuracy and its number of rows; None where the manifest has no such bins,
        as for regressions.
    """
    try:
        bins = _Bins.model_validate(manifest.metrics.get("reliability"))
    # A manifest that another program wrote may have anything there.
    except ValidationError:
        return None
    if not len(bins.rows) == len(bins.confidence) == len(bins.accuracy) > 0:
        return None
    return [
        {"confidence": stated, "accuracy": right, "rows": rows}
        for stated, right, rows in zip(bins.confidence, bins.accuracy, bins.rows, strict=True)
    ]


class _Bins(BaseModel):
    """The columns of `metrics.reliability` that the console draws."""

    rows: list[NonNegativeInt]
    confidence: list[FiniteFloat]
    accuracy: list[FiniteFloat]
