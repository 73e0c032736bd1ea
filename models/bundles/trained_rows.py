"""Trained rows: keyed hashes of the rows that a model was trained on, so that `abstain calibrate` can recognise them.

    rows/trained.npz    key [16] uint8, hashes [distinct rows] uint32, repeats []

A row's hash is the first 32 bits of BLAKE2b (RFC 7693), with the bundle's own key, of the float32 input of the compiled
program. So neither the dtype of a file nor the order of its rows matters. A row cannot be computed from its hash. But
everybody who has the bundle, and so the key, can test whether a known row was probably a training row; one in
2³² / (number of training rows) other rows is mistaken for a training row.
"""

from __future__ import annotations

import hashlib
import secrets
import zipfile
from io import BufferedReader
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Num, UInt8, UInt32

from abstain.models.errors import BundleError
from abstain.models.files.regular import open_regular
from abstain.models.prediction.preprocessing import Preprocessing, on_host

FILE = "rows/trained.npz"
KEY_BYTES = 16
_DIGEST_BYTES = 4
REPEATS = 0.02
"""Share of new rows that may equal training rows, in addition to those expected by chance."""


class TrainedRows(NamedTuple):
    """The hashes of training rows.

    Attributes:
        key: the key of the hash function.
        hashes: the distinct hashes, sorted.
        repeats: the share of the fit's own calibration rows that equal a training row; the same is expected of new rows.
    """

    key: UInt8[np.ndarray, " bytes"]
    hashes: UInt32[np.ndarray, " distinct"]
    repeats: float


def hash_training_rows(
    preprocessing: Preprocessing, train: Num[np.ndarray, "rows ..."], calibration: Num[np.ndarray, "others ..."]
) -> TrainedRows:
    """Hashes training rows with a new random key.

    Args:
        calibration: the fit's own calibration rows, for `repeats`.
    """
    key = np.frombuffer(secrets.token_bytes(KEY_BYTES), np.uint8)
    bare = TrainedRows(key, np.unique(row_hashes(key, preprocessing, train)), 0.0)
    return bare._replace(repeats=float(find_trained(bare, preprocessing, calibration).mean()))


def find_trained(
    trained: TrainedRows, preprocessing: Preprocessing, rows: Num[np.ndarray, "rows ..."]
) -> Bool[np.ndarray, " rows"]:
    """Returns for each row whether it equals a training row."""
    return np.isin(row_hashes(trained.key, preprocessing, rows), trained.hashes)


def most_by_chance(trained: TrainedRows, rows: int) -> float:
    """Returns how many of `rows` new rows may equal training rows by chance; if more do, the rows are not new.

    The share expected by chance is that of the fit's own calibration rows: in tables with few distinct rows, new rows
    repeat training rows. `REPEATS` is added to it, or four standard errors if that is more.
    """
    share = trained.repeats
    return rows * (share + max(REPEATS, 4 * (share * (1 - share) / rows) ** 0.5))


def row_hashes(
    key: UInt8[np.ndarray, " bytes"], preprocessing: Preprocessing, rows: Num[np.ndarray, "rows ..."]
) -> UInt32[np.ndarray, " rows"]:
    """Returns the hash of each row's numbers in float32; 0 and −0 are one number, and so are all NaN."""
    numbers = on_host(preprocessing, rows).reshape(len(rows), -1).astype("<f4") + np.float32(0)
    numbers[np.isnan(numbers)] = np.nan
    # The hash must not depend on the memory layout.
    numbers = np.ascontiguousarray(numbers)
    start = hashlib.blake2b(key=key.tobytes(), digest_size=_DIGEST_BYTES)
    digests: list[bytes] = []
    for row in numbers:
        digest = start.copy()
        digest.update(row.data)
        digests.append(digest.digest())
    return np.frombuffer(b"".join(digests), "<u4").astype(np.uint32)


def write_trained(folder: Path, trained: TrainedRows) -> None:
    """Writes `rows/trained.npz` into the folder of a new bundle."""
    path = folder / FILE
    path.parent.mkdir()
    np.savez(path, key=trained.key, hashes=trained.hashes, repeats=np.float64(trained.repeats))


def read_trained(folder: Path, files: dict[str, str]) -> TrainedRows | None:
    """Reads the hashes from a bundle after its files have been verified; None for an older bundle without them.

    Raises:
        BundleError: the file does not have the form that `write_trained` writes.
    """
    if FILE not in files:
        return None
    try:
        with open_regular(folder / FILE, BundleError) as file:
            _check_uncompressed(file)
            arrays = np.load(file, allow_pickle=False)
            key, hashes, repeats = arrays["key"], arrays["hashes"], float(arrays["repeats"])
    except BundleError:
        raise
    except Exception as error:  # zipfile, zlib and numpy raise many types of errors for a damaged file.
        raise BundleError("cannot be read", where=str(folder / FILE), found=str(error)) from error
    if key.dtype != np.uint8 or key.shape != (KEY_BYTES,) or hashes.dtype != np.uint32 or hashes.ndim != 1:
        found = f"key {key.dtype} {key.shape}, hashes {hashes.dtype} {hashes.shape}"
        raise BundleError("trained rows", where=str(folder / FILE), expected="uint8 [16], uint32 [rows]", found=found)
    if not 0 <= repeats <= 1:  # also refuses NaN
        raise BundleError("repeats", where=str(folder / FILE), expected="a share from 0 to 1", found=repeats)
    return TrainedRows(key, hashes, repeats)


def _check_uncompressed(file: BufferedReader) -> None:
    """Refuses compressed arrays, which may be a thousand times as large as the file; `write_trained` does not compress."""
    with zipfile.ZipFile(file) as archive:
        if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
            raise ValueError("arrays that are compressed")
    file.seek(0)
