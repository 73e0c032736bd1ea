"""Sources: reads and checks the rows of a path or an embedded set.

    .npz · a folder of IDX files · the name of an embedded set     here
    tables: .csv, .tsv, .txt, .parquet, .arrow                      `tables.py`

Files are checked only here. The result has features without NaN (except gaps in tables) and targets that fit the
likelihood: class indices, or numbers.
"""

from __future__ import annotations

import gzip
import math
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
from jaxtyping import Num

from abstain.models.bundles.data_record import column_kinds
from abstain.models.errors import AbstainError, DataError, suggest
from abstain.models.files.model_rows import check_codes, order_features, reshape_rows, rows_of_table
from abstain.models.files.reading import PLAIN, ColumnKind, FileDialect, Reading
from abstain.models.files.room import check_is_file, check_room
from abstain.models.files.row_files import checked_inputs, is_table, read_npz, read_table, read_table_file
from abstain.models.prediction.posterior import Model
from abstain.training.config.data import DataConfig
from abstain.training.config.section import Size
from abstain.training.data.embedded import EMBEDDED
from abstain.training.data.group_columns import Key, array_key
from abstain.training.data.hints import array_hints, class_hints
from abstain.training.data.rows import Rows, Source, as_text, class_indices, numbers
from abstain.training.data.splitting import check_split_settings
from abstain.training.data.table_keys import check_table_keys
from abstain.training.data.tables import read_table_source

IDX_NAMES = {
    "x_train": "train-images-idx3-ubyte",
    "y_train": "train-labels-idx1-ubyte",
    "x_test": "t10k-images-idx3-ubyte",
    "y_test": "t10k-labels-idx1-ubyte",
}
PIECE_BYTES = 2**20
PARTS = ("_train", "_test", "_calibration", "")


def read_source(
    where: str,
    config: DataConfig,
    fitted: Model | None = None,
    *,
    classify: bool,
    dialect: FileDialect | None = None,
) -> Source:
    """Reads and checks the rows of a source.

    Args:
        where: a path, or the name of an embedded set.
        fitted: a fitted model; the source must have its classes and table columns.
        classify: whether targets are classes; otherwise they are numbers.
        dialect: how the source of the fit was written, for a text table that is not certain.

    Raises:
        DataError: the source cannot be read or does not fit; the text names the file, the array or column, and the row.
    """
    check_split_settings(config, classify=classify)
    path = Path(where)
    if not fitted:
        check_table_keys(config, path)
    if is_table(path):
        reading = config.reading
        target: ColumnKind = "category" if classify else "number"
        kinds = column_kinds(fitted) if fitted else {**reading.kinds, str(config.target): target}
        file = read_table_file(path, reading.model_copy(update={"dialect": dialect, "kinds": kinds}))
        source = read_table_source(file.table, where, config, fitted, classify=classify, notes=file.notes)
        return replace(source, dialect=file.dialect)
    arrays = read_arrays(where, config.calibration_size, config.test_size)
    return _array_source(arrays, where, config, fitted, classify=classify)


def read_inputs(where: str, model: Model, reading: Reading = PLAIN) -> Num[np.ndarray, "rows ..."]:
    """Reads the inputs of an OOD set: `x_test` if it exists, else `x`, or the model's columns of a table.

    Labels are ignored.

    Args:
        reading: the keys for reading tables, of the model's fit.

    Raises:
        DataError: the set cannot be read, is empty, has another feature shape, or holds an unknown category or code.
    """
    path = Path(where)
    if is_table(path):
        table = read_table(path, reading.model_copy(update={"kinds": column_kinds(model)}))
        x: np.ndarray = reshape_rows(rows_of_table(table, model, where), model, where)
    else:
        arrays = read_arrays(where, 1, 0.5)
        key = "x_test" if "x_test" in arrays else "x"
        if key not in arrays:
            raise DataError(
                "arrays",
                where=where,
                expected="x_test or x",
                found=", ".join(arrays),
                fix="rename the array of the inputs to x",
            )
        x = order_features(checked_inputs(arrays[key], f"{where}, {key}"), arrays, model, where)
        x = reshape_rows(x, model, where)
        check_codes(x, model.preprocessing, where)
    return x


def read_arrays(where: str, calibration_size: Size, test_size: Size) -> dict[str, np.ndarray]:
    """Reads the arrays of an .npz, a folder of IDX files or an embedded set, by name."""
    if where in EMBEDDED:
        return EMBEDDED[where](calibration_size, test_size)
    path = Path(where)
    if not os.path.exists(where):
        known = ", ".join(EMBEDDED)
        raise DataError(
            "no such file",
            where=where,
            expected=f"a path, or one of {known}",
            found="nothing",
            fix=suggest(where, EMBEDDED),
        )
    return _read_idx(path) if path.is_dir() else read_npz(path)


def _array_source(
    arrays: dict[str, np.ndarray], where: str, config: DataConfig, fitted: Model | None, *, classify: bool
) -> Source:
    pairs = {part: pair for part in PARTS if (pair := _pair(arrays, part, where))}
    if not pairs:
        expected = "x_train, y_train, x_test, y_test; or x, y"
        raise DataError("arrays", where=where, expected=expected, found=", ".join(arrays), fix="rename the arrays")
    shapes = sorted({x.shape[1:] for x, _ in pairs.values()})
    if len(shapes) > 1:
        raise DataError(
            "feature shape",
            where=where,
            expected="one for all parts",
            found=" and ".join(map(str, shapes)),
            fix="give all parts the same features",
        )
    if fitted:
        pairs = {part: (order_features(x, arrays, fitted, where), y) for part, (x, y) in pairs.items()}
    # Rows of another shape are refused where the shape is known to matter.
    if fitted and shapes[0] == fitted.feature_shape:
        for part, (x, _) in pairs.items():
            check_codes(x, fitted.preprocessing, f"{where}, x{part}")
    features = tuple(as_text(name) for name in arrays.get("feature_names", ()))
    width = int(np.prod(shapes[0]))
    if features and len(features) != width:
        raise DataError(
            "feature_names",
            where=where,
            expected=f"{width} names",
            found=len(features),
            fix="add a name for each feature, or leave out feature_names",
        )

    names: tuple[str, ...] = _class_names(arrays, where, fitted) if classify else ()
    targets = {part: y for part, (_, y) in pairs.items()}
    if classify:
        indexed, limited = "class_names" in arrays, fitted is None
        checked, names = class_indices(targets, names, where, limited=limited, indexed=indexed)
    else:
        checked = {part: numbers(y, f"{where}, y{part}") for part, y in targets.items()}
    rows = {part: Rows(x, checked[part]) for part, (x, _) in pairs.items()}
    part = "_train" if "_train" in rows else ""
    key = _key(arrays, part, rows, config, where, fitted)
    if "" in rows:
        own, chosen = _own_split(rows[""], arrays, where, config.split_index)
        if chosen and not part:
            key = _own_key(key, chosen, config, where)
        rows |= own
    hints = () if fitted or config.split_by else array_hints(arrays, features, rows.get(part))
    if classify and not fitted and part in rows:
        classes = [str(names[int(code)]) for code in np.unique(rows[part].y)]
        hints += class_hints("y", classes, len(rows[part]))
    return Source(
        where,
        rows.get("_train", rows.get("")),
        rows.get("_test"),
        rows.get("_calibration"),
        names,
        features,
        key=key,
        hints=hints,
    )


def _key(
    arrays: dict[str, np.ndarray],
    part: str,
    rows: dict[str, Rows],
    config: DataConfig,
    where: str,
    fitted: Model | None,
) -> Key | None:
    """Returns the group or time of every row to split; None if a file for a fitted model does not have it."""
    absent = config.split_by is not None and not {config.split_by, f"{config.split_by}{part}"} & {*arrays}
    if config.split_by is None or part not in rows or (fitted and absent):
        return None
    key = array_key(arrays, part, len(rows[part]), config, where)
    if part and f"{config.split_by}_test" in arrays:
        _refuse_shared_groups(key, arrays[f"{config.split_by}_test"], config, where)
    return key


def _own_key(
    key: np.ndarray | None, chosen: tuple[np.ndarray, np.ndarray], config: DataConfig, where: str
) -> np.ndarray | None:
    """Returns the key of the source's own training rows."""
    if key is not None:
        _refuse_shared_groups(key[chosen[0]], key[chosen[1]], config, where)
        return key[chosen[0]]
    return None


def _refuse_shared_groups(train: np.ndarray, test: np.ndarray, config: DataConfig, where: str) -> None:
    shared = np.intersect1d(train, test)
    if config.group is not None and shared.size:
        raise DataError(
            "data.group",
            where=where,
            expected="the source's own training and test rows to share no group",
            found=f"{len(shared)} groups in both, such as {shared[0]}",
            fix="leave out group, or the source's own split",
        )


def _pair(arrays: dict[str, np.ndarray], part: str, where: str) -> tuple[np.ndarray, np.ndarray] | None:
    """Returns the checked inputs of a part and its targets, one per row; None if it has neither."""
    x, y = arrays.get(f"x{part}"), arrays.get(f"y{part}")
    if x is None and y is None:
        return None
    if x is None or y is None:
        absent = f"x{part}" if x is None else f"y{part}"
        raise DataError(
            f"array {absent} is missing",
            where=where,
            found=", ".join(arrays),
            fix="add the array, or remove the other one of the pair",
        )
    x = checked_inputs(x, f"{where}, x{part}")
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.shape != (len(x),):
        expected = f"shape ({len(x)},), one target a row"
        raise DataError(
            f"y{part}", where=where, expected=expected, found=f"shape {y.shape}", fix="give each row of x one target"
        )
    if not len(x):
        raise DataError(
            f"x{part}",
            where=where,
            expected="at least one row",
            found="an empty set",
            fix="add rows, or remove the part",
        )
    return x, y


def _class_names(arrays: dict[str, np.ndarray], where: str, fitted: Model | None) -> tuple[str, ...]:
    own = tuple(as_text(name) for name in arrays.get("class_names", ()))
    if fitted and own and own != fitted.class_names:
        raise DataError(
            "class_names",
            where=where,
            expected=f"the model's: {', '.join(fitted.class_names)}",
            found=", ".join(own),
            fix="use the names and order of the fit, or leave out class_names",
        )
    return fitted.class_names if fitted else own


def _own_split(
    rows: Rows, arrays: dict[str, np.ndarray], where: str, index: int
) -> tuple[dict[str, Rows], tuple[np.ndarray, np.ndarray] | None]:
    """Returns the parts that `train_idx` and `test_idx` `[splits, rows]` define, and the indices of their rows."""
    if "train_idx" not in arrays or "test_idx" not in arrays:
        return {}, None
    parts: dict[str, Rows] = {}
    for part in ("_train", "_test"):
        key = f"{part[1:]}_idx"
        splits = arrays[key]
        if splits.ndim != 2 or not np.issubdtype(splits.dtype, np.integer):
            raise DataError(
                key,
                where=where,
                expected="integers [splits, rows]",
                found=f"{splits.dtype} {splits.shape}",
                fix="save the indices as an integer array of this shape",
            )
        if index >= len(splits):
            raise DataError(
                "data.split_index",
                where=where,
                expected=f"0 … {len(splits) - 1}",
                found=index,
                fix="set it to a split that the file has",
            )
        chosen = splits[index]
        if not chosen.size:
            raise DataError(
                f"{key}[{index}]",
                where=where,
                expected="at least one row",
                found="none",
                fix="add indices to the split",
            )
        outside = chosen[(chosen < 0) | (chosen >= len(rows))]
        if outside.size:
            raise DataError(
                f"{key}[{index}]",
                where=where,
                expected=f"rows 0 … {len(rows) - 1}",
                found=outside[0],
                fix="count rows from 0",
            )
        if len(np.unique(chosen)) < len(chosen):
            # A repeated row could be both a training row and a calibration row.
            values, counts = np.unique(chosen, return_counts=True)
            found = f"row {values[counts.argmax()]} {counts.max()} times"
            raise DataError(
                f"{key}[{index}]", where=where, expected="each row once", found=found, fix="remove the repeated index"
            )
        parts[part] = rows.take(chosen)
    shared = np.intersect1d(arrays["train_idx"][index], arrays["test_idx"][index])
    if shared.size:
        raise DataError(
            f"train_idx[{index}] and test_idx[{index}]",
            where=where,
            expected="no row in both",
            found=f"row {shared[0]}",
            fix="remove the row from one of them",
        )
    return parts, (arrays["train_idx"][index], arrays["test_idx"][index])


# ---- IDX -------------------------------------------------------------------------------------------------------------


def _read_idx(folder: Path) -> dict[str, np.ndarray]:
    arrays: dict[str, np.ndarray] = {}
    taken = 0
    for name, file in IDX_NAMES.items():
        spellings = [f"{stem}{end}" for stem in (file, file.replace("-idx", ".idx")) for end in ("", ".gz")]
        existing = [folder / spelling for spelling in spellings if (folder / spelling).exists()]
        # Some archives of MNIST also contain folders with these names.
        path = next((path for path in existing if not path.is_dir()), None)
        if path is not None:
            arrays[name] = _read_idx_file(path, taken)
            taken += arrays[name].nbytes
    if not arrays:
        expected = ", ".join(IDX_NAMES.values())
        raise DataError(
            "no IDX files",
            where=str(folder),
            expected=expected,
            found="none of them",
            fix="name the files as MNIST does, or save the rows as an .npz",
        )
    return arrays


def _read_idx_file(path: Path, taken: int) -> np.ndarray:
    """Reads one IDX file: two zero bytes, the type (8: unsigned byte), the number of axes, their lengths, the data.

    Reads and unpacks at most as many bytes as the header states and memory allows.

    Args:
        taken: the number of bytes that the arrays of the folder's other files take.
    """
    check_is_file(path)
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            start = file.read(4)
            axes = start[3] if len(start) > 3 else 0
            lengths = file.read(4 * axes)
            if start[:3] != b"\0\0\x08" or not axes or len(lengths) < 4 * axes:
                found = start.hex() or "nothing"
                raise DataError(
                    "header",
                    where=str(path),
                    expected="an IDX file of unsigned bytes",
                    found=found,
                    fix="save the rows as an .npz",
                )
            shape = tuple(np.frombuffer(lengths, ">u4").tolist())
            # With Python's integers, because the product of the lengths in a damaged header may overflow numpy's.
            length = math.prod(shape)
            check_room(math.prod(axis or 1 for axis in shape), str(path), already=taken)
            content = bytearray()
            while len(content) <= length and (piece := file.read(min(PIECE_BYTES, length + 1 - len(content)))):
                content += piece
    except AbstainError:
        raise
    except Exception as error:  # gzip and zlib raise many types of exceptions for a damaged file.
        raise DataError(
            "cannot be read", where=str(path), found=str(error), fix="get the file again: it may be damaged"
        ) from error
    if len(content) != length:
        found = f"{len(content)}" if len(content) < length else "more"
        raise DataError(
            "length",
            where=str(path),
            expected=f"{length} bytes for {shape}",
            found=found,
            fix="get the file again: it is cut off or damaged",
        )
    return np.frombuffer(content, np.uint8).reshape(shape)
