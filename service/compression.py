"""gzip and deflate, both ways; what a request unfolds to is bounded."""

from __future__ import annotations

import zlib
from functools import lru_cache

from abstain.models.errors import InputError, clip_repr
from abstain.service.errors import HTTPError

# "deflate" means zlib's format, but some senders leave its header out.
_FORMATS = {"gzip": (zlib.MAX_WBITS | 16,), "deflate": (zlib.MAX_WBITS, -zlib.MAX_WBITS)}
_LEVEL = 1


def decompress(body: bytes, coding: str, limit: int) -> bytes:
    """The body as it was before `Content-Encoding`; never more than about `limit` bytes are made of it.

    Raises:
        HTTPError: 413, it unfolds to more; 415, another coding.
        InputError: it is damaged, cut off, or something follows it.
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
            told = unpacker.decompress(body, limit + 1)
        except zlib.error:
            continue
        if len(told) > limit:
            raise HTTPError(413, where="body", expected=f"at most {limit} bytes after decompression", found="more")
        if not unpacker.eof or unpacker.unused_data:
            found = "bytes behind its end" if unpacker.eof else "no end"
            raise InputError(where="body", expected=f"{coding} data, whole", found=found)
        return told
    raise InputError(where="body", expected=f"{coding} data, as Content-Encoding says", found="other or damaged bytes")


def compress(body: bytes, coding: str) -> bytes:
    """The body in one of the codings, fast rather than small."""
    packer = zlib.compressobj(_LEVEL, wbits=_FORMATS[coding][0])
    return packer.compress(body) + packer.flush()


@lru_cache(64)
def accepted_coding(accept: str) -> str | None:
    """What a client that sends this `Accept-Encoding` likes best, gzip before deflate; None where it names neither."""
    wanted: dict[str, float] = {}
    for part in accept.lower().split(","):
        name, _, weight = part.partition(";")
        try:
            wanted[name.strip()] = float(weight.partition("=")[2] or 1)
        except ValueError:
            continue
    best = max(_FORMATS, key=lambda name: wanted.get(name, 0))
    return best if wanted.get(best, 0) > 0 else None
