"""The steps of `abstain init`: file → facts about its columns → proposal → text of a config → checked → written."""

from __future__ import annotations

import shlex
import tomllib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from abstain.models.errors import ConfigError, DataError, printable
from abstain.models.files.row_files import TABLES, is_table, read_table
from abstain.models.prediction.likelihoods import LIKELIHOODS
from abstain.training.config.config import Config
from abstain.training.config.reading import config_from_dict
from abstain.training.data.dataset import Dataset, fit_preprocessing, split
from abstain.training.data.sources import read_source
from abstain.training.proposal.config_text import write_config
from abstain.training.proposal.proposal import Proposal, model_name, propose
from abstain.training.proposal.table_facts import ColumnFacts, TableFacts, describe_table


class Initialized(NamedTuple):
    """The path of the config that was written, and the proposal that it holds."""

    path: Path
    proposal: Proposal


def initialize(data: Path, target: str | None, out: Path | None = None, *, force: bool = False) -> Initialized:
    """Writes a config for predicting one column of a table; `abstain fit` accepts it as it is.

    Args:
        out: the path of the config; default: the name of the model with the ending `.toml`, in the current folder.
        force: whether an existing file is replaced.

    Raises:
        ConfigError: no target is given, or the config's file exists.
        DataError: the file cannot be read, or cannot give a model.
    """
    facts = describe_table(_read(data))
    if target is None:
        raise ConfigError("--target", where=str(data), expected="the column to predict", found=list_columns(facts))
    out = out or Path(f"{model_name(str(data))}.toml")
    if out.exists() and not force:
        raise ConfigError(
            "the config exists", where=str(out), fix="name another file with --out, or replace this one with --force"
        )
    proposal = propose(facts, target, str(data), str(out))
    text = write_config(proposal)
    _, dataset = check_text(text)
    absent = _absent_notes(dataset, proposal)
    if absent:
        proposal = proposal._replace(notes=(*proposal.notes, *absent))
        text = write_config(proposal)
    out.write_text(text, "utf-8")
    return Initialized(out, proposal)


def _read(data: Path) -> object:
    if not is_table(data):
        raise DataError(
            "no table",
            where=str(data),
            expected=f"a file that ends in {', '.join(TABLES)}",
            found="another file",
            fix="for arrays and images, begin with one of the configs in training/configs",
        )
    return read_table(data)


def check_text(text: str) -> tuple[Config, Dataset]:
    """Reads a config as `abstain fit` does, up to the data that the network gets.

    Raises:
        ConfigError, DataError: `abstain fit` would refuse it.
    """
    config = config_from_dict(tomllib.loads(text))
    classify = LIKELIHOODS[config.likelihood].task == "classification"
    source = read_source(str(config.data.source), config.data, classify=classify)
    dataset = split(source, config.data, config.seed)
    fit_preprocessing(dataset.train, config.data, source.columns, source.feature_names, classify=classify)
    return config, dataset


def _absent_notes(dataset: Dataset, proposal: Proposal) -> tuple[str, ...]:
    """Returns a note if the training part lacks a class: the parts are those of the fit, because its seed cuts them."""
    names = dataset.source.class_names
    counts = np.bincount(dataset.train.y.astype(int), minlength=len(names)) if names else np.ones(0, int)
    absent = [name for name, count in zip(names, counts, strict=True) if not count]
    if not absent:
        return ()
    split = proposal.features.split
    fix = f"without {split.key} = {split.column!r}, rows are split at random" if split else "add rows of them"
    if len(absent) == len(names) - 1:
        (only,) = {*names} - {*absent}
        return (f"the training part has one class only, {only!r}: nothing can be learned; {fix}",)
    shown = ", ".join(map(repr, absent[:10])) + (", …" if len(absent) > 10 else "")
    return (f"the training part has no row of {shown}, which cannot be learned; {fix}",)


def summary_lines(written: Initialized) -> list[str]:
    """Returns what a person should read after `abstain init`: the main choices, what was noticed, and the next command."""
    proposal = written.proposal
    features = proposal.features
    used = len(features.numbers) + len(features.dates) + len(features.categorical)
    lines = [
        f"{proposal.source}: {proposal.rows:,} rows; {proposal.target!r} is {proposal.task.why}; {used} of "
        f"{proposal.columns - 1} other columns are used",
        *(f"left out {name!r}: {why}" for name, why in features.drop.items()),
        *(f"note: {note}" for note in proposal.notes),
        f"fit it, about {proposal.fitting.duration} on 2 cores: abstain fit {shlex.quote(str(written.path))}",
    ]
    return [printable(line) for line in lines]


def list_columns(facts: TableFacts) -> str:
    """Returns the columns with what they hold, for the choice of a target."""
    return "none; the columns are " + ", ".join(map(_describe, facts.columns))


def _describe(column: ColumnFacts) -> str:
    if column.kind in {"empty", "unreadable"}:
        return f"{column.name!r} ({column.kind})"
    if column.kind == "category":
        return f"{column.name!r} (text, {column.distinct:,} different values)"
    if column.kind == "date":
        return f"{column.name!r} (dates)"
    return f"{column.name!r} (numbers from {column.low:g} to {column.high:g})"
