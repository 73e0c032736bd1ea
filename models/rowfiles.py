"""The files that rows come in, for training and for offline scoring: .npz arrays, .csv and .parquet tables.

Everything here only reads and refuses; nothing is unpickled, and no NaN or infinity gets past `checked_inputs`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.csv as arrow_csv
import pyarrow.parquet as arrow_parquet
from jaxtyping import Num

from models.errors import DataError
from models.preprocessing import ArrowTable

# pyarrow ships no types.
pa: Any = pyarrow
csv: Any = arrow_csv
parquet: Any = arrow_parquet

TABLES = {".csv", ".parquet"}
_PLAIN = "an .npz of plain arrays"


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz file, by name.

    Raises:
        DataError: there is no such file, it is no .npz, or an array in it would have to be unpickled.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: np.asanyarray(file[name]) for name in file.files}
    except FileNotFoundError as error:
        raise DataError("no such file or embedded set", where=str(path)) from error
    except Exception as error:  # zipfile, zlib and numpy raise a dozen kinds for a damaged file.
        # numpy recommends unpickling where it finds no array; nobody should.
        found = "no archive, or Python objects in it" if "pickle" in str(error) else str(error)
        raise DataError("cannot be read", where=str(path), expected=_PLAIN, found=found) from error
    for name, array in arrays.items():
        # numpy hands out the bytes of a member that is no array.
        if array.dtype.hasobject or (array.dtype.kind == "S" and not array.shape):
            raise DataError("cannot be read", where=f"{path}, {name}", expected=_PLAIN, found="something else")
    return arrays


def read_table(path: Path) -> ArrowTable:
    """A .csv or .parquet file.

    Raises:
        DataError: it cannot be read, or has no rows.
    """
    try:
        if path.suffix == ".csv":
            # As text: a category must not change its name with the company it keeps (01 among numbers is 1).
            table = csv.read_csv(
                path,
                convert_options=csv.ConvertOptions(
                    default_column_type=pa.string(), strings_can_be_null=True, null_values=[""]
                ),
            )
        else:
            table = parquet.read_table(path)
        _ = table.column_names  # decoded only when asked for
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        raise DataError("cannot be read", where=str(path), found=str(error).splitlines()[0]) from error
    if not table.num_rows:
        raise DataError("rows", where=str(path), expected="at least one", found="an empty set")
    return table


def checked_inputs(x: np.ndarray, where: str) -> Num[np.ndarray, "rows ..."]:
    """Numbers `[rows, …features]`, a feature axis added where there is none, all within float32's range.

    Raises:
        DataError: naming the row and feature at fault.
    """
    if x.ndim < 1 or x.dtype.kind not in "iufb":
        raise DataError("inputs", where=where, expected="numbers [rows, …features]", found=f"{x.dtype} {x.shape}")
    x = x[:, None] if x.ndim == 1 else x
    x = x.astype(np.uint8) if x.dtype == bool else x
    if 0 in x.shape[1:]:
        raise DataError(where, expected="at least one feature", found=f"shape {x.shape}")
    if np.issubdtype(x.dtype, np.floating):
        fits = np.isfinite(x) & (np.abs(x) <= np.finfo(np.float32).max)
        if not fits.all():
            place = tuple(int(i) for i in np.argwhere(~fits)[0])
            raise DataError(
                f"row {place[0]}, feature {list(place[1:])}", where=where, expected="a finite number", found=x[place]
            )
    return x
