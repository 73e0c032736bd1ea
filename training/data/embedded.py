"""Embedded sets: small data sets without a file; a config or `--data` names them.

`digits` ships with scikit-learn. The others are drawn from distributions that the literature uses as first examples, with
fixed seeds: a small training part, and separate calibration and test rows from the same distribution.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from abstain.models.files.row_files import check_room

Arrays = dict[str, np.ndarray]
Sampler = Callable[[np.random.Generator, int], tuple[np.ndarray, np.ndarray]]


def _sine(rng: np.random.Generator, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws y = 0.3 + sin(2πx / 2.5) + 0.2 ε on [−1, 1]."""
    x = rng.uniform(-1, 1, rows)
    return x[:, None], 0.3 + np.sin(2 * np.pi * x / 2.5) + 0.2 * rng.normal(size=rows)


def _wave(rng: np.random.Generator, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws y = x sin 5x + 0.1 ε on [−1, 1]."""
    x = rng.uniform(-1, 1, rows)
    return x[:, None], x * np.sin(5 * x) + 0.1 * rng.normal(size=rows)


def _boxes(rng: np.random.Generator, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws two classes in four boxes of side 4.5: 1 if the coordinates' signs agree, 0 if they differ."""
    signs = rng.permutation(np.resize([[1, 1], [-1, -1], [1, -1], [-1, 1]], (rows, 2)))
    corner = np.where(signs > 0, 0.5, -5.0)
    return corner + rng.uniform(0, 4.5, (rows, 2)), (signs[:, 0] == signs[:, 1]).astype(np.int32)


def _spirals(rng: np.random.Generator, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws three arms of radius 0 … 0.5, each turning by 4 radians, with 0.2 radians of noise."""
    y = rng.permutation(np.resize(np.arange(3), rows)).astype(np.int32)
    turn = rng.uniform(0, 1, rows)
    angle = 4 * (y + turn) + 0.2 * rng.normal(size=rows)
    return (0.5 * turn)[:, None] * np.stack([np.sin(angle), np.cos(angle)], axis=1), y


def _bimodal(rng: np.random.Generator, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws two classes, one around each mode of the mixture of N((2, −2), I) and N((−2, 2), I)."""
    y = rng.permutation(np.resize(np.arange(2), rows)).astype(np.int32)
    return np.where(y[:, None] == 0, [2.0, -2.0], [-2.0, 2.0]) + rng.normal(size=(rows, 2)), y


def _digits(_calibration_size: float, _test_size: float) -> Arrays:
    """Loads 1,797 handwritten digits of 8×8 pixels, 0 … 16, from scikit-learn (UCI optical recognition of digits)."""
    from sklearn.datasets import load_digits  # noqa: PLC0415

    digits: Any = load_digits()
    return {"x": digits.images, "y": digits.target, "class_names": digits.target_names.astype(str)}


def _sampled_set(sampler: Sampler, train_rows: int, seed: int) -> Callable[[float, float], Arrays]:
    """Returns a function that draws a set; its sizes are numbers of rows or, if below 1, shares of the training rows."""

    def draw(calibration_size: float, test_size: float) -> Arrays:
        sizes = {"train": train_rows, "calibration": calibration_size, "test": test_size}
        arrays: Arrays = {}
        for stream, (part, size) in enumerate(sizes.items()):
            rows = int(size) if size >= 1 else max(1, round(size * train_rows))
            # At most three numbers of 8 bytes: two features and the target.
            check_room(24 * rows, f"data.{part}_size = {size}", "the rows to draw")
            arrays[f"x_{part}"], arrays[f"y_{part}"] = sampler(np.random.default_rng([seed, stream]), rows)
        return arrays

    return draw


EMBEDDED: dict[str, Callable[[float, float], Arrays]] = {
    "digits": _digits,
    "sine": _sampled_set(_sine, 100, 1),
    "boxes": _sampled_set(_boxes, 80, 2),
    "spirals": _sampled_set(_spirals, 300, 3),
    "wave": _sampled_set(_wave, 40, 4),
    "bimodal": _sampled_set(_bimodal, 200, 5),
}
