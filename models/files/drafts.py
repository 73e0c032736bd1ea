"""Atomic writes: a file is written as a draft next to its path and then renamed, so it exists whole or not at all.

    FOLDER/.writing-*/abstain.lock   locked by the writer; the lock is free once the process has ended
    FOLDER/.writing-*/draft.csv      the draft

Drafts of killed writers are removed. The folder belongs to the user, so only entries that match exactly are removed.
"""

from __future__ import annotations

import errno
import stat
import tempfile
from collections.abc import Generator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from abstain.models.errors import StoreError
from abstain.models.files.locks import hold

PREFIX = ".writing-"
LOCK = "abstain.lock"
DRAFT = "draft"
TRIES = 10
"""Attempts to make a draft: another writer may remove a new one before it is locked."""


@contextmanager
def draft_of(path: Path) -> Generator[Path]:
    """Yields the path of a draft, renamed to `path` at the end of the block and removed if the block fails.

    First removes the drafts of dead writers in that folder.

    Raises:
        OSError: the folder cannot be written, or the block has not written the draft.
    """
    sweep_drafts(path.parent)
    draft_folder, stack = _make_draft_folder(path.parent)
    with stack:
        draft = draft_folder / f"{DRAFT}{path.suffix}"
        yield draft
        draft.replace(path)


def sweep_drafts(folder: Path) -> None:
    """Removes the drafts of dead writers from a folder; drafts of living writers and other entries stay."""
    for draft_folder in folder.glob(f"{PREFIX}*"):
        # A draft that cannot be read, locked or removed has a living writer, or belongs to another user.
        with suppress(OSError, StoreError):
            if not _is_draft_folder(draft_folder):
                continue
            with hold(draft_folder / LOCK, blocking=False):
                _empty(draft_folder)
            draft_folder.rmdir()


def _make_draft_folder(folder: Path) -> tuple[Path, ExitStack]:
    """Makes a folder for a draft; returns it, and a stack that holds its lock and removes the folder when closed."""
    for _ in range(TRIES):
        with suppress(FileNotFoundError), ExitStack() as stack:
            draft_folder = Path(tempfile.mkdtemp(dir=folder, prefix=PREFIX))
            # The stack unlinks the lock before it closes it, and removes the folder last: NFS keeps a deleted file under
            # another name as long as it is open.
            stack.callback(_remove_folder, draft_folder)
            # A file system without locks is fine here: drafts on it are never swept, because they cannot be locked.
            with suppress(StoreError):
                stack.enter_context(hold(draft_folder / LOCK))
            stack.callback(_empty, draft_folder)
            return draft_folder, stack.pop_all()
    raise FileNotFoundError(errno.ENOENT, "drafts are removed as soon as they are made", str(folder))


def _is_draft_folder(folder: Path) -> bool:
    """Whether a folder holds a lock, at most a draft, and nothing else, all of them regular files."""
    if not stat.S_ISDIR(folder.lstat().st_mode):
        return False
    inside = list(folder.iterdir())
    return any(path.name == LOCK for path in inside) and all(
        (path.name == LOCK or path.stem == DRAFT) and stat.S_ISREG(path.lstat().st_mode) for path in inside
    )


def _empty(folder: Path) -> None:
    """Removes all files of a draft's folder, the lock last; the caller holds the lock."""
    for path in sorted(folder.iterdir(), key=lambda path: path.name == LOCK):
        with suppress(OSError):
            path.unlink()


def _remove_folder(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()
