"""The body of `POST /predict`: from bytes to a checked request, the row and the field of every mistake named.

orjson and numpy do the work; only where they find or could hide a mistake is the body walked in Python. numpy would
take `true`, `null` and `"99"` for numbers, and orjson keeps the last of two equal keys: a count of the quotes and a
search for three words tell, without a walk, that a body can hold none of these.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple, NoReturn, cast

import numpy as np
import orjson
from jaxtyping import Bool, Float

from abstain.models.errors import InputError, clip_repr
from abstain.models.prediction.posterior import Model
from abstain.models.prediction.preprocessing import first_unknown_code
from abstain.service.open_inference.json_objects import each_key_once, refuse_many_objects

KEYS = ("inputs", "model", "percentile", "coverage", "fields")
_FLOAT32_MAX = float(np.finfo(np.float32).max)


class PredictRequest(NamedTuple):
    """A request whose shape is right; its rows are checked by `check_rows`, when the model is known."""

    inputs: Any
    plain: bool
    """Whether the inputs can hold no string, boolean or null."""
    model: str | None
    percentile: float | None
    coverage: float | None
    fields: tuple[str, ...] | None


def parse_predict(body: bytes, max_rows: int) -> PredictRequest:
    """The request in a body.

    Raises:
        InputError: the body is not a JSON object of the known keys, each of the right type; or it has too many rows, or
            very many objects.
    """
    refuse_many_objects(body)
    try:
        content = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        content, plain = _parse_leniently(body, error), False
    else:
        plain = _is_plain(content, body)
        if isinstance(content, dict):
            # Before Python's parser makes as much again of every row.
            _refuse_many_rows(cast("dict[str, Any]", content).get("inputs"), max_rows)
        if not plain:
            content = None  # Lest it be in memory twice.
            content = _parse_each_key_once(body)
    if not isinstance(content, dict):
        raise InputError("body", expected="a JSON object", found=_kind(content))
    content = cast("dict[str, Any]", content)
    for key in content:
        if key not in KEYS:
            raise InputError("unknown key", where="body", expected=f"one of {', '.join(KEYS)}", found=clip_repr(key))
    if "inputs" not in content:
        raise InputError("inputs", where="body", expected="a list of rows", found="no such key")
    return PredictRequest(
        inputs=content["inputs"],
        plain=plain,
        model=_text(content, "model"),
        percentile=_number_between(content, "percentile", 100),
        coverage=_number_between(content, "coverage", 1),
        fields=_texts(content, "fields"),
    )


def check_rows(request: PredictRequest, model: Model, max_rows: int) -> Float[np.ndarray, "rows ..."]:
    """The request's rows in the model's feature shape; an image row may be nested or flat.

    As float32; as float64 for a model that takes an offset off on the host.

    Raises:
        InputError: naming the row and the feature at fault.
    """
    inputs = request.inputs
    if not isinstance(inputs, list):
        raise InputError("inputs", expected="a list of rows", found=_kind(inputs))
    inputs = cast("list[Any]", inputs)
    if not inputs:
        raise InputError("inputs", expected="at least one row", found="none")
    _refuse_many_rows(inputs, max_rows)
    dtype = dtype_of(model)
    rows = _plain_rows(inputs, dtype) if request.plain else None
    fits = rows is not None and rows.shape[1:] in {model.feature_shape, (model.features,)}
    # Numbers a little beyond float32's largest were rounded to it: the walk tells them apart.
    if rows is None or not fits or not np.abs(rows).max() < _FLOAT32_MAX:
        for index, row in enumerate(inputs):
            _check_row(row, f"inputs[{index}]", model)
        rows = np.array([np.ravel(row) for row in inputs], dtype=np.float64).astype(dtype)
    rows = rows.reshape(len(inputs), *model.feature_shape)
    _refuse_unknown_codes(rows, model)
    return rows


def _refuse_many_rows(inputs: Any, max_rows: int) -> None:
    if isinstance(inputs, list) and len(cast("list[Any]", inputs)) > max_rows:
        raise InputError(
            "inputs",
            expected=f"at most {max_rows} rows",
            found=len(cast("list[Any]", inputs)),
            fix="send them in several requests",
        )


def dtype_of(model: Model) -> type[np.floating[Any]]:
    """What rows are kept as until `models.preprocessing.on_host` sees them."""
    return np.float64 if model.preprocessing.origin else np.float32


def _plain_rows(inputs: list[Any], dtype: type[np.floating[Any]]) -> Float[np.ndarray, "rows ..."] | None:
    """Lists of numbers as an array, where what is beyond float32 is infinite or more; None where they are none."""
    try:
        with np.errstate(over="ignore"):
            return np.array(inputs, dtype=dtype)
    except (ValueError, TypeError, OverflowError):
        return None


def finite_rows(leaves: list[np.ndarray]) -> Bool[np.ndarray, " rows"]:
    """Which rows' predictions are finite throughout; others' rows overflow the network."""
    return np.logical_and.reduce([np.isfinite(leaf).reshape(len(leaf), -1).all(axis=1) for leaf in leaves])


def overflow(row: int) -> InputError:
    """The error of a row whose prediction is not finite."""
    return InputError(
        "its prediction overflows float32",
        where=f"inputs[{row}]",
        expected="a row on the scale of the training data",
        found="numbers too large for the network",
    )


def check_finite(leaves: list[np.ndarray]) -> None:
    """Refuses predictions that are not finite.

    Raises:
        InputError: naming the row.
    """
    finite = finite_rows(leaves)
    if not finite.all():
        raise overflow(int(np.argmin(finite)))


def _is_plain(content: Any, body: bytes) -> bool:
    """Whether a body's only texts are the keys and texts of a flat object, and the rest is numbers.

    Of the words `true`, `false` and `null` each has a letter that no number has: two counts tell, and two more that no
    text is hidden among the numbers. Where a text is escaped the counts differ, and the body is walked.
    """
    if not isinstance(content, dict):
        return False
    content = cast("dict[str, Any]", content)
    texts = list(content)
    for key, value in content.items():
        if isinstance(value, str):
            texts.append(value)
        elif key == "fields" and isinstance(value, list):
            texts += [text for text in cast("list[Any]", value) if isinstance(text, str)]
    if body.count(b'"') != 2 * len(texts):
        return False
    known = "".join(texts)
    return body.count(b"u") == known.count("u") and body.count(b"a") == known.count("a")


def _parse_leniently(body: bytes, error: orjson.JSONDecodeError) -> Any:
    """What Python's parser, which takes NaN and 1e999, makes of a body that orjson refused, to say where the fault is."""
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as failure:
        raise InputError("body", expected="JSON in UTF-8", found=f"a wrong byte at {failure.start}") from error
    try:
        return json.loads(text, object_pairs_hook=each_key_once)
    except (ValueError, RecursionError):
        raise InputError("body", expected="JSON", found=str(error) if text.strip() else "nothing") from error


def _parse_each_key_once(body: bytes) -> Any:
    """What Python's parser makes of a body that orjson has taken: it sees keys that come twice."""
    try:
        return json.loads(body.decode("utf-8"), object_pairs_hook=each_key_once)
    except RecursionError as error:
        raise InputError("body", expected="an object of the known keys", found="objects nested too deep") from error


def _check_row(row: Any, where: str, model: Model) -> None:
    first: Any = next(iter(cast("list[Any]", row)), None) if isinstance(row, list) else None
    nested = len(model.feature_shape) > 1 and isinstance(first, list)
    shape = model.feature_shape if nested else (model.features,)
    _check_cells(row, where, shape, model, ())


def _check_cells(cells: Any, where: str, shape: tuple[int, ...], model: Model, place: tuple[int, ...]) -> None:
    if not shape:
        _check_number(cells, where, model, place)
        return
    length = shape[0]
    unit = f"{length} numbers" if len(shape) == 1 else f"{length} lists"
    if not isinstance(cells, list):
        raise InputError(where, expected=f"a list of {unit}", found=_kind(cells))
    cells = cast("list[Any]", cells)
    if len(cells) != length:
        raise InputError(where, expected=unit, found=len(cells))
    for index, cell in enumerate(cells):
        _check_cells(cell, f"{where}[{index}]", shape[1:], model, (*place, index))


def _check_number(cell: Any, where: str, model: Model, place: tuple[int, ...]) -> None:
    if len(place) == 1 and model.feature_names:
        where = f"{where} ({model.feature_names[place[0]]})"
    if isinstance(cell, bool) or not isinstance(cell, int | float):
        raise InputError(where, expected=_number_of(model, place), found=_kind(cell))
    # A comparison of exact integers, not of floats: an integer of 400 digits has no float.
    if not -_FLOAT32_MAX <= cell <= _FLOAT32_MAX:
        found = clip_repr(cell) if isinstance(cell, float) else f"an integer of {len(str(abs(cell)))} digits"
        raise InputError(where, expected="a finite number within float32's range", found=found)


def _refuse_unknown_codes(rows: np.ndarray, model: Model) -> None:
    unknown = first_unknown_code(model.preprocessing, rows)
    if unknown:
        row, feature = unknown
        name = model.preprocessing.columns[feature].name
        raise InputError(
            f"inputs[{row}][{feature}] ({name})", expected=_number_of(model, (feature,)), found=rows[row, feature]
        )


def _number_of(model: Model, place: tuple[int, ...]) -> str:
    """What belongs at a place of a row; of a table's categories, their codes."""
    columns = model.preprocessing.columns
    if not columns or not columns[place[0]].categories:
        return "a number"
    return (
        f"a category's code ({', '.join(f'{code} = {name}' for code, name in enumerate(columns[place[0]].categories))})"
    )


def _text(content: dict[str, Any], key: str) -> str | None:
    value = content.get(key)
    if key in content and not isinstance(value, str):
        _refuse(key, "a string", value)
    return value


def _texts(content: dict[str, Any], key: str) -> tuple[str, ...] | None:
    if key not in content:
        return None
    values = content[key]
    if not isinstance(values, list) or not values:
        _refuse(key, "a list of field names", values)
    for value in cast("list[Any]", values):
        if not isinstance(value, str):
            _refuse(key, "a list of field names", value)
    return tuple(cast("list[str]", values))


def _number_between(content: dict[str, Any], key: str, end: int) -> float | None:
    if key not in content:
        return None
    value = content[key]
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < end:
        _refuse(key, f"a number above 0 and below {end}", value)
    return float(value)


def _refuse(key: str, expected: str, value: Any) -> NoReturn:
    found = clip_repr(value) if isinstance(value, int | float) and not isinstance(value, bool) else _kind(value)
    raise InputError(key, expected=expected, found=found)


def _kind(value: Any) -> str:
    """A value as its sender would call it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, str):
        return f"the string {clip_repr(value)}"
    if isinstance(value, list):
        return f"a list of {len(cast('list[Any]', value))}"
    return "an object" if isinstance(value, dict) else f"the number {clip_repr(value)}"
