"""Categories that the training part lacks: which cells of rows have one, what a person reads about them, and their count."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
from jaxtyping import Bool, Num

from abstain.models.errors import clip_repr
from abstain.models.tables.columns import UNSEEN, Column

UNSEEN_SCORE = "unseen"
"""The score that counts a row's unseen categories; only models with a column that rejects them have it."""
_WAS_NOT = "was not in training"
UnseenTexts = Mapping[tuple[int, int], str]
"""The text of each unseen category, by the row and the index of its column, where a request or a file has it."""
NO_TEXTS: UnseenTexts = MappingProxyType({})


def rejecting_columns(columns: tuple[Column, ...]) -> tuple[int, ...]:
    """Returns the indices of the columns whose unseen categories reject a row."""
    return tuple(index for index, column in enumerate(columns) if column.categories and column.unseen == "reject")


def unseen_cells(columns: tuple[Column, ...], rows: Num[np.ndarray, "rows ..."]) -> Bool[np.ndarray, "rows rejecting"]:
    """Returns which cells of the rejecting columns have an unseen category, in the order of `rejecting_columns`."""
    return rows[:, list(rejecting_columns(columns))] == UNSEEN


def count_unseen(columns: tuple[Column, ...], rows: Num[np.ndarray, "rows ..."]) -> dict[str, int]:
    """Counts the rows with an unseen category, by the name of each column that has any."""
    indices = rejecting_columns(columns)
    counts: list[int] = unseen_cells(columns, rows).sum(axis=0).tolist() if indices else []
    return {columns[index].name: count for index, count in zip(indices, counts, strict=True) if count}


def unseen_reason(column: str, text: str | None = None) -> str:
    """Returns the reason for the rejection of a row with an unseen category.

    Args:
        text: the category, cut off if it is long; None if it is not known.
    """
    if text is None:
        return f"{column}: a category that {_WAS_NOT}"
    return f"{column}: {clip_repr(text)} {_WAS_NOT}"


def names_unseen(reason: str) -> bool:
    """Whether a reason is that of `unseen_reason`."""
    return reason.endswith(f" {_WAS_NOT}")
