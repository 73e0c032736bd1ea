"""The JSON body of `POST /predict`: from bytes to a checked request; every error names the row and the field.

Rows are lists of numbers (`inputs`), or have named values (`records`, or `columns` and `data`).

orjson and numpy do the work; the body is checked in Python only if they find an error or could hide one. numpy accepts
`true`, `null` and `"99"` as numbers, and orjson keeps only the last of two equal keys. Counts of quotes and of two letters
show quickly that a body has none of these. For named values a count of quotes is enough, because `service/records.py` looks
at their types.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, NoReturn, cast

import numpy as np
import orjson
from jaxtyping import Float

from abstain.models.decisions.records import Levels
from abstain.models.errors import InputError
from abstain.models.prediction.posterior import Model
from abstain.models.tables.unseen import NO_TEXTS, UnseenTexts
from abstain.service.json_objects import (
    MAX_OBJECTS,
    check_object,
    describe_value,
    has_long_number,
    number_between,
    parse_slowly,
    refuse_many_parts,
    text_of,
)
from abstain.service.records import rows_of_lists, rows_of_records, unseen_texts
from abstain.service.rows import check_rows, refuse_many_rows

KEYS = ("inputs", "records", "columns", "data", "model", "percentile", "coverage", "max_error", "fields")
_ROWS = ("inputs", "records", "data")
"""The keys of rows; a request has exactly one."""
_NAMED = ("records", "data")


class PredictRequest(NamedTuple):
    """A request with valid keys and types; `rows_of_request` checks the rows, once the model is known."""

    inputs: Any
    """The rows, in the form that `form` names."""
    plain: bool
    """Whether the inputs can hold no string, boolean or null; for named values, no NaN and no duplicate key."""
    model: str | None
    levels: Levels
    fields: tuple[str, ...] | None
    form: Literal["inputs", "records", "data", "body"] = "inputs"
    columns: Any = None
    """The names of the values of `data`."""


def parse_predict(body: bytes, max_rows: int) -> PredictRequest:
    """Parses a body.

    Raises:
        InputError: the body is not a JSON object with the known keys and types, or it has too many rows, objects or lists.
    """
    refuse_many_parts(body, MAX_OBJECTS + max_rows)
    try:
        content = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        content, plain = parse_slowly(body, error), False
    else:
        plain = False
        if isinstance(content, dict):
            # Refuses them before Python's parser makes a second copy of the rows.
            for key in _ROWS:
                refuse_many_rows(cast("dict[str, Any]", content).get(key), max_rows, key)
            plain = _is_plain(cast("dict[str, Any]", content), body)
            # orjson makes floats of integers beyond 64 bits, which as categories need all digits.
            plain = plain and (_has_only_numbers(cast("dict[str, Any]", content)) or not has_long_number(body))
        if not plain:
            content = None  # Frees the first copy before the second is made.
            content = parse_slowly(body)
    content = check_object(content, "body", KEYS)
    form = _form_of(content)
    return PredictRequest(
        inputs=content[form],
        plain=plain,
        model=text_of(content, "model"),
        levels=Levels(
            percentile=number_between(content, "percentile", 100),
            coverage=number_between(content, "coverage", 1),
            max_error=number_between(content, "max_error", 1),
        ),
        fields=_texts(content, "fields"),
        form=form,
        columns=content.get("columns"),
    )


def rows_of_request(request: PredictRequest, model: Model, max_rows: int) -> Float[np.ndarray, "rows ..."]:
    """Checks the rows of a request and returns them in the model's feature shape.

    Raises:
        InputError: names the invalid row and column.
    """
    if request.form == "records":
        return rows_of_records(request.inputs, request.plain, model, max_rows)
    if request.form == "data":
        return rows_of_lists(request.columns, request.inputs, request.plain, model, max_rows)
    return check_rows(request.inputs, request.plain, model, max_rows)


def texts_of_request(request: PredictRequest, model: Model, rows: Float[np.ndarray, "rows ..."]) -> UnseenTexts:
    """Returns the unseen categories of a request with named values; none for numbers, which hold codes.

    Args:
        rows: the result of `rows_of_request`.
    """
    if request.form == "inputs":
        return NO_TEXTS
    columns: list[str] = request.columns or []
    places = {name: place for place, name in enumerate(columns)}
    by_name = request.form == "records"
    return unseen_texts(rows, model, lambda row, name: request.inputs[row][name if by_name else places[name]])


def _form_of(content: dict[str, Any]) -> Literal["inputs", "records", "data"]:
    """Returns the key of the rows; refuses a body with other rows, too."""
    given = [key for key in _ROWS if key in content]
    if not given and "columns" not in content:
        raise InputError(
            "inputs",
            where="body",
            expected="a list of rows",
            found="no key 'inputs'",
            fix="rows with named values go into records, or into columns and data",
        )
    if len(given) > 1:
        raise InputError(
            "rows",
            where="body",
            expected="one of inputs, records, or columns with data",
            found=" and ".join(given),
        )
    for key, other in (("columns", "data"), ("data", "columns")):
        if key in content and other not in content:
            raise InputError(other, where="body", expected="columns and data together", found=f"no key {other!r}")
    return cast("Any", given[0])


def _is_plain(content: dict[str, Any], body: bytes) -> bool:
    """Whether a body is a flat object, and its rows hold only numbers or have named values, no key of a row twice.

    Each of the words `true`, `false` and `null` has a "u" or an "a", which numbers do not have. So the body is plain if all
    of its quotes and of these two letters belong to the keys and texts of the object. Escaped text makes the counts differ.
    """
    texts = list(content)
    for key, value in content.items():
        if isinstance(value, str):
            texts.append(value)
        elif key == "fields" and isinstance(value, list):
            texts += [text for text in cast("list[Any]", value) if isinstance(text, str)]
    named = not _has_only_numbers(content)
    if body.count(b'"') != 2 * (len(texts) + (_count_texts(content) if named else 0)):
        return False
    if named:
        return True
    joined = "".join(texts)
    return body.count(b"u") == joined.count("u") and body.count(b"a") == joined.count("a")


def _has_only_numbers(content: dict[str, Any]) -> bool:
    """Whether a body has no rows with named values."""
    return not any(key in content for key in _NAMED)


def _count_texts(content: dict[str, Any]) -> int:
    """Returns the number of keys and texts of named values; those of values that are objects or lists are not counted."""
    rows = [content.get("columns"), *(row for key in _NAMED for row in _list_or_empty(content.get(key)))]
    texts = 0
    for row in rows:
        if type(row) is dict:
            record = cast("dict[str, Any]", row)
            texts += len(record) + list(map(type, record.values())).count(str)
        elif type(row) is list:
            texts += list(map(type, cast("list[Any]", row))).count(str)
    return texts


def _list_or_empty(value: Any) -> list[Any]:
    return cast("list[Any]", value) if isinstance(value, list) else []


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


def _refuse(key: str, expected: str, value: Any) -> NoReturn:
    raise InputError(where=key, expected=expected, found=describe_value(value))
