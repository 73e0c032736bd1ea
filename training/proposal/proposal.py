"""Proposes a config for a table: every choice, with its reason."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import PurePath
from typing import NamedTuple

from abstain.models.errors import DataError, suggest
from abstain.training.proposal.features import Features, choose_features
from abstain.training.proposal.fitting import Fitting, choose_fitting
from abstain.training.proposal.leaks import count_repeated
from abstain.training.proposal.table_facts import TableFacts
from abstain.training.proposal.task import Parts, Task, can_stratify, choose_parts, choose_task

CONTINUOUS = 20
"""Rows that occur several times are noted if a column has more different values than this, and one for 20 rows: rows of a few
categories repeat anyway."""


class Proposal(NamedTuple):
    """The choices for a config; `rows` and `columns` count those of the file."""

    name: str
    source: str
    out: str
    target: str
    rows: int
    columns: int
    task: Task
    features: Features
    parts: Parts
    stratify: bool
    fitting: Fitting
    gaps: Mapping[str, int]
    notes: tuple[str, ...]


def propose(facts: TableFacts, target: str, source: str, out: str) -> Proposal:
    """Proposes a config for predicting one column from the others.

    Args:
        source: the path of the file, as the config should name it.
        out: the path of the config.

    Raises:
        DataError: there is no such column, or the file cannot give a model; the text says why, with numbers.
    """
    names = [column.name for column in facts.columns]
    if target not in names:
        raise DataError(
            "--target", where=source, expected=f"one of {', '.join(names)}", found=target, fix=suggest(target, names)
        )
    target_facts = facts.column(target)
    task = choose_task(target_facts, facts.values.get(target), source)
    parts = choose_parts(target_facts.filled, source)
    features = choose_features(facts, target, classify=task.classify)
    used = (*features.numbers, *features.dates, *features.categorical)
    if not used:
        reasons = "; ".join(f"{name!r}: {why}" for name, why in features.drop.items()) or "none but the target"
        raise DataError(
            "columns",
            where=source,
            expected="a column to predict from",
            found=f"none that can be used: {reasons}"[:800],
            fix="add a column of numbers, dates or categories",
        )
    return Proposal(
        name=model_name(source),
        source=source,
        out=out,
        target=target,
        rows=facts.rows,
        columns=len(facts.columns),
        task=task,
        features=features,
        parts=parts,
        stratify=task.classify and features.split is None and can_stratify(target_facts, parts),
        fitting=choose_fitting(target_facts.filled, classify=task.classify),
        gaps={column.name: facts.gaps(column) for column in facts.columns if column.filled},
        notes=(*_notes(facts, target, used), *task.notes, *features.notes),
    )


def model_name(source: str) -> str:
    """Returns a name for the model of a file: its name without endings, of the characters that a name may have."""
    stem = PurePath(source).name.lower()
    for ending in (".gz", ".csv", ".tsv", ".txt", ".parquet", ".arrow", ".feather"):
        stem = stem.removesuffix(ending)
    name = re.sub(r"[^a-z0-9._-]+", "-", stem).strip("-._")
    return name[:64] or "model"


def _notes(facts: TableFacts, target: str, used: tuple[str, ...]) -> tuple[str, ...]:
    """Returns what was noticed about the rows."""
    notes = list[str]()
    gaps = facts.gaps(facts.column(target))
    if gaps:
        notes.append(f"rows without {target!r}, which are left out: {gaps:,}")
    values = {name: facts.values[name] for name in (*used, target)}
    is_continuous = max(facts.column(name).distinct for name in used) > max(CONTINUOUS, facts.rows / CONTINUOUS)
    repeated = count_repeated(values) if is_continuous else 0
    if repeated:
        repeats = "1 row repeats" if repeated == 1 else f"{repeated:,} rows repeat"
        notes.append(
            f"{repeats} an earlier row in all columns that are used: if these are copies of one example, remove them, or "
            "copies will be in two parts"
        )
    return tuple(notes)
