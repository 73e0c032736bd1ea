"""The line of `abstain predict` about the rejected rows: how many, and by which part of the decision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from abstain.models.tables.unseen import names_unseen

FIELDS = ("reject", "novel", "ambiguous", "reasons")
"""The fields that are counted; `novel` and `ambiguous` are those of a decision of two parts."""


class RejectedRows(NamedTuple):
    """How many rows are rejected; a row may count as novel, as ambiguous, and as one with an unseen category.

    Attributes:
        rejected: the number of rejected rows.
        rows: the number of predicted rows.
        novel: those that the novelty part rejects; None for a decision of one part.
        ambiguous: those that the ambiguity part rejects; None for a decision of one part.
        unseen: those with a category that was not in training.
    """

    rejected: int
    rows: int
    novel: int | None
    ambiguous: int | None
    unseen: int

    def __str__(self) -> str:
        """Describes the numbers in one line."""
        parts = {"novel": self.novel, "ambiguous": self.ambiguous, "with an unseen category": self.unseen or None}
        counts = ", ".join(f"{count} {name}" for name, count in parts.items() if count is not None)
        return f"rejected: {self.rejected} of {self.rows} rows" + (f" ({counts})" if counts and self.rejected else "")


def count_rejected(columns: Mapping[str, Sequence[Any]]) -> RejectedRows:
    """Counts the rejected rows.

    Args:
        columns: the `FIELDS` of all rows.
    """
    reasons = columns["reasons"]
    return RejectedRows(
        sum(columns["reject"]),
        len(columns["reject"]),
        sum(columns["novel"]) if "novel" in columns else None,
        sum(columns["ambiguous"]) if "ambiguous" in columns else None,
        sum(any(map(names_unseen, row)) for row in reasons),
    )
