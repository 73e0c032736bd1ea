"""Tables as sources: the config names the target and the categorical columns; all other columns are numbers."""

from __future__ import annotations

import numpy as np
from jaxtyping import Num

from abstain.models.errors import DataError, suggest
from abstain.models.prediction.posterior import Model
from abstain.models.tables.columns import Column
from abstain.models.tables.encoding import (
    ArrowColumn,
    ArrowTable,
    category_texts,
    check_column_names,
    encode_table,
    numeric_column,
)
from abstain.training.config.data import DataConfig
from abstain.training.data.group_columns import column_key
from abstain.training.data.hints import class_hints, split_hints
from abstain.training.data.rows import Rows, Source, natural_order, numbers, text_codes

_DROP = "list it under data.drop"
MOST_CLASSES = 20
"""Up to this number, distinct targets are always classes; more must be at most half the number of rows."""


def read_table_source(
    table: ArrowTable, where: str, config: DataConfig, fitted: Model | None, *, classify: bool
) -> Source:
    """Reads the rows of a table, with categories as codes and gaps as NaN.

    Raises:
        DataError: a column is missing, or a value is wrong; the text names the column and the row.
    """
    check_column_names(table.schema, where)
    target = _target(table, where, config, fitted)
    if fitted:
        columns = fitted.preprocessing.columns
    else:
        not_features = {target, config.split_by, *config.drop}
        features = [name for name in table.column_names if name not in not_features]
        if not features:
            raise DataError(
                "columns",
                where=where,
                expected="at least one feature in addition to the target",
                found="none",
                fix="remove columns from data.drop, or add a feature to the table",
            )
        columns = tuple(_column(name, table.column(name), name in config.categorical, where) for name in features)
    known = fitted.class_names if fitted else ()
    y, names = _targets(table.column(target), target, where, known, classify=classify)
    rows = Rows(encode_table(columns, table, where), y)
    key = None
    if config.split_by in table.column_names:
        key = column_key(table.column(config.split_by), config, where)
    features = tuple(column.name for column in columns)
    hints = () if fitted else _hints(table, config)
    if classify and not fitted:
        hints += class_hints(target, names, len(rows))
    return Source(where, rows, None, None, names, features, columns, key, hints)


def _target(table: ArrowTable, where: str, config: DataConfig, fitted: Model | None) -> str:
    present = ", ".join(table.column_names)
    if config.target is None:
        expected = "the name of the column to predict"
        raise DataError(
            "data.target",
            where=where,
            expected=expected,
            found="nothing",
            fix=f"set it in the config to one of {present}",
        )
    # A fitted model has the names of its columns; other columns do not matter.
    others: dict[str, tuple[str | None, ...]] = {"categorical": config.categorical, "drop": config.drop}
    others = {} if fitted else others | {config.split_kind: (config.split_by,)}
    for key, names in {"target": (config.target,), **others}.items():
        for name in names:
            if name is not None and name not in table.column_names:
                fix = suggest(name, table.column_names)
                raise DataError(f"data.{key}", where=where, expected=f"one of {present}", found=name, fix=fix)
    return config.target


def _column(name: str, values: ArrowColumn, categorical: bool, where: str) -> Column:
    """Returns a column with its categories, if it has any; its filling value is fitted later, to the training part."""
    from sklearn.preprocessing import OrdinalEncoder  # noqa: PLC0415 - half a second, and only fit needs it

    if not categorical:
        if np.isnan(numeric_column(values, name, where)).all():
            raise DataError(
                f"column {name!r} is empty", where=where, expected="at least one number", found="only gaps", fix=_DROP
            )
        return Column(name=name)
    texts = [text for text in category_texts(values) if text is not None]
    if not texts:
        raise DataError(
            f"column {name!r} is empty", where=where, expected="at least one category", found="only gaps", fix=_DROP
        )
    encoder = OrdinalEncoder().fit(np.array(texts, dtype=object)[:, None])
    return Column(name=name, categories=tuple(encoder.categories_[0]))


def _targets(
    values: ArrowColumn, target: str, where: str, known: tuple[str, ...], *, classify: bool
) -> tuple[Num[np.ndarray, " rows"], tuple[str, ...]]:
    texts = category_texts(values)
    if None in texts:
        raise DataError(
            f"target column {target!r}",
            where=f"{where}, row {texts.index(None)}",
            expected="a value",
            found="an empty cell",
            fix="fill it in, or remove the row",
        )
    if not classify:
        fix = 'if it names classes, set likelihood = "categorical"'
        return numbers(numeric_column(values, target, where, fix), f"{where}, column {target!r}"), ()
    labels = [str(text) for text in texts]
    names = known or natural_order(set(labels))
    if not known and len(names) > max(MOST_CLASSES, len(labels) / 2):
        raise DataError(
            f"target column {target!r}",
            where=where,
            expected="classes of several rows each",
            found=f"{len(names)} different values in {len(labels)} rows",
            fix='if it is a number to predict, set likelihood = "normal"',
        )
    codes = {name: code for code, name in enumerate(names)}
    return text_codes(labels, codes, f"{where}, column {target!r}"), names


def _hints(table: ArrowTable, config: DataConfig) -> tuple[str, ...]:
    """Returns notes on columns that look like groups or times, including dropped columns, which still group the rows."""
    if config.split_by is not None:
        return ()
    return split_hints({name: table.column(name) for name in table.column_names if name != config.target})
