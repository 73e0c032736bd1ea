"""Categories: those of the training part, and what becomes of a category that only other rows have."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from jaxtyping import Float, Int

from abstain.models.errors import ConfigError, DataError, clip_repr, suggest
from abstain.models.tables.columns import UNSEEN, Column
from abstain.training.config.data import DataConfig
from abstain.training.data.dataset import Dataset
from abstain.training.data.rows import Rows

MOST_NAMES = 5
"""Most unseen categories that a note or an error names for each column."""


def fit_categories(dataset: Dataset, config: DataConfig) -> Dataset:
    """Leaves each column the categories of the training part, and gives the rows of all parts the new codes.

    Another category is `UNSEEN` in calibration and test rows, or NaN, as `data.unseen` says for its column.

    Raises:
        ConfigError: `data.unseen` names a column that has no categories, or the data has none.
        DataError: a category is not in the training part, and the column refuses it.
    """
    columns = dataset.source.columns
    _check_names(config, columns)
    parts = [dataset.train.x, dataset.calibration.x, dataset.test.x]
    notes: list[str] = []
    fitted = list(columns)
    for index, whole in enumerate(columns):
        if not whole.categories:
            continue
        column = whole.model_copy(update={"unseen": config.unseen_rule(whole.name)})
        seen = np.unique(parts[0][:, index])
        seen = seen[~np.isnan(seen)].astype(int)
        # A column with only gaps in the training part is refused with its preprocessing.
        if not 0 < len(seen) < len(column.categories):
            fitted[index] = column
            continue
        notes.append(_unseen_text(column, seen, parts[1][:, index], parts[2][:, index]))
        if column.unseen == "refuse":
            raise _refused(column, notes[-1], dataset.source.where)
        parts = [_with_codes(part, index, column, seen) for part in parts]
        fitted[index] = column.model_copy(update={"categories": tuple(column.categories[code] for code in seen)})
    train, calibration, test = (
        Rows(x, rows.y) for x, rows in zip(parts, (dataset.train, dataset.calibration, dataset.test), strict=True)
    )
    source = dataclasses.replace(dataset.source, columns=tuple(fitted))
    return Dataset(source, train, calibration, test, (*dataset.notes, *notes))


def _check_names(config: DataConfig, columns: tuple[Column, ...]) -> None:
    """Refuses a setting without effect."""
    known = [column.name for column in columns if column.categories]
    if not known and config.unseen != "reject":
        raise ConfigError(
            "data.unseen", expected="no value without a column of categories", found=config.unseen, fix="leave it out"
        )
    for name in config.unseen if isinstance(config.unseen, dict) else ():
        if name not in known:
            raise ConfigError(
                "data.unseen",
                expected=f"columns of categories: {', '.join(known)}",
                found=name,
                fix=suggest(name, known),
            )


def _with_codes(
    x: Float[np.ndarray, "rows columns"], index: int, column: Column, seen: Int[np.ndarray, " seen"]
) -> Float[np.ndarray, "rows columns"]:
    """Replaces the codes of a column by the places of its categories among those seen."""
    codes = np.full(len(column.categories), math.nan if column.unseen == "missing" else UNSEEN)
    codes[seen] = np.arange(len(seen))
    values = x[:, index]
    gaps = np.isnan(values)
    changed = x.copy()
    changed[:, index] = np.where(gaps, values, codes[np.where(gaps, 0, values).astype(int)])
    return changed


def _unseen_text(
    column: Column,
    seen: Int[np.ndarray, " seen"],
    calibration: Float[np.ndarray, " calibration"],
    test: Float[np.ndarray, " test"],
) -> str:
    """Returns a sentence that names the categories outside the training part, with their numbers of rows."""
    counts = [
        np.bincount(part[~np.isnan(part)].astype(int), minlength=len(column.categories)) for part in (calibration, test)
    ]
    unseen = np.setdiff1d(np.arange(len(column.categories)), seen)
    named = [f"{clip_repr(column.categories[code])} ({int(sum(count[code] for count in counts))})" for code in unseen]
    listed = ", ".join(named[:MOST_NAMES]) + (f" and {len(named) - MOST_NAMES} more" if len(named) > MOST_NAMES else "")
    in_calibration, in_test = (int(count[unseen].sum()) for count in counts)
    outcome = {
        "reject": "the model rejects them",
        "missing": "they count as gaps",
        "refuse": "they would be refused",
    }[column.unseen]
    return (
        f"{column.name}: {in_calibration:,} calibration rows and {in_test:,} test rows have categories that the training part "
        f"lacks, {listed}; {outcome}"
    )


def _refused(column: Column, text: str, where: str) -> DataError:
    return DataError(
        f"column {column.name!r}",
        where=where,
        expected='every category in the training part, with data.unseen = "refuse"',
        found=text,
        fix='set data.unseen to "reject" or "missing", or add rows of these categories',
    )
