"""How much memory the messages of an Arrow IPC stream claim, read from their headers before anything is unpacked.

A header is a table of FlatBuffers (https://flatbuffers.dev/internals): its first four bytes lead back to a list of offsets,
one for each field. Only the fields of Arrow's `Message` and `RecordBatch` that hold sizes are read here.
"""

from __future__ import annotations

import struct
from typing import Any

_DICTIONARY, _BATCH = 2, 3
_HEADER_TYPE, _HEADER = 1, 2
_ROWS, _BUFFERS, _COMPRESSION = 0, 2, 3
_BUFFER_BYTES = 16


def claimed_bytes(message: Any) -> int:
    """Returns the bytes that the buffers of a message take in memory.

    Args:
        message: a message of pyarrow's `MessageReader`.

    Raises:
        ValueError: the header is damaged.
    """
    header, body = bytes(message.metadata), message.body
    try:
        root = _u32(header, 0)
        kind = _field(header, root, _HEADER_TYPE)
        table = _field(header, root, _HEADER)
        if kind is None or table is None or header[kind] not in {_DICTIONARY, _BATCH}:
            return 0
        batch = table + _u32(header, table)
        if header[kind] == _DICTIONARY:
            data = _field(header, batch, 1)
            if data is None:
                return 0
            batch = data + _u32(header, data)
        return _batch_bytes(header, batch, memoryview(body) if body is not None else memoryview(b""))
    except (struct.error, IndexError) as error:
        raise ValueError("a damaged header of an Arrow message") from error


def _batch_bytes(header: bytes, batch: int, body: memoryview) -> int:
    buffers = _field(header, batch, _BUFFERS)
    if buffers is None:
        return 0
    vector = buffers + _u32(header, buffers)
    packed = _field(header, batch, _COMPRESSION) is not None
    claimed = 0
    for place in range(_u32(header, vector)):
        offset, length = struct.unpack_from("<qq", header, vector + 4 + place * _BUFFER_BYTES)
        if offset < 0 or length < 0 or offset + length > len(body):
            raise ValueError("a buffer outside of its Arrow message")
        claimed += length
        if packed and length >= 8:
            # The size before packing; -1 for a buffer that is not packed.
            (unpacked,) = struct.unpack_from("<q", body, offset)
            claimed += max(unpacked, 0)
    return claimed


def _field(header: bytes, table: int, index: int) -> int | None:
    """Returns the place of a table's field; None if the table does not have it."""
    (back,) = struct.unpack_from("<i", header, table)
    fields = table - back
    (size,) = struct.unpack_from("<H", header, fields)
    if 4 + 2 * index + 2 > size:
        return None
    (offset,) = struct.unpack_from("<H", header, fields + 4 + 2 * index)
    return table + offset if offset else None


def _u32(header: bytes, place: int) -> int:
    (number,) = struct.unpack_from("<I", header, place)
    return number
