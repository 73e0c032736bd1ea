"""The body of `POST /predict`: from bytes to a checked request, the row and the field of every mistake named.

orjson and numpy do the work; only where they find or could hide a mistake is the body walked in Python. numpy would
take `true`, `null` and `"99"` for numbers, and orjson keeps the last of two equal keys: a count of the quotes and a
search for three words tell, without a walk, that a body can hold none of these.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple, NoReturn, cast

import orjson

from abstain.models.errors import InputError, clip_repr
from abstain.service.json_objects import each_key_once, refuse_many_objects
from abstain.service.rows import kind_of_value, refuse_many_rows

KEYS = ("inputs", "model", "percentile", "coverage", "fields")


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
            refuse_many_rows(cast("dict[str, Any]", content).get("inputs"), max_rows)
        if not plain:
            content = None  # Lest it be in memory twice.
            content = _parse_each_key_once(body)
    if not isinstance(content, dict):
        raise InputError(where="body", expected="a JSON object", found=kind_of_value(content))
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
        percentile=number_between(content, "percentile", 100),
        coverage=number_between(content, "coverage", 1),
        fields=_texts(content, "fields"),
    )


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
        raise InputError(where="body", expected="JSON in UTF-8", found=f"a wrong byte at {failure.start}") from error
    try:
        return json.loads(text, object_pairs_hook=each_key_once)
    except (ValueError, RecursionError):
        raise InputError(where="body", expected="JSON", found=str(error) if text.strip() else "nothing") from error


def _parse_each_key_once(body: bytes) -> Any:
    """What Python's parser makes of a body that orjson has taken: it sees keys that come twice."""
    try:
        return json.loads(body.decode("utf-8"), object_pairs_hook=each_key_once)
    except RecursionError as error:
        raise InputError(
            where="body", expected="an object of the known keys", found="objects nested too deep"
        ) from error


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


def number_between(content: dict[str, Any], key: str, end: int) -> float | None:
    """A number above 0 and below the end; None where there is no such key.

    Raises:
        InputError: it is none.
    """
    if key not in content:
        return None
    value = content[key]
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < end:
        _refuse(key, f"a number above 0 and below {end}", value)
    return float(value)


def _refuse(key: str, expected: str, value: Any) -> NoReturn:
    found = clip_repr(value) if isinstance(value, int | float) and not isinstance(value, bool) else kind_of_value(value)
    raise InputError(where=key, expected=expected, found=found)
