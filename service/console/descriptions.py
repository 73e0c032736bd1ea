"""What the console needs to know of a version: its inputs, its calibration, and how it was made."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from jaxtyping import Float

from abstain.models.bundles.bundle import Bundle
from abstain.models.decisions.calibration import Calibration
from abstain.models.prediction.posterior import Model
from abstain.models.prediction.preprocessing import Column, in_data_units
from abstain.service.live import Live

QUANTILES = 101
BINS = 10
_SAME = 1e-6
"""Two probabilities this close are one: the scores are float32's."""


def describe(live: Live) -> dict[str, Any]:
    """The answer of `GET /console/models/{model}/versions/{version}`; every number in it is finite."""
    bundle, manifest = live.bundle, live.bundle.manifest
    model, calibration, terms = manifest.model, bundle.calibration, manifest.calibration
    return {
        "name": live.name,
        "version": live.version,
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
        "reliability": reliability(model, calibration),
        "draws": manifest.draws,
        "method": manifest.method.model_dump(mode="json"),
        "network": manifest.model.network.model_dump(mode="json"),
        "likelihood": model.likelihood,
        "data": manifest.data.model_dump(mode="json"),
        "metrics": manifest.metrics,
        "shortfalls": manifest.shortfalls,
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


def reliability(model: Model, calibration: Calibration) -> list[dict[str, float]] | None:
    """Stated confidence beside the share that was right, in bins of equal width, on the calibration rows.

    A row's true class was the predicted one where its nonconformity 1 − p(true) is 1 − p(largest). None where the
    bundle does not say so: for regressions, and for other kinds of prediction sets.
    """
    largest = calibration.scores.get("max_probability")
    if model.law.task != "classification" or calibration.sets != "lac" or largest is None:
        return None
    confidence = 1 - np.asarray(largest, float)
    right = np.abs(calibration.nonconformity - largest) <= _SAME
    places = np.minimum((confidence * BINS).astype(int), BINS - 1)
    return [
        {
            "confidence": float(confidence[places == place].mean()),
            "accuracy": float(right[places == place].mean()),
            "rows": int((places == place).sum()),
        }
        for place in np.unique(places).tolist()
    ]
