"""The allow-list of modules: which user-written networks a bundle may import.

A bundle is data, and everybody who can write to a store could name any module in a bundle. So the name is not enough: the
process that loads the bundle must allow it before anything is imported, by default with the environment variable
`ABSTAIN_MODULES`. A config's author chose to run the module that the config names, so a fit allows only that module.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from abstain.models.errors import AbstainError, ConfigError, clip_repr

MODULES = "ABSTAIN_MODULES"
_IDENTIFIER = "_?[A-Za-z][A-Za-z0-9_]*"
# No name with two leading underscores: Python's own attributes would give access to all other objects.
_FILE_PATTERN = rf"{_IDENTIFIER}(\.{_IDENTIFIER})*"
MODULE_PATTERN = rf"{_FILE_PATTERN}:{_IDENTIFIER}"
"""`package.file:ClassName`, absolute."""


def read_modules(environ: Mapping[str, str]) -> tuple[str, ...]:
    """Reads the entries of `ABSTAIN_MODULES`: `package.file:ClassName`, or `package.file` for every class of a file.

    Raises:
        ConfigError: an entry has neither form.
    """
    entries = tuple(entry.strip() for entry in environ.get(MODULES, "").split(",") if entry.strip())
    for entry in entries:
        if not re.fullmatch(rf"{_FILE_PATTERN}(:{_IDENTIFIER})?", entry):
            raise ConfigError(
                MODULES,
                where="environment",
                expected="package.file:ClassName or package.file, joined by commas",
                found=clip_repr(entry),
            )
    return entries


def check_allowed(name: str, allowed: tuple[str, ...]) -> None:
    """Refuses a module, `package.file:ClassName`, that is not among the allowed entries.

    Args:
        allowed: entries as `read_modules` returns them.

    Raises:
        AbstainError: the module is not allowed; the text explains how to allow it.
    """
    if name in allowed or name.partition(":")[0] in allowed:
        return
    raise AbstainError(
        "the module is not allowed",
        where="network",
        expected=f"one of {', '.join(allowed)}" if allowed else f"{MODULES} to name it",
        found=name,
        fix=f"if you trust its code, set {MODULES}={','.join((*allowed, name))}; it must be importable: installed, "
        "or on PYTHONPATH",
    )
