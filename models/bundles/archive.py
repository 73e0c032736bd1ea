"""Archives: one version as a plain tar file, to copy it into another store.

    manifest.json   first
    model.sig       if the version is signed
    draws/…         every file that the manifest lists, sorted by path

Archives of the same version are equal to the byte: they hold no times and no users.

An archive may come from anyone. Its headers are parsed here, one block at a time, and not by `tarfile.open`, which follows
extensions of the format (long names, pax records, sparse files) without a limit on their size. Nothing is written before all
headers and the manifest are checked, and the version gets its name when every byte has been compared with its hash.
"""

from __future__ import annotations

import hashlib
import os
import tarfile
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple, cast

from abstain.models.bundles.bundle import read_published
from abstain.models.bundles.listing import MOST_FILES
from abstain.models.bundles.manifest import (
    BUNDLE_BYTES,
    MANIFEST,
    MANIFEST_BYTES,
    Manifest,
    check_bytes,
    check_paths,
    file_sizes,
    read_covered,
    read_manifest,
    verify_files,
)
from abstain.models.bundles.plausible import refuse_implausible, within
from abstain.models.bundles.signatures import SIGNATURE, SIGNATURE_BYTES, TrustedKeys
from abstain.models.bundles.store import add_version, version_folder
from abstain.models.errors import BundleError, SignatureError, StoreError, clip_repr
from abstain.models.files.drafts import draft_of
from abstain.models.files.locks import disk_errors
from abstain.models.files.regular import RESTORE, not_a_file, open_regular

MOST_VERSION = 10**8
"""The largest number of an unpacked version: later versions need larger numbers, which end at 10⁹."""
_BLOCK = tarfile.BLOCKSIZE
_END_BYTES = 2**20
"""Most zeros after the last file; programs fill up to 10,240 bytes, or to what they were asked for."""
_CHUNK = 2**20
_AGAIN = "export the version again, and copy the whole file"
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd", b"PK": "zip"}
_KINDS = {
    tarfile.DIRTYPE: "a folder",
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.LNKTYPE: "a hard link",
    tarfile.FIFOTYPE: "a named pipe",
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
    tarfile.GNUTYPE_SPARSE: "a sparse file",
    tarfile.GNUTYPE_LONGNAME: "a long name of GNU tar",
    tarfile.XHDTYPE: "a record of pax",
    tarfile.XGLTYPE: "a record of pax",
}


class Unpacked(NamedTuple):
    """An unpacked version; `new` is False if the store had it already."""

    manifest: Manifest
    new: bool


class _Member(NamedTuple):
    """Where the content of a file is in the archive, in bytes."""

    offset: int
    size: int


def export_version(store: Path, name: str, version: int, path: Path, *, force: bool = False) -> Manifest:
    """Verifies a version and writes it into an archive, which exists whole or not at all; returns its manifest.

    Args:
        force: whether an existing file is replaced.

    Raises:
        StoreError: the archive exists, cannot be written or has another ending than `.tar`, or a path of the version is
            too long for a tar.
        BundleError: as `read_published`; or a file is missing, altered, not listed, or not a regular file.
    """
    _check_target(path, force=force)
    read_published(store, name, version)
    folder = version_folder(store, name, version)
    manifest, covered = read_covered(folder)
    sizes = file_sizes(folder, manifest)
    names = [MANIFEST, *([SIGNATURE] if SIGNATURE in sizes else []), *sorted(manifest.files)]
    with disk_errors(path), draft_of(path) as draft, draft.open("wb") as file:
        with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as archive:
            for each in names:
                _add(archive, folder, each, covered.get(each))
        file.flush()
        os.fsync(file.fileno())
    return manifest


def _check_target(path: Path, *, force: bool) -> None:
    if path.suffix != ".tar":
        fix = "name it FILE.tar; compress it afterwards, if you like"
        raise StoreError("name of the archive", where=str(path), expected="the ending .tar", found=path.name, fix=fix)
    if not path.absolute().parent.is_dir():
        raise StoreError("no such folder", where=str(path.absolute().parent), fix="make it, or name another one")
    kind = not_a_file(path)
    if kind:
        raise StoreError("cannot be written", where=str(path), expected="a file", found=kind)
    if os.path.lexists(path) and not force:
        raise StoreError("the archive exists", where=str(path), fix="name another file, or replace it with --force")


class _Hashing:
    """A file that hashes what is read from it."""

    def __init__(self, file: BufferedReader) -> None:
        self._file, self.sha256 = file, hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        content = self._file.read(size)
        self.sha256.update(content)
        return content


def _add(archive: tarfile.TarFile, folder: Path, name: str, expected: str | None) -> None:
    """Adds a file to an archive, and compares what was written with its sha256; a signature has none."""
    path = folder / name
    with open_regular(path, BundleError) as file:
        info = tarfile.TarInfo(name)  # mode 0644, and 0 for the time and the owner
        info.size = os.fstat(file.fileno()).st_size
        hashing = _Hashing(file)
        try:
            archive.addfile(info, cast("IO[bytes]", hashing))
        except ValueError as error:
            raise StoreError("cannot be archived", where=str(path), found=str(error)) from error
    found = hashing.sha256.hexdigest()
    if expected is not None and found != expected:
        raise _altered(str(path), expected, found, RESTORE)


def unpack_version(store: Path, path: Path, trusted: TrustedKeys | None = None) -> Unpacked:
    """Publishes the version of an archive in a store, under its own name and number.

    Args:
        trusted: keys, one of which must have signed it; None if no signature is needed.

    Raises:
        BundleError: the archive is no plain tar, or is incomplete; or it has other files than its manifest lists, or
            altered ones.
        SignatureError: none of the trusted keys has signed it.
        StoreError: the store has another version under this number, or cannot be written.
        OSError: the archive cannot be read.
    """
    with open_regular(path, BundleError) as file:
        members = _read_members(file, path)
        records = {
            name: _read_bounded(file, members[name], most, f"{path}: {name}")
            for name, most in ((MANIFEST, MANIFEST_BYTES), (SIGNATURE, SIGNATURE_BYTES))
            if name in members
        }
        manifest = _read_manifest(records, path, trusted)
        _check_members(members, manifest, path)
        if _is_present(store, manifest, path):
            return Unpacked(manifest, new=False)

        def write(draft: Path) -> None:
            for name, content in records.items():
                (draft / name).write_bytes(content)
            for name, expected in manifest.files.items():
                _copy(file, members[name], draft / name, expected, f"{path}: {name}")

        add_version(store, manifest.name, manifest.version, write)
    return Unpacked(manifest, new=True)


def _read_members(file: BufferedReader, path: Path) -> dict[str, _Member]:
    """Reads all headers; returns where each file's content is, by the file's name.

    Raises:
        BundleError: the file is no tar of regular files, is incomplete, or a name occurs twice.
    """
    length = os.fstat(file.fileno()).st_size
    members: dict[str, _Member] = {}
    while (info := _read_header(file, path, first=not members)) is not None:
        offset = file.tell()
        where = f"{path}: {clip_repr(info.name, 200)}"
        if info.type not in {tarfile.REGTYPE, tarfile.AREGTYPE}:
            found = _KINDS.get(info.type, "another type")
            raise BundleError(
                "an entry is no regular file", where=where, expected="files alone", found=found, fix=_AGAIN
            )
        if info.name in members:
            raise BundleError("an entry occurs twice", where=where, expected="every file once", fix=_AGAIN)
        if not 0 <= info.size <= length - offset:
            found = f"{length - offset:,} of {info.size:,} bytes"
            raise BundleError("is incomplete", where=where, expected="the whole file", found=found, fix=_AGAIN)
        members[info.name] = _Member(offset, info.size)
        if len(members) > MOST_FILES + 2:
            raise BundleError("too many entries", where=str(path), expected=f"at most {MOST_FILES + 2:,}", fix=_AGAIN)
        file.seek(offset + -(-info.size // _BLOCK) * _BLOCK)
    rest = file.read(_END_BYTES + 1)
    if len(rest) < _BLOCK or len(rest) > _END_BYTES or any(rest):
        found = "less" if len(rest) < _BLOCK else "more, or other bytes"
        raise BundleError("end", where=str(path), expected="two or more blocks of zeros", found=found, fix=_AGAIN)
    return members


def _read_header(file: BufferedReader, path: Path, *, first: bool) -> tarfile.TarInfo | None:
    """Reads the header of the next file; None at the end of the archive."""
    block = file.read(_BLOCK)
    if block == bytes(_BLOCK):
        return None
    packed = next((name for magic, name in _COMPRESSED.items() if first and block.startswith(magic)), None)
    if packed:
        fix = "decompress it first, or export the version again"
        raise BundleError("is compressed", where=str(path), expected="a plain tar", found=packed, fix=fix)
    try:
        return tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError as error:
        what = "is no tar" if first else "is incomplete, or no tar"
        expected = "what abstain export writes"
        raise BundleError(what, where=str(path), expected=expected, found=str(error), fix=_AGAIN) from error


def _read_bounded(file: BufferedReader, member: _Member, most: int, where: str) -> bytes:
    if member.size > most:
        found = f"{member.size:,}"
        raise BundleError("is too large", where=where, expected=f"at most {most:,} bytes", found=found, fix=_AGAIN)
    file.seek(member.offset)
    return file.read(member.size)


def _read_manifest(records: dict[str, bytes], path: Path, trusted: TrustedKeys | None) -> Manifest:
    """Checks the manifest of an archive, and its signature if there are trusted keys."""
    if MANIFEST not in records:
        expected = "what abstain export writes"
        raise BundleError(f"{MANIFEST} is missing", where=str(path), expected=expected, fix=_AGAIN)
    with tempfile.TemporaryDirectory(prefix="abstain-archive-") as private:
        for name, content in records.items():
            (Path(private) / name).write_bytes(content)
        with _of_archive(private, path):
            manifest = read_manifest(Path(private), trusted)
    refuse_implausible([within("version", manifest.version, 1, MOST_VERSION)], f"{path}: {MANIFEST}")
    return manifest


@contextmanager
def _of_archive(private: str, path: Path) -> Generator[None]:
    """Makes errors about a private copy errors about the archive."""
    try:
        yield
    except BundleError as error:
        error.where = (error.where or private).replace(f"{private}/", f"{path}: ").replace(private, str(path))
        if isinstance(error, SignatureError):
            error.fix = "if you trust its author, sign the version in its own store (abstain sign), and export it again"
        elif error.fix == RESTORE:
            error.fix = _AGAIN
        raise


def _check_members(members: dict[str, _Member], manifest: Manifest, path: Path) -> None:
    """Checks that an archive has exactly the files of its manifest, and perhaps a signature, in a limited number of bytes."""
    check_paths(manifest.files, f"{path}: {MANIFEST}")
    listed = {*manifest.files, MANIFEST}
    for found in sorted(members.keys() - listed - {SIGNATURE}):
        where = f"{path}: {clip_repr(found, 200)}"
        raise BundleError("is not listed in the manifest", where=where, expected="only what it lists", fix=_AGAIN)
    for missing in sorted(listed - members.keys()):
        raise BundleError("is missing", where=f"{path}: {missing}", expected="what the manifest lists", fix=_AGAIN)
    folders = {parent.as_posix() for name in manifest.files for parent in PurePosixPath(name).parents}
    for both in sorted(folders & {*listed, SIGNATURE}):
        raise BundleError("is a file and a folder", where=f"{path}: {both}", expected="one of them", fix=_AGAIN)
    check_bytes({name: member.size for name, member in members.items()}, BUNDLE_BYTES, path)


def _is_present(store: Path, manifest: Manifest, path: Path) -> bool:
    """Whether the store has this very version.

    Raises:
        StoreError: it has another one under its name and number, or a damaged one.
    """
    folder = version_folder(store, manifest.name, manifest.version)
    if not os.path.lexists(folder):
        return False
    try:
        found = read_published(store, manifest.name, manifest.version)
        verify_files(folder, found)
        described = found.digest
    except BundleError as error:
        described = f"a damaged one ({error})"
    if described == manifest.digest:
        return True
    raise StoreError(
        f"the store has another {manifest.name}:{manifest.version}",
        where=str(path),
        expected=manifest.digest,
        found=described,
        fix=f"unpack it into another store (--store), or move {folder} away",
    )


def _copy(file: BufferedReader, member: _Member, target: Path, expected: str, where: str) -> None:
    """Copies a file of the archive into a draft, and compares its sha256."""
    target.parent.mkdir(parents=True, exist_ok=True)
    file.seek(member.offset)
    sha256, left = hashlib.sha256(), member.size
    with target.open("xb") as copy:
        while left and (chunk := file.read(min(_CHUNK, left))):
            sha256.update(chunk)
            copy.write(chunk)
            left -= len(chunk)
    if left or sha256.hexdigest() != expected:
        raise _altered(where, expected, sha256.hexdigest(), _AGAIN)


def _altered(where: str, expected: str, found: str, fix: str) -> BundleError:
    return BundleError(
        "is damaged or was altered", where=where, expected=f"sha256 {expected}", found=f"sha256 {found}", fix=fix
    )
