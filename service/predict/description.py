"""`GET /models/{model}`: what a client needs to know of a served version in order to send rows and read predictions."""

from __future__ import annotations

from typing import Any

from abstain.models.bundles.data_record import reading_of_fit
from abstain.models.bundles.shortfalls import texts
from abstain.service.column_descriptions import describe_columns
from abstain.service.live import Live
from abstain.service.predict.response import fields_of


def describe(live: Live, versions: list[int], max_rows: int) -> dict[str, Any]:
    """Makes the body of the response.

    Args:
        versions: the versions of this model that are served.
        max_rows: the largest number of rows of one request.
    """
    manifest, calibration = live.bundle.manifest, live.bundle.calibration
    model, task = manifest.model, manifest.model.likelihood_functions.task
    reading = reading_of_fit(manifest.data, model).model_dump(mode="json", exclude_defaults=True, exclude={"kinds"})
    two_parts, interval = calibration.ambiguity is not None, calibration.targets is not None
    return {
        "name": live.name,
        "version": live.version,
        "versions": versions,
        "digest": manifest.digest,
        "task": task,
        "feature_shape": model.feature_shape,
        "columns": describe_columns(live.bundle),
        "class_names": model.class_names,
        "target_name": model.target_name,
        "fields": fields_of(task, two_parts=two_parts, probability_interval=interval),
        "decision": calibration.decision_name,
        "percentile": calibration.percentile,
        "coverage": calibration.coverage,
        "draws": live.predictor.draws,
        "calibration_rows": calibration.rows,
        "sound": not manifest.shortfalls,
        "shortfalls": texts(manifest.shortfalls),
        "max_rows": max_rows,
        **({"reading": reading} if reading else {}),
    }
