"""Rows: inputs and targets of a source, and the conversion of targets to class indices or numbers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int, Num, Shaped

from abstain.models.errors import DataError, clip_repr, suggest
from abstain.models.files.reading import FileDialect
from abstain.models.tables.columns import Column

MOST_CLASSES = 20
"""Up to this number, distinct targets are always classes; more must be at most half the number of rows."""
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
    dialect: FileDialect | None = None
    """How a text table is written."""


def class_indices(
    targets: dict[str, np.ndarray], names: tuple[str, ...], where: str, *, limited: bool, indexed: bool = False
) -> tuple[dict[str, Int[np.ndarray, " rows"]], tuple[str, ...]]:
    """Returns the class indices of every part, and the class names; targets are whole numbers or names.

    Whole numbers are indices of `names` if the source has them; otherwise they are the names of their classes, so that
    labels such as 1, 2, 3 or 10, 20 are kept.

    Args:
        names: of the source, or of a fitted model.
        limited: whether to refuse more classes than rows, which is right only if the rows define the classes.
        indexed: whether the source itself has `names`.
    """
    if all(y.dtype.kind in "US" for y in targets.values()):
        texts = {part: [as_text(label) for label in y] for part, y in targets.items()}
        names = names or natural_order({text for labels in texts.values() for text in labels})
        codes = {name: code for code, name in enumerate(names)}
        return {part: text_codes(labels, codes, f"{where}, y{part}") for part, labels in texts.items()}, names
    labels = {part: _whole_numbers(y, f"{where}, y{part}") for part, y in targets.items()}
    known = labels.get("_train", labels.get("", next(iter(labels.values()))))
    if not names:
        distinct = [int(label) for label in np.unique(known)]
        counts_from_0 = distinct == list(range(len(distinct)))
        if limited and not counts_from_0 and len(distinct) > max(MOST_CLASSES, len(known) // 2):
            found = f"{len(distinct)} classes for {len(known)} rows"
            raise DataError(
                "targets", where=where, expected="classes of several rows each", found=found, fix=_REGRESSION
            )
        names = tuple(map(str, distinct))
    by_name = not indexed and _are_names(np.unique(known).tolist(), names)
    codes = (
        {name: code for code, name in enumerate(names)} if by_name else {str(code): code for code in range(len(names))}
    )
    indices: dict[str, Int[np.ndarray, " rows"]] = {}
    for part, y in labels.items():
        values, places = np.unique(y, return_inverse=True)
        found = np.array([codes.get(str(value), -1) for value in values], np.int32)
        if (found < 0).any():
            row = int(np.argmax(found[places] < 0))
            contiguous = list(codes) == [str(code) for code in range(len(codes))]
            raise DataError(
                f"y{part}, row {row}",
                where=where,
                expected=f"a class 0 … {len(codes) - 1}" if contiguous else f"one of the classes {', '.join(codes)}",
                found=y[row],
                fix="correct the label, or add rows of its class to the training part"
                if not indexed
                else "number the classes from 0, or add class_names for all",
            )
        indices[part] = found[places]
    return indices, names


def _are_names(labels: list[int], names: tuple[str, ...]) -> bool:
    """Whether whole numbers are names of classes, not their indices; 1, 2, 3 are names of the classes 1, 2, 3."""
    if all(str(label) in names for label in labels):
        return True
    return all(name.lstrip("-").isdigit() for name in names) and not all(0 <= label < len(names) for label in labels)


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
