"""A store: a folder of models, each a folder of numbered versions, with labels that point at versions.

    STORE/NAME/3/           a bundle; it gets its name by a rename, so it exists whole or not at all
    STORE/NAME/labels.json  {"labels": {"stable": 3}, "previous": {"stable": [1, 2]}}
    STORE/NAME/.writing-*   a draft of a bundle; its lock ends with its writer, and then the next writer removes it
    STORE/NAME/.removed-*   a version that is being removed; if that is interrupted, the next writer removes the rest
    STORE/NAME/.lock        the lock of the model, for one writer at a time

Readers need no lock, because everything that they read gets its name by a rename. Locks are flocks on files opened for
writing (`models/files/locks.py`); they work on NFS too.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from abstain.models.bundles.labels import (
    LABELS,
    LABELS_BYTES,
    Labels,
    check_label,
    dump_labels,
    moved_label,
    parse_labels,
    rolled_back,
)
from abstain.models.bundles.references import (
    NAME_PATTERN,
    STABLE,
    Reference,
    parse_reference,
    resolve_among,
    served_among,
)
from abstain.models.errors import StoreError, UnknownModel, clip_repr, suggest
from abstain.models.files.locks import REMEDY, disk_errors, hold
from abstain.models.files.regular import read_bounded

MANIFEST = "manifest.json"
LOCK = ".lock"
DRAFTS = (".labels-", ".rollout-", ".signature-")
"""The beginnings of the names of small files that are being written, all under the model's lock."""
REMOVED = ".removed-"
"""The beginning of the name of a version that is being removed."""


def model_names(store: Path) -> list[str]:
    """Returns the sorted names of the store's models that have a version."""
    if not store.is_dir():
        return []
    return sorted(
        entry.name
        for entry in store.iterdir()
        if re.fullmatch(NAME_PATTERN, entry.name) and versions(store, entry.name)
    )


def versions(store: Path, name: str) -> list[int]:
    """Returns the versions of a model, ascending; empty if the model does not exist."""
    folder = store / name
    if not folder.is_dir():
        return []
    numbers = (int(entry.name) for entry in folder.iterdir() if re.fullmatch("[1-9][0-9]{0,8}", entry.name))
    return sorted(number for number in numbers if (folder / str(number)).is_dir())


def version_folder(store: Path, name: str, version: int) -> Path:
    """Returns the folder of a version.

    Raises:
        StoreError: it or the model's folder is a symbolic link, which may lead out of the store, or cannot be inspected.
    """
    folder = store / name / str(version)
    _refuse_link(folder.parent)
    _refuse_link(folder)
    return folder


def _refuse_link(folder: Path) -> None:
    try:
        linked = folder.is_symlink()
    except OSError as error:
        raise StoreError("cannot be read", where=str(folder), found=error.strerror) from error
    if linked:
        raise StoreError(
            "is a symbolic link",
            where=str(folder),
            expected="a folder",
            found="a link",  # without its target, which clients of a server must not learn
            fix="put the folder itself there (ls -l shows where the link leads)",
        )


def read_labels(store: Path, name: str) -> Labels:
    """Reads the labels of a model.

    Raises:
        StoreError: `labels.json` is malformed, or the model's folder is a symbolic link.
    """
    path = store / name / LABELS
    _refuse_link(store / name)
    try:
        return parse_labels(read_bounded(path, LABELS_BYTES, StoreError), name, str(path))
    except FileNotFoundError:
        return Labels()
    except OSError as error:
        raise StoreError("cannot be read", where=str(path), found=error.strerror) from error


def resolve(store: Path, text: str) -> tuple[str, int]:
    """Returns the name and version that a reference means: a bare name is `@stable` if that label exists, else the newest.

    Raises:
        UnknownModel: the model, version or label does not exist.
    """
    reference = parse_reference(text)
    present = versions(store, reference.name)
    if not present:
        raise _unknown_model(store, reference.name, text)
    return reference.name, resolve_among(reference, present, read_labels(store, reference.name).labels)


def known_model(store: Path, name: str) -> str:
    """Returns the name of a model that has a version.

    Raises:
        UnknownModel: it has none.
    """
    if not versions(store, name):
        raise _unknown_model(store, name, name)
    return name


def _unknown_model(store: Path, name: str, found: str) -> UnknownModel:
    names = model_names(store)
    return UnknownModel(
        f"no model named {name!r}",
        where=str(store),
        expected=", ".join(names) or None,
        found=clip_repr(found) if names else None,
        fix=suggest(name, names) if names else "the store has no models; publish one with abstain fit",
    )


def served_versions(store: Path, name: str) -> list[int]:
    """Returns the versions of a model that a server serves (`served_among`)."""
    return served_among(versions(store, name), read_labels(store, name).labels)


def check_name(name: str) -> None:
    """Checks the name of a model.

    Raises:
        StoreError: it is invalid.
    """
    if not re.fullmatch(NAME_PATTERN, name):
        raise StoreError(
            "name",
            expected="1 to 64 letters, digits, dots, dashes or underscores, the first a letter or digit",
            found=clip_repr(name),
        )


def check_writable(store: Path, name: str) -> None:
    """Checks that a version could be published, before the work that would be lost otherwise; creates no folder.

    Raises:
        StoreError: the name is invalid, the model's folder is a symbolic link, which would not be served, or the nearest
            existing folder cannot be written.
    """
    check_name(name)
    home = (store / name).absolute()
    _refuse_link(home)
    nearest = next(folder for folder in (home, *home.parents) if folder.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        reason = os.strerror(_write_errno(nearest) if nearest.is_dir() else errno.ENOTDIR)
        raise StoreError("cannot be written", where=str(home), found=f"{nearest}: {reason}")


def _write_errno(folder: Path) -> int:
    return errno.EROFS if os.statvfs(folder).f_flag & os.ST_RDONLY else errno.EACCES


def publish(
    store: Path,
    name: str,
    write: Callable[[Path], None],
    seal: Callable[[Path, int], None],
    remedy: str = REMEDY,
) -> int:
    """Publishes a new version: writes a draft and renames it to its final name; returns the version's number.

    Args:
        write: fills the draft's folder; may take long.
        seal: called last, under the model's lock, with the folder and the version's number.
        remedy: what the error proposes if the disk is full, read-only or fails.

    Raises:
        StoreError: the name is invalid, or the store cannot be written.
    """
    check_writable(store, name)
    home = store / name
    with disk_errors(home, remedy):
        home.mkdir(parents=True, exist_ok=True)
        with _draft(home) as draft:
            write(draft)
            with hold(home / LOCK):
                version = _next_version(store, name)
                seal(draft, version)
                _sync(draft)
                draft.rename(home / str(version))
                _sync_folder(home)
    return version


def add_version(store: Path, name: str, version: int, write: Callable[[Path], None]) -> None:
    """Adds a version that has its number already: writes a draft and renames it to its final name.

    Args:
        write: fills and checks the draft's folder; may take long.

    Raises:
        StoreError: the name is invalid, the store cannot be written, or it has got another version of this number meanwhile.
    """
    check_writable(store, name)
    home = store / name
    with disk_errors(home):
        home.mkdir(parents=True, exist_ok=True)
        with _draft(home) as draft:
            write(draft)
            _sync(draft)
            with hold(home / LOCK):
                target = home / str(version)
                if target.is_symlink() or target.exists():
                    raise StoreError(
                        "exists already", where=str(target), fix="run the command again to compare the two"
                    )
                draft.rename(target)
                _sync_folder(home)


def _next_version(store: Path, name: str) -> int:
    """Returns one more than the largest number in use.

    Labels count too: if a version was removed by hand, its labels must not point at a new version.
    """
    try:
        labels = read_labels(store, name)
    except StoreError:
        labels = Labels()  # other commands report damaged labels; here they must not prevent publishing a finished fit
    return max([0, *versions(store, name), *labels.pointed]) + 1


def set_label(store: Path, name: str, version: int, label: str) -> None:
    """Points a label at a version, and records the version that it pointed at before.

    Raises:
        StoreError: the label is invalid, or the model has too many labels.
        UnknownModel: the version does not exist.
    """
    check_label(label)
    resolve_among(Reference(name, version, None), versions(store, name), {})
    with lock_model(store / name):
        move_label(store, name, version, label)


def move_label(store: Path, name: str, version: int, label: str) -> None:
    """Moves a label to a version that exists, under the lock of the model (`lock_model`).

    Raises:
        StoreError: the model has too many labels.
    """
    old = read_labels(store, name)
    new = moved_label(old, label, version, str(store / name / LABELS))
    if new is not old:
        _write_labels(store / name, new)


def rollback(store: Path, name: str) -> int:
    """Points `stable` at its previous version again; returns this version.

    Raises:
        UnknownModel: the model does not exist.
        StoreError: there is no previous `stable`.
    """
    known_model(store, name)
    with lock_model(store / name):
        new = rolled_back(read_labels(store, name), versions(store, name), name, str(store / name / LABELS))
        _write_labels(store / name, new)
    return new.labels[STABLE]


@contextmanager
def lock_model(home: Path) -> Generator[None]:
    """Holds the lock of the model in `home`, for a change of its labels or versions; errors of the disk name the labels' file."""
    with disk_errors(home / LABELS), hold(home / LOCK):
        _sweep(home)
        yield


def put_signature(home: Path, path: Path, content: bytes) -> None:
    """Writes the signature of a published version of the model in `home`: it exists whole or not at all.

    Raises:
        StoreError: it cannot be written.
    """
    with disk_errors(path), hold(home / LOCK):
        _sweep(home)
        put_file(home, ".signature-", path, content)


def _write_labels(home: Path, labels: Labels) -> None:
    put_file(home, ".labels-", home / LABELS, dump_labels(labels))


def put_file(home: Path, prefix: str, path: Path, content: bytes) -> None:
    """Writes a draft in the model's folder and renames it to `path`, under the model's lock."""
    descriptor, name = tempfile.mkstemp(dir=home, prefix=prefix)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(0o644)
        Path(name).rename(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


@contextmanager
def _draft(home: Path) -> Generator[Path]:
    """Yields a new folder for a draft of a bundle, locked while its writer runs.

    The draft and its lock share a parent folder, because everything inside the draft is published.
    """
    with ExitStack() as stack:
        with hold(home / LOCK):
            _sweep(home)
            parent = Path(tempfile.mkdtemp(dir=home, prefix=".writing-"))
            # The stack closes the lock before it removes the folder: NFS keeps a deleted file as long as it is open.
            stack.callback(shutil.rmtree, parent, ignore_errors=True)
            stack.enter_context(hold(parent / "lock"))
            draft = parent / "bundle"
            draft.mkdir()
            draft.chmod(0o755)
        yield draft


def _sweep(home: Path) -> None:
    """Removes the drafts of killed writers; called under the model's lock.

    A writer locks its draft before it releases the model's lock, so an unlocked draft is abandoned. Small files
    are written entirely under the model's lock, so all their drafts are abandoned.
    """
    for abandoned in (path for prefix in DRAFTS for path in home.glob(f"{prefix}*")):
        with suppress(OSError):
            abandoned.unlink()
    for removed in home.glob(f"{REMOVED}*"):
        shutil.rmtree(removed, ignore_errors=True)
    for abandoned in home.glob(".writing-*"):
        if not abandoned.is_dir():
            continue
        try:
            with hold(abandoned / "lock", blocking=False):
                pass
        except (BlockingIOError, FileNotFoundError, StoreError):
            continue  # its writer is running, is removing it, or is another user
        shutil.rmtree(abandoned, ignore_errors=True)


def _sync(folder: Path) -> None:
    for path in [folder, *folder.rglob("*")]:
        if path.is_dir():
            _sync_folder(path)
        else:
            with path.open("rb") as file:
                os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
