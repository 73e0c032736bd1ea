"""Reads `.safetensors`: the length of a JSON header, the header with names, types, shapes and positions, and the numbers.

Nothing in such a file is code. Format: https://huggingface.co/docs/safetensors, read with all sizes checked before any memory
is allocated: each array's bytes must be those of its shape, and the arrays must fill the file without gap or overlap.
"""

from __future__ import annotations

import math
import os
from io import BufferedReader
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import numpy as np
import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from abstain.models.errors import DataError, clip_repr
from abstain.models.files.row_files import check_is_file, check_room
from abstain.models.validation import refuse
from abstain.training.importing.found import Arrays

HEADER_BYTES = 16 * 2**20
"""Most bytes of the header; a network of 10,000 arrays needs about 1 MiB."""
_BFLOAT16 = "BF16"
_DTYPES = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", _BFLOAT16: "<u2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "<i1", "U8": "<u1",
}  # fmt: skip
_METADATA = "__metadata__"


class _Entry(BaseModel):
    """One array of the header."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    dtype: Literal["F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8"]
    shape: Annotated[list[Annotated[int, Field(ge=0)]], Field(max_length=16)]
    data_offsets: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=2, max_length=2)]

    @property
    def nbytes(self) -> int:
        """The bytes that the shape needs."""
        return math.prod(self.shape) * np.dtype(_DTYPES[self.dtype]).itemsize


def read_safetensors(path: Path) -> Arrays:
    """Reads the arrays of a file, by name; `BF16` becomes float32.

    Raises:
        DataError: the file is damaged, has numbers of another type, or takes more memory than `data_limit`.
    """
    check_is_file(path)
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            entries, start = _read_header(file, size, str(path))
            check_room(2 * (size - start), str(path), "the arrays")
            return {name: _read_array(file, entry, start) for name, entry in entries.items()}
    except (OSError, ValueError, MemoryError) as error:
        found = str(error)[:300] or type(error).__name__
        raise DataError("cannot be read", where=str(path), expected="a .safetensors file", found=found) from error


def _read_header(file: BufferedReader, size: int, where: str) -> tuple[dict[str, _Entry], int]:
    """Returns the header's entries, and the position of the numbers in the file."""
    length = int.from_bytes(file.read(8), "little")
    start = 8 + length
    if size < 8 or not 2 <= length <= min(HEADER_BYTES, size - 8):
        raise ValueError(f"a header of {length:,} bytes in a file of {size:,}")
    content: Any = orjson.loads(file.read(length))
    if not isinstance(content, dict):
        raise ValueError(f"a header that is no JSON object: {clip_repr(content)}")
    entries: dict[str, _Entry] = {}
    for name, value in cast("dict[str, Any]", content).items():
        if name == _METADATA:
            continue
        try:
            entries[name] = _Entry.model_validate(value)
        except ValidationError as error:
            raise refuse(error, DataError, _Entry, where=f"{where}, {clip_repr(name)}") from error
    position = 0
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].data_offsets, item[1].nbytes)):
        if entry.data_offsets != [position, position + entry.nbytes]:
            expected = f"bytes {position:,} to {position + entry.nbytes:,} for shape {clip_repr(entry.shape)}"
            raise ValueError(
                f"{clip_repr(name)} at bytes {clip_repr(entry.data_offsets)}, where {expected} would follow"
            )
        position = entry.data_offsets[1]
    if not entries or start + position != size:
        raise ValueError(
            f"{len(entries)} arrays of {position:,} bytes in a file with {size - start:,} bytes of numbers"
        )
    return entries, start


def _read_array(file: BufferedReader, entry: _Entry, start: int) -> np.ndarray:
    file.seek(start + entry.data_offsets[0])
    numbers = np.frombuffer(file.read(entry.nbytes), _DTYPES[entry.dtype])
    if entry.dtype == _BFLOAT16:  # the upper half of a float32
        numbers = (numbers.astype("<u4") << 16).view("<f4")
    return numbers.reshape(entry.shape)
