"""Refuses keys of `[data]` that contradict each other, or that have no effect on a source."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from abstain.models.errors import ConfigError
from abstain.models.files.row_files import TEXT_TABLES, ending_of, is_table
from abstain.training.config.data import DataConfig

_COLUMN_KEYS = ("categorical", "numeric", "dates", "drop")
_TABLE_KEYS = (*_COLUMN_KEYS, "drop_missing_target", "na_values")


def check_table_keys(config: DataConfig, path: Path) -> None:
    """Checks the keys about columns and about reading, before the source is read.

    Args:
        path: the source, or the name of an embedded set.

    Raises:
        ConfigError: two keys name one column, or a key has no effect on this source; the text names the key.
    """
    named = [name for key in _COLUMN_KEYS for name in getattr(config, key)] + [config.target or ""]
    name, count = Counter(filter(None, named)).most_common(1)[0] if any(named) else ("", 0)
    if count > 1:
        keys = [f"data.{key}" for key in _COLUMN_KEYS if name in getattr(config, key)]
        keys += ["data.target"] if name == config.target else []
        raise ConfigError(
            " and ".join(keys),
            expected="each column once",
            found=f"{name!r} {count} times",
            fix="leave it out of all but one of them",
        )
    if not is_table(path):
        unused = [key for key in (*_TABLE_KEYS, *config.reading.set_keys) if getattr(config, key)]
        # The array of the targets is named y, so this name is no contradiction.
        unused += ["target"] if config.target not in {None, "y"} else []
        kind = "a table; arrays have no named columns"
    elif ending_of(path) not in TEXT_TABLES:
        unused, kind = list(config.reading.set_keys), f"a text table ({', '.join(TEXT_TABLES)})"
    else:
        return
    if unused:
        raise ConfigError(
            ", ".join(f"data.{key}" for key in unused),
            where=str(path),
            expected=kind,
            found=ending_of(path) or "another source",
            fix="leave out what has no effect on this source",
        )
