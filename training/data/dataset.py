"""Datasets: splits a source into three parts, and fits the preprocessing to the training part.

split               Source → Dataset: train, calibration, test
split_held_out      the same for rows that are not trained on: calibration, test
fit_preprocessing   the training part → Preprocessing, by scikit-learn's transformers
"""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Num

from abstain.models.errors import ConfigError, DataError
from abstain.models.prediction.preprocessing import Preprocessing
from abstain.models.tables.columns import Column
from abstain.training.config.data import DataConfig
from abstain.training.config.section import Size
from abstain.training.data.hints import absent_class_notes
from abstain.training.data.precision import check_distinct, check_target, target_needs_float64, too_coarse
from abstain.training.data.rows import Rows, Source
from abstain.training.data.splitting import Rule, cut, part_notes, split_rule

ROUNDED_SPACINGS = 8.0
"""A feature with a spread below this many float64 spacings is a constant with rounding errors."""


@dataclass(frozen=True)
class Dataset:
    """The three parts of a source. `calibration` is used neither for training nor for the report; `source` has no rows."""

    source: Source
    train: Rows
    calibration: Rows
    test: Rows
    notes: tuple[str, ...] = ()
    """Notes on the split, for the fit."""

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of the three parts' bytes, shapes and dtypes."""
        digest = hashlib.sha256()
        for rows in (self.train, self.calibration, self.test):
            for array in (rows.x, rows.y):
                digest.update(f"{array.dtype}{array.shape}".encode())
                digest.update(np.ascontiguousarray(array).tobytes())
        return f"sha256:{digest.hexdigest()}"


def split(source: Source, config: DataConfig, seed: int) -> Dataset:
    """Splits a source into a training, calibration and test part; parts that the source already has do not change.

    Raises:
        ConfigError: a split rule is set, but the source has all parts.
        DataError: the source has no training rows, or too few for three parts.
    """
    train = source.train
    if train is None:
        expected = "x_train and y_train, or x and y"
        raise DataError(
            "training rows",
            where=source.where,
            expected=expected,
            found="neither",
            fix="add x_train and y_train, or x and y",
        )
    order = np.random.default_rng(seed).permutation(len(train))
    rule = split_rule(source, config, seed)
    test = source.test
    if test is None:
        order, chosen = _cut(rule, order, config.test_size, "data.test_size", source.where)
        test = train.take(chosen)
    calibration, chosen = source.calibration, None
    if calibration is None:
        order, chosen = _cut(rule, order, config.calibration_size, "data.calibration_size", source.where)
        calibration = train.take(chosen)
    notes = (*source.hints, *part_notes(source, config, chosen))
    rest = train.take(order)
    if source.class_names:
        notes += absent_class_notes(rest, source.class_names)
    # The source without its rows, which would otherwise be in memory twice during the fit.
    bare = dataclasses.replace(source, train=None, calibration=None, test=None, key=None)
    return Dataset(bare, rest, calibration, test, notes)


def split_held_out(source: Source, config: DataConfig, seed: int) -> Dataset:
    """Splits a source of rows that are not trained on into a calibration and a test part; the training part is empty.

    The source either has both parts and no other rows, or no parts.

    Raises:
        DataError: the source has some parts and not others, or too few rows for two parts.
    """
    rows, test, calibration = source.train, source.test, source.calibration
    rule, notes = split_rule(source, config, seed), source.hints
    if rows is not None and test is None and calibration is None:
        order, chosen = _cut(
            rule, np.random.default_rng(seed).permutation(len(rows)), config.test_size, "data.test_size", source.where
        )
        test, calibration = rows.take(chosen), rows.take(order)
        notes = (*notes, *part_notes(source, config, order))
    elif rows is not None or test is None or calibration is None:
        parts = {"x_train": rows, "x_calibration": calibration, "x_test": test}
        raise DataError(
            "parts",
            where=source.where,
            expected="rows that the network was not trained on: x and y, or x_calibration, y_calibration, x_test and y_test",
            found=", ".join(name for name, part in parts.items() if part is not None),
            fix="pass the training rows apart, with --train",
        )
    bare = dataclasses.replace(source, train=None, calibration=None, test=None, key=None)
    return Dataset(bare, calibration.take(np.zeros(0, int)), calibration, test, notes)


def split_again(source: Source, config: DataConfig, seed: int, fingerprint: str) -> Dataset | None:
    """Repeats the split of a fit or an import; None if the fingerprint shows that it had other data."""
    for repeat in (split, split_held_out):
        try:
            dataset = repeat(source, config, seed)
        except (ConfigError, DataError):  # The source of a fit or an import can be split.
            continue
        if dataset.fingerprint == fingerprint:
            return dataset
    return None


def _cut(
    rule: Rule, order: Int[np.ndarray, " rows"], size: Size, key: str, where: str
) -> tuple[Int[np.ndarray, " rest"], Int[np.ndarray, " cut"]]:
    count = size if isinstance(size, int) else round(size * len(order))
    if not 0 < count < len(order):
        expected = f"between 1 and {len(order) - 1} of {len(order)} rows"
        raise DataError(key, where=where, expected=expected, found=f"{count} rows")
    return cut(rule, order, count, key, where)


def fit_preprocessing(
    train: Rows, config: DataConfig, columns: tuple[Column, ...], names: tuple[str, ...] = (), *, classify: bool
) -> Preprocessing:
    """Fits filling values, shift and scale of the inputs and of a regression target to the training part.

    Raises:
        DataError: a column of a table has only gaps in the training part; or float32 cannot represent a feature
            or the target, even without its offset.
    """
    from sklearn.preprocessing import StandardScaler  # noqa: PLC0415 - half a second, and only fit needs it

    columns = tuple(_with_filling(column, train.x[:, index]) for index, column in enumerate(columns))
    x = np.where(np.isnan(train.x), [column.missing for column in columns], train.x) if columns else train.x
    parameters: dict[str, Any] = {"columns": columns}
    if not classify:
        target: Any = StandardScaler().fit(train.y[:, None].astype(np.float64))
        shift, scale = float(target.mean_[0]), float(target.scale_[0])
        check_target(shift, scale)
        parameters |= {
            "target_shift": shift,
            "target_scale": scale,
            "float64_target": target_needs_float64(shift, scale),
        }
    if config.inputs == "standardize":
        exact = x.reshape(len(train), -1).astype(np.float64)
        scaler: Any = StandardScaler().fit(exact)
        numeric = np.array([not column.categories for column in columns] or [True] * len(scaler.mean_))
        # A category's code is not a quantity; it is one-hot encoded.
        shift, scale = _with_small_spreads(exact, scaler.mean_, scaler.scale_)
        shift, scale = np.where(numeric, shift, 0.0), np.where(numeric, scale, 1.0)
        parameters |= _standardised(x, shift, scale)
    elif config.inputs == "range":
        numbers = x[:, [not column.categories for column in columns]] if columns else x
        low, high = (float(numbers.min()), float(numbers.max())) if numbers.size else (0.0, 1.0)
        coarse = (
            x.ndim == 2 and too_coarse(np.abs(numbers).max(initial=0, keepdims=True).ravel(), np.array([high - low]))[0]
        )
        width = high - low or 1.0
        if coarse:
            # One origin and unit for each column: a category's code must not change.
            numeric = np.array([not column.categories for column in columns] or [True] * x.shape[1])
            parameters["origin"] = tuple(np.where(numeric, low, 0.0).tolist())
            parameters["unit"] = tuple(np.where(numeric, width, 1.0).tolist())
        else:
            parameters |= {"shift": (low,), "scale": (width,)}
    preprocessing = Preprocessing(**parameters)
    check_distinct(preprocessing, train.x, tuple(column.name for column in columns) or names)
    return preprocessing


def _with_small_spreads(
    x: Float[np.ndarray, "rows features"], mean: Float[np.ndarray, " features"], scale: Float[np.ndarray, " features"]
) -> tuple[Float[np.ndarray, " features"], Float[np.ndarray, " features"]]:
    """Replaces scikit-learn's mean and scale of features that it wrongly takes for constants.

    Its limit, n·ε·|mean|, is the rounding error of its sums. Differences from the first row do not have this error.
    """
    differences = x - x[0]
    spread = differences.std(axis=0)
    is_wide = spread > ROUNDED_SPACINGS * np.spacing(np.abs(x).max(axis=0))
    replaced = (scale == 1) & is_wide
    return np.where(replaced, x[0] + differences.mean(axis=0), mean), np.where(replaced, spread, scale)


def _standardised(
    x: Num[np.ndarray, "rows ..."], shift: Float[np.ndarray, " features"], scale: Float[np.ndarray, " features"]
) -> dict[str, tuple[float, ...]]:
    """Returns shift and scale of every feature, or origin and unit for the host if float32 cannot represent the feature."""
    parameters = {"shift": shift, "scale": scale}
    # Pixels are never too coarse, and augmentation needs their shift and scale.
    coarse = (
        too_coarse(np.abs(x).max(axis=0).astype(np.float64), x.std(axis=0, dtype=np.float64))
        if x.ndim == 2
        else np.zeros(1, bool)
    )
    if coarse.any():
        parameters["origin"], parameters["unit"] = np.where(coarse, shift, 0.0), np.where(coarse, scale, 1.0)
        parameters |= {"shift": np.where(coarse, 0.0, shift), "scale": np.where(coarse, 1.0, scale)}
    return {name: tuple(values.tolist()) for name, values in parameters.items()}


def _with_filling(column: Column, values: Float[np.ndarray, " rows"]) -> Column:
    """Sets the filling value of a column: its median, or the code of its most frequent category.

    Raises:
        DataError: the column has only gaps.
    """
    from sklearn.impute import SimpleImputer  # noqa: PLC0415

    if np.isnan(values).all():
        raise DataError(
            f"column {column.name!r}",
            expected="at least one value in the training part",
            found="only gaps",
            fix="drop it",
        )
    imputer: Any = SimpleImputer(strategy="most_frequent" if column.categories else "median").fit(values[:, None])
    return column.model_copy(update={"missing": float(imputer.statistics_[0])})
