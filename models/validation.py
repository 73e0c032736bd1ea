"""What pydantic refuses, in the words of every other error: what, where, expected, found, and what to do.

    refuse(error, kind, record, …)   a ValidationError as an error of abstain
    first_fault(error, record)       the same in parts, where the caller writes a sentence of its own

Only the first fault is reported: it is what the reader mends first. A key is named as its writer wrote it, by a dotted path; the
tags that pydantic puts into a path to say which member of a union it tried are left out.
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
Location = Sequence[int | str]

_PLAIN_KEY = re.compile(r"[\w-]+")
_OF_THE_KEY = "[key]"
"""What pydantic puts at a path's end where the key itself is refused, and not its value."""


class Fault(NamedTuple):
    """The first thing that was refused.

    Attributes:
        key: its dotted path; empty where it is the whole.
        unknown: whether there is no such key; `expected` then lists those there are, and `suggestion` asks whether the
            nearest of them is meant.
        found: shortened; None where there was nothing to show.
    """

    key: str
    unknown: bool
    expected: str
    found: str | None
    suggestion: str | None = None


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
    """The error to raise for what pydantic has refused.

    Args:
        record: what was validated.
        whole: what to call the content where no key of it is at fault.
        named: what the reader calls a key, given its dotted path.
        fix: what to do; for an unknown key it follows the nearest known one.
    """
    fault = first_fault(error, record)
    what = named(fault.key) if fault.key else whole
    return kind(
        f"unknown key {what!r}" if fault.unknown else what,
        where=where,
        expected=fault.expected,
        found=fault.found,
        fix="; ".join(step for step in (fault.suggestion, fix) if step) or None,
    )


def first_fault(error: ValidationError, record: type[BaseModel]) -> Fault:
    """What pydantic refused first of a record's content."""
    first = error.errors(include_url=False)[0]
    path, members = _followed(first["loc"], record)
    key = dotted(path)
    if first["type"] == "extra_forbidden":
        known = sorted({name for member in members if _is_record(member) for name in member.model_fields})
        return Fault(key, True, f"one of {', '.join(known)}", None, suggest(str(path[-1]), known))
    # Of a key that is missing pydantic shows the whole table, which says nothing.
    found = None if first["type"] == "missing" else clip_repr(first["input"])
    return Fault(key, False, first["msg"], found)


def dotted(path: Location) -> str:
    """`prior.layers."*.bias".scale`: parts with other signs than letters, digits, `_` and `-` in quotation marks."""
    return ".".join(part if _PLAIN_KEY.fullmatch(part) else f'"{part}"' for part in map(str, path))


def _followed(location: Location, record: type[BaseModel]) -> tuple[list[int | str], list[Any]]:
    """The path that pydantic's location stands for, and the types that may lie where its last part does."""
    path: list[int | str] = []
    inside: list[Any] = [record]
    holders = inside
    for part in location:
        if part == _OF_THE_KEY:
            continue
        tagged = _tagged(inside, part) if len(inside) > 1 else []
        if tagged:
            inside = tagged
        elif not (inside and all(map(_is_scalar, inside))):
            path.append(part)
            holders = inside
            inside = [member for held in inside for member in _held(held, part)]
    return path, holders


def _tagged(members: list[Any], part: int | str) -> list[Any]:
    """The members of a union that a tag of pydantic's names: by the value of their `kind`, or by their class."""
    records = [member for member in members if _is_record(member)]
    return [
        member
        for member in records
        if part == member.__name__ or any(part in get_args(field.annotation) for field in _kinds(member))
    ]


def _kinds(record: type[BaseModel]) -> list[Any]:
    return [record.model_fields["kind"]] if "kind" in record.model_fields else []


def _held(holder: Any, part: int | str) -> list[Any]:
    """The types of what a type holds under a key, or at a place."""
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
    """The types that an annotation allows, out of all unions in it."""
    if get_origin(annotation) is Annotated:
        return _members(get_args(annotation)[0])
    if get_origin(annotation) in {Union, types.UnionType}:
        return [member for argument in get_args(annotation) for member in _members(argument)]
    return [annotation]


def _is_record(member: Any) -> bool:
    return isinstance(member, type) and issubclass(member, BaseModel)


def _is_scalar(member: Any) -> bool:
    """Whether a type holds nothing, so that what follows it in a location is a tag."""
    if get_origin(member) is Literal:
        return True
    return isinstance(member, type) and issubclass(member, (str, bytes, int, float, Path, types.NoneType))
