"""`abstain predict --url`: reads rows from a file, has a server predict them, and writes the predictions to a file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
from pydantic import ValidationError

from abstain.models.errors import DataError, clip_repr, collect_errors
from abstain.models.files.reading import PLAIN, READING_KEYS, Reading
from abstain.models.files.row_files import TABLES, checked_inputs, ending_of, is_table, read_npz
from abstain.models.tables.encoding import ArrowColumn, category_texts, check_columns, numeric_column, with_names
from abstain.models.tables.unseen import NO_TEXTS
from abstain.models.tables.values import date_column
from abstain.service.client.client import Client
from abstain.service.client.errors import RequestError
from abstain.service.client.facts import ModelColumn, ServedModel
from abstain.service.commands.kept_columns import keep_from_arrays, keep_from_table
from abstain.service.commands.predict_file import write_predictions
from abstain.service.commands.predict_rows import InputRows, key_of_rows, read_as_fit
from abstain.service.commands.rejected_rows import FIELDS, RejectedRows, count_rejected

# pyarrow ships no types.
pa: Any = pyarrow
KEY = "ABSTAIN_API_KEY"
"""The variable of the environment that holds the key; an option would show it to all users of the machine."""
TIMEOUT = 600.0


def predict_by_server(
    url: str,
    model: str,
    source: Path,
    out: Path,
    *,
    percentile: float | None = None,
    max_error: float | None = None,
    keep: Sequence[str] = (),
    fields: tuple[str, ...] | None = None,
    tls_ca: Path | None = None,
    timeout: float | None = None,
) -> tuple[dict[str, Any], RejectedRows]:
    """Writes the prediction of every row of a file to another, all or none, as `predict_file` does without a server.

    Args:
        keep: columns of the file to copy.
        fields: the fields to write; all if None.
        tls_ca: a file of certificates by which that of the server is checked; those of certifi if None.
        timeout: seconds for all rows; `TIMEOUT` if None.

    Returns:
        The model, its version, the number of rows, the output, and the limit of the error if the model has one; and how
        many rows are rejected.

    Raises:
        DataError: the ending of a file, a column or a row is invalid; or the predictions cannot be written.
        RequestError: the server does not answer; `InputError`, `UnknownModel` and others as `Client.predict`.
    """
    key = os.environ.get(KEY) or None
    with Client(url, key, timeout=timeout or TIMEOUT, verify=True if tls_ca is None else tls_ca) as client:
        described = client.model(model)
        rows, kept = read_rows(source, described.columns, keep, reading_of_server(described))
        reference = f"{described.name}:{described.version}"
        counted = [field for field in FIELDS if field in described.fields]
        # What is counted is asked for, too; a field that is given twice stays so, and is refused.
        asked = fields and (*fields, *(field for field in counted if field not in fields))
        found = client.predict(rows, model=reference, percentile=percentile, max_error=max_error, fields=asked)
    given = InputRows(np.empty((len(found), 0)), NO_TEXTS, None, kept, len(found))
    columns = {field: [row[field] for row in found.raw] for field in found.fields}
    rejected = count_rejected({field: columns[field] for field in counted})
    write_predictions({field: columns[field] for field in fields or found.fields}, given, described.class_names, out)
    result: dict[str, Any] = {"model": found.name, "version": found.version, "rows": len(found), "out": str(out)}
    if found.max_error is not None:
        result |= {"max_error": found.max_error, "confidence": found.confidence}
    return result, rejected


def reading_of_server(model: ServedModel) -> Reading:
    """Returns how tables are read for a served model; keys that this version does not know are left out.

    Raises:
        RequestError: the server states a key with another value than this version knows.
    """
    kinds = {column.name: column.kind for column in model.columns}
    stated = {key: value for key, value in model.reading.items() if key in {*READING_KEYS, "dialect"}}
    try:
        return Reading.model_validate({**stated, "kinds": kinds})
    except ValidationError as error:
        found = clip_repr(model.reading)
        fix = "predict with the version of abstain that the server has"
        raise RequestError(
            "how tables are read", where="server", expected="keys of this version", found=found, fix=fix
        ) from error


def read_rows(
    source: Path, own: Sequence[ModelColumn], keep: Sequence[str] = (), reading: Reading = PLAIN
) -> tuple[Any, dict[str, Any]]:
    """Reads the rows of a file: an array, or for a model with named columns a table of these columns.

    Categories and dates stay text; numbers are parsed as without a server.

    Args:
        own: the model's columns.
        keep: columns of the table, or arrays of the .npz, to copy.
        reading: how a table is read.

    Returns:
        The rows, and the columns to copy.

    Raises:
        DataError: names the file, and the invalid array, column or row.
    """
    where = str(source)
    if ending_of(source) == ".npz":
        arrays = read_npz(source)
        key = key_of_rows(arrays, source)
        rows = checked_inputs(arrays[key], f"{source}, {key}")
        return rows, keep_from_arrays(keep, arrays, len(rows), source)
    if not is_table(source):
        raise DataError("--data", expected=f"a file ending in .npz, {', '.join(TABLES)}", found=where)
    table = read_as_fit(source, reading)
    kept = keep_from_table(keep, table, source, [column.name for column in own if column.kind == "number"])
    if not own:
        names = [name for name in table.column_names if name not in kept]
        numbers = [numeric_column(table.column(name), name, where) for name in names]
        return checked_inputs(np.stack(numbers, axis=1), where), kept
    table = with_names([column.name for column in own], table)
    check_columns([column.name for column in own], table, where)
    with collect_errors(where, "columns cannot be read") as attempt:
        columns = {column.name: attempt(_cells, table.column(column.name), column, where) for column in own}
    return pa.table(columns), kept


def _cells(values: ArrowColumn, column: ModelColumn, where: str) -> Any:
    """Returns numbers, or the texts of categories and dates; checks a column as without a server."""
    if column.kind == "number":
        return numeric_column(values, column.name, where)
    if column.kind == "date":
        # The server sees single values, and not a column that mixes times with and without an offset.
        _ = date_column(values, column.name, where)
    return category_texts(values, column.name, where)
