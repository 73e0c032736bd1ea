"""What `abstain predict` checks before it loads JAX, which takes seconds: names of files and values of options."""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path

from abstain.models.errors import DataError, InputError

ENDINGS = (".csv", ".parquet", ".npz", ".jsonl")
"""Endings of the files that predictions can be written to."""


class RowErrors(StrEnum):
    """What a row with an error does: the file is refused, or its cells stay empty."""

    REFUSE = "refuse"
    NULL = "null"


def check_paths(source: Path, out: Path, errors: RowErrors = RowErrors.REFUSE) -> None:
    """Checks that the input exists, and that both have known endings.

    Raises:
        DataError: they do not; or the output cannot hold empty cells.
    """
    if out.suffix not in ENDINGS:
        raise DataError("--out", expected=f"a file ending in {', '.join(ENDINGS)}", found=str(out))
    if errors is RowErrors.NULL and out.suffix == ".npz":
        raise DataError(
            "--out",
            expected="a .csv, .parquet or .jsonl file with --errors null, because an array has no empty cells",
            found=str(out),
        )
    from abstain.models.files.row_files import TABLES, ending_of  # noqa: PLC0415 - loads pyarrow

    if ending_of(source) not in {".npz", *TABLES}:
        raise DataError("--data", expected=f"a file ending in .npz, {', '.join(TABLES)}", found=str(source))
    if not os.path.lexists(source):
        raise DataError("no such file", where=str(source), fix="check the path after --data")


def split_fields(text: str | None) -> tuple[str, ...] | None:
    """Splits `label,reject` at the commas; None if the option is not given.

    Raises:
        InputError: a name is empty.
    """
    if text is None:
        return None
    fields = tuple(name.strip() for name in text.split(","))
    if not all(fields):
        raise InputError(where="--fields", expected="names joined by commas, such as label,reject", found=repr(text))
    return fields
