"""Checks the rows of a request against the model, for all request formats; every error names the row and the column."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
from jaxtyping import Bool, Float

from abstain.models.errors import InputError, clip_repr
from abstain.models.prediction.posterior import Model
from abstain.models.prediction.preprocessing import first_unknown_code
from abstain.models.tables.columns import describe_codes
from abstain.service.json_objects import describe_value

NAMES_LENGTH = 300
"""The most characters of column names that an error shows."""
_FLOAT32_MAX = float(np.finfo(np.float32).max)


def check_rows(inputs: Any, plain: bool, model: Model, max_rows: int) -> Float[np.ndarray, "rows ..."]:
    """Checks the rows of a request and returns them in the model's feature shape; an image row may be nested or flat.

    The result is float32, or float64 for a model that subtracts an offset on the host.

    Args:
        inputs: parsed JSON.
        plain: whether the inputs can hold no string, boolean or null.

    Raises:
        InputError: names the invalid row and column.
    """
    if not isinstance(inputs, list):
        raise InputError(where="inputs", expected="a list of rows", found=describe_value(inputs))
    inputs = cast("list[Any]", inputs)
    if not inputs:
        raise InputError(where="inputs", expected="at least one row", found="none")
    refuse_many_rows(inputs, max_rows)
    dtype = dtype_of(model)
    rows = _plain_rows(inputs, dtype) if plain else None
    rows = None if rows is None else in_feature_shape(rows, model)
    if rows is None:
        for index, row in enumerate(inputs):
            _check_row(row, f"inputs[{index}]", model)
        rows = np.array([np.ravel(row) for row in inputs], dtype=np.float64).astype(dtype)
        rows = rows.reshape(len(inputs), *model.feature_shape)
    refuse_unknown_codes(rows, model)
    return rows


def in_feature_shape(rows: Float[np.ndarray, "rows ..."], model: Model) -> Float[np.ndarray, "rows ..."] | None:
    """Returns rows in the model's feature shape; None if a row may be invalid, which only a check of each cell finds out."""
    if rows.shape[1:] not in {model.feature_shape, (model.features,)}:
        return None
    # Numbers a little beyond float32's largest were rounded to it: only the check of each cell finds them.
    return rows.reshape(len(rows), *model.feature_shape) if np.abs(rows).max() < _FLOAT32_MAX else None


def refuse_many_rows(inputs: Any, max_rows: int, where: str = "inputs") -> None:
    """Refuses a list of more rows than a request may have.

    Args:
        where: the key of the list in the request.

    Raises:
        InputError: gives the limit and the number of rows.
    """
    if isinstance(inputs, list) and len(cast("list[Any]", inputs)) > max_rows:
        raise InputError(
            where=where,
            expected=f"at most {max_rows} rows",
            found=len(cast("list[Any]", inputs)),
            fix="send them in several requests",
        )


def dtype_of(model: Model) -> type[np.floating[Any]]:
    """Returns the dtype of rows before `models.prediction.preprocessing.on_host`."""
    return np.float64 if model.preprocessing.origin else np.float32


def _plain_rows(inputs: list[Any], dtype: type[np.floating[Any]]) -> Float[np.ndarray, "rows ..."] | None:
    """Makes an array of lists of numbers; numbers beyond float32 become infinite. None if they do not form an array."""
    try:
        with np.errstate(over="ignore"):
            return np.array(inputs, dtype=dtype)
    except (ValueError, TypeError, OverflowError):
        return None


def finite_rows(leaves: list[np.ndarray]) -> Bool[np.ndarray, " rows"]:
    """Returns which rows have only finite predictions; the other rows overflow the network."""
    return np.logical_and.reduce([np.isfinite(leaf).reshape(len(leaf), -1).all(axis=1) for leaf in leaves])


def overflow_error(row: int) -> InputError:
    """Makes the error for a row with a prediction that is not finite."""
    return InputError(
        "the prediction overflows float32",
        where=f"inputs[{row}]",
        expected="a row on the scale of the training data",
        found="numbers too large for the network",
    )


def check_finite(leaves: list[np.ndarray]) -> None:
    """Refuses predictions that are not finite.

    Raises:
        InputError: names the row.
    """
    finite = finite_rows(leaves)
    if not finite.all():
        raise overflow_error(int(np.argmin(finite)))


def _check_row(row: Any, where: str, model: Model) -> None:
    first: Any = next(iter(cast("list[Any]", row)), None) if isinstance(row, list) else None
    nested = len(model.feature_shape) > 1 and isinstance(first, list)
    shape = model.feature_shape if nested else (model.features,)
    _check_cells(row, where, shape, model, ())


def _check_cells(cells: Any, where: str, shape: tuple[int, ...], model: Model, indices: tuple[int, ...]) -> None:
    if not shape:
        _check_number(cells, where, model, indices)
        return
    length = shape[0]
    unit = f"{length} {'number' if len(shape) == 1 else 'list'}{'' if length == 1 else 's'}"
    if not isinstance(cells, list):
        raise InputError(where=where, expected=f"a list of {unit}", found=describe_value(cells))
    cells = cast("list[Any]", cells)
    if len(cells) != length:
        raise InputError(where=where, expected=unit, found=len(cells), fix=_describe_row(model))
    for index, cell in enumerate(cells):
        _check_cells(cell, f"{where}[{index}]", shape[1:], model, (*indices, index))


def _describe_row(model: Model) -> str | None:
    """Returns the names of a row's numbers in their order, at most `NAMES_LENGTH` characters; None if they have none."""
    names = ", ".join(model.feature_names)
    if len(names) > NAMES_LENGTH:
        names = f"{names[:NAMES_LENGTH]}…"
    return f"a row holds, in this order: {names}" if names else None


def _check_number(cell: Any, where: str, model: Model, indices: tuple[int, ...]) -> None:
    if len(indices) == 1 and model.feature_names:
        where = f"{where} ({model.feature_names[indices[0]]})"
    if isinstance(cell, bool) or not isinstance(cell, int | float):
        fix = _send_records(cell, model)
        raise InputError(where=where, expected=_expected_number(model, indices), found=describe_value(cell), fix=fix)
    # Compares exact integers, not floats: an integer of 400 digits has no float.
    if not -_FLOAT32_MAX <= cell <= _FLOAT32_MAX:
        found = clip_repr(cell) if isinstance(cell, float) else f"an integer of {len(str(abs(cell)))} digits"
        raise InputError(where=where, expected="a finite number within float32's range", found=found)


def _send_records(cell: Any, model: Model) -> str | None:
    """Returns the advice for text or a missing value in a row of a table's numbers; None for other cells and models."""
    if not model.preprocessing.columns or not (cell is None or isinstance(cell, str)):
        return None
    return "send the rows as records: they hold categories and dates as text, and null for a missing value"


def refuse_unknown_codes(rows: Float[np.ndarray, "rows ..."], model: Model) -> None:
    """Refuses a number that is not the code of a category of its column.

    Raises:
        InputError: names the row and the feature.
    """
    unknown = first_unknown_code(model.preprocessing, rows)
    if unknown:
        row, feature = unknown
        name = model.preprocessing.columns[feature].name
        raise InputError(
            where=f"inputs[{row}][{feature}] ({name})",
            expected=_expected_number(model, (feature,)),
            found=rows[row, feature],
        )


def _expected_number(model: Model, indices: tuple[int, ...]) -> str:
    """Describes, for an error, the numbers that a cell may hold: any, or the codes of a column's categories."""
    columns = model.preprocessing.columns
    if not columns or not columns[indices[0]].categories:
        return "a number"
    return describe_codes(columns[indices[0]])
