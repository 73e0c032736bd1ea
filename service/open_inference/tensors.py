"""The Open Inference Protocol's inputs: from bytes to checked rows. Here is the single tensor of all numbers.

Pure functions. A binary tensor is a view of the body and never becomes Python numbers; a JSON tensor is parsed by orjson
and becomes an array at once. The rows are checked in Python only if these find an error, or could hide one, by the
function that checks `POST /predict`, so that both routes give the same error texts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, cast

import numpy as np
from jaxtyping import Float, Num

from abstain.models.decisions.records import Levels
from abstain.models.errors import InputError, clip_repr, suggest
from abstain.models.prediction.posterior import Model
from abstain.models.prediction.preprocessing import first_unknown_code
from abstain.service.compression import decompress
from abstain.service.json_objects import (
    HEADER_LENGTH,
    MAX_OBJECTS,
    check_object,
    describe_key,
    describe_value,
    flag_of,
    number_between,
    parse_object,
    text_of,
)
from abstain.service.open_inference.columns import rows_of_columns, sends_columns
from abstain.service.open_inference.datatypes import (
    DATATYPES,
    INPUT,
    check_content_type,
    check_rows_count,
    refuse_other_numbers,
)
from abstain.service.open_inference.outputs import Output, RequestedOutput, all_in_binary
from abstain.service.rows import check_rows, dtype_of

_PARAMETERS = ("percentile", "coverage", "max_error", "binary_data_output", "content_type")
_FLOAT32_MAX = float(np.finfo(np.float32).max)


class Signature(NamedTuple):
    """The facts of a model that `decode` needs: its inputs, its outputs, and the names that requests may use for it."""

    model: Model
    outputs: Mapping[str, Output]
    names: tuple[str, ...]


class InferRequest(NamedTuple):
    """A checked request: `rows` in the model's feature shape, as `check_rows` returns them."""

    rows: Float[np.ndarray, "rows ..."]
    outputs: tuple[RequestedOutput, ...]
    id: str | None
    levels: Levels


def decode(
    headers: Mapping[str, str], body: bytes, signature: Signature, *, max_rows: int, max_bytes: int
) -> InferRequest:
    """Decodes and checks the body of `POST …/infer`.

    Args:
        headers: the request's headers, with names in lower case.
        max_bytes: the largest size of the decompressed body.

    Raises:
        InputError: names the invalid field, or the row and the column.
        HTTPError: 413, the decompressed body is too large; 415, its compression is not supported.
    """
    body = decompress(body, headers.get("content-encoding", ""), max_bytes)
    text, tail = _split(body, headers.get(HEADER_LENGTH.lower()))
    if tail and not text:
        return _raw(tail, signature, max_rows)
    # Each column of a table may have a tensor with parameters.
    objects = MAX_OBJECTS + (2 * signature.model.features if signature.model.row_plan else 0)
    content, plain = parse_object(text, ("id", "model_name", "parameters", "inputs", "outputs"), objects)
    parameters = check_object(content.get("parameters", {}), "parameters", _PARAMETERS)
    check_content_type(parameters, "parameters", ("pd", "np"))
    name = text_of(content, "model_name", "body")
    if name is not None and name not in signature.names:
        raise InputError(where="model_name", expected=f"{signature.names[0]}, as in the path", found=clip_repr(name))
    return InferRequest(
        rows=_rows_of(content, plain, tail, signature.model, max_rows),
        outputs=_requested_outputs(
            content.get("outputs", []), signature, flag_of(parameters, "binary_data_output", "parameters")
        ),
        id=text_of(content, "id", "body"),
        levels=Levels(
            percentile=number_between(parameters, "percentile", 100, "parameters"),
            coverage=number_between(parameters, "coverage", 1, "parameters"),
            max_error=number_between(parameters, "max_error", 1, "parameters"),
        ),
    )


def _split(body: bytes, length: str | None) -> tuple[bytes, memoryview]:
    """Splits a body into the JSON and the binary data after it."""
    if length is None:
        return body, memoryview(b"")
    if not (length.isascii() and length.isdigit()) or len(length) > 18 or int(length) > len(body):
        raise InputError(
            where=HEADER_LENGTH, expected=f"a number of bytes, at most the body's {len(body)}", found=clip_repr(length)
        )
    end = int(length)
    return body[:end], memoryview(body)[end:]


def _raw(data: memoryview, signature: Signature, max_rows: int) -> InferRequest:
    """Decodes a body of FP32 only (Triton's raw binary request); the response has all outputs as binary data."""
    model = signature.model
    size = 4 * model.features
    if len(data) % size:
        raise InputError(
            where="body", expected=f"rows of {model.features} FP32, {size} bytes each", found=f"{len(data)} bytes"
        )
    shape = check_rows_count(len(data) // size, max_rows), *model.feature_shape
    rows = _check_array(np.frombuffer(data, "<f4").reshape(shape), model, max_rows)
    return InferRequest(rows, all_in_binary(signature.outputs), None, Levels())


def _rows_of(
    content: dict[str, Any], plain: bool, tail: memoryview, model: Model, max_rows: int
) -> Float[np.ndarray, "rows ..."]:
    tensors = content.get("inputs")
    if model.row_plan is not None and sends_columns(tensors, model):
        return rows_of_columns(cast("list[Any]", tensors), tail, model, model.row_plan, max_rows)
    return _rows(_only_input(content), plain, tail, model, max_rows)


def _only_input(content: dict[str, Any]) -> dict[str, Any]:
    expected = f"a list of one tensor, named {INPUT}"
    if "inputs" not in content:
        raise InputError("inputs", where="body", expected=expected, found="no key 'inputs'")
    tensors = content["inputs"]
    if not isinstance(tensors, list):
        raise InputError(where="inputs", expected=expected, found=describe_value(tensors))
    tensors = cast("list[Any]", tensors)
    if len(tensors) != 1:
        raise InputError(where="inputs", expected=f"one tensor, named {INPUT}", found=len(tensors))
    tensor = check_object(tensors[0], INPUT, ("name", "shape", "datatype", "parameters", "data"))
    if tensor.get("name") != INPUT:
        raise InputError("name", where=INPUT, expected=INPUT, found=describe_key(tensor, "name"))
    return tensor


def _rows(
    tensor: dict[str, Any], plain: bool, tail: memoryview, model: Model, max_rows: int
) -> Float[np.ndarray, "rows ..."]:
    datatype = tensor.get("datatype")
    if not isinstance(datatype, str) or datatype not in DATATYPES:
        raise InputError(
            "datatype",
            where=INPUT,
            expected=f"FP32, or one of {', '.join(DATATYPES)}",
            found=describe_key(tensor, "datatype"),
        )
    shape = _shape(tensor, model, max_rows)
    known = ("binary_data_size", "content_type")
    parameters = check_object(tensor.get("parameters", {}), f"{INPUT}: parameters", known)
    check_content_type(parameters, f"{INPUT}: parameters", ("np",))
    numbers = shape[0] * model.features
    if "binary_data_size" in parameters:
        return _binary_rows(tensor, parameters, tail, shape, model, max_rows)
    if tail:
        raise InputError(
            "binary data",
            where=INPUT,
            expected="the parameter binary_data_size, or no bytes after the JSON",
            found=f"{len(tail)} bytes after the JSON",
        )
    data = tensor.get("data")
    if not isinstance(data, list):
        raise InputError(
            "data", where=INPUT, expected=f"a list of {numbers} numbers", found=describe_key(tensor, "data")
        )
    rows = _json_rows(cast("list[Any]", data), plain, shape, model, max_rows)

    def place(index: int) -> str:
        return INPUT + "".join(f"[{axis}]" for axis in np.unravel_index(index, rows.shape))

    refuse_other_numbers(cast("list[Any]", data), datatype, place)
    return rows


def _shape(tensor: dict[str, Any], model: Model, max_rows: int) -> tuple[int, ...]:
    shape = tensor.get("shape")
    expected = f"[n, {', '.join(map(str, model.feature_shape))}]"
    if len(model.feature_shape) > 1:
        expected += f" or [n, {model.features}]"
    if not isinstance(shape, list) or not all(type(size) is int for size in cast("list[Any]", shape)):
        found = clip_repr(cast("list[Any]", shape)) if isinstance(shape, list) else describe_key(tensor, "shape")
        raise InputError("shape", where=INPUT, expected=expected, found=found)
    sizes = tuple(cast("list[int]", shape))
    if sizes[1:] not in {model.feature_shape, (model.features,)}:
        raise InputError("shape", where=INPUT, expected=expected, found=clip_repr(list(sizes)))
    return check_rows_count(sizes[0], max_rows), *sizes[1:]


def _binary_rows(
    tensor: dict[str, Any],
    parameters: dict[str, Any],
    tail: memoryview,
    shape: tuple[int, ...],
    model: Model,
    max_rows: int,
) -> Float[np.ndarray, "rows ..."]:
    dtype = DATATYPES[tensor["datatype"]]
    size, needed = parameters["binary_data_size"], shape[0] * model.features * dtype.itemsize
    if "data" in tensor:
        raise InputError("data", where=INPUT, expected="either data or binary_data_size", found="both")
    if type(size) is not int or size != needed:
        raise InputError(
            "binary_data_size",
            where=INPUT,
            expected=f"{needed}, for {tensor['datatype']} of shape {list(shape)}",
            found=clip_repr(size) if type(size) is int else describe_value(size),
        )
    if len(tail) != needed:
        raise InputError(
            "binary data",
            where=INPUT,
            expected=f"{needed} bytes after the JSON",
            found=len(tail),
            fix=f"give the length of the JSON in the header {HEADER_LENGTH}",
        )
    return _check_array(np.frombuffer(tail, dtype).reshape(shape), model, max_rows)


def _json_rows(
    data: list[Any], plain: bool, shape: tuple[int, ...], model: Model, max_rows: int
) -> Float[np.ndarray, "rows ..."]:
    """Makes rows of data that is nested or, as in the protocol, flat."""
    nested = bool(data) and isinstance(data[0], list)
    needed = shape[0] if nested else shape[0] * model.features
    if len(data) != needed:
        raise InputError("data", where=INPUT, expected=f"{needed} {'rows' if nested else 'numbers'}", found=len(data))
    if not nested and plain:
        try:
            return _check_array(np.array(data, np.float64).reshape(shape), model, max_rows)
        except (ValueError, TypeError, OverflowError):
            plain = False
    if not nested:
        for size in reversed(shape[1:]):
            data = [data[start : start + size] for start in range(0, len(data), size)]
    return check_rows(data, plain, model, max_rows)


def _check_array(array: Num[np.ndarray, "rows ..."], model: Model, max_rows: int) -> Float[np.ndarray, "rows ..."]:
    """Returns an array in the model's feature shape; refuses the values that `POST /predict` refuses."""
    if array.dtype.kind != "f":
        fits = True
    elif array.dtype.itemsize > 4:
        fits = bool((np.abs(array) <= _FLOAT32_MAX).all())
    else:
        fits = bool(np.isfinite(array).all())
    if fits:
        rows = array.reshape(len(array), *model.feature_shape).astype(dtype_of(model), copy=False)
        if first_unknown_code(model.preprocessing, rows) is None:
            return rows
    return check_rows(array.tolist(), False, model, max_rows)


def _requested_outputs(outputs: Any, signature: Signature, binary: bool) -> tuple[RequestedOutput, ...]:
    """Returns the requested outputs; all if none are requested."""
    if not isinstance(outputs, list):
        raise InputError("outputs", where="body", expected="a list of outputs", found=describe_value(outputs))
    requested: dict[str, RequestedOutput] = {}
    for number, item in enumerate(cast("list[Any]", outputs)):
        where = f"outputs[{number}]"
        output = check_object(item, where, ("name", "parameters"))
        name = output.get("name")
        if not isinstance(name, str) or name not in signature.outputs:
            raise InputError(
                "name",
                where=where,
                expected=f"one of {', '.join(signature.outputs)}",
                found=describe_key(output, "name"),
                fix=suggest(name, signature.outputs) if isinstance(name, str) else None,
            )
        if name in requested:
            raise InputError("name", where=where, expected="each output once", found=clip_repr(name))
        parameters = output.get("parameters", {})
        if isinstance(parameters, dict) and "classification" in parameters:
            raise InputError(
                "classification",
                where=where,
                expected="no classification parameter, because this server does not have the classification extension",
                fix="request the outputs label and probabilities",
            )
        parameters = check_object(parameters, f"{where}: parameters", ("binary_data",))
        requested[name] = RequestedOutput(name, flag_of(parameters, "binary_data", f"{where}: parameters", binary))
    if requested:
        return tuple(requested.values())
    if binary:
        return all_in_binary(signature.outputs)
    return tuple(RequestedOutput(name, binary=False) for name in signature.outputs)
