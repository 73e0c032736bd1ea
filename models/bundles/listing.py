"""The files that a manifest lists, and its digest: what moving a version needs to know of it. Imports no jax.

The digest of a bundle is the sha256 of its manifest's canonical bytes, which hold the sha256 of every other file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, cast

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from abstain.models.bundles.references import NAME_PATTERN
from abstain.models.bundles.signatures import SIGNATURE
from abstain.models.bundles.store import MANIFEST
from abstain.models.errors import BundleError
from abstain.models.files.regular import RESTORE
from abstain.models.validation import refuse

MANIFEST_BYTES = 16 * 2**20
"""Largest size of the manifest; that of digits has 20,000 bytes."""
BUNDLE_BYTES = 64 * 2**30
"""Largest size of all files together: a sparse file takes no disk space but very long to hash."""
MOST_FILES = 10_000
_MAX_DEPTH = 8
"""Most parts of a file's path in the bundle."""
_MAX_PATH_LENGTH = 512
"""Most characters of a file's path in the bundle."""


class Listing(BaseModel):
    """The part of a manifest that names the version and its files; the rest is checked when it is loaded."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)
    name: Annotated[str, Field(pattern=f"^{NAME_PATTERN}$")]
    version: Annotated[int, Field(gt=0, lt=10**9)]
    files: Annotated[dict[str, Annotated[str, Field(pattern="^[0-9a-f]{64}$")]], Field(max_length=MOST_FILES)]
    """sha256 of every other file of the bundle, by its path in the bundle."""
    digest: str


def parse_listing(written: bytes, where: str) -> Listing:
    """Parses and checks the part of a manifest that names the version and its files.

    Raises:
        BundleError: the manifest is malformed or altered, or its files lead out of the bundle.
    """
    try:
        content = orjson.loads(written)
        listing = Listing.model_validate(content)
    except orjson.JSONDecodeError as error:
        raise BundleError("is damaged", where=where, expected="a manifest", found=str(error), fix=RESTORE) from error
    except ValidationError as error:
        raise refuse(error, BundleError, Listing, where=where, fix=RESTORE) from error
    fields = cast("dict[str, Any]", content)
    if not is_canonical(fields, written) or listing.digest != digest_of(fields):
        raise BundleError("digest", where=where, expected=listing.digest, found="altered contents", fix=RESTORE)
    check_paths(listing.files, where)
    return listing


def check_paths(files: Collection[str], where: str) -> None:
    """Refuses a list of files that is empty, too long, or leads out of the bundle.

    Raises:
        BundleError: it does.
    """
    if not 1 <= len(files) <= MOST_FILES:
        raise BundleError("files", where=where, expected=f"1 to {MOST_FILES:,} files", found=len(files), fix=RESTORE)
    for name in files:
        path = PurePosixPath(name)
        inside = path.parts and ".." not in path.parts and not path.is_absolute() and "\0" not in name
        if (
            name in {MANIFEST, SIGNATURE}
            or not inside
            or path.as_posix() != name
            or len(path.parts) > _MAX_DEPTH
            or len(name) > _MAX_PATH_LENGTH
        ):
            raise BundleError("files", where=where, expected="paths inside the bundle", found=name[:_MAX_PATH_LENGTH])


def check_bytes(sizes: dict[str, int], most: int, folder: Path | str) -> None:
    """Refuses files of more than `most` bytes together.

    Raises:
        BundleError: the files are larger.
    """
    found = sum(sizes.values())
    if found > most:
        raise BundleError(
            "files", where=str(folder), expected=f"at most {most:,} bytes", found=f"{found:,}", fix=RESTORE
        )


def dumped(content: dict[str, Any]) -> bytes:
    """Returns the canonical bytes of a manifest's content."""
    return orjson.dumps(content, option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS | orjson.OPT_APPEND_NEWLINE)


def is_canonical(content: dict[str, Any], written: bytes) -> bool:
    """Whether these bytes are the canonical ones of a manifest's content."""
    try:
        return dumped(content) == written
    except orjson.JSONEncodeError:  # orjson reads deeper nesting than it writes
        return False


def digest_of(content: dict[str, Any]) -> str:
    """Returns the digest of a manifest's content."""
    return f"sha256:{hashlib.sha256(dumped({**content, 'digest': ''})).hexdigest()}"
