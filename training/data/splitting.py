"""Chooses the rows of a part: at random, with each class's share, by whole groups, or the latest.

    split_rule  config, key of the rows, seed → Rule
    cut         Rule, rows, count             → the rows that remain, and the part

Groups and times are cut in the same way. A group has a random rank, a time is its own rank, and a part takes the rows of
the highest ranks until it has the requested number; rows of equal rank stay together.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Int, Shaped

from abstain.models.errors import ConfigError, DataError
from abstain.training.config.data import DataConfig
from abstain.training.data.rows import Source
from abstain.training.notes import write_note

Indices = Int[np.ndarray, " _"]
"""The beginning of the notes on a split."""


class Rule(NamedTuple):
    """How parts are cut: at random, by class, or by rank; `values` [all rows] holds class indices or ranks."""

    kind: Literal["random", "class", "rank"]
    values: Shaped[np.ndarray, " all"]
    noun: str = "rows"
    """The word for the values in errors: groups, or times."""
    names: tuple[str, ...] = ()
    """The classes' names."""


def check_split_settings(config: DataConfig, *, classify: bool) -> None:
    """Refuses `[data] group`, `time` and `stratify` if they contradict each other or another key.

    Raises:
        ConfigError: two keys contradict each other; the text names them, and which of them to leave out.
    """
    if config.group is not None and config.time is not None:
        raise ConfigError(
            "data.group and data.time",
            expected="one of them",
            found="both",
            fix="keep group if the model will predict new groups, time if it will predict later rows of the same groups",
        )
    if config.stratify and config.split_by is not None:
        raise ConfigError(
            f"data.stratify and data.{config.split_kind}",
            expected="one of them",
            found="both",
            fix=f"leave out stratify: whole {config.split_kind}s cannot also have every class's share",
        )
    if config.stratify and not classify:
        raise ConfigError(
            "data.stratify", expected="a likelihood of classes", found="a regression", fix="leave out stratify"
        )
    columns = {key: getattr(config, key) for key in ("categorical", "numeric", "dates", "drop")}
    for key, names in {"target": (config.target,), **columns}.items():
        if config.split_by is not None and config.split_by in names:
            raise ConfigError(
                f"data.{config.split_kind}",
                expected=f"a column that data.{key} does not name",
                found=config.split_by,
                fix="leave it out of one of them; the column is no feature in any case",
            )


def split_rule(source: Source, config: DataConfig, seed: int) -> Rule:
    """Chooses the rule that cuts the source's training rows.

    Raises:
        ConfigError: the source has all parts, so there is nothing to cut.
        DataError: the source lacks the group or time of its rows.
    """
    if config.split_by is None and not config.stratify:
        return Rule("random", np.empty(0))
    key = f"data.{config.split_kind}" if config.split_by is not None else "data.stratify"
    if source.test is not None and source.calibration is not None:
        raise ConfigError(
            key,
            where=source.where,
            expected="a test or a calibration part to cut",
            found="both in the source",
            fix=f"leave out {key}",
        )
    if config.stratify:
        labels = np.empty(0, int) if source.train is None else source.train.y.astype(int)
        return Rule("class", labels, names=source.class_names)
    if source.key is None:
        raise DataError(
            f"data.{config.split_kind}",
            where=source.where,
            expected=f"{config.split_by!r}, by which the model's data was split",
            found="no such column or array",
            fix="add the column or array to the rows",
        )
    if config.time is not None:
        return Rule("rank", source.key, "times")
    groups, codes = np.unique(source.key, return_inverse=True)
    ranks = np.random.default_rng([seed, 12]).permutation(len(groups))
    return Rule("rank", ranks[codes], "groups")


def cut(rule: Rule, order: Indices, count: int, key: str, where: str) -> tuple[Indices, Indices]:
    """Cuts a part from some rows; returns the remaining rows and the part.

    Args:
        order: the rows to cut from, in random order.
        count: the number of rows of the part; if `rule` is by rank, it may get more.
        key: the config's key, for errors.

    Raises:
        DataError: no group or time would remain, or a class would have no row in the part or the rest.
    """
    if rule.kind == "random":
        return order[:-count], order[-count:]
    values = rule.values[order]
    chosen = (
        _rows_of_highest_rank(values, count, rule.noun, where)
        if rule.kind == "rank"
        else _share_of_each_class(values, count, rule.names, key, where)
    )
    return order[~chosen], order[chosen]


def _rows_of_highest_rank(
    ranks: Shaped[np.ndarray, " rows"], count: int, noun: str, where: str
) -> Bool[np.ndarray, " rows"]:
    least = np.sort(ranks)[-count]
    if least == ranks.min():
        distinct = len(np.unique(ranks))
        raise DataError(
            f"data.{noun[:-1]}",
            where=where,
            expected=f"enough {noun} for three parts without overlap",
            found=f"{distinct} {noun} in {len(ranks)} rows, of which {count} were to be cut",
            fix="lower test_size or calibration_size, or leave the key out",
        )
    return ranks >= least


def _share_of_each_class(
    labels: Indices, count: int, names: tuple[str, ...], key: str, where: str
) -> Bool[np.ndarray, " rows"]:
    """Marks each class's share of `count` rows (largest remainders), the last rows of the class in the order of `labels`."""
    counts = np.bincount(labels, minlength=len(names))
    exact = counts * count / len(labels)
    taken = np.floor(exact).astype(int)
    taken[np.argsort(taken - exact, kind="stable")[: count - taken.sum()]] += 1
    for label in np.flatnonzero((counts > 0) & ((taken == 0) | (taken == counts))):
        raise DataError(
            f"{key} with data.stratify",
            where=where,
            expected="a row of every class in every part",
            found=f"{counts[label]} rows of class {names[label]!r}, of which the part would get {taken[label]}",
            fix="add rows of that class, merge or drop it, or leave out stratify",
        )
    chosen = np.zeros(len(labels), bool)
    for label, number in enumerate(taken):
        own = np.flatnonzero(labels == label)
        chosen[own[len(own) - number :]] = True
    return chosen


def part_notes(source: Source, config: DataConfig, calibration: Indices | None) -> tuple[str, ...]:
    """Returns notes for a split by groups or by time.

    Args:
        calibration: indices of the calibration part among the source's training rows; None if the source has its own.
    """
    if source.key is None or calibration is None:
        return ()
    own = source.key[calibration]
    if config.time is not None:
        return (
            write_note(
                "split",
                f"data.time = {config.time!r}: calibrated on rows from {_moment(own.min())} to {_moment(own.max())}, tested "
                "on later ones; the stated rates hold for later rows as far as these resemble them",
            ),
        )
    groups = len(np.unique(own))
    noun = "1 group" if groups == 1 else f"{groups} groups"
    return (
        write_note(
            "split",
            f"data.group = {config.group!r}: calibrated on {len(own)} rows of {noun}; rows of one group "
            f"are alike, so the reject rate on a new group may on average exceed the stated one by up to "
            f"{100 / (groups + 1):.2g} percentage points (1 / (groups + 1))",
        ),
    )


def _moment(value: object) -> str:
    """Returns the text of a time, without zeros at its end."""
    return (
        str(value).removesuffix(".000000").removesuffix("T00:00:00") if isinstance(value, np.datetime64) else str(value)
    )
