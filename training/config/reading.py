"""Reads a config: the TOML file, `--set KEY=VALUE` overrides, and errors."""

from __future__ import annotations

import copy
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from abstain.models.errors import ConfigError, clip_repr, suggest
from abstain.models.files.regular import not_a_file
from abstain.models.validation import refuse
from abstain.training.config.config import Config
from abstain.training.config.section import Section

CONFIG_BYTES = 512 * 1024
EXAMPLES = Path(__file__).parent.parent / "configs"
DEPTH = 32
"""The largest nesting of tables and lists in a config."""
LARGEST = 2**63
"""The limit of whole numbers in a config: neither random keys nor readers of JSON support larger ones."""
_PART = r"""(?:(?<![\w-])[\w-]++|"[^"\n]*+"|'[^'\n]*+')"""
_Content = TypeVar("_Content", bound=Section)
_DEEP_KEY = re.compile(rf"(?:{_PART}\s*+\.\s*+){{{DEPTH}}}")


def read_config(path: Path, overrides: tuple[str, ...] = ()) -> Config:
    """Reads the config in a TOML file, with `KEY=VALUE` overrides applied.

    A key is dotted (`method.steps`), or bare (`steps`) if only one table has it. A value is read as TOML, and as text if
    it is not TOML.

    Args:
        path: a file; or the name of an example, such as `digits-vi`, if there is no such file.

    Raises:
        ConfigError: the file cannot be read, or a key is wrong; the text names the file and the key.
    """
    path = examples().get(str(path), path) if not path.exists() else path
    return read_section(path, overrides, Config)


def read_section(path: Path, overrides: tuple[str, ...], kind: type[_Content]) -> _Content:
    """Reads another kind of config in the same way."""
    return _apply_overrides(_parse_toml(_read_text(path), str(path)), overrides, str(path), kind)


def examples() -> dict[str, Path]:
    """Returns the example configs of the package, by name: `digits-vi` is the file `digits-vi.toml`."""
    return {path.stem: path for path in sorted(EXAMPLES.glob("*.toml"))}


def config_from_dict(content: Mapping[str, Any], overrides: tuple[str, ...] = ()) -> Config:
    """Reads the config in a dict with the tables of a TOML file, with `KEY=VALUE` overrides applied.

    Raises:
        ConfigError: as `read_config`.
    """
    return section_from_dict(content, overrides, Config)


def section_from_dict(content: Mapping[str, Any], overrides: tuple[str, ...], kind: type[_Content]) -> _Content:
    """Reads another kind of config in the same way."""
    _check_values(dict(content), "config")
    return _apply_overrides(copy.deepcopy(dict(content)), overrides, "config", kind)


def _apply_overrides(
    content: dict[str, Any], overrides: tuple[str, ...], source: str, kind: type[_Content]
) -> _Content:
    """Applies the overrides to a file's tables and validates the config.

    Args:
        source: the file, for errors.
    """
    before = _validate(content, source, kind)
    for override in overrides:
        apply_override(override, content, before)
    where = f"{source} with {clip_repr(' '.join(overrides), 200)}" if overrides else source
    _check_values(content, where)
    return _validate(content, where, kind)


def _read_text(path: Path) -> str:
    found = not_a_file(path)
    if found:
        raise ConfigError("cannot be read", where=str(path), expected="a file", found=found)
    try:
        with path.open("rb") as file:
            content = file.read(CONFIG_BYTES + 1)
        if len(content) > CONFIG_BYTES:
            raise ConfigError("is too long", where=str(path), expected=f"at most {CONFIG_BYTES:,} bytes", found="more")
        return content.decode("utf-8")
    except OSError as error:
        fix = (
            "name an existing config, or an example; abstain configs lists them"
            if isinstance(error, FileNotFoundError)
            else None
        )
        raise ConfigError("cannot be read", where=str(path), found=error.strerror, fix=fix) from error
    except ValueError as error:  # not UTF-8, or a path with a NUL byte
        raise ConfigError("is not TOML", where=str(path), found=str(error)) from error


def _parse_toml(text: str, where: str) -> dict[str, Any]:
    """Parses a TOML text; returns its tables.

    Raises:
        ConfigError: the text is not TOML, is nested too deeply, or has a number that is too large.
    """
    try:
        # The parser's time grows with the square of the number of parts of a key.
        content = None if _DEEP_KEY.search(text) else tomllib.loads(text.replace("\r\n", "\n"))
    except RecursionError:
        content = None
    except ValueError as error:  # TOMLDecodeError, or a number of thousands of digits
        raise ConfigError("is not TOML", where=where, found=str(error)) from error
    if content is None:
        raise _too_deep(where)
    _check_values(content, where)
    return content


def _check_values(content: dict[str, Any], where: str) -> None:
    """Refuses values that no key of the config can have, before they are used.

    Raises:
        ConfigError: tables or lists are nested too deeply, or a whole number does not fit into 64 bits.
    """
    left: list[tuple[str, int, Any]] = [("", 0, content)]
    while left:
        key, depth, value = left.pop()
        if depth > DEPTH:
            raise _too_deep(where)
        if isinstance(value, dict):
            left += [(f"{key}.{name}" if key else name, depth + 1, item) for name, item in value.items()]
        elif isinstance(value, list):
            left += [(key, depth + 1, item) for item in value]
        elif isinstance(value, int) and abs(value) >= LARGEST:
            raise ConfigError(
                clip_repr(key) if len(key) > 60 else key,
                where=where,
                expected=f"a whole number below {LARGEST:,}",
                found=clip_repr(value),
            )


def _too_deep(where: str) -> ConfigError:
    return ConfigError(
        "is nested too deeply", where=where, expected=f"at most {DEPTH} nested tables or lists", found="more"
    )


def _validate(content: dict[str, Any], where: str, kind: type[_Content]) -> _Content:
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        raise refuse(error, ConfigError, kind, where=where, whole="config") from error


def apply_override(override: str, content: dict[str, Any], config: Section) -> None:
    """Writes one `KEY=VALUE` into the content of a file or of one of its tables, with the defaults in `config`.

    Raises:
        ConfigError: there is no such key.
    """
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError("--set", expected="KEY=VALUE", found=clip_repr(override))
    tree = config.model_dump()
    *tables, leaf = _full_key(key, tree)
    for table in tables:
        # A table that is not in the file gets the default's kind, if there is one; other keys keep their defaults.
        defaults = tree.get(table)
        kind = {"kind": defaults["kind"]} if isinstance(defaults, dict) and "kind" in defaults else {}
        content = content.setdefault(table, kind)
        tree = defaults if isinstance(defaults, dict) else {}
        if not isinstance(content, dict):
            raise ConfigError(f"--set {key}", expected=f"{table} to be a table", found=clip_repr(content))
    content[leaf] = _value(text)


def refuse_key_of_a_fit(override: str, own: str) -> None:
    """Refuses a `KEY=VALUE` for another table than `own` where no fit follows: it would have no effect.

    Raises:
        ConfigError: the text names the key's table, and the command that reads it.
    """
    key = override.partition("=")[0].strip().removeprefix(f"{own}.")
    first = key.partition(".")[0]
    tree = Config(name="model").model_dump()
    if first in tree[own]:
        return
    home = next((table for table, keys in tree.items() if isinstance(keys, dict) and first in keys), None)
    if first in tree:
        home, full = (first if isinstance(tree[first], dict) else ""), key
    else:
        full = f"{home}.{key}"
    if home is None:
        return
    raise ConfigError(
        f"--set {key}",
        expected=f"a key of [{own}]",
        found=f"a key of [{home}], which only a fit reads" if home else "a key that only a fit reads",
        fix=f"fit again with it: abstain fit CONFIG.toml --set {full}=…",
    )


def _full_key(key: str, tree: dict[str, Any]) -> list[str]:
    if _DEEP_KEY.search(f"{key}."):
        raise _too_deep("--set")
    parts = [quoted or bare for quoted, bare in re.findall(r'"([^"]*)"|([^."]+)', key)]
    if len(parts) > 1 or key in tree:
        return parts
    homes = [table for table, keys in tree.items() if isinstance(keys, dict) and key in keys]
    if len(homes) != 1:
        found = f"in {' and '.join(homes)}" if homes else "in none of its tables"
        known = [*tree, *(name for keys in tree.values() if isinstance(keys, dict) for name in keys)]
        fix = None if homes else suggest(key, known)
        raise ConfigError(f"--set {key}", expected="a key of the config, or TABLE.KEY", found=found, fix=fix)
    return [homes[0], key]


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
    except RecursionError as error:
        raise _too_deep("--set") from error
    except ValueError as error:  # a number of thousands of digits
        raise ConfigError("is not TOML", where="--set", found=str(error)) from error
