"""Tables as sources: the config names the target; the kinds of the other columns are named or detected."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import numpy as np
import pyarrow
from jaxtyping import Bool, Num

from abstain.models.errors import DataError, clip_repr, collect_errors, suggest
from abstain.models.prediction.posterior import Model
from abstain.models.tables.arrow_types import is_moment
from abstain.models.tables.columns import UNSEEN, Column
from abstain.models.tables.encoding import (
    ArrowColumn,
    ArrowTable,
    category_texts,
    check_column_names,
    check_columns,
    encode_column,
    numeric_column,
)
from abstain.training.config.data import DataConfig
from abstain.training.data.column_kinds import choose_features, kind_notes, make_column
from abstain.training.data.group_columns import column_key
from abstain.training.data.hints import class_hints, split_hints
from abstain.training.data.rows import MOST_CLASSES, Rows, Source, natural_order, numbers

pa: Any = pyarrow


def read_table_source(
    table: ArrowTable,
    where: str,
    config: DataConfig,
    fitted: Model | None,
    *,
    classify: bool,
    notes: tuple[str, ...] = (),
) -> Source:
    """Reads the rows of a table, with categories as codes, dates as seconds and gaps as NaN.

    Args:
        notes: what the reader of the file detected.

    Raises:
        DataError: columns are missing, or values are wrong; the text names every wrong column and its first wrong row.
    """
    check_column_names(table.schema, where)
    target = _target(table, where, config, fitted)
    known = fitted.class_names if fitted else ()
    left_out: tuple[str, ...] = ()
    with collect_errors(where, "columns cannot be read") as attempt:
        if fitted:
            columns = fitted.preprocessing.columns
            check_columns([column.name for column in columns], table, where)
        else:
            features, left_out = choose_features(table, target, config, where)
            columns = tuple(attempt(make_column, name, table.column(name), config, where) for name in features)
        columns = tuple(column for column in columns if column)
        x = [attempt(encode_column, column, table.column(column.name), where) for column in columns]
        targets = attempt(_targets, table.column(target), target, where, known, config, classify=classify)
    rows, keep = Rows(np.stack(x, axis=1) if x else np.empty((table.num_rows, 0)), targets.y), targets.present
    key = None
    if config.split_by in table.column_names:
        column = table.column(config.split_by)
        key = column_key(column if keep.all() else column.filter(pa.array(keep)), config, where)
    if not keep.all():
        rows = rows.take(np.flatnonzero(keep))
        left_out += (f"{np.sum(~keep):,} of {len(keep):,} rows are left out: their target is missing",)
    hints = () if fitted else (*notes, *left_out, *kind_notes(columns, config, table), *_hints(table, config))
    if classify and not fitted:
        hints += class_hints(target, targets.names, len(rows))
    names = tuple(column.name for column in columns)
    return Source(where, rows, None, None, targets.names, names, columns, key, hints)


def _target(table: ArrowTable, where: str, config: DataConfig, fitted: Model | None) -> str:
    present = ", ".join(table.column_names)
    if config.target is None:
        expected = "the name of the column to predict"
        raise DataError(
            "data.target",
            where=where,
            expected=expected,
            found="nothing",
            fix=f"set it in the config to one of {present}{_header_hint(table)}",
        )
    # A fitted model has the names of its columns; other columns do not matter.
    others: dict[str, tuple[str | None, ...]] = {
        key: getattr(config, key) for key in ("categorical", "numeric", "dates", "drop")
    }
    others = {} if fitted else others | {config.split_kind: (config.split_by,)}
    for key, names in {"target": (config.target,), **others}.items():
        for name in names:
            if name is not None and name not in table.column_names:
                fix = (suggest(name, table.column_names) or "") + _header_hint(table)
                raise DataError(f"data.{key}", where=where, expected=f"one of {present}", found=name, fix=fix or None)
    return config.target


def _header_hint(table: ArrowTable) -> str:
    """Returns advice if the first line of a file looks like values, not like names."""
    looks_like_values = any(re.fullmatch(r"-?[0-9]+\.[0-9]+|-[0-9]+|", name) for name in table.column_names[1:])
    return "; if the file has no header, name its columns in data.column_names" if looks_like_values else ""


class _Targets(NamedTuple):
    """The targets of all rows, which rows have one, and the names of the classes."""

    y: Num[np.ndarray, " rows"]
    present: Bool[np.ndarray, " rows"]
    names: tuple[str, ...] = ()


def _targets(
    values: ArrowColumn, target: str, where: str, known: tuple[str, ...], config: DataConfig, *, classify: bool
) -> _Targets:
    """Reads the target; a row without one has the target 0, and is left out if the config says so.

    Args:
        known: the classes of a fitted model.
    """
    place = f"{where}, column {target!r}"
    if not classify:
        fix = f'if it names classes, set likelihood = "categorical"; {_fix_of_number(values)}'
        exact = numeric_column(values, target, where, fix)
        present = _present(~np.isnan(exact), target, where, config)
        return _Targets(numbers(np.where(present, exact, 0.0), place), present)
    texts = category_texts(values, target, where)
    present = _present(np.array([text is not None for text in texts], dtype=bool), target, where, config)
    labels = [text for text in texts if text is not None]
    if known:
        codes = encode_column(Column(name=target, kind="category", categories=known, unseen="reject"), values, where)
        unknown = np.flatnonzero(codes == UNSEEN)
        if unknown.size:
            row = int(unknown[0])
            raise DataError(
                f"row {row}",
                where=place,
                expected=f"one of {', '.join(known)}",
                found=clip_repr(texts[row]),
                fix=suggest(str(texts[row]), known),
            )
        return _Targets(np.where(present, codes, 0).astype(np.int32), present, known)
    names = natural_order(set(labels))
    if len(names) > max(MOST_CLASSES, len(labels) / 2):
        raise DataError(
            f"target column {target!r}",
            where=where,
            expected="classes of several rows each",
            found=f"{len(names)} different values in {len(labels)} rows",
            fix='if it is a number to predict, set likelihood = "normal"',
        )
    codes = {name: code for code, name in enumerate(names)}
    return _Targets(np.array([0 if text is None else codes[text] for text in texts], np.int32), present, names)


def _fix_of_number(values: ArrowColumn) -> str:
    if is_moment(values.type):
        return "or write the dates as numbers, such as days"
    return "else correct the cell, or list the marks of missing values in data.na_values"


def _present(
    present: Bool[np.ndarray, " rows"], target: str, where: str, config: DataConfig
) -> Bool[np.ndarray, " rows"]:
    """Refuses rows without a target, unless the config says that they are left out."""
    missing = np.flatnonzero(~present)
    if missing.size and (not config.drop_missing_target or missing.size == len(present)):
        raise DataError(
            f"target column {target!r}",
            where=f"{where}, row {missing[0]}",
            expected="a value",
            found="an empty cell" if missing.size == 1 else f"an empty cell, as in {missing.size - 1} other rows",
            fix="fill it in, remove the row, or set data.drop_missing_target = true",
        )
    return present


def _hints(table: ArrowTable, config: DataConfig) -> tuple[str, ...]:
    """Returns notes on columns that look like groups or times, including dropped columns, which still group the rows."""
    if config.split_by is not None:
        return ()
    return split_hints({name: table.column(name) for name in table.column_names if name != config.target})
