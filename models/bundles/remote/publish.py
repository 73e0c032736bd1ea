"""Uploads versions. The number is claimed first and the manifest is written last, so half an upload is never a version.

Two publishers get two numbers, because the claim is a put-if-absent. The number of an upload that failed stays claimed: a new
version gets the next one, and only the same version, by its digest, may continue under it.
"""

from __future__ import annotations

import tempfile
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import orjson

from abstain.models.bundles.listing import Listing, parse_listing
from abstain.models.bundles.remote.objects import Objects
from abstain.models.bundles.remote.versions import (
    CLAIM,
    CLAIM_BYTES,
    read_manifest_bytes,
    read_numbers,
    read_remote_labels,
)
from abstain.models.bundles.signatures import SIGNATURE, SIGNATURE_BYTES
from abstain.models.bundles.store import MANIFEST, check_name
from abstain.models.errors import BundleError, StoreError
from abstain.models.files.regular import read_bounded

THREADS = 4
"""Files that are moved at a time."""
TRIES = 100
"""How many numbers a publisher tries to claim, while others claim them."""

Transfer = Literal["copied", "signed", "unchanged"]
"""What was missing in the other store: the version, only its signature, or nothing."""
Progress = Callable[[int, int], None]
"""Is called with the number of files that were moved, and that of all files."""


def publish_remote(
    objects: Objects, name: str, write: Callable[[Path], None], seal: Callable[[Path, int], None]
) -> int:
    """Publishes a new version under the next free number, as `store.publish` does; returns the number.

    Args:
        write: fills the draft's folder; may take long.
        seal: called last, with the folder and the version's number; writes the manifest.

    Raises:
        StoreError: the name is invalid, or the store cannot be written.
    """
    check_name(name)
    with tempfile.TemporaryDirectory(prefix="abstain-draft-") as parent:
        draft = Path(parent) / "bundle"
        draft.mkdir()
        write(draft)
        version = _claim_next(objects, name)
        seal(draft, version)
        upload(objects, name, version, draft)
    return version


def push(objects: Objects, name: str, version: int, folder: Path, progress: Progress | None = None) -> Transfer:
    """Uploads a version, whose files have been verified, under the number that its manifest has.

    Returns:
        What was missing there: the version, only its signature, or nothing.

    Raises:
        StoreError: the number is taken by another version, or the store cannot be written.
        BundleError: the manifest is damaged.
    """
    own = _read_listing(folder)
    written = read_manifest_bytes(objects, name, version)
    if written is not None:
        found = parse_listing(written, objects.place(f"{name}/{version}/{MANIFEST}"))
        if found.digest != own.digest:
            raise _taken(objects, name, version, own.digest, found.digest)
        return "signed" if _upload_signature(objects, name, version, folder) else "unchanged"
    _claim(objects, name, version, own.digest)
    upload(objects, name, version, folder, progress)
    return "copied"


def upload(objects: Objects, name: str, version: int, folder: Path, progress: Progress | None = None) -> None:
    """Uploads the files of a version whose number is claimed, the manifest last.

    Raises:
        StoreError: the store cannot be written, or another version of this number appeared.
        BundleError: the manifest is damaged.
    """
    listing = _read_listing(folder)
    home, files = f"{name}/{version}", sorted(listing.files)

    def move(file: str) -> None:
        objects.upload(f"{home}/{file}", folder / file)

    with ThreadPoolExecutor(THREADS, thread_name_prefix="upload") as pool:
        for number, _ in enumerate(pool.map(move, files), start=1):
            if progress:
                progress(number, len(files))
    _upload_signature(objects, name, version, folder)
    manifest = (folder / MANIFEST).read_bytes()
    if not objects.put_if_absent(f"{home}/{MANIFEST}", manifest):
        raise _taken(objects, name, version, listing.digest, "another")


def _upload_signature(objects: Objects, name: str, version: int, folder: Path) -> bool:
    """Uploads the signature if there is one, and it is not there already; returns whether it did."""
    try:
        written = read_bounded(folder / SIGNATURE, SIGNATURE_BYTES, StoreError)
    except FileNotFoundError:
        return False
    path = f"{name}/{version}/{SIGNATURE}"
    found = objects.get(path, SIGNATURE_BYTES)
    if found is not None and found.written == written:
        return False
    objects.put(path, written)
    return True


def _claim(objects: Objects, name: str, version: int, digest: str) -> None:
    """Claims a number for one version; an upload of the same version that was cut off may be made again."""
    path = f"{name}/{version}/{CLAIM}"
    written = orjson.dumps({"digest": digest})
    if not objects.put_if_absent(path, written):
        found = objects.get(path, CLAIM_BYTES)
        raise _taken(objects, name, version, digest, "a claim of another upload" if found else "no claim")


def _claim_next(objects: Objects, name: str) -> int:
    """Claims the number after all numbers in use, those of failed uploads and of labels included."""
    written = orjson.dumps({"id": uuid.uuid4().hex})
    labels = read_remote_labels(objects, name)[0]
    version = max([0, *read_numbers(objects, name).numbers, *labels.pointed]) + 1
    for number in range(version, version + TRIES):
        if objects.put_if_absent(f"{name}/{number}/{CLAIM}", written):
            return number
    raise StoreError(
        "others publish all the time",
        where=objects.place(name),
        expected=f"a free number from {version} to {version + TRIES - 1}",
        found="none",
        fix="publish again",
    )


def _taken(objects: Objects, name: str, version: int, expected: str, found: str) -> StoreError:
    return StoreError(
        "the number is taken by another version",
        where=objects.place(f"{name}/{version}"),
        expected=f"nothing, or the same version ({expected})",
        found=found,
        fix="a version keeps its number, which its manifest and signature hold: publish yours again under a higher number",
    )


def _read_listing(folder: Path) -> Listing:
    where = str(folder / MANIFEST)
    try:
        return parse_listing((folder / MANIFEST).read_bytes(), where)
    except OSError as error:
        raise BundleError("cannot be read", where=where, found=error.strerror) from error
