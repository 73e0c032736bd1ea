"""The Open Inference Protocol's outputs: which a model has, and their columns as JSON or as binary data."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Literal, NamedTuple, cast

import numpy as np
import orjson
from jaxtyping import Bool, Int

from abstain.models.decisions.records import Calibration, Judgement
from abstain.models.prediction.posterior import Model
from abstain.models.prediction.predictive import Prediction
from abstain.models.prediction.summaries import QUANTILES, ClassificationSummary
from abstain.service.compression import accepted_coding, compress
from abstain.service.json_objects import HEADER_LENGTH

_DTYPES = {"FP32": np.dtype("<f4"), "FP64": np.dtype("<f8"), "INT64": np.dtype("<i8"), "BOOL": np.dtype("?")}
_FLOAT32_MAX = float(np.finfo(np.float32).max)
_SCORE = "score_"


class Output(NamedTuple):
    """An output's type, and the shape of one row's part of it."""

    datatype: str
    shape: tuple[int, ...] = ()


class Asked(NamedTuple):
    """An output that a client wants, and whether as binary data."""

    name: str
    binary: bool


class Named(NamedTuple):
    """A column of names, of which there are few: the place of each row's among them."""

    names: tuple[str, ...]
    places: Int[np.ndarray, " rows"]


Column = np.ndarray | Named


class Records(NamedTuple):
    """All outputs of each row side by side, as one row's binary data has them.

    Attributes:
        numbers: a structured array, a field an output; without the label.
        label: names, of classes alone; they come first.
        finite: which rows' numbers all are.
    """

    numbers: np.ndarray
    label: Named | None
    finite: Bool[np.ndarray, " rows"]


def outputs_of(model: Model, calibration: Calibration) -> Mapping[str, Output]:
    """Every output of a model, in the order in which they are told."""
    wide = model.preprocessing.float64_target
    return _outputs(model.law.task, len(model.class_names), tuple(calibration.all_scores), wide)


def input_of(model: Model) -> Output:
    """The type of the rows that lose nothing, and the shape of one; others are taken, too."""
    return Output("FP64" if model.preprocessing.origin else "FP32", model.feature_shape)


@lru_cache(64)
def _outputs(
    task: Literal["classification", "regression"], classes: int, scores: tuple[str, ...], wide: bool
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
        place = Output("FP64" if wide else "FP32")
        own = {
            "mean": place,
            **dict.fromkeys(("std", "aleatoric_std", "epistemic_std", "entropy"), number),
            "quantiles": place._replace(shape=(len(QUANTILES),)),
            **dict.fromkeys(("lower", "upper"), place),
        }
    return {**own, "p_value": number, "reject": Output("BOOL"), **{_SCORE + name: number for name in scores}}


def all_in_binary(outputs: Mapping[str, Output]) -> tuple[Asked, ...]:
    """Every output asked for as binary data, in the order in which they are told."""
    return _all_in_binary(tuple(outputs))


@lru_cache(64)
def _all_in_binary(names: tuple[str, ...]) -> tuple[Asked, ...]:
    return tuple(Asked(name, binary=True) for name in names)


def column(name: str, model: Model, prediction: Prediction, judgement: Judgement) -> Column:
    """One output of every row; only what is asked for is computed.

    `p_value` is the decision's.
    """
    summary = prediction.summary
    if name.startswith(_SCORE):
        return judgement.scores[name.removeprefix(_SCORE)].value
    if name == "p_value":
        return judgement.scores[judgement.decision].p_value
    if name == "reject":
        return judgement.reject
    if isinstance(summary, ClassificationSummary):
        if name in {"label", "index"}:
            index = np.asarray(summary.mean).argmax(axis=1)
            return Named(model.class_names, index) if name == "label" else index
        return np.asarray(getattr(summary, "mean" if name == "probabilities" else name))
    if name in {"lower", "upper"} and judgement.interval is not None:
        return judgement.interval[:, 0 if name == "lower" else 1]
    aleatoric, epistemic = np.asarray(summary.aleatoric_variance), np.asarray(summary.epistemic_variance)
    if name == "std":
        return np.sqrt(aleatoric + epistemic)
    if name in {"aleatoric_std", "epistemic_std"}:
        return np.sqrt(aleatoric if name == "aleatoric_std" else epistemic)
    return np.asarray(getattr(summary, name))


def on_the_wire(values: Column, output: Output) -> Column:
    """A column in the type that the metadata states; a float64 beyond float32's range becomes its largest number."""
    if isinstance(values, Named):
        return values
    if output.datatype == "FP32" and values.dtype != np.float32:
        values = np.clip(values, -_FLOAT32_MAX, _FLOAT32_MAX)
    return np.ascontiguousarray(values, _DTYPES[output.datatype])


def own_rows(values: Column, rows: slice) -> Column:
    """Some rows of a column."""
    return Named(values.names, values.places[rows]) if isinstance(values, Named) else values[rows]


def joined(parts: list[Column]) -> Column:
    """Parts of one column, in order, as one."""
    if len(parts) == 1:
        return parts[0]
    first = parts[0]
    if isinstance(first, Named):
        return Named(first.names, np.concatenate([cast("Named", part).places for part in parts]))
    return np.concatenate(cast("list[np.ndarray]", parts))


def encode(
    head: Mapping[str, Any],
    columns: Mapping[str, Column],
    asked: tuple[Asked, ...],
    outputs: Mapping[str, Output],
    accept: str,
) -> tuple[dict[str, str], bytes]:
    """Headers and body of an answer: the head's keys, and the outputs asked for.

    Args:
        columns: each as `on_the_wire` makes it.
        accept: the request's `Accept-Encoding`; only what is asked for there is compressed.
    """
    told: list[dict[str, Any]] = []
    tail: list[bytes] = []
    for name, binary in asked:
        values = columns[name]
        datatype, shape = outputs[name]
        rows = len(values.places if isinstance(values, Named) else values)
        tensor: dict[str, Any] = {"name": name, "datatype": datatype, "shape": [rows, *shape]}
        if binary:
            tail.append(_to_bytes(values))
            tensor["parameters"] = {"binary_data_size": len(tail[-1])}
        else:
            tensor["data"] = _to_json(values)
        told.append(tensor)
    body = orjson.dumps({**head, "outputs": told}, option=orjson.OPT_SERIALIZE_NUMPY)
    headers = {"Content-Type": "application/json"}
    if tail:
        headers = {"Content-Type": "application/octet-stream", HEADER_LENGTH: str(len(body))}
        body = b"".join((body, *tail))
    coding = accepted_coding(accept)
    if coding:
        headers["Content-Encoding"] = coding
        body = compress(body, coding)
    return headers, body


def records(columns: Mapping[str, Column], outputs: Mapping[str, Output]) -> Records:
    """Of every output of a batch, as `on_the_wire` makes them."""
    label = next((values for values in columns.values() if isinstance(values, Named)), None)
    told = {name: values for name, values in columns.items() if isinstance(values, np.ndarray)}
    kind = np.dtype([(name, values.dtype, outputs[name].shape) for name, values in told.items()])
    numbers = np.empty(len(next(iter(told.values()))), kind)
    for name, values in told.items():
        numbers[name] = values
    finite = [np.isfinite(values).reshape(len(values), -1).all(axis=1) for values in told.values()]
    return Records(numbers, label, np.logical_and.reduce(finite))


def encode_row(
    head: Mapping[str, Any], whole: Records, row: int, outputs: Mapping[str, Output]
) -> tuple[dict[str, str], bytes]:
    """What `encode` makes of one row of all outputs as binary data, uncompressed."""
    label = b"" if whole.label is None else _packed(whole.label.names)[int(whole.label.places[row])]
    told = _told(tuple(outputs.items()), len(label))
    body = orjson.dumps({**head, "outputs": orjson.Fragment(told)})
    headers = {"Content-Type": "application/octet-stream", HEADER_LENGTH: str(len(body))}
    return headers, b"".join((body, label, whole.numbers[row].tobytes()))


@lru_cache(256)
def _told(outputs: tuple[tuple[str, Output], ...], label_bytes: int) -> bytes:
    """How one row's outputs are told of."""
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


def _to_bytes(values: Column) -> bytes:
    if isinstance(values, Named):
        return b"".join(map(_packed(values.names).__getitem__, values.places.tolist()))
    return values.tobytes()


@lru_cache(64)
def _packed(names: tuple[str, ...]) -> list[bytes]:
    """Each name as a BYTES element: its length in four bytes, little-endian, then itself in UTF-8."""
    return [struct.pack("<I", len(name)) + name for name in (name.encode() for name in names)]


def _to_json(values: Column) -> Any:
    if isinstance(values, Named):
        return list(map(values.names.__getitem__, values.places.tolist()))
    return values.reshape(-1)
