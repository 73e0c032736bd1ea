"""Chooses what each column is used for: a feature, a group, a time, or nothing, and says why."""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

import numpy as np

from abstain.models.errors import DataError
from abstain.models.tables.columns import Column
from abstain.training.config.data import DataConfig
from abstain.training.data.dataset import fit_preprocessing
from abstain.training.data.rows import Rows
from abstain.training.proposal.leaks import Values, find_copies, leaks, moves_with
from abstain.training.proposal.table_facts import ColumnFacts, TableFacts
from abstain.training.proposal.task import list_counts

INDEX_NAME = re.compile(r"(Unnamed: \d+|__index_level_\d+__|)")
"""Names that pandas gives to an index without a name."""
ID_WORDS = {"id", "uuid", "guid", "key", "index", "rownames", "rowid"}
MOST_CATEGORIES = 200
ROWS_PER_CATEGORY = 5
"""The least average number of rows of a category: with fewer, nothing can be learned about it."""
FEW_CATEGORIES = 10
"""Up to this number of categories, a column is kept if any category repeats."""
LEAST_FILLED = 0.02
"""The share of rows with a value below which a column is left out."""
LEAST_CELLS = 10
"""The number of rows with a value below which a column is left out: the training part might have only gaps."""
LARGEST_SHARE = 0.2
"""The largest share of the rows that one group, or one time, may have: a part takes it whole."""
GROUPS = 10
"""The least number of groups or times that three parts are cut from."""


class Split(NamedTuple):
    """The column that rows are split by: the key of `[data]`, the column, and why."""

    key: Literal["group", "time"]
    column: str
    why: str


class Features(NamedTuple):
    """What the columns are used for; the texts say why, or what a column holds."""

    numbers: tuple[str, ...]
    dates: tuple[str, ...]
    categorical: dict[str, str]
    drop: dict[str, str]
    split: Split | None
    alternatives: tuple[Split, ...]
    """Splits that the data may need instead; the config shows them as comments."""
    notes: tuple[str, ...] = ()


def choose_features(facts: TableFacts, target: str, *, classify: bool) -> Features:
    """Chooses what each column except the target is used for."""
    others = [column for column in facts.columns if column.name != target]
    split, alternatives = _choose_split(facts, others)
    others = [column for column in others if split is None or column.name != split.column]
    drop = {column.name: why for column in others if (why := _useless(column, facts))}
    drop |= _later_ranges(facts, [column.name for column in others if column.name not in drop], split)
    left = [column.name for column in others if column.name not in drop]
    leaking = [name for name in left if leaks(facts.values[name], facts.values[target], classify=classify)]
    notes = ()
    if leaking and len(leaking) == len(left):
        notes = (f"{', '.join(map(repr, leaking))} tells {target!r} almost without error: is it known before?",)
    else:
        why = f"leak? it tells {target!r} almost without error; keep it only if it is known before {target!r} is"
        drop |= dict.fromkeys(leaking, why)
    copies = find_copies({name: facts.values[name] for name in left if name not in drop})
    drop |= {
        name: f"says the same as {other!r}: each value of one goes with one of the other"
        for name, other in copies.items()
    }
    used = [column for column in others if column.name not in drop]
    return Features(
        tuple(column.name for column in used if column.kind == "number"),
        tuple(column.name for column in used if column.kind == "date"),
        {column.name: _categories(column, facts) for column in used if column.kind == "category"},
        {column.name: drop[column.name] for column in others if column.name in drop},
        split,
        alternatives,
        notes,
    )


def _later_ranges(facts: TableFacts, names: list[str], split: Split | None) -> dict[str, str]:
    """Returns why columns that grow with the time of a split are left out, by name."""
    if split is None or split.key != "time":
        return {}
    why = f"it rises or falls with {split.column!r}: in later rows, it is always outside the range of the training part"
    time = facts.values[split.column]
    ordered = [name for name in names if facts.column(name).kind != "category"]
    return {name: why for name in ordered if moves_with(facts.values[name], time)}


def _useless(column: ColumnFacts, facts: TableFacts) -> str:
    """Returns why a column cannot be a feature, whatever the target is; empty if it can."""
    if column.kind == "unreadable":
        return f"it cannot be read: {column.problem}"
    if INDEX_NAME.fullmatch(column.name.strip()):
        return "an index that a program wrote into the file"
    if column.kind == "empty":
        return "it has no value"
    if column.filled < max(LEAST_CELLS, LEAST_FILLED * facts.rows):
        return f"only {column.filled:,} of {facts.rows:,} rows have a value"
    if column.distinct == 1:
        return f"constant: {_quoted(column.counts[0][0])}" + (" or a gap" if facts.gaps(column) else " in all rows")
    if column.consecutive or (column.whole and column.filled >= 20 and _increases(facts.values[column.name])):
        return "an id: it numbers the rows"
    if column.distinct == column.filled and (column.kind == "category" or _has_id_name(column.name)):
        return "an id: every row has another value"
    if column.kind == "number" and (problem := _precision_problem(facts.values[column.name])):
        return problem
    if column.kind == "category" and not _repeats_enough(column):
        return f"text with {column.distinct:,} different values in {column.filled:,} rows: too few rows for each"
    return ""


def _increases(values: Values) -> bool:
    return bool((np.diff(values[~np.isnan(values)]) > 0).all())


def _precision_problem(values: Values) -> str:
    """Returns why float32 cannot represent a column of numbers, as a fit would; empty if it can."""
    rows = Rows(values[:, None], np.zeros(len(values), int))
    try:
        fit_preprocessing(rows, DataConfig(), (Column(name="number"),), classify=True)
    except DataError as error:
        return f"too fine for float32: {error.found}"
    return ""


def _has_id_name(name: str) -> bool:
    words = re.findall("[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)
    return bool(words) and words[-1].lower() in ID_WORDS


def _repeats_enough(column: ColumnFacts) -> bool:
    if column.distinct <= FEW_CATEGORIES:
        return column.distinct < column.filled
    return column.distinct <= MOST_CATEGORIES and column.filled >= ROWS_PER_CATEGORY * column.distinct


def _categories(column: ColumnFacts, facts: TableFacts) -> str:
    shown = list_counts(column.counts[:4])
    more = f", … ({column.distinct} categories)" if column.distinct > 4 else ""
    gaps = facts.gaps(column)
    return f"{shown}{more}" + (f"; {gaps:,} gaps" if gaps else "")


def _quoted(text: str) -> str:
    return f"{text[:40]!r}"


def _choose_split(facts: TableFacts, others: list[ColumnFacts]) -> tuple[Split | None, tuple[Split, ...]]:
    """Returns the split that the data needs, and others that it may need.

    A column is the group of its rows only if its name says so too: rows may be sorted by an ordinary feature. It is the time
    of its rows only if it holds dates: a year may be an ordinary feature.
    """
    sure, possible = list[Split](), list[Split]()
    for column in others:
        if column.role is None or column.filled < facts.rows or not _can_be_cut(column, facts):
            continue
        if column.role == "time":
            is_sure = column.kind == "date"
            why = (
                f"for a model that predicts later rows: the latest rows test it ({column.distinct:,} times in the file)"
            )
            (sure if is_sure else possible).append(Split("time", column.name, why))
        else:
            is_sure = column.role == "group"
            why = (
                f"for a model that predicts new ones: rows of one {column.name!r} stay in one part "
                f"({column.distinct:,} in the file)"
            )
            (sure if is_sure else possible).append(Split("group", column.name, why))
    sure.sort(key=lambda split: split.key != "group")
    return (sure[0] if sure else None), (*sure[1:], *possible)


def _can_be_cut(column: ColumnFacts, facts: TableFacts) -> bool:
    return column.distinct >= GROUPS and column.largest <= LARGEST_SHARE * facts.rows
