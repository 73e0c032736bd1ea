"""The body of `POST /predict`: from bytes to a checked request; every error names the row and the field.

orjson and numpy do the work; the body is checked in Python only if they find an error or could hide one. numpy accepts
`true`, `null` and `"99"` as numbers, and orjson keeps only the last of two equal keys. Counts of quotes and of two letters
show quickly that a body has none of these.
"""

from __future__ import annotations

from typing import Any, NamedTuple, NoReturn, cast

import orjson

from abstain.models.decisions.records import Levels
from abstain.models.errors import InputError
from abstain.service.json_objects import (
    check_object,
    describe_value,
    number_between,
    parse_slowly,
    refuse_many_parts,
    text_of,
)
from abstain.service.rows import refuse_many_rows

KEYS = ("inputs", "model", "percentile", "coverage", "max_error", "fields")


class PredictRequest(NamedTuple):
    """A request with valid keys and types; `check_rows` checks the rows, once the model is known."""

    inputs: Any
    plain: bool
    """Whether the inputs can hold no string, boolean or null."""
    model: str | None
    levels: Levels
    fields: tuple[str, ...] | None


def parse_predict(body: bytes, max_rows: int) -> PredictRequest:
    """Parses a body.

    Raises:
        InputError: the body is not a JSON object with the known keys and types, or it has too many rows, objects or lists.
    """
    refuse_many_parts(body)
    try:
        content = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        content, plain = parse_slowly(body, error), False
    else:
        plain = _is_plain(content, body)
        if isinstance(content, dict):
            # Refuses them before Python's parser makes a second copy of the rows.
            refuse_many_rows(cast("dict[str, Any]", content).get("inputs"), max_rows)
        if not plain:
            content = None  # Frees the first copy before the second is made.
            content = parse_slowly(body)
    content = check_object(content, "body", KEYS)
    if "inputs" not in content:
        raise InputError("inputs", where="body", expected="a list of rows", found="no key 'inputs'")
    return PredictRequest(
        inputs=content["inputs"],
        plain=plain,
        model=text_of(content, "model"),
        levels=Levels(
            percentile=number_between(content, "percentile", 100),
            coverage=number_between(content, "coverage", 1),
            max_error=number_between(content, "max_error", 1),
        ),
        fields=_texts(content, "fields"),
    )


def _is_plain(content: Any, body: bytes) -> bool:
    """Whether a body is a flat object and its rows hold only numbers.

    Each of the words `true`, `false` and `null` has a "u" or an "a", which numbers do not have. So the body is plain if all
    of its quotes and of these two letters belong to the keys and texts of the object. Escaped text makes the counts differ.
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
    joined = "".join(texts)
    return body.count(b"u") == joined.count("u") and body.count(b"a") == joined.count("a")


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
