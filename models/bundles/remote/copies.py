"""Copies of versions between stores, wherever these are, and local copies for code that reads folders."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from abstain.models.bundles.labels import LABELS
from abstain.models.bundles.listing import parse_listing
from abstain.models.bundles.remote.download import download_version, read_listing
from abstain.models.bundles.remote.objects import Objects, open_objects
from abstain.models.bundles.remote.publish import Progress, Transfer, push
from abstain.models.bundles.remote.url import RemoteURL
from abstain.models.bundles.remote.versions import model_names, read_remote_labels, resolve_remote, whole_versions
from abstain.models.bundles.signatures import SIGNATURE, SIGNATURE_BYTES
from abstain.models.bundles.store import MANIFEST, add_version, put_signature, resolve, version_folder
from abstain.models.errors import AbstainError, StoreError
from abstain.models.files.regular import read_bounded

THREADS = 8
Check = Callable[[Path], None]
"""Checks the folder of a version, with all of its files; raises an `AbstainError`."""


def resolve_in(store: Path | RemoteURL, text: str) -> tuple[str, int]:
    """Returns the name and version that a reference means in a store.

    Raises:
        UnknownModel: the model, version or label does not exist.
        StoreError: the store cannot be read.
    """
    return resolve_remote(open_objects(store), text) if isinstance(store, RemoteURL) else resolve(store, text)


def copy_version(
    source: Path | RemoteURL,
    target: Path | RemoteURL,
    name: str,
    version: int,
    check: Check,
    progress: Progress | None = None,
) -> Transfer:
    """Copies a version from one store into another, of which at least one is a folder, under the same number.

    Args:
        check: is called with the version's folder before it is in the target.

    Raises:
        UnknownModel: the source does not have it.
        BundleError: it is damaged.
        StoreError: the target has another version of this number, or a store cannot be read or written.
    """
    if isinstance(source, RemoteURL):
        if isinstance(target, RemoteURL):
            raise StoreError(
                "copies between two stores elsewhere", expected="a folder as one of them", found=str(target)
            )
        return _pull(open_objects(source), target, name, version, check, progress)
    folder = version_folder(source, name, version)
    check(folder)
    if isinstance(target, RemoteURL):
        return push(open_objects(target), name, version, folder, progress)
    if (target / name / str(version)).exists():
        return _compare(target, name, version, (folder / MANIFEST).read_bytes(), _signature_in(folder))

    def write(draft: Path) -> None:
        shutil.copytree(folder, draft, dirs_exist_ok=True, symlinks=True)
        check(draft)

    add_version(target, name, version, write)
    return "copied"


def _pull(objects: Objects, target: Path, name: str, version: int, check: Check, progress: Progress | None) -> Transfer:
    if not (target / name / str(version)).exists():
        download_version(objects, target, name, version, check, progress)
        return "copied"
    _, written = read_listing(objects, name, version)
    signature = objects.get(f"{name}/{version}/{SIGNATURE}", SIGNATURE_BYTES)
    return _compare(target, name, version, written, signature and signature.written)


def _compare(target: Path, name: str, version: int, manifest: bytes, signature: bytes | None) -> Transfer:
    """Compares a version with that of its number in a folder, and adds the signature if it is another there."""
    folder = version_folder(target, name, version)
    there = parse_listing((folder / MANIFEST).read_bytes(), str(folder / MANIFEST))
    own = parse_listing(manifest, f"{name}:{version}")
    if there.digest != own.digest:
        raise StoreError(
            "the number is taken by another version",
            where=str(folder),
            expected=f"nothing, or the same version ({own.digest})",
            found=there.digest,
            fix="a version keeps its number, which its manifest and signature hold: use another --store",
        )
    if signature is None or signature == _signature_in(folder):
        return "unchanged"
    put_signature(target / name, folder / SIGNATURE, signature)
    return "signed"


def _signature_in(folder: Path) -> bytes | None:
    try:
        return read_bounded(folder / SIGNATURE, SIGNATURE_BYTES, StoreError)
    except FileNotFoundError:
        return None


@contextmanager
def local_copy(store: Path | RemoteURL, model: str | None = None) -> Generator[Path]:
    """Yields a store that is a folder: the store itself, or a temporary copy of a part of it.

    Args:
        model: a reference; the copy then has its version and the model's labels. If None, it has the labels of all models and
            the manifest of each version, no other files.

    Raises:
        UnknownModel: the model, version or label does not exist.
        StoreError: the store cannot be read.
    """
    if isinstance(store, Path):
        yield store
        return
    objects = open_objects(store)
    with tempfile.TemporaryDirectory(prefix="abstain-copy-") as parent:
        root = Path(parent)
        if model is None:
            for name in model_names(objects):
                _copy_manifests(objects, root, name)
        else:
            name, version = resolve_remote(objects, model)
            download_version(objects, root, name, version)
            _copy_labels(objects, root, name)
        yield root


def _copy_manifests(objects: Objects, root: Path, name: str) -> None:
    def copy(version: int) -> None:
        folder = root / name / str(version)
        folder.mkdir(parents=True)
        try:
            (folder / MANIFEST).write_bytes(read_listing(objects, name, version)[1])
        except AbstainError:
            return  # Its folder without a manifest is listed as damaged.

    present = whole_versions(objects, name)
    if present:
        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(copy, present))
        _copy_labels(objects, root, name)


def _copy_labels(objects: Objects, root: Path, name: str) -> None:
    _, content = read_remote_labels(objects, name)
    if content is not None:
        (root / name / LABELS).write_bytes(content.written)
