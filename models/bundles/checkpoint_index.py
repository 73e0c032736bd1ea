"""Reads the index of an Orbax checkpoint: the position of each array's bytes. Checks every size before allocating memory."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pyarrow as pa

from abstain.models.errors import BundleError, clip_repr
from abstain.models.files.regular import open_regular, read_bounded

MOST_ARRAYS = 10_000
"""Most arrays in one checkpoint."""
INDEX_BYTES = 32 * 2**20
"""Largest size of a decompressed index; `MOST_ARRAYS` arrays take a third of it."""
_MANIFEST_MAGIC = bytes.fromhex("0cdb3a2a")
_NODE_MAGIC = bytes.fromhex("0cdb20de")
_NAME_BYTES = 1024
_VERSIONS = 1024
_DATA_FILES = 1024


@dataclass(frozen=True)
class ByteRange:
    """A range of bytes in a data file."""

    file: str
    offset: int
    length: int


class _FieldReader:
    """Reads numbers and bytes one after another.

    Every method raises ValueError at the end of the content, and takes at most as much memory as the content.
    """

    def __init__(self, content: bytes) -> None:
        self._content = content
        self._position = 0

    def take(self, size: int) -> bytes:
        """Reads a number of bytes."""
        taken = self._content[self._position : self._position + size]
        if len(taken) != size:
            raise ValueError("the index ends too early")
        self._position += size
        return taken

    def byte(self) -> int:
        """Reads one byte as a number."""
        return self.take(1)[0]

    def number(self) -> int:
        """Reads an unsigned number with 7 bits in each byte, the lowest bits first."""
        value = 0
        for shift in range(0, 63, 7):
            part = self.byte()
            value |= (part & 0x7F) << shift
            if part < 0x80:
                return value
        raise ValueError("a number of the index is too large")

    def numbers(self, count: int) -> list[int]:
        """Reads a list of numbers."""
        return [self.number() for _ in range(count)]

    def count(self, most: int) -> int:
        """Reads the number of the entries that follow, at most `most`."""
        entries = self.number()
        if entries > most:
            raise ValueError(f"the index states {entries} entries, expected at most {most}")
        return entries

    def texts(self, count: int, per_text: int = 0) -> tuple[list[str], list[int]]:
        """Reads texts, each stored as the length of its prefix shared with the previous one and the rest.

        Also returns `per_text` numbers for each text.
        """
        shared = [0, *self.numbers(count - 1)] if count else []
        own = self.numbers(count)
        numbers = self.numbers(count * per_text)
        texts: list[str] = []
        last = b""
        for length, rest in zip(shared, own, strict=True):
            last = last[:length] + self.take(rest)
            if len(last) > _NAME_BYTES:
                raise ValueError(f"a name of the index is too long, {len(last)} bytes")
            texts.append(last.decode())
        return texts, numbers

    def end(self) -> None:
        """Checks that the content has been read to its end."""
        if self._position != len(self._content):
            raise ValueError("the index is longer than it states")


def read_index(folder: Path, sizes: dict[str, int]) -> dict[str, bytes | ByteRange]:
    """Reads every key of the checkpoint; returns its value, or the value's position in a data file."""
    root = _read_root(read_bounded(folder / "manifest.ocdbt", INDEX_BYTES, BundleError), sizes)
    return {} if root is None else _read_leaf(read_range(folder, root), sizes)


def _read_root(manifest: bytes, sizes: dict[str, int]) -> ByteRange | None:
    """Returns the position of the newest leaf; None for an empty tree."""
    fields = _open_envelope(manifest, _MANIFEST_MAGIC)
    fields.take(16)  # the database's id
    if fields.number():
        raise ValueError("manifest.ocdbt: expected the index's versions in this file")
    fields.numbers(2)  # limits for writers
    fields.byte()
    if fields.number():
        fields.take(4)  # how much writers compress
    files = _data_files(fields, sizes)
    versions = fields.count(_VERSIONS)
    fields.numbers(versions)
    heights = [fields.byte() for _ in range(versions)]
    chosen, offsets, lengths = (fields.numbers(versions) for _ in range(3))
    if not versions or not files:
        return None
    if heights[-1]:
        raise ValueError(f"expected an index of one leaf, found {heights[-1] + 1} levels")
    return _byte_range(files, sizes, chosen[-1], offsets[-1], lengths[-1])


def _read_leaf(node: bytes, sizes: dict[str, int]) -> dict[str, bytes | ByteRange]:
    fields = _open_envelope(node, _NODE_MAGIC)
    if fields.byte():
        raise ValueError("expected an index of one leaf, found more levels")
    files = _data_files(fields, sizes)
    count = fields.count(2 * MOST_ARRAYS)
    keys, _ = fields.texts(count)
    lengths = fields.numbers(count)
    outside = [fields.byte() for _ in range(count)]
    apart = sum(kind == 1 for kind in outside)
    chosen, offsets = fields.numbers(apart), fields.numbers(apart)
    if any(kind > 1 for kind in outside):
        raise ValueError("a value of the index is neither in the index nor in a data file")
    positions = zip(chosen, offsets, strict=True)
    values: dict[str, bytes | ByteRange] = {}
    for key, length, kind in zip(keys, lengths, outside, strict=True):
        values[key] = _byte_range(files, sizes, *next(positions), length) if kind else fields.take(length)
    fields.end()
    return values


def _open_envelope(content: bytes, magic: bytes) -> _FieldReader:
    """Returns a reader of a part of the index, without its header and its checksum.

    The checksum is not needed, because the bundle's sha256 covers these bytes.
    """
    if len(content) < 18 or content[:4] != magic or struct.unpack("<Q", content[4:12])[0] != len(content):
        raise ValueError("a part of the index has a header that does not match its type and length")
    version, compressed = content[12], content[13]
    if version or compressed > 1:
        raise ValueError(f"the index is of version {version}, compression {compressed}; expected 0, and 0 or 1")
    body = content[14:-4]
    return _FieldReader(decompress(body, INDEX_BYTES) if compressed else body)


def _data_files(fields: _FieldReader, sizes: dict[str, int]) -> list[str]:
    """Reads the table of data files, and checks that each of them is in the checkpoint."""
    count = fields.count(_DATA_FILES)
    files, _ = fields.texts(count, per_text=1)
    if unknown := set(files) - sizes.keys():
        raise ValueError(f"the index names a data file that the checkpoint does not have, {clip_repr(min(unknown))}")
    return files


def _byte_range(files: list[str], sizes: dict[str, int], chosen: int, offset: int, length: int) -> ByteRange:
    if chosen >= len(files) or offset + length > sizes[files[chosen]]:
        raise ValueError("a value of the index is beyond the end of its data file")
    return ByteRange(files[chosen], offset, length)


def read_range(folder: Path, position: ByteRange) -> bytes:
    """Reads a range of bytes of the checkpoint."""
    with open_regular(folder / position.file, BundleError) as file:
        file.seek(position.offset)
        return file.read(position.length)


def decompress(content: bytes, most: int) -> bytes:
    """Decompresses content that zstd has compressed.

    Raises:
        ValueError: the result has more than `most` bytes.
    """
    result = cast("bytes", open_stream(content).read(most + 1))
    if len(result) > most:
        raise ValueError(f"a part of the index has more than {most:,} bytes")
    return result


def open_stream(content: bytes) -> Any:
    """Opens content that zstd has compressed, as a stream that decompresses only the bytes that are read."""
    return cast("Any", pa.CompressedInputStream(pa.BufferReader(content), "zstd"))
