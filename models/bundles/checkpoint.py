"""Checkpoint: writes a tree of arrays with Orbax, and reads it with a reader that checks every size before allocating.

    _CHECKPOINT_METADATA  the handler of Orbax that wrote it
    _METADATA             the names and types of the arrays
    manifest.ocdbt        the position of the index: a B+tree with one leaf, because there are few keys
    d/, ocdbt.process_0/  data files: the index, and chunks too large for it

The index holds `NAME/.zarray`, an array's shape and dtype in JSON, and `NAME/0.0`, its numbers: one chunk, compressed by
zstd. Format: https://google.github.io/tensorstore/kvstore/ocdbt/index.html#storage-format, and Zarr version 2.

Orbax writes these files but does not read them here. Orbax and TensorStore allocate any size that a file states: a few
kilobytes can state an index of gigabytes or a chunk of terabytes, and then C++ ends the process before Python can react. A
child process with limited memory would prevent that, but would need a start for every load, and limits that depend on the
machine. The format is small, so this reader decompresses everything itself, never more than expected, and imports nothing
that a file names. It refuses everything that Orbax does not write for a tree of numpy arrays.
"""

from __future__ import annotations

import importlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, cast

import numpy as np
import orjson
import pyarrow
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from abstain.models.bundles.checkpoint_index import MOST_ARRAYS, ByteRange, open_stream, read_index, read_range
from abstain.models.errors import BundleError, clip_repr
from abstain.models.files.regular import RESTORE, read_bounded
from abstain.models.validation import refuse

METADATA_BYTES = 8 * 2**20
"""Largest size of each of the two JSON files; `MOST_ARRAYS` arrays take half of it."""
FREE_BYTES = 256 * 2**20
"""Bytes of arrays that are allowed for files of any size: a chain that never moves compresses to almost nothing."""
MOST_COMPRESSED = 100
"""Most bytes of arrays for each byte on disk, in addition to `FREE_BYTES`; float32 draws compress to nine tenths."""

_DTYPES = {"<f4": np.dtype("float32"), "<f8": np.dtype("float64"), "<i4": np.dtype("int32"), "<i8": np.dtype("int64")}
_CHUNK_HEAD = 1024
"""Bytes that zstd may add to incompressible content, in addition to a 128th of it."""
# pyarrow ships no types.
pa: Any = pyarrow
_Record = TypeVar("_Record", bound=BaseModel)


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class _Handler(_Strict):
    """`_CHECKPOINT_METADATA`."""

    item_handlers: Literal["orbax.checkpoint._src.handlers.standard_checkpoint_handler.StandardCheckpointHandler"]
    metrics: Annotated[dict[str, float], Field(max_length=0)]
    performance_metrics: dict[str, float]
    init_timestamp_nsecs: int
    commit_timestamp_nsecs: int
    custom_metadata: Annotated[dict[str, float], Field(max_length=0)]


class _Key(_Strict):
    key: str
    key_type: Literal[2]
    """A key of a dict."""


class _Value(_Strict):
    value_type: Literal["np.ndarray"]
    skip_deserialize: Literal[False]


class _Leaf(_Strict):
    key_metadata: Annotated[list[_Key], Field(min_length=1, max_length=16)]
    value_metadata: _Value


class _Tree(_Strict):
    """`_METADATA`."""

    tree_metadata: Annotated[dict[str, _Leaf], Field(max_length=MOST_ARRAYS)]
    use_ocdbt: Literal[True]
    use_zarr3: Literal[False]
    store_array_data_equal_to_fill_value: Literal[True]
    custom_metadata: None


class _Compressor(_Strict):
    id: Literal["zstd"]
    level: int


class _Zarray(_Strict):
    """`NAME/.zarray`."""

    shape: Annotated[list[Annotated[int, Field(ge=1)]], Field(max_length=32)]
    chunks: list[int]
    dtype: Literal["<f4", "<f8", "<i4", "<i8"]
    compressor: _Compressor
    dimension_separator: Literal["."]
    fill_value: None
    filters: None
    order: Literal["C"]
    zarr_format: Literal[2]


@dataclass(frozen=True)
class Stored:
    """An array that has not been read yet: its shape, its dtype, and its compressed numbers or their position."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    chunk: bytes | ByteRange

    @property
    def nbytes(self) -> int:
        """The memory of the array in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


def write_checkpoint(folder: Path, tree: Any) -> None:
    """Writes nested dicts of numpy arrays into a new folder, with Orbax."""
    ocp: Any = importlib.import_module("orbax.checkpoint")  # takes half a second, and only writing needs it
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder.absolute(), tree)


def open_checkpoint(folder: Path, sizes: dict[str, int]) -> dict[str, Any]:
    """Reads the index of a checkpoint; returns nested dicts of `Stored`, without reading any array.

    Args:
        sizes: the size in bytes of every file of the folder, by its path there, from `check_contents`.

    Raises:
        BundleError: it is damaged, not in the form that Orbax writes for numpy arrays, or its arrays are implausibly large
            for its files.
    """
    try:
        _metadata(folder / "_CHECKPOINT_METADATA", _Handler)
        names = _names(_metadata(folder / "_METADATA", _Tree))
        index = read_index(folder, sizes)
        stored = {name: _stored(name, index) for name in names}
        if superfluous := index.keys() - {key for name, array in stored.items() for key in _keys(name, array)}:
            raise ValueError(f"a key that belongs to no array, {clip_repr(min(superfluous))}")
    except (ValueError, OSError, MemoryError) as error:
        raise _damaged(folder, error) from error
    _check_total(folder, sum(array.nbytes for array in stored.values()), sum(sizes.values()))
    tree: dict[str, Any] = {}
    for name, path in names.items():
        branch = tree
        for key in path[:-1]:
            branch = branch.setdefault(key, {})
        branch[path[-1]] = stored[name]
    return tree


def read_arrays(folder: Path, tree: dict[str, Any]) -> dict[str, Any]:
    """Reads the arrays that `open_checkpoint` returned; the caller has compared their shapes with the manifest.

    Raises:
        BundleError: a chunk is damaged, or does not contain exactly the array's bytes.
    """
    try:
        return _read(folder, tree)
    except (ValueError, OSError, MemoryError) as error:
        raise _damaged(folder, error) from error


# ---- JSON ------------------------------------------------------------------------------------------------------------


def _metadata(path: Path, record: type[_Record]) -> _Record:
    content = read_bounded(path, METADATA_BYTES, BundleError)
    try:
        return record.model_validate(orjson.loads(content))
    except orjson.JSONDecodeError as error:
        raise ValueError(f"{path.name}: {error}") from error
    except ValidationError as error:
        raise ValueError(str(refuse(error, BundleError, record, where=path.name))) from error


def _names(tree: _Tree) -> dict[str, tuple[str, ...]]:
    """Returns the keys of each array in the nested dicts, by the array's name.

    Raises:
        ValueError: two arrays have one name, or an array has the name of a dict.
    """
    paths = [tuple(key.key for key in leaf.key_metadata) for leaf in tree.tree_metadata.values()]
    names = {".".join(path): path for path in paths}
    parents = {path[:depth] for path in paths for depth in range(1, len(path))}
    if len(names) < len(paths) or parents & set(paths):
        raise ValueError("_METADATA: two arrays of one name")
    return names


# ---- arrays ----------------------------------------------------------------------------------------------------------


def _stored(name: str, index: dict[str, bytes | ByteRange]) -> Stored:
    written = index.get(f"{name}/.zarray")
    if not isinstance(written, bytes):
        raise ValueError(f"{name}: expected its shape in the index, found none")
    try:
        head = _Zarray.model_validate(orjson.loads(written))
    except ValidationError as error:
        raise ValueError(str(refuse(error, BundleError, _Zarray, where=name))) from error
    shape = tuple(head.shape)
    if head.chunks != head.shape:
        raise ValueError(f"{name}: expected one chunk of shape {clip_repr(shape)}, found {clip_repr(head.chunks)}")
    chunk = index.get(_chunk_key(name, shape))
    if chunk is None:
        raise ValueError(f"{name}: expected its numbers in the index, found none")
    array = Stored(shape, _DTYPES[head.dtype], chunk)
    length = chunk.length if isinstance(chunk, ByteRange) else len(chunk)
    if length > array.nbytes + array.nbytes // 128 + _CHUNK_HEAD:
        raise ValueError(f"{name}: a chunk of {length:,} bytes for {array.nbytes:,} bytes of numbers")
    return array


def _keys(name: str, array: Stored) -> tuple[str, str]:
    return f"{name}/.zarray", _chunk_key(name, array.shape)


def _chunk_key(name: str, shape: tuple[int, ...]) -> str:
    return f"{name}/{'.'.join('0' * len(shape)) or '0'}"


def _check_total(folder: Path, total: int, on_disk: int) -> None:
    most = FREE_BYTES + MOST_COMPRESSED * on_disk
    if total > most:
        raise BundleError(
            "arrays",
            where=str(folder),
            expected=f"at most {most:,} bytes in files of {on_disk:,}",
            found=f"{total:,}",
            fix=RESTORE,
        )


def _read(folder: Path, tree: dict[str, Any]) -> dict[str, Any]:
    return {
        key: _array(folder, key, value) if isinstance(value, Stored) else _read(folder, value)
        for key, value in tree.items()
    }


def _array(folder: Path, name: str, stored: Stored) -> np.ndarray:
    array = np.empty(stored.shape, stored.dtype)
    chunk = stored.chunk if isinstance(stored.chunk, bytes) else read_range(folder, stored.chunk)
    stream, target, done = open_stream(chunk), memoryview(cast("Any", array.reshape(-1).view(np.uint8))), 0
    while done < len(target) and (size := stream.readinto(target[done:])):
        done += size
    if done < len(target) or stream.read(1):
        raise ValueError(f"{name}: expected {len(target):,} bytes, found {'more' if done == len(target) else done}")
    return array


def _damaged(folder: Path, error: Exception) -> BundleError:
    return BundleError(
        "cannot be restored",
        where=str(folder),
        found=f"{str(error)[:300] or type(error).__name__}, not what Orbax writes for numpy arrays",
        fix=RESTORE,
    )
