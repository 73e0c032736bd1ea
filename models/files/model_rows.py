"""Rows of a file or a table in the form that a fitted model takes."""

from __future__ import annotations

import numpy as np
from jaxtyping import Num

from abstain.models.errors import DataError
from abstain.models.files.row_files import checked_inputs
from abstain.models.prediction.posterior import Model
from abstain.models.prediction.preprocessing import Preprocessing, first_unknown_code
from abstain.models.tables.columns import describe_codes
from abstain.models.tables.encoding import (
    ArrowTable,
    category_texts,
    check_columns,
    encode_table,
    numeric_column,
)
from abstain.models.tables.unseen import UnseenTexts, rejecting_columns, unseen_cells


def rows_of_table(table: ArrowTable, model: Model, where: str) -> Num[np.ndarray, "rows ..."]:
    """Reads a table's columns by name; for a model fitted on arrays by its feature names, or all in order if it has none.

    Args:
        where: the name of the table in errors.

    Raises:
        DataError: a column is missing or has an invalid value.
    """
    if model.preprocessing.columns:
        return encode_table(model.preprocessing.columns, table, where)
    names: tuple[str, ...] = model.feature_names or tuple(table.column_names)
    check_columns(names, table, where)
    rows = np.stack([numeric_column(table.column(name), name, where) for name in names], axis=1)
    return checked_inputs(rows, where)


def find_unseen_texts(table: ArrowTable, model: Model, rows: Num[np.ndarray, "rows ..."]) -> UnseenTexts:
    """Returns the texts of the unseen categories in a table.

    Args:
        rows: the table's rows, as `rows_of_table` returns them.
    """
    columns = model.preprocessing.columns
    texts: dict[tuple[int, int], str] = {}
    indices = rejecting_columns(columns)
    for index, is_unseen in zip(indices, unseen_cells(columns, rows).T if indices else (), strict=True):
        chosen = np.flatnonzero(is_unseen)
        if chosen.size:
            found = category_texts(table.column(columns[index].name).take(chosen))
            texts |= {(row, index): str(text) for row, text in zip(chosen.tolist(), found, strict=True)}
    return texts


def reshape_rows(rows: Num[np.ndarray, "rows ..."], model: Model, where: str) -> Num[np.ndarray, "rows ..."]:
    """Returns rows of a file or a table in the model's feature shape.

    Raises:
        DataError: there are no rows, or they have another number of columns.
    """
    if not len(rows):
        raise DataError("rows", where=where, expected="at least one", found="none", fix="add rows to the file")
    if rows.shape[1:] not in {model.feature_shape, (model.features,)}:
        raise DataError(
            "rows",
            where=where,
            expected=f"shape {model.feature_shape}",
            found=f"shape {rows.shape[1:]}",
            fix="give the rows the model's features",
        )
    return rows.reshape(len(rows), *model.feature_shape)


def check_codes(rows: Num[np.ndarray, "rows ..."], preprocessing: Preprocessing, where: str) -> None:
    """Refuses a number that is not the code of a category of its column; one-hot encoding would make it all zeros.

    Args:
        rows: rows in the model's feature shape.
        where: the file, and the array if it has several.

    Raises:
        DataError: names the row and the column, and lists the codes.
    """
    unknown = first_unknown_code(preprocessing, rows)
    if unknown is None:
        return
    column = preprocessing.columns[unknown[1]]
    raise DataError(
        f"column {column.name!r}",
        where=f"{where}, row {unknown[0]}",
        expected=describe_codes(column),
        found=rows[unknown],
        fix="send the category's code, or a table with its name",
    )
