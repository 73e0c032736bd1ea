"""Compresses and decompresses bodies with gzip and deflate; the size of a decompressed request is limited."""

from __future__ import annotations

import zlib
from functools import lru_cache

from abstain.models.errors import InputError, clip_repr
from abstain.service.errors import HTTPError

# "deflate" means zlib's format, but some senders leave its header out.
_FORMATS = {"gzip": (zlib.MAX_WBITS | 16,), "deflate": (zlib.MAX_WBITS, -zlib.MAX_WBITS)}
_LEVEL = 1


def decompress(body: bytes, coding: str, limit: int) -> bytes:
    """Decompresses a body that was sent with a `Content-Encoding`; stops at about `limit` bytes.

    Raises:
        HTTPError: 413, the decompressed body is longer than `limit`; 415, the coding is not supported.
        InputError: the body is damaged, incomplete, or followed by other bytes.
    """
    coding = coding.strip().lower()
    if coding in {"", "identity"}:
        return body
    if coding not in _FORMATS:
        headers = {"Accept-Encoding": ", ".join(_FORMATS)}
        raise HTTPError(
            415, "", headers, where="Content-Encoding", expected=" or ".join(_FORMATS), found=clip_repr(coding)
        )
    for wbits in _FORMATS[coding]:
        unpacker = zlib.decompressobj(wbits)
        try:
            content = unpacker.decompress(body, limit + 1)
        except zlib.error:
            continue
        if len(content) > limit:
            raise HTTPError(413, where="body", expected=f"at most {limit} bytes after decompression", found="more")
        if not unpacker.eof or unpacker.unused_data:
            found = "bytes after its end" if unpacker.eof else "incomplete data"
            raise InputError(where="body", expected=f"complete {coding} data", found=found)
        return content
    raise InputError(where="body", expected=f"{coding} data, as Content-Encoding says", found="other or damaged bytes")


def compress(body: bytes, coding: str) -> bytes:
    """Compresses a body with one of the codings; prefers speed to size."""
    packer = zlib.compressobj(_LEVEL, wbits=_FORMATS[coding][0])
    return packer.compress(body) + packer.flush()


@lru_cache(64)
def accepted_coding(accept: str) -> str | None:
    """Returns the coding that an `Accept-Encoding` prefers, gzip before deflate; None if it accepts neither."""
    weights: dict[str, float] = {}
    for part in accept.lower().split(","):
        name, _, weight = part.partition(";")
        try:
            weights[name.strip()] = float(weight.partition("=")[2] or 1)
        except ValueError:
            continue
    best = max(_FORMATS, key=lambda name: weights.get(name, 0))
    return best if weights.get(best, 0) > 0 else None
