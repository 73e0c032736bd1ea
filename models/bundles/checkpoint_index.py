"""The index of an Orbax checkpoint: which bytes of which file hold each array. Every size is checked before memory is taken."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pyarrow as pa

from abstain.models.errors import BundleError, clip_repr
from abstain.models.files.regular import open_regular, read_bounded

MOST_ARRAYS = 10_000
"""In one checkpoint."""


INDEX_BYTES = 32 * 2**20
"""Of an index, decompressed: `MOST_ARRAYS` take a third of it."""


_MANIFEST_MAGIC = bytes.fromhex("0cdb3a2a")


_NODE_MAGIC = bytes.fromhex("0cdb20de")


_NAME_BYTES = 1024


_VERSIONS = 1024


_DATA_FILES = 1024


@dataclass(frozen=True)
class Place:
    """Bytes of a data file."""

    file: str
    offset: int
    length: int


class _Fields:
    """Reads numbers and bytes one after another.

    Every method raises ValueError at the end of the content, and takes no more memory than the content has bytes.
    """

    def __init__(self, content: bytes) -> None:
        self._content = content
        self._at = 0

    def take(self, size: int) -> bytes:
        """So many bytes."""
        taken = self._content[self._at : self._at + size]
        if len(taken) != size:
            raise ValueError("the index ends too early")
        self._at += size
        return taken

    def byte(self) -> int:
        """One byte as a number."""
        return self.take(1)[0]

    def number(self) -> int:
        """An unsigned number of 7 bits a byte, the lowest first."""
        value = 0
        for shift in range(0, 63, 7):
            part = self.byte()
            value |= (part & 0x7F) << shift
            if part < 0x80:
                return value
        raise ValueError("a number of the index is too large")

    def numbers(self, count: int) -> list[int]:
        """So many numbers."""
        return [self.number() for _ in range(count)]

    def count(self, most: int) -> int:
        """A number of things that follow."""
        found = self.number()
        if found > most:
            raise ValueError(f"the index tells of {found} entries, expected at most {most}")
        return found

    def texts(self, count: int, per_text: int = 0) -> tuple[list[str], list[int]]:
        """So many texts, each given as what it shares with the one before and what follows; and a number for each."""
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
        """Checks that nothing follows."""
        if self._at != len(self._content):
            raise ValueError("the index goes on where it should end")


def read_index(folder: Path, sizes: dict[str, int]) -> dict[str, bytes | Place]:
    """Every key of the checkpoint, with its value or where that lies."""
    place = _root(read_bounded(folder / "manifest.ocdbt", INDEX_BYTES, BundleError), sizes)
    return {} if place is None else _leaf(read_place(folder, place), sizes)


def _root(manifest: bytes, sizes: dict[str, int]) -> Place | None:
    """Where the newest leaf lies; None for an empty tree."""
    fields = _enveloped(manifest, _MANIFEST_MAGIC)
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
        raise ValueError(f"an index of one leaf expected, found {heights[-1] + 1} levels")
    return _place(files, sizes, chosen[-1], offsets[-1], lengths[-1])


def _leaf(node: bytes, sizes: dict[str, int]) -> dict[str, bytes | Place]:
    fields = _enveloped(node, _NODE_MAGIC)
    if fields.byte():
        raise ValueError("an index of one leaf expected")
    files = _data_files(fields, sizes)
    count = fields.count(2 * MOST_ARRAYS)
    keys, _ = fields.texts(count)
    lengths = fields.numbers(count)
    outside = [fields.byte() for _ in range(count)]
    apart = sum(kind == 1 for kind in outside)
    chosen, offsets = fields.numbers(apart), fields.numbers(apart)
    if any(kind > 1 for kind in outside):
        raise ValueError("a value of the index is neither in it nor in a data file")
    places = zip(chosen, offsets, strict=True)
    values: dict[str, bytes | Place] = {}
    for key, length, kind in zip(keys, lengths, outside, strict=True):
        values[key] = _place(files, sizes, *next(places), length) if kind else fields.take(length)
    fields.end()
    return values


def _enveloped(content: bytes, magic: bytes) -> _Fields:
    """What lies between the head of a part of the index and its checksum: the bundle's sha256 has covered that."""
    if len(content) < 18 or content[:4] != magic or struct.unpack("<Q", content[4:12])[0] != len(content):
        raise ValueError("a part of the index has another head than its kind and its length")
    version, compressed = content[12], content[13]
    if version or compressed > 1:
        raise ValueError(f"the index is of version {version}, compression {compressed}; expected 0, and 0 or 1")
    body = content[14:-4]
    return _Fields(decompress(body, INDEX_BYTES) if compressed else body)


def _data_files(fields: _Fields, sizes: dict[str, int]) -> list[str]:
    """The table of data files, each of which lies in the checkpoint."""
    count = fields.count(_DATA_FILES)
    files, _ = fields.texts(count, per_text=1)
    if unknown := set(files) - sizes.keys():
        raise ValueError(f"the index names a data file that is none of the checkpoint's, {clip_repr(min(unknown))}")
    return files


def _place(files: list[str], sizes: dict[str, int], chosen: int, offset: int, length: int) -> Place:
    if chosen >= len(files) or offset + length > sizes[files[chosen]]:
        raise ValueError("a value of the index lies beyond its data file")
    return Place(files[chosen], offset, length)


def read_place(folder: Path, place: Place) -> bytes:
    """The bytes of one place of the checkpoint."""
    with open_regular(folder / place.file, BundleError) as file:
        file.seek(place.offset)
        return file.read(place.length)


def decompress(content: bytes, most: int) -> bytes:
    """Content that zstd has compressed, whole.

    Raises:
        ValueError: it has more than `most` bytes.
    """
    found = cast("bytes", open_stream(content).read(most + 1))
    if len(found) > most:
        raise ValueError(f"a part of the index has more than {most:,} bytes")
    return found


def open_stream(content: bytes) -> Any:
    """Content that zstd has compressed, as a stream: only as much is decompressed as is read."""
    return cast("Any", pa.CompressedInputStream(pa.BufferReader(content), "zstd"))
