"""The Open Inference Protocol's outputs: those that a model has, and their values as JSON or as binary data."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Literal, NamedTuple, cast

import numpy as np
import orjson
from jaxtyping import Bool, Int

from abstain.models.decisions.records import PARTS, PROBABILITY_INTERVAL, Calibration, Judgement
from abstain.models.prediction.posterior import Model
from abstain.models.prediction.predictive import Prediction
from abstain.models.prediction.summaries import QUANTILES, ClassificationSummary
from abstain.service.compression import accepted_coding, compress
from abstain.service.json_objects import HEADER_LENGTH

_DTYPES = {"FP32": np.dtype("<f4"), "FP64": np.dtype("<f8"), "INT64": np.dtype("<i8"), "BOOL": np.dtype("?")}
_FLOAT32_MAX = float(np.finfo(np.float32).max)
_SCORE = "score_"


class Output(NamedTuple):
    """The type of an output, and its shape for one row."""

    datatype: str
    shape: tuple[int, ...] = ()


class RequestedOutput(NamedTuple):
    """An output that a client requests, and whether as binary data."""

    name: str
    binary: bool


class NameColumn(NamedTuple):
    """A column of names: the few possible names, and the index of each row's name among them."""

    names: tuple[str, ...]
    indices: Int[np.ndarray, " rows"]


OutputColumn = np.ndarray | NameColumn


class Records(NamedTuple):
    """All outputs of each row, in the order of one row's binary data.

    Attributes:
        numbers: a structured array with a field for each output except the label.
        label: the class labels, which come first; None for a regression.
        finite: which rows have only finite numbers.
    """

    numbers: np.ndarray
    label: NameColumn | None
    finite: Bool[np.ndarray, " rows"]


def outputs_of(model: Model, calibration: Calibration) -> Mapping[str, Output]:
    """Returns every output of a model, in the order of the metadata."""
    wide = model.preprocessing.float64_target
    flags = ("reject", *PARTS) if calibration.ambiguity is not None else ("reject",)
    outputs = _outputs(
        model.likelihood_functions.task, len(model.class_names), flags, tuple(calibration.all_scores), wide
    )
    return outputs if calibration.targets is None else {**outputs, PROBABILITY_INTERVAL: Output("FP32", (2,))}


def input_of(model: Model) -> Output:
    """Returns the input type that loses no precision, and the shape of one row; other types are accepted, too."""
    return Output("FP64" if model.preprocessing.origin else "FP32", model.feature_shape)


@lru_cache(64)
def _outputs(
    task: Literal["classification", "regression"],
    classes: int,
    flags: tuple[str, ...],
    scores: tuple[str, ...],
    wide: bool,
) -> Mapping[str, Output]:
    number = Output("FP32")
    if task == "classification":
        own = {
            "label": Output("BYTES"),
            "index": Output("INT64"),
            "probabilities": Output("FP32", (classes,)),
            "std": Output("FP32", (classes,)),
            **dict.fromkeys(("entropy", "aleatoric_entropy", "mutual_information"), number),
        }
    else:
        location = Output("FP64" if wide else "FP32")
        own = {
            "mean": location,
            **dict.fromkeys(("std", "aleatoric_std", "epistemic_std", "entropy"), number),
            "quantiles": location._replace(shape=(len(QUANTILES),)),
            **dict.fromkeys(("lower", "upper"), location),
        }
    decided = {"p_value": number, **dict.fromkeys(flags, Output("BOOL"))}
    return {**own, **decided, **{_SCORE + name: number for name in scores}}


def all_in_binary(outputs: Mapping[str, Output]) -> tuple[RequestedOutput, ...]:
    """Requests every output as binary data, in the order of the metadata."""
    return _all_in_binary(tuple(outputs))


@lru_cache(64)
def _all_in_binary(names: tuple[str, ...]) -> tuple[RequestedOutput, ...]:
    return tuple(RequestedOutput(name, binary=True) for name in names)


def compute_output(name: str, model: Model, prediction: Prediction, judgement: Judgement) -> OutputColumn:
    """Computes one output of every row; `p_value` is that of the decision score."""
    summary = prediction.summary
    if name.startswith(_SCORE):
        return judgement.scores[name.removeprefix(_SCORE)].value
    if name == "p_value":
        return judgement.scores[judgement.decision].p_value
    if name == "reject":
        return judgement.reject
    if name == PROBABILITY_INTERVAL and judgement.probability_interval is not None:
        return judgement.probability_interval
    if name in PARTS and judgement.parts is not None:
        return judgement.parts.novel if name == "novel" else judgement.parts.ambiguous
    if isinstance(summary, ClassificationSummary):
        if name in {"label", "index"}:
            index = np.asarray(summary.mean).argmax(axis=1)
            return NameColumn(model.class_names, index) if name == "label" else index
        return np.asarray(getattr(summary, "mean" if name == "probabilities" else name))
    if name in {"lower", "upper"} and judgement.interval is not None:
        return judgement.interval[:, 0 if name == "lower" else 1]
    aleatoric, epistemic = np.asarray(summary.aleatoric_variance), np.asarray(summary.epistemic_variance)
    if name == "std":
        return np.sqrt(aleatoric + epistemic)
    if name in {"aleatoric_std", "epistemic_std"}:
        return np.sqrt(aleatoric if name == "aleatoric_std" else epistemic)
    return np.asarray(getattr(summary, name))


def to_wire_type(values: OutputColumn, output: Output) -> OutputColumn:
    """Converts a column to the type in the metadata; a float64 beyond float32's range becomes float32's largest number."""
    if isinstance(values, NameColumn):
        return values
    if output.datatype == "FP32" and values.dtype != np.float32:
        values = np.clip(values, -_FLOAT32_MAX, _FLOAT32_MAX)
    return np.ascontiguousarray(values, _DTYPES[output.datatype])


def select_rows(values: OutputColumn, rows: slice) -> OutputColumn:
    """Selects rows of a column."""
    return NameColumn(values.names, values.indices[rows]) if isinstance(values, NameColumn) else values[rows]


def join_parts(parts: list[OutputColumn]) -> OutputColumn:
    """Joins the parts of a column, in order."""
    if len(parts) == 1:
        return parts[0]
    first = parts[0]
    if isinstance(first, NameColumn):
        return NameColumn(first.names, np.concatenate([cast("NameColumn", part).indices for part in parts]))
    return np.concatenate(cast("list[np.ndarray]", parts))


def encode(
    head: Mapping[str, Any],
    columns: Mapping[str, OutputColumn],
    requested: tuple[RequestedOutput, ...],
    outputs: Mapping[str, Output],
    accept: str,
) -> tuple[dict[str, str], bytes]:
    """Returns the headers and the body of a response: the keys of `head`, and the requested outputs.

    Args:
        columns: the outputs, as `to_wire_type` makes them.
        accept: the request's `Accept-Encoding`; the body is compressed only if it accepts a supported coding.
    """
    tensors: list[dict[str, Any]] = []
    tail: list[bytes] = []
    for name, binary in requested:
        values = columns[name]
        datatype, shape = outputs[name]
        rows = len(values.indices if isinstance(values, NameColumn) else values)
        tensor: dict[str, Any] = {"name": name, "datatype": datatype, "shape": [rows, *shape]}
        if binary:
            tail.append(_to_bytes(values))
            tensor["parameters"] = {"binary_data_size": len(tail[-1])}
        else:
            tensor["data"] = _to_json(values)
        tensors.append(tensor)
    body = orjson.dumps({**head, "outputs": tensors}, option=orjson.OPT_SERIALIZE_NUMPY)
    headers = {"Content-Type": "application/json"}
    if tail:
        headers = {"Content-Type": "application/octet-stream", HEADER_LENGTH: str(len(body))}
        body = b"".join((body, *tail))
    coding = accepted_coding(accept)
    if coding:
        headers["Content-Encoding"] = coding
        body = compress(body, coding)
    return headers, body


def make_records(columns: Mapping[str, OutputColumn], outputs: Mapping[str, Output]) -> Records:
    """Makes records of every output of a batch.

    Args:
        columns: the outputs, as `to_wire_type` makes them.
    """
    label = next((values for values in columns.values() if isinstance(values, NameColumn)), None)
    arrays = {name: values for name, values in columns.items() if isinstance(values, np.ndarray)}
    dtype = np.dtype([(name, values.dtype, outputs[name].shape) for name, values in arrays.items()])
    numbers = np.empty(len(next(iter(arrays.values()))), dtype)
    for name, values in arrays.items():
        numbers[name] = values
    finite = [np.isfinite(values).reshape(len(values), -1).all(axis=1) for values in arrays.values()]
    return Records(numbers, label, np.logical_and.reduce(finite))


def encode_row(
    head: Mapping[str, Any], records: Records, row: int, outputs: Mapping[str, Output]
) -> tuple[dict[str, str], bytes]:
    """Returns what `encode` returns for one row of all outputs as binary data, uncompressed."""
    label = b"" if records.label is None else _pack_names(records.label.names)[int(records.label.indices[row])]
    tensors = _row_tensors(tuple(outputs.items()), len(label))
    body = orjson.dumps({**head, "outputs": orjson.Fragment(tensors)})
    headers = {"Content-Type": "application/octet-stream", HEADER_LENGTH: str(len(body))}
    return headers, b"".join((body, label, records.numbers[row].tobytes()))


@lru_cache(256)
def _row_tensors(outputs: tuple[tuple[str, Output], ...], label_bytes: int) -> bytes:
    """Encodes the JSON that describes the binary outputs of one row."""
    sizes = {
        name: _DTYPES[datatype].itemsize * math.prod(shape) if datatype in _DTYPES else label_bytes
        for name, (datatype, shape) in outputs
    }
    return orjson.dumps(
        [
            {
                "name": name,
                "datatype": datatype,
                "shape": [1, *shape],
                "parameters": {"binary_data_size": sizes[name]},
            }
            for name, (datatype, shape) in outputs
        ]
    )


def _to_bytes(values: OutputColumn) -> bytes:
    if isinstance(values, NameColumn):
        return b"".join(map(_pack_names(values.names).__getitem__, values.indices.tolist()))
    return values.tobytes()


@lru_cache(64)
def _pack_names(names: tuple[str, ...]) -> list[bytes]:
    """Packs each name as a BYTES element: its length in four bytes, little-endian, then the name in UTF-8."""
    return [struct.pack("<I", len(name)) + name for name in (name.encode() for name in names)]


def _to_json(values: OutputColumn) -> Any:
    if isinstance(values, NameColumn):
        return list(map(values.names.__getitem__, values.indices.tolist()))
    return values.reshape(-1)
