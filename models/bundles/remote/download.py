"""Downloads versions into a folder with the layout of a store. A version gets its name there when all its hashes are right."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from abstain.models.bundles.listing import BUNDLE_BYTES, MOST_FILES, Listing, check_bytes, parse_listing
from abstain.models.bundles.remote.objects import Objects
from abstain.models.bundles.remote.publish import THREADS, Progress
from abstain.models.bundles.remote.versions import read_manifest_bytes
from abstain.models.bundles.signatures import SIGNATURE, SIGNATURE_BYTES
from abstain.models.bundles.store import MANIFEST, add_version
from abstain.models.errors import BundleError, StoreError, UnknownModel, clip_repr
from abstain.models.files.regular import check_contents

PUSH_AGAIN = "remove it there and push it again, or publish a new version"


def download_version(
    objects: Objects,
    store: Path,
    name: str,
    version: int,
    check: Callable[[Path], None] | None = None,
    progress: Progress | None = None,
) -> None:
    """Downloads a version into a local store that does not have it.

    Args:
        check: further checks of the draft's folder, before it gets its name.

    Raises:
        UnknownModel: there is no such version.
        BundleError: a file is missing, altered or too large, or the manifest is damaged or of another version.
        StoreError: a store cannot be read or written.
    """

    def write(draft: Path) -> None:
        download_files(objects, name, version, draft, progress)
        if check:
            check(draft)

    add_version(store, name, version, write)


def read_listing(objects: Objects, name: str, version: int) -> tuple[Listing, bytes]:
    """Reads the manifest of a version, as far as its name and files; returns its bytes too.

    Raises:
        UnknownModel: there is no such version.
        BundleError: the manifest is damaged or of another version.
        StoreError: the store cannot be read.
    """
    written = read_manifest_bytes(objects, name, version)
    where = objects.place(f"{name}/{version}/{MANIFEST}")
    if written is None:
        raise UnknownModel(
            f"{name} has no version {version}",
            where=objects.url,
            fix="an upload that has not ended is no version; push it again",
        )
    listing = parse_listing(written, where)
    if (listing.name, listing.version) != (name, version):
        raise BundleError(
            "name and version",
            where=where,
            expected=f"{name}:{version}",
            found=clip_repr(f"{listing.name}:{listing.version}"),
            fix=PUSH_AGAIN,
        )
    return listing, written


def download_files(objects: Objects, name: str, version: int, draft: Path, progress: Progress | None = None) -> None:
    """Downloads the files that the manifest of a version lists into an empty folder, and compares every hash.

    Raises:
        As `download_version`.
    """
    listing, written = read_listing(objects, name, version)
    home = f"{name}/{version}"
    sizes = objects.sizes(home, MOST_FILES + 10)
    for file in listing.files:
        if file not in sizes:
            raise BundleError("is missing", where=objects.place(f"{home}/{file}"), found="no object", fix=PUSH_AGAIN)
    own = {file: sizes[file] for file in listing.files}
    check_bytes(own, BUNDLE_BYTES, objects.place(home))
    free = shutil.disk_usage(draft).free
    if sum(own.values()) > free:
        raise StoreError(
            "does not fit on the disk",
            where=str(draft.parent),
            expected=f"{sum(own.values()):,} bytes free for {name}:{version}",
            found=f"{free:,}",
        )

    def move(file: str) -> None:
        target = draft / file
        target.parent.mkdir(parents=True, exist_ok=True)
        found = objects.download(f"{home}/{file}", sizes[file], target)
        if found != listing.files[file]:
            raise BundleError(
                "is damaged or was altered",
                where=objects.place(f"{home}/{file}"),
                expected=f"sha256 {listing.files[file]}",
                found=f"sha256 {found}",
                fix=PUSH_AGAIN,
            )

    with ThreadPoolExecutor(THREADS, thread_name_prefix="download") as pool:
        jobs = [pool.submit(move, file) for file in sorted(listing.files)]
        try:
            for number, job in enumerate(jobs, start=1):
                job.result()
                if progress:
                    progress(number, len(jobs))
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
    if SIGNATURE in sizes and (signature := objects.get(f"{home}/{SIGNATURE}", SIGNATURE_BYTES)):
        (draft / SIGNATURE).write_bytes(signature.written)
    (draft / MANIFEST).write_bytes(written)
    check_contents(draft, [*listing.files, MANIFEST, SIGNATURE])
