"""Files written beside their place and renamed into it: they exist whole or not at all, and no killed writer's stays.

    FOLDER/.writing-*/abstain.lock   held by the writer, and free once it is dead
    FOLDER/.writing-*/draft.csv      what it writes

The folder is the user's own, so only what looks in every point like a draft of ours is removed from it.
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
"""To make a draft: another writer may sweep a new one before it is locked."""


@contextmanager
def draft_of(path: Path) -> Generator[Path]:
    """A file to write beside `path`, renamed to it at the end of the block; gone if the block fails.

    Drafts of dead writers in that folder are removed first.

    Raises:
        OSError: the folder cannot be written, or the block has not written the draft.
    """
    sweep_drafts(path.parent)
    place, held = _make_place(path.parent)
    with held:
        draft = place / f"{DRAFT}{path.suffix}"
        yield draft
        draft.replace(path)


def sweep_drafts(folder: Path) -> None:
    """Removes the drafts of dead writers from a folder; living writers' stay, and so does what others named alike."""
    for place in folder.glob(f"{PREFIX}*"):
        # What cannot be read, locked or removed has a living writer, or is another user's.
        with suppress(OSError, StoreError):
            if not _is_ours(place):
                continue
            with hold(place / LOCK, blocking=False):
                _empty(place)
            place.rmdir()


def _make_place(folder: Path) -> tuple[Path, ExitStack]:
    """A new folder for a draft, and what holds its lock until it is closed, and then removes the folder."""
    for _ in range(TRIES):
        with suppress(FileNotFoundError), ExitStack() as held:
            place = Path(tempfile.mkdtemp(dir=folder, prefix=PREFIX))
            # Undone in reverse: NFS keeps a file that is open under another name, and so its folder.
            held.callback(_remove_folder, place)
            # Answers can be written where there are no locks; their drafts are not swept, for nobody can take the lock.
            with suppress(StoreError):
                held.enter_context(hold(place / LOCK))
            held.callback(_empty, place)
            return place, held.pop_all()
    raise FileNotFoundError(errno.ENOENT, "drafts are removed as soon as they are made", str(folder))


def _is_ours(place: Path) -> bool:
    """Whether a folder holds a lock, a draft at most, and nothing else; all of them ours, none of them a link."""
    if not stat.S_ISDIR(place.lstat().st_mode):
        return False
    inside = list(place.iterdir())
    return any(path.name == LOCK for path in inside) and all(
        (path.name == LOCK or path.stem == DRAFT) and stat.S_ISREG(path.lstat().st_mode) for path in inside
    )


def _empty(place: Path) -> None:
    """Removes all files of a draft, the lock last; called by who holds it."""
    for path in sorted(place.iterdir(), key=lambda path: path.name == LOCK):
        with suppress(OSError):
            path.unlink()


def _remove_folder(place: Path) -> None:
    with suppress(OSError):
        place.rmdir()
