"""One input tensor for each column of a table, as the pandas codec of MLServer and clients of Triton send them.

Pure functions. Numbers stay arrays; text becomes codes by the rules of `service/records.py`, so that `/v2` and `/predict`
have the same rows and the same errors.
"""

from __future__ import annotations

import json
import math
import struct
from typing import Any, NamedTuple, cast

import numpy as np
import orjson
from jaxtyping import Float

from abstain.models.bundles.bundle import Bundle
from abstain.models.errors import InputError, clip_repr
from abstain.models.prediction.posterior import Model
from abstain.models.tables.row_plan import LARGEST, RowPlan
from abstain.service.column_descriptions import describe_columns
from abstain.service.json_objects import check_object, describe_key, describe_value, has_long_number
from abstain.service.open_inference.datatypes import (
    DATATYPES,
    INPUT,
    check_content_type,
    check_rows_count,
    refuse_other_numbers,
)
from abstain.service.open_inference.outputs import Output
from abstain.service.records import all_faults, check_names, encode_value, in_model_shape

_TEXT, _FLAG = "BYTES", "BOOL"
_JSON_TEXT = "pd_json"
_CONTENT_TYPES = {_TEXT: ("str", "datetime", "pd", "np", _JSON_TEXT)}
"""The codecs of MLServer that an input may name; for numbers and booleans, those of arrays."""
_NUMBERS = (int, float, type(None))


class _Tensor(NamedTuple):
    """A checked tensor of a column; `values` are JSON values, or an array of numbers."""

    where: str
    datatype: str
    values: list[Any] | np.ndarray


_COLUMN_DATATYPES = {"number": "FP64", "category": _TEXT, "date": _TEXT}
_CODECS = {"number": "np", "category": "str", "date": "datetime"}


def inputs_of(bundle: Bundle) -> list[tuple[str, Output, dict[str, Any]]]:
    """Returns name, type and parameters of the tensor of each column of a table; an empty list for other models.

    A request has these tensors, or the single one of `outputs.input_of`.
    """
    model = bundle.manifest.model
    if not model.preprocessing.columns or not takes_columns(model):
        return []
    return [
        (
            facts["name"],
            Output(_COLUMN_DATATYPES[facts["kind"]], (1,)),
            {"content_type": _CODECS[facts["kind"]], **{key: fact for key, fact in facts.items() if key != "name"}},
        )
        for facts in describe_columns(bundle)
    ]


def takes_columns(model: Model) -> bool:
    """Whether a request may have a tensor for each column; a column named `inputs` would look like the single tensor."""
    return model.row_plan is not None and INPUT not in model.row_plan.positions


def sends_columns(tensors: Any, model: Model) -> bool:
    """Whether inputs are one tensor for each column; other inputs are the single tensor, or wrong."""
    plan = model.row_plan
    if plan is None or not takes_columns(model) or not isinstance(tensors, list):
        return False
    tensors = cast("list[Any]", tensors)
    first = tensors[0] if tensors else None
    name = cast("dict[str, Any]", first).get("name") if isinstance(first, dict) else None
    return len(tensors) > 1 or (isinstance(name, str) and name in plan.positions)


def rows_of_columns(
    tensors: list[Any], tail: memoryview, model: Model, plan: RowPlan, max_rows: int
) -> Float[np.ndarray, "rows ..."]:
    """Checks the tensors of all columns, in any order, and returns the rows as `check_rows` does.

    Args:
        tensors: parsed JSON.
        tail: the binary data, tensor after tensor.

    Raises:
        InputError: names the tensor; for an invalid value, its row.
    """
    heads = _heads_by_name(tensors, plan)
    rows = 0
    encoded = dict[str, np.ndarray]()
    with all_faults(INPUT) as attempt:
        for name, head in heads.items():
            where = f"{INPUT}.{name}"
            rows = _check_shape(head, where, rows, max_rows)
            values, tail = _values(head, where, rows, tail)
            encoded[name] = attempt(name, _encode, values, plan.positions[name], plan)
    if tail:
        raise InputError("binary data", where=INPUT, expected="binary_data_size bytes", found=f"{len(tail)} bytes more")
    return in_model_shape(np.column_stack([encoded[name] for name in plan.positions]), model)


def _heads_by_name(tensors: list[Any], plan: RowPlan) -> dict[str, dict[str, Any]]:
    heads = dict[str, dict[str, Any]]()
    for number, tensor in enumerate(tensors):
        where = f"{INPUT}[{number}]"
        head = check_object(tensor, where, ("name", "shape", "datatype", "parameters", "data"))
        name = head.get("name")
        if not isinstance(name, str):
            raise InputError("name", where=where, expected="the name of a column", found=describe_key(head, "name"))
        if name in heads:
            raise InputError("name", where=where, expected="each column once", found=clip_repr(name))
        heads[name] = head
    check_names(heads, plan, INPUT, f"send a tensor for each column, or one tensor named {INPUT} with all numbers")
    return heads


def _check_shape(head: dict[str, Any], where: str, rows: int, max_rows: int) -> int:
    """Returns the number of rows; `rows` is that of the tensors before, 0 for the first one."""
    shape = head.get("shape")
    sizes = cast("list[Any]", shape) if isinstance(shape, list) else []
    if len(sizes) not in {1, 2} or not all(type(size) is int for size in sizes) or sizes[1:] not in ([], [1]):
        found = clip_repr(sizes) if isinstance(shape, list) else describe_key(head, "shape")
        raise InputError("shape", where=where, expected="[n] or [n, 1]", found=found)
    if rows and sizes[0] != rows:
        raise InputError("shape", where=where, expected=f"{rows} rows, as in the tensor before", found=clip_repr(sizes))
    return check_rows_count(sizes[0], max_rows)


def _values(head: dict[str, Any], where: str, rows: int, tail: memoryview) -> tuple[_Tensor, memoryview]:
    """Returns the values of a tensor, and the binary data after them."""
    datatype = head.get("datatype")
    if not isinstance(datatype, str) or datatype not in {*DATATYPES, _TEXT, _FLAG}:
        expected = f"one of {', '.join((_TEXT, _FLAG, *DATATYPES))}"
        raise InputError("datatype", where=where, expected=expected, found=describe_key(head, "datatype"))
    known = ("binary_data_size", "content_type")
    parameters = check_object(head.get("parameters", {}), f"{where}: parameters", known)
    codec = check_content_type(parameters, f"{where}: parameters", _CONTENT_TYPES.get(datatype, ("np", "pd")))
    if "binary_data_size" in parameters:
        if "data" in head:
            raise InputError("data", where=where, expected="either data or binary_data_size", found="both")
        values, tail = _binary_values(parameters["binary_data_size"], datatype, where, rows, tail)
    else:
        values = _json_values(head, datatype, where, rows)
    if codec == _JSON_TEXT:
        values = [_parse(value, f"{where}[{row}]") for row, value in enumerate(values)]
    return _Tensor(where, datatype, values), tail


def _parse(text: Any, where: str) -> Any:
    """Parses the JSON of a value, as MLServer writes the values of a column with several types."""
    if text is None:
        return None
    try:
        value = orjson.loads(text)
        # orjson makes floats of integers beyond 64 bits; Python's parser keeps their digits.
        return json.loads(text) if isinstance(value, float) and has_long_number(text.encode()) else value
    except orjson.JSONDecodeError as error:
        raise InputError(where=where, expected=f"JSON, as {_JSON_TEXT} says", found=describe_value(text)) from error


# ---- values ----------------------------------------------------------------------------------------------------------


def _json_values(head: dict[str, Any], datatype: str, where: str, rows: int) -> list[Any]:
    data = head.get("data")
    if not isinstance(data, list):
        raise InputError("data", where=where, expected=f"a list of {rows} values", found=describe_key(head, "data"))
    values = cast("list[Any]", data)
    if all(type(value) is list and len(cast("list[Any]", value)) == 1 for value in values):
        values = [value[0] for value in values]
    if len(values) != rows:
        raise InputError("data", where=where, expected=f"{rows} values, as in shape", found=len(values))
    types = {_TEXT: (str, type(None)), _FLAG: (bool, type(None))}.get(datatype, _NUMBERS)
    for row, value in enumerate(values):
        if type(value) not in types:
            raise InputError(
                where=f"{where}[{row}]",
                expected=f"a value of {datatype}, or null for a missing value",
                found=describe_value(value),
            )
    if datatype in DATATYPES:
        present = [row for row, value in enumerate(values) if value is not None and value == value]  # noqa: PLR0124 - NaN
        refuse_other_numbers([values[row] for row in present], datatype, lambda index: f"{where}[{present[index]}]")
    return values


def _binary_values(
    size: Any, datatype: str, where: str, rows: int, tail: memoryview
) -> tuple[list[Any] | np.ndarray, memoryview]:
    if type(size) is not int or not 0 <= size <= len(tail):
        expected = f"a number of bytes, at most the {len(tail)} that are left after the JSON"
        found = clip_repr(size) if type(size) is int else describe_value(size)
        raise InputError("binary_data_size", where=where, expected=expected, found=found)
    data, rest = tail[:size], tail[size:]
    if datatype == _TEXT:
        return _unpack_texts(data, where, rows), rest
    dtype = np.dtype(np.uint8) if datatype == _FLAG else DATATYPES[datatype]
    if size != rows * dtype.itemsize:
        expected = f"{rows * dtype.itemsize}, for {rows} rows of {datatype}"
        raise InputError("binary_data_size", where=where, expected=expected, found=size)
    values = np.frombuffer(data, dtype)
    if datatype != _FLAG:
        return values, rest
    if (values > 1).any():
        row = int(np.argmax(values > 1))
        raise InputError(where=f"{where}[{row}]", expected="a byte 0 or 1", found=int(values[row]))
    return values.astype(bool).tolist(), rest


def _unpack_texts(data: memoryview, where: str, rows: int) -> list[str]:
    """Reads the elements of a BYTES tensor: their length in four bytes, little-endian, then UTF-8."""
    texts, place = list[str](), 0
    for row in range(rows):
        start = place + 4
        end = start + (struct.unpack_from("<I", data, place)[0] if start <= len(data) else len(data))
        if end > len(data):
            raise InputError(
                where=f"{where}[{row}]",
                expected="a length in four bytes, and as many bytes of text",
                found=f"the end of its {len(data)} bytes",
            )
        try:
            texts.append(str(data[start:end], "utf-8"))
        except UnicodeDecodeError as error:
            raise InputError(where=f"{where}[{row}]", expected="text in UTF-8", found="other bytes") from error
        place = end
    if place != len(data):
        raise InputError("binary_data_size", where=where, expected=f"{place}, for {rows} texts", found=len(data))
    return texts


# ---- columns ---------------------------------------------------------------------------------------------------------


def _encode(tensor: _Tensor, position: int, plan: RowPlan) -> Float[np.ndarray, " rows"]:
    """Encodes the values of a column; quickly if none of them can be wrong."""
    kind, values = plan.columns[position].kind, tensor.values
    if kind == "number" and isinstance(values, np.ndarray) and not plan.gaps[position]:
        numbers = values.astype(np.float64)
        if (np.abs(numbers) <= LARGEST).all() or (plan.nullable and not (np.abs(numbers) > LARGEST).any()):
            return numbers
    elif kind == "category" and plan.nullable:
        codes = {**plan.codes[position], "": math.nan}
        try:
            return np.array([codes[text] for text in values])
        except (KeyError, TypeError):
            pass  # a value that is no known category
    # A float32 becomes its shortest decimal, because 0.1 names the category `0.1`; as a number it keeps its value.
    shortest = kind == "category" and isinstance(values, np.ndarray) and values.dtype.kind == "f"
    cells = [float(str(cell)) for cell in values] if shortest else values
    cells = cells.tolist() if isinstance(cells, np.ndarray) else cells
    if tensor.datatype in DATATYPES:
        cells = [None if cell != cell else cell for cell in cells]  # noqa: PLR0124 - NaN is a missing value
    return np.array([encode_value(cell, position, plan, f"{tensor.where}[{row}]") for row, cell in enumerate(cells)])
