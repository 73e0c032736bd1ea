"""The names of columns that hold one number for each class, in files and in DataFrames."""

from __future__ import annotations

from collections.abc import Sequence

CLASS_FIELDS = ("probabilities", "std")
"""The fields with one number for each class; the `std` of a regression is a single number."""


def class_keys(classes: Sequence[str], count: int) -> tuple[str, ...]:
    """Returns what follows the name of the field in each column: the class, such as `setosa`.

    Args:
        classes: the names of the classes; empty if they are not known.
        count: the number of classes.

    Returns:
        The names; or positions from 0, if the names are not known or two are the same, which would share a column.
    """
    if len(classes) == count == len(set(classes)):
        return tuple(classes)
    return tuple(map(str, range(count)))
