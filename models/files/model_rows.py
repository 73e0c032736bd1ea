"""Rows of a file or a table in the form that a fitted model takes."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from jaxtyping import Num

from abstain.models.errors import DataError, collect_errors
from abstain.models.files.row_files import checked_inputs
from abstain.models.prediction.posterior import Model
from abstain.models.prediction.preprocessing import Preprocessing, first_unknown_code
from abstain.models.tables.columns import describe_codes
from abstain.models.tables.encoding import ArrowTable, check_columns, encode_table, numeric_column, with_names


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
    table = with_names(names, table)
    check_columns(names, table, where)
    with collect_errors(where, "columns cannot be read") as attempt:
        columns = [attempt(numeric_column, table.column(name), name, where) for name in names]
    return checked_inputs(np.stack(columns, axis=1), where)


def order_features(
    x: Num[np.ndarray, "rows ..."], arrays: Mapping[str, np.ndarray], model: Model, where: str
) -> Num[np.ndarray, "rows ..."]:
    """Returns rows of an .npz in the order of the model's features, if both have `feature_names`.

    Raises:
        DataError: the names in the file are not the model's; the text lists those that differ.
    """
    names = [
        name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name)
        for name in arrays.get("feature_names", ())
    ]
    if not names or not model.feature_names or names == list(model.feature_names):
        return x
    if x.ndim != 2 or x.shape[1] != len(names) or sorted(names) != sorted(model.feature_names):
        missing = [name for name in model.feature_names if name not in names]
        extra = [name for name in names if name not in model.feature_names]
        differences = [f"{word} {', '.join(found)}" for word, found in (("without", missing), ("with", extra)) if found]
        raise DataError(
            "feature_names",
            where=where,
            expected=f"the model's: {', '.join(model.feature_names)}",
            found=f"{len(names)} names, {' and '.join(differences) or f'for rows of shape {x.shape[1:]}'}",
            fix="give the file the features of the fit, or leave out feature_names if they are in the model's order",
        )
    return x[:, [names.index(name) for name in model.feature_names]]


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
