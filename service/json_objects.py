"""JSON objects of requests: parsed fast, and checked key by key, with the key named in every error."""

from __future__ import annotations

import json
from typing import Any, cast

import orjson

from abstain.models.errors import InputError, clip_repr

MOST_OBJECTS = 1_000
"""In a body; none needs more than a few for each output. An object of three bytes takes seventy in memory."""
HEADER_LENGTH = "Inference-Header-Content-Length"


def parse_object(text: bytes, keys: tuple[str, ...]) -> tuple[dict[str, Any], bool]:
    """A JSON object of the known keys, and whether whatever is called "data" in it can hold numbers alone.

    Raises:
        InputError: it is not JSON in UTF-8, not an object, holds very many, or has a key unknown or twice.
    """
    refuse_many_objects(text)
    failure: orjson.JSONDecodeError | None = None
    try:
        content = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        content, failure = None, error
    plain = failure is None and _is_plain(content, text)
    if not plain:
        content = None  # Lest it be in memory twice.
        content = _parse_slowly(text, failure)
    return checked_object(content, "body", keys), plain


def refuse_many_objects(text: bytes) -> None:
    """Refuses, before it is parsed, a body of more objects than any request has.

    Raises:
        InputError: saying how many.
    """
    found = text.count(b"{")
    if found > MOST_OBJECTS:
        raise InputError(
            where="body", expected=f"at most {MOST_OBJECTS:,} JSON objects", found=f"{found:,} opening braces"
        )


def _is_plain(content: Any, text: bytes) -> bool:
    """Whether all quotes and all words (true, false, null) of the text are accounted for outside of "data".

    Then no string, boolean or null hides there, and no key was said twice, of which orjson would keep the last.
    """
    strings = words = 0
    pending = [content]
    while pending:
        value = pending.pop()
        if isinstance(value, dict):
            value = cast("dict[str, Any]", value)
            strings += len(value)
            pending += [child for key, child in value.items() if key != "data"]
        elif isinstance(value, list):
            pending += cast("list[Any]", value)
        elif isinstance(value, str):
            strings += 1
        elif value is None or isinstance(value, bool):
            words += 1
    return text.count(b'"') == 2 * strings and sum(map(text.count, (b"true", b"false", b"null"))) == words


def _parse_slowly(text: bytes, failure: orjson.JSONDecodeError | None) -> Any:
    """What Python's parser makes of the text: it sees keys that come twice, and takes NaN and 1e999, to say where they are."""
    try:
        return json.loads(text.decode("utf-8"), object_pairs_hook=each_key_once)
    except UnicodeDecodeError as error:
        raise InputError(
            where="body",
            expected="JSON in UTF-8",
            found=f"a wrong byte at {error.start}",
            fix=f"where binary data follows the JSON, the header {HEADER_LENGTH} says how long the JSON is",
        ) from error
    except (ValueError, RecursionError) as error:
        found = str(failure or error) if text.strip() else "nothing"
        raise InputError(where="body", expected="JSON", found=found) from error


def each_key_once(items: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object's pairs as a dict; of a key that comes twice orjson would keep the last without a word.

    Raises:
        InputError: naming the key.
    """
    known: dict[str, Any] = {}
    for key, value in items:
        if key in known:
            raise InputError("duplicate key", where="body", expected="each key once", found=clip_repr(key))
        known[key] = value
    return known


def checked_object(value: Any, where: str, keys: tuple[str, ...]) -> dict[str, Any]:
    """A JSON object of the known keys.

    Raises:
        InputError: it is none, or has another key.
    """
    if not isinstance(value, dict):
        raise InputError(where=where, expected="a JSON object", found=kind(value))
    value = cast("dict[str, Any]", value)
    for key in value:
        if key not in keys:
            raise InputError("unknown key", where=where, expected=f"one of {', '.join(keys)}", found=clip_repr(key))
    return value


def text_of(content: dict[str, Any], key: str, where: str) -> str | None:
    """A text under a key; None where there is no such key."""
    value = content.get(key)
    if key in content and not isinstance(value, str):
        raise InputError(key, where=where, expected="a string", found=kind(value))
    if value and not _is_unicode(value):
        raise InputError(key, where=where, expected="Unicode text", found=clip_repr(value))
    return value


def _is_unicode(text: str) -> bool:
    """Whether it has no half of a surrogate pair, which Python's parser takes and no UTF-8 can hold."""
    try:
        return bool(text.encode())
    except UnicodeEncodeError:
        return False


def flag_of(parameters: dict[str, Any], key: str, where: str, default: bool = False) -> bool:
    """A boolean under a key."""
    value = parameters.get(key, default)
    if not isinstance(value, bool):
        raise InputError(key, where=where, expected="true or false", found=kind(value))
    return value


def number_between(parameters: dict[str, Any], key: str, end: int) -> float | None:
    """A number above 0 and below the end; None where there is no such key."""
    if key not in parameters:
        return None
    value = parameters[key]
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < end:
        raise InputError(key, where="parameters", expected=f"a number above 0 and below {end}", found=kind(value))
    return float(value)


def found_at(content: dict[str, Any], key: str) -> str:
    """What is under a key, as an error tells it."""
    return kind(content[key]) if key in content else "no such key"


def kind(value: Any) -> str:
    """A JSON value as its sender would call it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int) and abs(value) >= 10**30:
        return f"an integer of {len(str(abs(value)))} digits"
    if isinstance(value, list):
        return f"a list of {len(cast('list[Any]', value))}"
    return "an object" if isinstance(value, dict) else clip_repr(value)
