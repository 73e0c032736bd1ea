"""Turns pydantic's validation errors into errors of abstain: what, where, expected, found, and how to fix it.

    refuse(error, kind, record, …)   converts a ValidationError into an error of abstain
    first_fault(error, record)       returns its parts, for callers that write their own sentence

Only the first fault is reported. A key is named by a dotted path, as in the user's file, without the tags that pydantic
adds for the member of a union.
"""

from __future__ import annotations

import re
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from abstain.models.errors import AbstainError, clip_repr, suggest

Kind = TypeVar("Kind", bound=AbstainError)
Record = TypeVar("Record", bound=BaseModel)
Location = Sequence[int | str]

_PLAIN_KEY = re.compile(r"[\w-]+")
_KEY_ITSELF = "[key]"
"""The part that pydantic adds to the end of a path if the key itself is wrong, not its value."""
_SHOULD = re.compile(r"(\w+) should (be|have|match) (.+)", re.DOTALL)
_QUOTED = re.compile(r"'([^']*)'")


class Fault(NamedTuple):
    """The first fault that pydantic found.

    Attributes:
        key: its dotted path; empty if the content as a whole is wrong.
        unknown: whether the key is unknown; `expected` then lists the known ones.
        found: the value, shortened; None if there is nothing to show.
        suggestion: a question with the nearest known key or value.
        missing: whether the key is missing.
    """

    key: str
    unknown: bool
    expected: str
    found: str | None
    suggestion: str | None = None
    missing: bool = False


def refuse(
    error: ValidationError,
    kind: type[Kind],
    record: type[BaseModel],
    *,
    where: str | None = None,
    whole: str = "content",
    named: Callable[[str], str] = str,
    fix: str | None = None,
) -> Kind:
    """Returns the error to raise for a ValidationError.

    Args:
        record: the class that was validated.
        whole: the name of the content, used if it is wrong as a whole.
        named: returns the user's name of a key, given its dotted path.
        fix: how to fix it; it follows the suggestion of the nearest known name.
    """
    fault = first_fault(error, record)
    what = named(fault.key) if fault.key else whole
    if fault.missing:
        return kind(f"{what}: the key is missing", where=where, fix=fix)
    return kind(
        f"unknown key {what!r}" if fault.unknown else what,
        where=where,
        expected=fault.expected,
        found=fault.found,
        fix="; ".join(step for step in (fault.suggestion, fix) if step) or None,
    )


def parse_json(written: bytes, record: type[Record], kind: type[Kind], *, where: str, fix: str) -> Record:
    """Parses the content of a file of JSON as a record.

    Raises:
        kind: it is malformed; `fix` says what to do about the file.
    """
    try:
        return record.model_validate_json(written)
    except ValidationError as error:
        raise refuse(error, kind, record, where=where, whole="is not JSON", fix=fix) from error


def first_fault(error: ValidationError, record: type[BaseModel]) -> Fault:
    """Returns the first fault of a ValidationError of this record."""
    first = error.errors(include_url=False)[0]
    path, members = _resolve_path(first["loc"], record)
    key = dotted(path)
    if first["type"] == "extra_forbidden":
        known = sorted({name for member in members if _is_record(member) for name in member.model_fields})
        return Fault(key, True, f"one of {', '.join(known)}", None, suggest(str(path[-1]), known))
    if first["type"] == "missing":
        # Without pydantic's input, which is the whole table that lacks the key.
        return Fault(key, False, "a value", None, missing=True)
    context = first.get("ctx", {})
    tag_key = dotted([*path, context.get("discriminator", "").strip("'")])
    if first["type"] == "union_tag_not_found":
        return Fault(tag_key, False, "a value", None, missing=True)
    if first["type"] == "union_tag_invalid":
        known = _QUOTED.findall(context["expected_tags"])
        return Fault(tag_key, False, f"one of {', '.join(known)}", context["tag"], suggest(context["tag"], known))
    known = _QUOTED.findall(context.get("expected", "")) if first["type"] == "literal_error" else []
    return Fault(key, False, _expected(first["msg"]), clip_repr(first["input"]), suggest(str(first["input"]), known))


def _expected(message: str) -> str:
    """Shortens a message of pydantic to the words after "expected": `Input should be a valid integer` → `a valid integer`."""
    match = _SHOULD.fullmatch(message)
    if match is None:
        return message.removeprefix("Value error, ")
    subject, verb, rest = match.groups()
    rest = rest.replace(" after validation", "")
    if subject == "Input" and verb == "be":
        return f"a number {rest}" if rest.startswith(("greater", "less")) else rest
    joint = {"be": "that is", "have": "with", "match": "that matches"}[verb]
    return f"a {'value' if subject == 'Input' else subject.lower()} {joint} {rest}"


def dotted(path: Location) -> str:
    """Joins a path by dots, quoting parts that are not plain keys: `prior.layers."*.bias".scale`."""
    return ".".join(part if _PLAIN_KEY.fullmatch(part) else f'"{part}"' for part in map(str, path))


def _resolve_path(location: Location, record: type[BaseModel]) -> tuple[list[int | str], list[Any]]:
    """Returns the path of keys in pydantic's location, and the types that may hold its last key."""
    path: list[int | str] = []
    inside: list[Any] = [record]
    holders = inside
    for part in location:
        if part == _KEY_ITSELF:
            continue
        tagged = _members_with_tag(inside, part) if len(inside) > 1 else []
        if tagged:
            inside = tagged
        elif not (inside and all(map(_is_scalar, inside))):
            path.append(part)
            holders = inside
            inside = [member for holder in inside for member in _value_types(holder, part)]
    return path, holders


def _members_with_tag(members: list[Any], part: int | str) -> list[Any]:
    """Returns the members of a union that a tag of pydantic names, by the value of `kind` or by the class."""
    records = [member for member in members if _is_record(member)]
    return [
        member
        for member in records
        if part == member.__name__ or any(part in get_args(field.annotation) for field in _kinds(member))
    ]


def _kinds(record: type[BaseModel]) -> list[Any]:
    return [record.model_fields["kind"]] if "kind" in record.model_fields else []


def _value_types(holder: Any, part: int | str) -> list[Any]:
    """Returns the types that a value of the holder's type may have under a key or an index."""
    if _is_record(holder):
        field = holder.model_fields.get(str(part))
        return _members(field.annotation) if field else []
    origin, arguments = get_origin(holder), [argument for argument in get_args(holder) if argument is not Ellipsis]
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return _members(arguments[-1])
    if origin is tuple and isinstance(part, int) and part < len(arguments):
        return _members(arguments[part])
    return [member for argument in arguments for member in _members(argument)]


def _members(annotation: Any) -> list[Any]:
    """Returns the types that an annotation allows, with all unions in it expanded."""
    if get_origin(annotation) is Annotated:
        return _members(get_args(annotation)[0])
    if get_origin(annotation) in {Union, types.UnionType}:
        return [member for argument in get_args(annotation) for member in _members(argument)]
    return [annotation]


def _is_record(member: Any) -> bool:
    return isinstance(member, type) and issubclass(member, BaseModel)


def _is_scalar(member: Any) -> bool:
    """Whether a type has no keys or items, so that a part after it in a location is a tag."""
    if get_origin(member) is Literal:
        return True
    return isinstance(member, type) and issubclass(member, (str, bytes, int, float, Path, types.NoneType))
