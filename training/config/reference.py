"""The reference of all settings, made from the classes of the config: every key with its type, default and meaning.

`abstain settings` prints it, and `docs/settings.md` is what it prints.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
import types
from collections.abc import Iterator
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from abstain.training.config.config import Config

_LIMITS = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}
_WORDS = {int: "whole number", float: "number", str: "text", bool: "true or false", types.NoneType: "nothing"}


class Setting(NamedTuple):
    """One key of a table: its type, default and meaning in words."""

    key: str
    type: str
    default: str
    meaning: str


class SettingsTable(NamedTuple):
    """One table of the config, or one kind of it: its name in TOML, what it is, and its settings."""

    name: str
    about: str
    settings: tuple[Setting, ...]


def settings_tables() -> tuple[SettingsTable, ...]:
    """Returns every table of the config, those of a `kind` one by one, in the order of `Config`."""
    top = SettingsTable("the top of the file", _first_line(Config), tuple(_settings(Config)))
    return (top, *(table for name, field in Config.model_fields.items() for table in _tables(name, field.annotation)))


def format_settings() -> str:
    """Returns the reference as Markdown."""
    lines = [
        "# Settings",
        "",
        "Every key of a config, as `abstain settings` prints it. A key is written in its table: `steps` of `[method]` is",
        "`steps = 500` below `[method]` in the file, or `--set method.steps=500`.",
    ]
    for name, about, settings in settings_tables():
        lines += ["", f"## {name}", "", about, "", "| key | type | default | meaning |", "|---|---|---|---|"]
        for setting in settings:
            cells = (f"`{setting.key}`", setting.type, setting.default, setting.meaning)
            lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(lines) + "\n"


def _tables(name: str, annotation: Any) -> Iterator[SettingsTable]:
    """Yields the tables that a key may hold, and those inside of them."""
    records = [member for member in _members(annotation) if _is_record(member)]
    for record in records:
        kind = record.model_fields.get("kind")
        title = f"`[{name}]`"
        if kind is not None and len(records) > 1:
            title = f'{title} with `kind = "{kind.default}"`'
        yield SettingsTable(title, _first_line(record), tuple(_settings(record)))
    inner = {key: field for record in records for key, field in record.model_fields.items()}
    for key, field in inner.items():
        yield from _tables(f"{name}.{key}", field.annotation)
        for member in _members(field.annotation):
            # A table with keys that the user names, such as prior.layers.
            if get_origin(member) is dict:
                yield from _tables(f"{name}.{key}.NAME", get_args(member)[1])


def _settings(record: type[BaseModel]) -> Iterator[Setting]:
    meanings = attribute_docstrings(record)
    for key, field in record.model_fields.items():
        members = _members(field.annotation)
        # A kind of one value is in the title of its table.
        if any(map(_is_record, members)) or (key == "kind" and len(get_args(members[0])) == 1):
            continue
        yield Setting(key, _describe_field(field), _describe_default(field), meanings.get(key, ""))


def attribute_docstrings(record: type[BaseModel]) -> dict[str, str]:
    """Returns the docstring below each attribute of a class and of its bases, in one line."""
    found: dict[str, str] = {}
    for base in reversed(record.__mro__):
        if not (_is_record(base) and base.__module__.startswith("abstain.")):
            continue
        body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0]
        assert isinstance(body, ast.ClassDef)  # noqa: S101 - the source of a class
        for before, node in zip(body.body, body.body[1:], strict=False):
            text = node.value.value if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) else None
            if isinstance(before, ast.AnnAssign) and isinstance(before.target, ast.Name) and isinstance(text, str):
                found[before.target.id] = " ".join(text.split())
    return found


def _first_line(record: type[BaseModel]) -> str:
    return (inspect.getdoc(record) or "").splitlines()[0]


def _describe_default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if value is None or value is PydanticUndefined:
        return "none"
    return f"`{_toml(value)}`"


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        escaped = value.replace("\t", "\\t")
        return f'"{escaped}"'
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, dict):
        return "{}"
    return f"{value:,}".replace(",", "_") if isinstance(value, int) else repr(value)


def _describe_field(field: FieldInfo) -> str:
    members = [member for member in _members(field.annotation) if member is not types.NoneType]
    return _with_limits(", or ".join(map(_describe, members)), field.metadata)


def _describe(member: Any) -> str:
    origin = get_origin(member)
    if origin is Annotated:
        inner, *metadata = get_args(member)
        return _with_limits(", or ".join(map(_describe, _members(inner))), metadata)
    if origin is Literal:
        return ", ".join(f"`{_toml(value)}`" for value in get_args(member))
    if origin in {tuple, list}:
        items = [item for item in get_args(member) if item is not Ellipsis]
        return f"list: {_describe(items[0])}" if len(set(map(str, items))) == 1 else "list"
    if origin is dict or not isinstance(member, type):
        return "table"
    return _WORDS.get(member, "table")


def _with_limits(words: str, metadata: Any) -> str:
    limits = " and ".join(_limits(metadata))
    return f"{words} {limits}" if limits else words


def _limits(metadata: Any) -> Iterator[str]:
    """Yields the limits of a number: `above 0`; a field's own metadata is nested."""
    for fact in metadata:
        if isinstance(fact, FieldInfo):
            yield from _limits(fact.metadata)
        for name, word in _LIMITS.items():
            limit = getattr(fact, name, None)
            if limit is not None:
                yield f"{word} {'2³¹' if limit == 2**31 else limit}"


def _members(annotation: Any) -> list[Any]:
    """Returns the members of a union, and of unions in it, with the metadata of each."""
    if get_origin(annotation) is Annotated and get_origin(get_args(annotation)[0]) in {Union, types.UnionType}:
        return _members(get_args(annotation)[0])
    if get_origin(annotation) in {Union, types.UnionType}:
        return [member for part in get_args(annotation) for member in _members(part)]
    return [annotation]


def _is_record(member: Any) -> bool:
    return isinstance(member, type) and issubclass(member, BaseModel)
