"""Rows: inputs and targets of a source, and the conversion of targets to class indices or numbers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int, Num, Shaped

from abstain.models.errors import DataError, clip_repr, suggest
from abstain.models.tables.columns import Column

_REGRESSION = 'set likelihood = "normal" for a regression'


@dataclass(frozen=True)
class Rows:
    """Inputs `[rows, *features]` as the source has them, and targets `[rows]`: class indices, or numbers."""

    x: Num[np.ndarray, "rows ..."]
    y: Num[np.ndarray, " rows"]

    def __len__(self) -> int:
        return len(self.x)

    def take(self, indices: Int[np.ndarray, " taken"]) -> Rows:
        """Returns the rows at some indices."""
        return Rows(self.x[indices], self.y[indices])


@dataclass(frozen=True)
class Source:
    """The content of a source: rows for training, and for testing and calibration if it has these parts.

    `columns` is empty except for tables; their filling values are fitted to the training part later.
    """

    where: str
    train: Rows | None
    test: Rows | None
    calibration: Rows | None = None
    class_names: tuple[str, ...] = ()
    feature_names: tuple[str, ...] = ()
    columns: tuple[Column, ...] = ()
    key: Shaped[np.ndarray, " rows"] | None = None
    """The group or the time of each row of `train`, if `[data]` names one and the source has it."""
    hints: tuple[str, ...] = ()
    """Notes for the user."""


def class_indices(
    targets: dict[str, np.ndarray], names: tuple[str, ...], where: str, *, limited: bool
) -> tuple[dict[str, Int[np.ndarray, " rows"]], tuple[str, ...]]:
    """Returns the class indices of every part, and the class names; targets are whole numbers or names.

    Args:
        limited: whether to refuse more classes than rows, which is right only if the rows define the classes.
    """
    if all(y.dtype.kind in "US" for y in targets.values()):
        texts = {part: [as_text(label) for label in y] for part, y in targets.items()}
        names = names or tuple(sorted({text for labels in texts.values() for text in labels}, key=_natural))
        codes = {name: code for code, name in enumerate(names)}
        return {part: text_codes(labels, codes, f"{where}, y{part}") for part, labels in texts.items()}, names
    indices = {part: _whole_numbers(y, f"{where}, y{part}") for part, y in targets.items()}
    known = indices.get("_train", indices.get("", next(iter(indices.values()))))
    count = len(names) or int(known.max()) + 1
    if limited and count > max(len(known), 2):
        found = f"{count} classes for {len(known)} rows"
        raise DataError("targets", where=where, expected="class indices", found=found, fix=_REGRESSION)
    for part, y in indices.items():
        outside = np.flatnonzero((y < 0) | (y >= count))
        if outside.size:
            row = int(outside[0])
            raise DataError(
                f"y{part}, row {row}",
                where=where,
                expected=f"a class 0 … {count - 1}",
                found=y[row],
                fix="number the classes from 0, or add class_names for all",
            )
    return indices, names or tuple(map(str, range(count)))


def text_codes(labels: list[str], codes: dict[str, int], where: str) -> Int[np.ndarray, " rows"]:
    """Converts class names to class indices.

    Raises:
        DataError: a label is unknown; the text names its row.
    """
    for row, label in enumerate(labels):
        if label not in codes:
            expected = f"one of {', '.join(codes)}"
            raise DataError(
                f"row {row}", where=where, expected=expected, found=clip_repr(label), fix=suggest(label, codes)
            )
    return np.array([codes[label] for label in labels], np.int32)


def natural_order(names: set[str]) -> tuple[str, ...]:
    """Sorts names: numbers by value, then words."""
    return tuple(sorted(names, key=_natural))


def numbers(y: np.ndarray, where: str) -> Num[np.ndarray, " rows"]:
    """Converts regression targets to float64.

    Raises:
        DataError: a target is not a number, or not finite in float32; the text names its row.
    """
    if y.dtype.kind not in "iufb":
        raise DataError("targets", where=where, expected="numbers", found=f"{y.dtype}")
    values = y.astype(np.float64)
    fits = np.abs(values) <= np.finfo(np.float32).max
    if not fits.all():
        row = int(np.argmin(fits))
        raise DataError(
            f"row {row}",
            where=where,
            expected="a finite target",
            found=values[row],
            fix="fill in the target, or remove the row",
        )
    return values


def _whole_numbers(y: np.ndarray, where: str) -> Int[np.ndarray, " rows"]:
    if y.dtype.kind not in "iufb":
        raise DataError("targets", where=where, expected="class indices", found=f"{y.dtype}")
    exact = y.astype(np.float64)
    fits = (np.abs(exact) < 2**31) & (exact == np.floor(exact))
    if not fits.all():
        row = int(np.argmin(fits))
        expected = "a class index, a whole number"
        raise DataError(f"row {row}", where=where, expected=expected, found=y[row], fix=_REGRESSION)
    return y.astype(np.int32)


def as_text(label: np.bytes_ | np.str_ | str | bytes) -> str:
    """Converts a name, text or bytes, to text."""
    return label.decode("utf-8", "replace") if isinstance(label, bytes) else str(label)


def _natural(text: str) -> tuple[int, float, str]:
    try:
        return 0, float(text), text
    except ValueError:
        return 1, 0.0, text
