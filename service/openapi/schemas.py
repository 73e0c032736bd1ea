"""The schemas of request and response bodies (JSON Schema 2020-12, as in OpenAPI 3.1)."""

from __future__ import annotations

from typing import get_args

from abstain.models.prediction.summaries import QUANTILES
from abstain.service.open_inference.statistics import SPANS
from abstain.service.open_inference.tensors import DATATYPES, INPUT
from abstain.service.openapi.forms import (
    ANY,
    BOOLEAN,
    INTEGER,
    NUMBER,
    STRING,
    Schema,
    any_one_of,
    array,
    described,
    map_of,
    nullable,
    record,
    ref,
)
from abstain.service.openapi.rollouts import ROLLOUT, ROLLOUT_STATE
from abstain.service.responses import LONGEST_ID
from abstain.service.version_table import State

_PAIR = array(NUMBER, minItems=2, maxItems=2)
_NESTED = array({"anyOf": [NUMBER, array({"anyOf": [NUMBER, array(NUMBER)]})]})
_CELL = {"type": ["number", "string", "boolean", "null"]}
_CELL_TEXT = "number: a number; category: text, number or boolean; date: text in ISO 8601; missing: null"
_SHARE = {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1}
_PERCENTILE = {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 100}
SETTINGS: dict[str, Schema] = {
    "model": described(STRING, "`name`, `name:version` or `name@label`; may be left out if the server has one model"),
    "percentile": described(_PERCENTILE, "percentile of the decision; left out: the model's own"),
    "coverage": described(_SHARE, "coverage of prediction sets and intervals; left out: the model's own"),
    "max_error": described(
        _SHARE, "largest share of wrong answers among accepted rows; only for a model with such a limit"
    ),
    "fields": described(array(STRING, minItems=1, uniqueItems=True), "the fields to return; left out: all"),
}
"""The settings of a request: keys of a JSON body, parameters of the URL for a table as the body."""

_PREDICTION = {
    "label": described(STRING, "classification: the most probable class"),
    "index": described(INTEGER, "classification: the position of this class"),
    "probabilities": described(array(NUMBER), "classification: mean over the draws of each class's probability"),
    "mean": described(NUMBER, "regression: mean of the predictive distribution"),
    "std": {
        "anyOf": [NUMBER, array(NUMBER)],
        "description": "regression: standard deviation of the predictive distribution; classification: standard deviation "
        "over the draws of each class's probability",
    },
    "aleatoric_std": described(NUMBER, "regression: standard deviation of the noise"),
    "epistemic_std": described(NUMBER, "regression: standard deviation over the draws of the mean"),
    "entropy": described(NUMBER, "entropy of the prediction, in nats"),
    "aleatoric_entropy": described(NUMBER, "classification: mean entropy of the draws, in nats"),
    "mutual_information": described(NUMBER, "classification: how much the draws disagree, in nats"),
    "quantiles": described(record({str(level): NUMBER for level in QUANTILES}), "regression: quantiles by their level"),
    "interval": described(_PAIR, "regression: prediction interval"),
    "reject": described(BOOLEAN, "the reject flag"),
    "novel": described(BOOLEAN, "whether the novelty part of a decision of two parts rejects the row"),
    "ambiguous": described(BOOLEAN, "whether the ambiguity part of a decision of two parts rejects the row"),
    "reasons": described(array(STRING), "why the row is rejected; empty if it is accepted"),
    "scores": map_of(ref("Score")),
    "prediction_set": described(array(STRING), "classification: classes, the most probable first; may be empty"),
    "probability_interval": described(_PAIR, "ends of the probability of the second of two classes"),
}
_VERSION = {
    "version": INTEGER,
    "labels": described(array(STRING), "the labels of the store"),
    "served_as": described(array(STRING), "the labels that requests get this version by"),
    "digest": nullable(STRING),
    "method": nullable(STRING),
    "state": {"type": "string", "enum": list(get_args(State))},
    "why": nullable(STRING),
    "sound": BOOLEAN,
    "shortfalls": array(STRING),
}
_MODEL = {
    "name": STRING,
    "version": INTEGER,
    "versions": described(array(INTEGER), "the versions that are served"),
    "digest": STRING,
    "task": {"type": "string", "enum": ["classification", "regression"]},
    "feature_shape": described(array(INTEGER), "the shape of one row"),
    "columns": described(array(ref("ModelColumn")), "the columns of a row; empty if they have no names"),
    "class_names": array(STRING),
    "target_name": STRING,
    "fields": described(array(STRING), "the fields of each prediction"),
    "decision": STRING,
    "percentile": NUMBER,
    "coverage": NUMBER,
    "draws": INTEGER,
    "calibration_rows": INTEGER,
    "sound": BOOLEAN,
    "shortfalls": array(STRING),
    "max_rows": described(INTEGER, "the largest number of rows of one request"),
    "reading": described(
        {"type": "object", "additionalProperties": True},
        "for a model of a table: the keys of `[data]` by which a file of rows is read, and `dialect`, how its source was written",
    ),
}
_ERROR = {
    "error": described(STRING, "for people: what is wrong and where, what was expected and found, what to do"),
    "code": described(STRING, "for programs: the kind of error; a code never changes its meaning"),
    "where": described(nullable(STRING), "the field, row, header or model at fault"),
    "id": described(STRING, "the id of the request, as in the server's log"),
    "expected": nullable(STRING),
    "found": nullable(STRING),
    "fix": described(nullable(STRING), "what to do"),
}

_CONTENT_TYPE = described(STRING, "the codec of MLServer that wrote the values")
_TENSOR_INPUT = {
    "name": described(STRING, f"`{INPUT}`, or the name of a column"),
    "shape": described(array(INTEGER), "the rows, then the shape of one row; for a column `[n]` or `[n, 1]`"),
    "datatype": {"type": "string", "enum": [*DATATYPES, "BOOL", "BYTES"]},
    "parameters": record(
        {"binary_data_size": INTEGER, "content_type": _CONTENT_TYPE}, ["binary_data_size", "content_type"], closed=True
    ),
    "data": described(
        array({"anyOf": [_CELL, array(_CELL), _NESTED]}),
        "numbers flat or nested; a column has one value for each row, null if it is missing; left out for binary data",
    ),
}
_TENSOR_OUTPUT = {
    "name": STRING,
    "datatype": STRING,
    "shape": array(INTEGER),
    "parameters": record({"binary_data_size": INTEGER}, ["binary_data_size"]),
    "data": described(array({"anyOf": [NUMBER, STRING, BOOLEAN, {"type": "null"}]}), "flat; left out for binary data"),
}
_OPTIONAL_LEVELS = ("max_error", "confidence")
_STATED = {"digest": STRING, **dict.fromkeys(("percentile", "coverage", *_OPTIONAL_LEVELS), NUMBER)}
_INFER_PARAMETERS = {
    **{name: SETTINGS[name] for name in ("percentile", "coverage", "max_error")},
    "binary_data_output": described(BOOLEAN, "whether all outputs are binary data"),
    "content_type": _CONTENT_TYPE,
}
_COLUMN_FACTS: dict[str, Schema] = {
    "kind": {"type": "string", "enum": ["number", "category", "date"]},
    "nullable": described(BOOLEAN, "whether a value may be missing"),
    "range": described(
        {"anyOf": [array(NUMBER), array(STRING), {"type": "null"}]},
        "of the training rows, rounded outwards; for a date in ISO 8601; not for a category",
    ),
    "categories": described(array(STRING), "only for a category"),
    "unseen": described(
        {"type": "string", "enum": ["reject", "missing", "refuse"]},
        "what becomes of another category; only for a category",
    ),
}
_OF_ONE_KIND = ("range", "categories", "unseen")
_TENSOR_METADATA = {"name": STRING, "datatype": STRING, "shape": array(INTEGER)}
_TENSOR_CONFIG = {"name": STRING, "data_type": STRING, "dims": array(INTEGER)}
_SPAN = record({"count": INTEGER, "ns": INTEGER})
_STATISTICS = {
    "name": STRING,
    "version": STRING,
    "last_inference": INTEGER,
    "inference_count": INTEGER,
    "execution_count": INTEGER,
    "inference_stats": record(dict.fromkeys(SPANS, _SPAN)),
    "batch_stats": array(ANY),
}


def _request(rows: dict[str, Schema]) -> Schema:
    """Returns the schema of a body of `/predict` with one form of rows."""
    return record({**rows, **SETTINGS}, SETTINGS, closed=True)


SCHEMAS: dict[str, Schema] = {
    "PredictRequest": any_one_of("PredictInputs", "PredictRecords", "PredictTable"),
    "PredictInputs": _request(
        {
            "inputs": described(
                array(_NESTED, minItems=1),
                "rows of numbers; an image row is nested as the model's input shape, or flat",
            )
        }
    ),
    "PredictRecords": _request({"records": described(array(ref("Record"), minItems=1), "rows with named values")}),
    "PredictTable": _request(
        {
            "columns": described(array(STRING, minItems=1, uniqueItems=True), "the columns' names, in any order"),
            "data": described(
                array(array(_CELL), minItems=1), f"rows of values in the order of `columns`; {_CELL_TEXT}"
            ),
        }
    ),
    "Record": described(map_of(_CELL), f"a value for each column of the model; {_CELL_TEXT}"),
    "PredictResponse": record(
        {
            "id": {"type": "string", "maxLength": LONGEST_ID},
            "model": ref("ModelReference"),
            "percentile": NUMBER,
            "coverage": NUMBER,
            "max_error": NUMBER,
            "confidence": NUMBER,
            "draws": INTEGER,
            "predictions": array(ref("Prediction")),
        },
        ["max_error", "confidence"],
    ),
    "ModelReference": record({"name": STRING, "version": INTEGER, "digest": STRING}),
    "Prediction": record(
        _PREDICTION,
        _PREDICTION,
        description="The prediction of one row: the fields that were asked for and that the model has",
    ),
    "Score": record(
        {
            "value": NUMBER,
            "percentile": NUMBER,
            "threshold": NUMBER,
            "p_value": NUMBER,
            "extrapolated": BOOLEAN,
            "evidence": described(NUMBER, "in nats; only for a score that is combined into the decision"),
        },
        ["evidence"],
    ),
    "Error": record(_ERROR),
    "Models": record(
        {"models": array(ref("ModelVersions")), "why": described(STRING, "why the store cannot be read; only if so")},
        ["why"],
    ),
    "ModelVersions": record(
        {
            "name": STRING,
            "versions": array(ref("ModelVersion")),
            "rollout": described(nullable(record(ROLLOUT)), "the rollout that the server follows"),
        }
    ),
    "Rollout": ROLLOUT_STATE,
    "ModelVersion": record(_VERSION),
    "Model": record(_MODEL, ["reading"]),
    "ModelColumn": record({"name": STRING, **_COLUMN_FACTS}, _OF_ONE_KIND),
    "Live": record({"live": BOOLEAN}),
    "Readiness": record({"ready": BOOLEAN, "workers_ready": INTEGER, "workers": INTEGER, "why": array(STRING)}),
    "ConsoleVersion": {
        "type": "object",
        "description": "What the console shows of a version; it may change with every release",
        "additionalProperties": True,
    },
    "InferRequest": record(
        {
            "id": STRING,
            "model_name": STRING,
            "parameters": record(_INFER_PARAMETERS, _INFER_PARAMETERS, closed=True),
            "inputs": described(
                array(ref("InferInput"), minItems=1), f"one tensor named `{INPUT}`, or one for each column of the model"
            ),
            "outputs": array(ref("RequestedOutput")),
        },
        ["id", "model_name", "parameters", "outputs"],
        closed=True,
    ),
    "InferInput": record(_TENSOR_INPUT, ["parameters", "data"], closed=True),
    "RequestedOutput": record(
        {"name": STRING, "parameters": record({"binary_data": BOOLEAN}, ["binary_data"], closed=True)},
        ["parameters"],
        closed=True,
    ),
    "InferResponse": record(
        {
            "model_name": STRING,
            "model_version": STRING,
            "id": STRING,
            "parameters": record(_STATED, _OPTIONAL_LEVELS),
            "outputs": array(ref("InferOutput")),
        },
        ["id"],
    ),
    "InferOutput": record(_TENSOR_OUTPUT, ["parameters", "data"]),
    "ServerMetadata": record({"name": STRING, "version": STRING, "extensions": array(STRING)}),
    "ServerReady": record({"ready": BOOLEAN}),
    "ModelReady": record({"name": STRING, "ready": BOOLEAN}),
    "ModelMetadata": record(
        {
            "name": STRING,
            "versions": array(STRING),
            "platform": STRING,
            "inputs": described(
                array(
                    record(
                        {**_TENSOR_METADATA, "parameters": ref("TensorParameters")},
                        ["parameters"],
                    )
                ),
                f"`{INPUT}`, then a tensor for each column of a table; a request has one or the others",
            ),
            "outputs": array(record(_TENSOR_METADATA)),
            "parameters": record({"digest": STRING}),
        }
    ),
    "TensorParameters": record(
        {"content_type": _CONTENT_TYPE, **_COLUMN_FACTS},
        _OF_ONE_KIND,
        description="The column of a tensor",
    ),
    "ModelConfig": record(
        {
            "name": STRING,
            "platform": STRING,
            "backend": STRING,
            "version_policy": record({"specific": record({"versions": array(INTEGER)})}),
            "max_batch_size": INTEGER,
            "input": array(record({**_TENSOR_CONFIG, "optional": BOOLEAN}, ["optional"])),
            "output": array(record(_TENSOR_CONFIG)),
            "parameters": map_of(record({"string_value": STRING})),
        }
    ),
    "Statistics": record({"model_stats": array(record(_STATISTICS))}),
    "IndexRequest": record({"ready": BOOLEAN}, ["ready"], closed=True),
    "LoadRequest": record({"parameters": {"type": "object"}}, ["parameters"], closed=True),
    "LabelRequest": record(
        {
            "label": STRING,
            "version": INTEGER,
            "force": described(BOOLEAN, "whether to label it `stable` although it failed publication checks"),
        },
        ["force"],
        closed=True,
    ),
    "LabelResponse": record(
        {
            "name": STRING,
            "label": STRING,
            "version": INTEGER,
            "served": described(BOOLEAN, "whether requests for the label get this version now"),
            "why": described(array(STRING), "why not"),
        },
        ["why"],
    ),
    "IndexEntry": record({"name": STRING, "version": STRING, "state": STRING, "reason": STRING}),
}
"""Every schema by the name under which operations refer to it."""
