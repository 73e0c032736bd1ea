"""JSON objects in requests of both protocols: parsed fast, and checked key by key; every error names the key."""

from __future__ import annotations

import json
from typing import Any, cast

import orjson

from abstain.models.errors import InputError, clip_repr, suggest

MAX_OBJECTS = 1_000
"""The limit for one body, which needs only a few for each output, besides one for each row. An object of three bytes takes
seventy in memory."""
MAX_LISTS = 1_000_000
"""The limit for one body. An empty list of three bytes takes seventy in memory; a row of an image may be sent flat."""
_DIGITS = bytes.maketrans(b"123456789", b"0" * 9)
_LONG_NUMBER = b"0" * 19
HEADER_LENGTH = "Inference-Header-Content-Length"
_BINARY = f"if binary data follows the JSON, give the length of the JSON in the header {HEADER_LENGTH}"


def has_long_number(text: bytes) -> bool:
    """Whether a text may have an integer that 64 bits cannot hold; such a number has 19 digits or more."""
    return _LONG_NUMBER in text.translate(_DIGITS)


def parse_object(text: bytes, keys: tuple[str, ...], max_objects: int = MAX_OBJECTS) -> tuple[dict[str, Any], bool]:
    """Parses a JSON object and checks its keys; also returns whether every "data" in it can only hold numbers.

    Args:
        max_objects: as in `refuse_many_parts`.

    Raises:
        InputError: the text is not JSON in UTF-8, not an object, has too many objects or lists, or an unknown or duplicate key.
    """
    refuse_many_parts(text, max_objects)
    failure: orjson.JSONDecodeError | None = None
    try:
        content = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        content, failure = None, error
    plain = failure is None and _is_plain(content, text)
    # Of integers beyond 64 bits orjson makes floats, which could be within the limits of their datatype.
    if not plain or (b"INT64" in text and has_long_number(text)):
        content = None  # Frees the first copy before the second is made.
        content = parse_slowly(text, failure, fix=_BINARY)
    return check_object(content, "body", keys), plain


def refuse_many_parts(text: bytes, max_objects: int = MAX_OBJECTS) -> None:
    """Refuses a body with more objects or lists than any request needs, before it is parsed.

    Args:
        max_objects: the limit of objects; higher for a request that has an object for each row.

    Raises:
        InputError: gives the number.
    """
    brackets = text.count(b"[")
    if brackets > MAX_LISTS:
        raise InputError(
            where="body",
            expected=f"at most {MAX_LISTS:,} JSON lists",
            found=f"{brackets:,} opening brackets",
            fix="send fewer rows in one request, or each row as one flat list of numbers",
        )
    braces = text.count(b"{")
    if braces > max_objects:
        raise InputError(
            where="body", expected=f"at most {max_objects:,} JSON objects", found=f"{braces:,} opening braces"
        )


def _is_plain(content: Any, text: bytes) -> bool:
    """Whether all quotes and all words (true, false, null) of the text belong to values outside of "data".

    Then "data" holds no string, boolean or null, and no key occurs twice (orjson keeps only the last of two).
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
            # Numbers are most of a body, and neither text nor words.
            pending += [child for child in cast("list[Any]", value) if type(child) not in {int, float}]
        elif isinstance(value, str):
            strings += 1
        elif value is None or isinstance(value, bool):
            words += 1
    return text.count(b'"') == 2 * strings and sum(map(text.count, (b"true", b"false", b"null"))) == words


def parse_slowly(text: bytes, failure: orjson.JSONDecodeError | None = None, *, fix: str | None = None) -> Any:
    """Parses with Python's parser, which finds duplicate keys, and accepts NaN and 1e999 so that an error can locate them.

    Args:
        failure: the error of orjson, if it refused the text; the error shows it.
        fix: how to fix a text that is not UTF-8.

    Raises:
        InputError: the text is not JSON in UTF-8, or has a duplicate key.
    """
    try:
        return json.loads(text.decode("utf-8"), object_pairs_hook=refuse_duplicate_keys)
    except UnicodeDecodeError as error:
        found = f"an invalid byte at position {error.start}"
        raise InputError(where="body", expected="JSON in UTF-8", found=found, fix=fix) from error
    except (ValueError, RecursionError) as error:
        found = str(failure or "objects nested too deep") if text.strip() else "an empty body"
        raise InputError(where="body", expected="JSON", found=found) from error


def refuse_duplicate_keys(items: list[tuple[str, Any]]) -> dict[str, Any]:
    """Makes a dict of an object's pairs; orjson would silently keep the last value of a duplicate key.

    Raises:
        InputError: names the duplicate key.
    """
    content: dict[str, Any] = {}
    for key, value in items:
        if key in content:
            raise InputError("duplicate key", where="body", expected="each key once", found=clip_repr(key))
        content[key] = value
    return content


def check_object(value: Any, where: str, keys: tuple[str, ...]) -> dict[str, Any]:
    """Returns a value that is a JSON object with no other keys than these.

    Raises:
        InputError: the value is not an object, or has an unknown key.
    """
    if not isinstance(value, dict):
        raise InputError(where=where, expected="a JSON object", found=describe_value(value))
    value = cast("dict[str, Any]", value)
    for key in value:
        if key not in keys:
            raise InputError(
                "unknown key",
                where=where,
                expected=f"one of {', '.join(keys)}",
                found=clip_repr(key),
                fix=suggest(key, keys),
            )
    return value


def text_of(content: dict[str, Any], key: str, where: str | None = None) -> str | None:
    """Returns the text under a key; None if the key is missing.

    Args:
        where: the object that has the key, for the error; None for a field of the body, which is its own place.

    Raises:
        InputError: the value is not a string, or not valid Unicode.
    """
    if key not in content:
        return None
    value = content[key]
    if not isinstance(value, str):
        raise _invalid(key, where, "a string", describe_value(value))
    if not value.isascii() and not _is_unicode(value):
        raise _invalid(key, where, "Unicode text", clip_repr(value))
    return value


def _invalid(key: str, where: str | None, expected: str, found: str) -> InputError:
    """Makes the error for the value under a key, as `where: key: expected …`, or as `key: expected …` without `where`."""
    return InputError(key if where else "", where=where or key, expected=expected, found=found)


def _is_unicode(text: str) -> bool:
    """Whether a text has no half of a surrogate pair, which Python's parser accepts and UTF-8 cannot encode."""
    try:
        return bool(text.encode())
    except UnicodeEncodeError:
        return False


def flag_of(parameters: dict[str, Any], key: str, where: str, default: bool = False) -> bool:
    """Returns the boolean under a key; the default if the key is missing.

    Raises:
        InputError: the value is not a boolean.
    """
    value = parameters.get(key, default)
    if not isinstance(value, bool):
        raise InputError(key, where=where, expected="true or false", found=describe_value(value))
    return value


def number_between(parameters: dict[str, Any], key: str, end: int, where: str | None = None) -> float | None:
    """Returns the number under a key, which must be above 0 and below `end`; None if the key is missing.

    Args:
        where: as in `text_of`.

    Raises:
        InputError: the value is another number, or not a number.
    """
    if key not in parameters:
        return None
    value = parameters[key]
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < end:
        raise _invalid(key, where, f"a number above 0 and below {end}", describe_level(value))
    return float(value)


def describe_level(value: Any) -> str:
    """Describes a JSON value in an error about a number; a number without the words "the number"."""
    return describe_value(value).removeprefix("the number ")


def describe_key(content: dict[str, Any], key: str) -> str:
    """Describes the value under a key, or says that the key is missing, for an error."""
    return describe_value(content[key]) if key in content else f"no key {key!r}"


def describe_value(value: Any) -> str:
    """Describes a JSON value in an error, in JSON's words; another value of Python by its type."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, str):
        return f"the string {clip_repr(value)}"
    if isinstance(value, int) and abs(value) >= 10**30:
        return f"an integer of {len(str(abs(value)))} digits"
    if isinstance(value, list):
        return f"a list of {len(cast('list[Any]', value))}"
    if isinstance(value, int | float):
        return f"the number {clip_repr(value)}"
    return "an object" if isinstance(value, dict) else f"a value of type {type(value).__name__}"
