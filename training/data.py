"""Data: a source becomes rows on their own scale, and rows become a train, a calibration and a test part.

    read_source  .npz · .csv · .parquet · a folder of IDX files · the name of an embedded set   → Source
    split        Source                                                                          → Dataset
    fit_preprocessing  the training part alone                                                   → Preprocessing

Whatever a file holds is checked here, once; what comes out has float or integer features without NaN (gaps in tables
excepted), and targets that fit the likelihood.
"""

from __future__ import annotations

import gzip
import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Num

from models.errors import DataError, clip_repr
from models.posterior import Model
from models.preprocessing import (
    ArrowColumn,
    ArrowTable,
    Column,
    Preprocessing,
    category_texts,
    encode_table,
    numeric_column,
)
from models.rowfiles import TABLES, checked_inputs, read_npz, read_table
from training.config import DataConfig, Size
from training.embedded import EMBEDDED

IDX_NAMES = {
    "x_train": "train-images-idx3-ubyte",
    "y_train": "train-labels-idx1-ubyte",
    "x_test": "t10k-images-idx3-ubyte",
    "y_test": "t10k-labels-idx1-ubyte",
}


@dataclass(frozen=True)
class Rows:
    """Inputs `[rows, *features]` as the source has them, and targets `[rows]`: class indices, or numbers."""

    x: Num[np.ndarray, "rows ..."]
    y: Num[np.ndarray, " rows"]

    def __len__(self) -> int:
        return len(self.x)

    def take(self, indices: np.ndarray) -> Rows:
        """The rows at some places."""
        return Rows(self.x[indices], self.y[indices])


@dataclass(frozen=True)
class Source:
    """What a source holds: rows for training, and for testing and calibration where it says which."""

    where: str
    train: Rows | None
    test: Rows | None
    calibration: Rows | None = None
    class_names: tuple[str, ...] = ()
    feature_names: tuple[str, ...] = ()
    columns: tuple[Column, ...] = ()
    """Tables only."""


@dataclass(frozen=True)
class Dataset:
    """The three parts of a source. `calibration` is neither trained on nor reported on."""

    source: Source
    train: Rows
    calibration: Rows
    test: Rows

    @property
    def fingerprint(self) -> str:
        """sha256 of the three parts' bytes, shapes and dtypes."""
        digest = hashlib.sha256()
        for rows in (self.train, self.calibration, self.test):
            for array in (rows.x, rows.y):
                digest.update(f"{array.dtype}{array.shape}".encode())
                digest.update(np.ascontiguousarray(array).tobytes())
        return f"sha256:{digest.hexdigest()}"


def read_source(where: str, config: DataConfig, fitted: Model | None = None, *, classify: bool) -> Source:
    """The rows of a source, checked.

    Args:
        where: a path, or the name of an embedded set.
        fitted: a model whose classes, and whose columns of a table, the source must share.
        classify: whether targets are classes; else they are numbers.

    Raises:
        DataError: naming the file, the array or column and the row at fault.
    """
    path = Path(where)
    if path.suffix in TABLES:
        return _from_table(read_table(path), where, config, fitted, classify)
    arrays = _read_arrays(where, config.calibration_size, config.test_size)
    return _from_arrays(arrays, where, config, fitted, classify)


def read_inputs(where: str, model: Model) -> np.ndarray:
    """The inputs of an OOD set: every row of `x_test` if there is one, else of `x`; labels are ignored.

    Raises:
        DataError: the set cannot be read, is empty, or has another feature shape.
    """
    path = Path(where)
    if path.suffix in TABLES:
        x: np.ndarray = encode_table(model.preprocessing.columns, read_table(path), where)
    else:
        arrays = _read_arrays(where, 1, 0.5)
        key = "x_test" if "x_test" in arrays else "x"
        if key not in arrays:
            raise DataError("arrays", where=where, expected="x_test or x", found=", ".join(arrays))
        x = checked_inputs(arrays[key], f"{where}, {key}")
    if x.shape[1:] != model.feature_shape or not len(x):
        raise DataError(
            "inputs", where=where, expected=f"rows of shape {model.feature_shape}", found=f"shape {x.shape}"
        )
    return x


def split(source: Source, config: DataConfig, seed: int) -> Dataset:
    """Train, calibration and test part: the source's own where it has them, else drawn by the seed.

    Raises:
        DataError: the source has no training rows, or too few for three parts.
    """
    if source.train is None:
        raise DataError(
            "training rows", where=source.where, expected="x_train and y_train, or x and y", found="neither"
        )
    order = np.random.default_rng(seed).permutation(len(source.train))
    if source.test is None:
        order, test_order = _cut(order, config.test_size, "data.test_size", source.where)
        test = source.train.take(test_order)
    else:
        test = source.test
    if source.calibration is None:
        order, calibration_order = _cut(order, config.calibration_size, "data.calibration_size", source.where)
        calibration = source.train.take(calibration_order)
    else:
        calibration = source.calibration
    return Dataset(source, source.train.take(order), calibration, test)


def evaluation_rows(source: Source, config: DataConfig, seed: int) -> Rows:
    """The test part alone; the training part may be missing."""
    return source.test if source.test is not None else split(source, config, seed).test


def _cut(order: np.ndarray, size: Size, key: str, where: str) -> tuple[np.ndarray, np.ndarray]:
    count = size if isinstance(size, int) else round(size * len(order))
    if not 0 < count < len(order):
        raise DataError(
            key, where=where, expected=f"between 1 and {len(order) - 1} of {len(order)} rows", found=f"{count} rows"
        )
    return order[:-count], order[-count:]


def fit_preprocessing(train: Rows, config: DataConfig, columns: tuple[Column, ...], *, classify: bool) -> Preprocessing:
    """Shift and scale of the inputs, and of a regression target, from the training part alone."""
    from sklearn.preprocessing import StandardScaler  # noqa: PLC0415 - half a second, and only fit needs it

    target = StandardScaler().fit(train.y[:, None].astype(np.float64)) if not classify else None
    terms: dict[str, Any] = {"columns": columns}
    if target is not None:
        terms |= {"target_shift": float(target.mean_[0]), "target_scale": float(target.scale_[0])}
    if config.inputs == "standardize":
        flat = _filled(train.x, columns).reshape(len(train), -1).astype(np.float64)
        scaler = StandardScaler().fit(flat)
        numeric = [not column.categories for column in columns] or [True] * flat.shape[1]
        terms["shift"] = tuple(
            float(mean) if number else 0.0 for mean, number in zip(scaler.mean_, numeric, strict=True)
        )
        terms["scale"] = tuple(
            float(scale) if number else 1.0 for scale, number in zip(scaler.scale_, numeric, strict=True)
        )
    elif config.inputs == "range":
        low, high = float(np.nanmin(train.x)), float(np.nanmax(train.x))
        terms |= {"shift": (low,), "scale": (high - low or 1.0,)}
    return Preprocessing(**terms)


def _filled(x: np.ndarray, columns: tuple[Column, ...]) -> np.ndarray:
    return np.where(np.isnan(x), [column.missing for column in columns], x) if columns else x


# ---- arrays ----------------------------------------------------------------------------------------------------------


def _read_arrays(where: str, calibration_size: Size, test_size: Size) -> dict[str, np.ndarray]:
    if where in EMBEDDED:
        return EMBEDDED[where](calibration_size, test_size)
    path = Path(where)
    if not path.exists():
        raise DataError(
            "no such file", where=where, expected=f"a path, or one of {', '.join(EMBEDDED)}", found="nothing"
        )
    return _read_idx(path) if path.is_dir() else read_npz(path)


def _from_arrays(
    arrays: dict[str, np.ndarray], where: str, config: DataConfig, fitted: Model | None, classify: bool
) -> Source:
    names = fitted.class_names if fitted else tuple(map(str, arrays.get("class_names", ())))
    parts = {part: _pair(arrays, part, where) for part in ("_train", "_test", "_calibration", "")}
    found = {part: rows for part, rows in parts.items() if rows is not None}
    if not found:
        raise DataError(
            "arrays", where=where, expected="x_train, y_train, x_test, y_test; or x, y", found=", ".join(arrays)
        )
    found, names = _checked_parts(found, names, where, classify)
    if "" in found:
        found |= _own_split(found[""], arrays, where, config.split_index)
    train = found.get("_train", found.get(""))
    shapes = {rows.x.shape[1:] for rows in found.values()}
    if len(shapes) > 1:
        raise DataError("feature shape", where=where, expected="one for all parts", found=", ".join(map(str, shapes)))
    features = tuple(map(str, arrays.get("feature_names", ())))
    width = int(np.prod(shapes.pop()))
    if features and len(features) != width:
        raise DataError("feature_names", where=where, expected=f"{width} names", found=len(features))
    return Source(where, train, found.get("_test"), found.get("_calibration"), names, features)


def _pair(arrays: dict[str, np.ndarray], part: str, where: str) -> Rows | None:
    x, y = arrays.get(f"x{part}"), arrays.get(f"y{part}")
    if x is None and y is None:
        return None
    if x is None or y is None:
        absent = f"x{part}" if x is None else f"y{part}"
        raise DataError(f"array {absent} is missing", where=where, found=", ".join(arrays))
    x = checked_inputs(x, f"{where}, x{part}")
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.shape != (len(x),):
        raise DataError(
            f"y{part}", where=where, expected=f"shape ({len(x)},), one target a row", found=f"shape {y.shape}"
        )
    if not len(x):
        raise DataError(f"x{part}", where=where, expected="at least one row", found="an empty set")
    return Rows(x, y)


def _own_split(rows: Rows, arrays: dict[str, np.ndarray], where: str, index: int) -> dict[str, Rows]:
    if "train_idx" not in arrays or "test_idx" not in arrays:
        return {}
    parts: dict[str, Rows] = {}
    for part in ("_train", "_test"):
        splits = arrays[f"{part[1:]}_idx"]
        if splits.ndim != 2 or not np.issubdtype(splits.dtype, np.integer):
            raise DataError(
                f"{part[1:]}_idx",
                where=where,
                expected="integers [splits, rows]",
                found=f"{splits.dtype} {splits.shape}",
            )
        if index >= len(splits):
            raise DataError("data.split_index", where=where, expected=f"0 … {len(splits) - 1}", found=index)
        if splits[index].min() < 0 or splits[index].max() >= len(rows):
            raise DataError(
                f"{part[1:]}_idx[{index}]",
                where=where,
                expected=f"rows 0 … {len(rows) - 1}",
                found=f"{splits[index].max()}",
            )
        parts[part] = rows.take(splits[index])
    return parts


def _checked_parts(
    parts: dict[str, Rows], names: tuple[str, ...], where: str, classify: bool
) -> tuple[dict[str, Rows], tuple[str, ...]]:
    """The parts with targets checked against the likelihood, and the class names they come to."""
    if not classify:
        return {part: replace(rows, y=_numbers(rows.y, f"{where}, y{part}")) for part, rows in parts.items()}, ()
    if all(rows.y.dtype.kind in "US" for rows in parts.values()):
        names = names or tuple(sorted({str(label) for rows in parts.values() for label in rows.y}))
        codes = {name: code for code, name in enumerate(names)}
        parts = {part: replace(rows, y=_codes(rows.y, codes, f"{where}, y{part}")) for part, rows in parts.items()}
    checked = {part: replace(rows, y=_integers(rows.y, f"{where}, y{part}")) for part, rows in parts.items()}
    known = checked.get("_train", checked.get("", next(iter(checked.values())))).y
    names = names or tuple(map(str, range(int(known.max()) + 1)))
    if len(names) > max(len(known), 2):
        raise DataError(
            "targets",
            where=where,
            expected="class indices",
            found=f"{len(names)} classes for {len(known)} rows",
            fix='set likelihood = "normal" for a regression',
        )
    for part, rows in checked.items():
        outside = np.flatnonzero((rows.y < 0) | (rows.y >= len(names)))
        if outside.size:
            row = int(outside[0])
            raise DataError(
                f"y{part}, row {row}", where=where, expected=f"a class 0 … {len(names) - 1}", found=rows.y[row]
            )
    return checked, names


def _integers(y: np.ndarray, where: str) -> np.ndarray:
    if y.dtype.kind not in "iufb":
        raise DataError("targets", where=where, expected="class indices", found=f"{y.dtype}")
    fits = (
        np.isfinite(y) & (np.abs(y.astype(np.float64)) < 2**31) & (y == np.floor(y))
        if y.dtype.kind == "f"
        else np.abs(y.astype(np.float64)) < 2**31
    )
    if not np.all(fits):
        row = int(np.argmin(fits))
        raise DataError(
            f"row {row}",
            where=where,
            expected="a class index, a whole number",
            found=y[row],
            fix='set likelihood = "normal" for a regression',
        )
    return y.astype(np.int32)


def _numbers(y: np.ndarray, where: str) -> np.ndarray:
    if y.dtype.kind not in "iufb":
        raise DataError("targets", where=where, expected="numbers", found=f"{y.dtype}")
    numbers = y.astype(np.float64)
    fits = np.abs(numbers) <= np.finfo(np.float32).max
    if not fits.all():
        row = int(np.argmin(fits))
        raise DataError(f"row {row}", where=where, expected="a finite target", found=numbers[row])
    return numbers


def _codes(y: np.ndarray, codes: dict[str, int], where: str) -> np.ndarray:
    for row, label in enumerate(y):
        if str(label) not in codes:
            raise DataError(
                f"row {row}", where=where, expected=f"one of {', '.join(codes)}", found=clip_repr(str(label))
            )
    return np.array([codes[str(label)] for label in y], np.int32)


def _read_idx(folder: Path) -> dict[str, np.ndarray]:
    arrays: dict[str, np.ndarray] = {}
    for name, file in IDX_NAMES.items():
        candidates = [
            folder / file,
            folder / f"{file}.gz",
            folder / file.replace("-idx", ".idx"),
            folder / f"{file.replace('-idx', '.idx')}.gz",
        ]
        path = next((candidate for candidate in candidates if candidate.is_file()), None)
        if path is not None:
            arrays[name] = _read_idx_file(path)
    if not arrays:
        raise DataError("no IDX files", where=str(folder), expected=", ".join(IDX_NAMES.values()), found="none of them")
    return arrays


def _read_idx_file(path: Path) -> np.ndarray:
    """One IDX file: two zero bytes, the type (8: unsigned byte), the number of axes, their lengths, the data."""
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError) as error:
        raise DataError("cannot be read", where=str(path), found=str(error)) from error
    if content[:3] != b"\0\0\x08" or len(content) < 4 + 4 * content[3]:
        raise DataError(
            "header", where=str(path), expected="an IDX file of unsigned bytes", found=content[:4].hex() or "nothing"
        )
    shape = tuple(np.frombuffer(content, ">u4", content[3], 4).tolist())
    start = 4 + 4 * content[3]
    if len(content) - start != int(np.prod(shape)):
        raise DataError(
            "length",
            where=str(path),
            expected=f"{int(np.prod(shape))} bytes for {shape}",
            found=f"{len(content) - start}",
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


# ---- tables ----------------------------------------------------------------------------------------------------------


def _from_table(table: ArrowTable, where: str, config: DataConfig, fitted: Model | None, classify: bool) -> Source:
    target = config.target
    if target is None:
        raise DataError(
            "data.target",
            where=where,
            expected="the name of the column to predict",
            found="nothing",
            fix=f"set it in the config to one of {', '.join(table.column_names)}",
        )
    for key, names in (("target", (target,)), ("categorical", config.categorical), ("drop", config.drop)):
        absent = [name for name in names if name not in table.column_names]
        if absent:
            raise DataError(
                f"data.{key}", where=where, expected=f"one of {', '.join(table.column_names)}", found=absent[0]
            )
    features = [name for name in table.column_names if name != target and name not in config.drop]
    if not features:
        raise DataError("columns", where=where, expected="at least one beside the target", found="none")
    if fitted:
        columns = fitted.preprocessing.columns
    else:
        columns = tuple(_fit_column(name, table.column(name), name in config.categorical, where) for name in features)
    known = fitted.class_names if fitted else ()
    y, names = _table_targets(table.column(target), target, where, classify, known)
    rows = Rows(encode_table(columns, table, where), y)
    return Source(where, rows, None, None, names, tuple(column.name for column in columns), columns)


def _fit_column(name: str, values: ArrowColumn, categorical: bool, where: str) -> Column:
    """A column's categories, and what stands in for its gaps: the median, or the most frequent category."""
    from sklearn.impute import SimpleImputer  # noqa: PLC0415
    from sklearn.preprocessing import OrdinalEncoder  # noqa: PLC0415

    if not categorical:
        numbers = numeric_column(values, name, where)
        if np.isnan(numbers).all():
            raise DataError(
                f"column {name!r} is empty",
                where=where,
                expected="at least one number",
                found="only gaps",
                fix="list it under data.drop",
            )
        return Column(name=name, missing=float(SimpleImputer(strategy="median").fit(numbers[:, None]).statistics_[0]))
    texts = np.array(category_texts(values), dtype=object)[:, None]
    if all(text is None for text in texts[:, 0]):
        raise DataError(
            f"column {name!r} is empty",
            where=where,
            expected="at least one category",
            found="only gaps",
            fix="list it under data.drop",
        )
    imputer = SimpleImputer(strategy="most_frequent", missing_values=None).fit(texts)
    categories = OrdinalEncoder().fit(imputer.transform(texts)).categories_[0].tolist()
    return Column(name=name, categories=tuple(categories), missing=float(categories.index(imputer.statistics_[0])))


def _table_targets(
    values: ArrowColumn, target: str, where: str, classify: bool, class_names: tuple[str, ...]
) -> tuple[np.ndarray, tuple[str, ...]]:
    texts = category_texts(values)
    missing = [row for row, text in enumerate(texts) if text is None]
    if missing:
        raise DataError(
            f"target column {target!r}",
            where=f"{where}, row {missing[0]}",
            expected="a value",
            found="an empty cell",
            fix="fill it in, or remove the row",
        )
    if not classify:
        return numeric_column(values, target, where), ()
    names = class_names or tuple(sorted({str(text) for text in texts}, key=_natural))
    codes = {name: code for code, name in enumerate(names)}
    return _codes(np.array(texts, dtype=str), codes, f"{where}, column {target!r}"), names


def _natural(text: str) -> tuple[int, float, str]:
    try:
        return 0, float(text), text
    except ValueError:
        return 1, 0.0, text
