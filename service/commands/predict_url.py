"""`abstain predict --url`: reads rows from a file, has a server predict them, and writes the predictions to a file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow

from abstain.models.errors import DataError
from abstain.models.files.row_files import TABLES, checked_inputs, read_table
from abstain.models.prediction.preprocessing import category_texts, check_columns, numeric_column
from abstain.service.client.client import Client
from abstain.service.client.results import ModelColumn
from abstain.service.commands.predict_file import check_ending, rows_of_npz, write_predictions

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
    tls_ca: Path | None = None,
    timeout: float | None = None,
) -> dict[str, Any]:
    """Writes the prediction of every row of a file to another, all or none, as `predict_file` does without a server.

    Args:
        tls_ca: a file of certificates by which that of the server is checked; those of certifi if None.
        timeout: seconds for all rows; `TIMEOUT` if None.

    Returns:
        The model, its version, the number of rows, the output, and the limit of the error if the model has one.

    Raises:
        DataError: the ending of a file, a column or a row is invalid; or the predictions cannot be written.
        RequestError: the server does not answer; `InputError`, `UnknownModel` and others as `Client.predict`.
    """
    check_ending(out)
    key = os.environ.get(KEY) or None
    with Client(url, key, timeout=timeout or TIMEOUT, verify=True if tls_ca is None else tls_ca) as client:
        described = client.model(model)
        rows = read_rows(source, described.columns)
        reference = f"{described.name}:{described.version}"
        found = client.predict(rows, model=reference, percentile=percentile, max_error=max_error)
    write_predictions({field: [row[field] for row in found.raw] for field in found.fields}, out)
    result: dict[str, Any] = {"model": found.name, "version": found.version, "rows": len(found), "out": str(out)}
    return (
        result if found.max_error is None else result | {"max_error": found.max_error, "confidence": found.confidence}
    )


def read_rows(source: Path, own: Sequence[ModelColumn]) -> Any:
    """Reads the rows of a file: an array, or for a model with named columns a table of these columns.

    Args:
        own: the model's columns.

    Cells of a .csv file are text; those of columns of numbers are parsed as without a server.

    Raises:
        DataError: names the file, and the invalid array, column or row.
    """
    where = str(source)
    if source.suffix == ".npz":
        return rows_of_npz(source)
    if source.suffix not in TABLES:
        raise DataError("--data", expected="a file ending in .npz, .csv or .parquet", found=where)
    table = read_table(source)
    if not own:
        numbers = [numeric_column(table.column(name), name, where) for name in table.column_names]
        return checked_inputs(np.stack(numbers, axis=1), where)
    check_columns([column.name for column in own], table, where)
    columns = {
        column.name: category_texts(table.column(column.name))
        if column.categories
        else numeric_column(table.column(column.name), column.name, where)
        for column in own
    }
    return pa.table(columns)
