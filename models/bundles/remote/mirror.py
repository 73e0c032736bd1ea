"""A mirror: a folder with the layout of a store, which holds what a server needs of a store elsewhere.

A look lists the store, copies the labels and has the versions that they ask for downloaded by threads of their own. A label
is copied when its version is here, or could not be copied; so a reader of the folder never sees it before its version.
When the store is away, the folder stays as it is.

Versions that nothing needs are removed, unless another server uses the folder. A version there is never replaced under its
number while this process runs; the first look compares every manifest.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from abstain.models.bundles.labels import LABELS, LABELS_BYTES, Labels, parse_labels
from abstain.models.bundles.listing import MANIFEST_BYTES
from abstain.models.bundles.references import STABLE, served_among
from abstain.models.bundles.remote.download import download_version
from abstain.models.bundles.remote.objects import Objects
from abstain.models.bundles.remote.versions import Numbers, model_names, newest_whole, read_manifest_bytes, read_numbers
from abstain.models.bundles.retention import removable_versions
from abstain.models.bundles.rollouts import FILE_BYTES, ROLLOUT, parse_rollout
from abstain.models.bundles.signatures import SIGNATURE, SIGNATURE_BYTES
from abstain.models.bundles.store import MANIFEST, REMOVED, lock_model, put_file, put_signature, versions
from abstain.models.bundles.store import model_names as mirrored_names
from abstain.models.errors import AbstainError, StoreError
from abstain.models.files.regular import read_bounded

log = logging.getLogger("abstain.mirror")

MOST_UNFINISHED = 50
"""How many of the largest numbers may be uploads that have not ended."""
DOWNLOADS = 2
"""Versions that are downloaded at a time."""
FIRST_RETRY, LAST_RETRY = 5.0, 300.0
"""Seconds after which a version that could not be copied is tried again; each time twice as long."""
AWAY = "the store cannot be read; what was copied from it before is served"
_Version = tuple[str, int]


class Looked(NamedTuple):
    """How many looks have ended, and the models of which a version is still being copied."""

    number: int = 0
    copying: frozenset[str] = frozenset()


class Mirror:
    """Keeps a folder equal to what a store elsewhere asks to be served.

    Args:
        objects: the store.
        root: the folder; other code reads it as a store.
        signatures: whether to look for signatures that were added later.

    Attributes:
        why: why the last look failed, without addresses; None if it did not.
        reason: the error of that look.
        faults: why versions could not be copied, by name and number.
    """

    def __init__(self, objects: Objects, root: Path, *, signatures: bool = False) -> None:
        self._objects = objects
        self._root = root
        self._signatures = signatures
        self._running: dict[_Version, threading.Thread] = {}
        self._slots = threading.Semaphore(DOWNLOADS)
        self._retries: dict[_Version, tuple[float, float]] = {}
        self._labels: dict[str, tuple[str, bytes]] = {}
        self._compared: set[_Version] = set()
        self.reason: str | None = None
        self._wake = threading.Event()
        self._begun = self._ended = 0
        self._copying: set[str] = set()
        self.why: str | None = None
        self.faults: dict[_Version, str] = {}
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._use = os.open(root / ".use", os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(self._use, fcntl.LOCK_SH)

    def close(self) -> None:
        """Ends the use of the folder."""
        os.close(self._use)

    def start(self, seconds: float, needed: Callable[[], Collection[_Version]]) -> None:
        """Starts a thread that looks at the store again and again.

        Args:
            seconds: the time between two looks; 0 looks once, and then only when it is asked to.
            needed: returns the versions that must not be removed.
        """

        def follow() -> None:
            while True:
                self._wake.clear()
                self.look(needed())
                self._wake.wait(seconds or None)

        threading.Thread(target=follow, name="mirror", daemon=True).start()

    def ask(self) -> int:
        """Asks for a look now; returns the number of looks that have ended when it has."""
        self._wake.set()
        return self._begun + 1

    def looked(self) -> Looked:
        """Returns how far the looks are; what it says was copied is in the folder before."""
        return Looked(self._ended, frozenset(self._copying))

    def look(self, needed: Collection[_Version] = ()) -> None:
        """Looks at the store once, and has missing versions downloaded; sets `why` if that fails.

        Args:
            needed: versions that must not be removed.
        """
        self._begun += 1
        try:
            names = model_names(self._objects)
            mirrored = mirrored_names(self._root)
            if not names and mirrored:
                # Wrong credentials or an emptied bucket look alike.
                raise StoreError("has no models", where=self._objects.url, expected=", ".join(mirrored))
            failures: list[Exception] = []
            for name in names:
                try:
                    self._look_at(name, needed)
                except (AbstainError, OSError) as error:  # The other models are copied all the same.
                    failures.append(error)
            for name in {*mirrored} - {*names}:
                self._copying.discard(name)
                self._remove(name, versions(self._root, name))
                (self._root / name / LABELS).unlink(missing_ok=True)
            if failures:
                raise failures[0]
        except (AbstainError, OSError) as error:
            self._note_away(error)
        except Exception as error:
            log.exception("the store cannot be copied")
            self._note_away(error)
        else:
            if self.reason:
                log.warning("%s can be read again", self._objects.url)
            self.why = self.reason = None
        self._ended = self._begun

    def settle(self) -> None:
        """Looks at the store until everything that it asks for is here, or could not be copied."""
        self.look()
        while self._running:
            for thread in [*self._running.values()]:
                thread.join()
            self.look()

    def _note_away(self, error: Exception) -> None:
        text = str(error)
        if text != self.reason:
            log.error("%s: %s", AWAY, text)
        self.reason, self.why = text, AWAY
        self._copying.clear()

    def _look_at(self, name: str, needed: Collection[_Version]) -> None:
        found = read_numbers(self._objects, name)
        written = self._read_labels(name, found)
        here = versions(self._root, name)
        try:
            labels = Labels() if written is None else parse_labels(written, name, name)
        except StoreError:
            labels, wanted = Labels(), here  # The reader of the folder reports the labels.
        else:
            wanted = self._wanted(name, found.numbers, labels, here)
        rollout = self._objects.get(f"{name}/{ROLLOUT}", FILE_BYTES) if ROLLOUT in found.tags else None
        wanted = sorted({*wanted, *(_candidates(name, rollout.written) if rollout else ())} & {*found.numbers, *here})
        self._drop_replaced(name, wanted)
        for version in wanted:
            self._download_if_missing(name, version)
        if any((name, version) in self._running for version in wanted):
            self._copying.add(name)
        else:
            self._copy_small(name, LABELS, written)
            self._copy_small(name, ROLLOUT, rollout and rollout.written)
            self._copying.discard(name)
        if self._signatures:
            self._add_signatures(name, wanted)
        here = versions(self._root, name)
        self._remove(name, [version for version in here if version not in found.numbers])
        for key in [key for key in [*self.faults] if key[0] == name and key[1] not in wanted]:
            self.faults.pop(key, None)
        self._prune(name, labels, {*wanted, *(version for own, version in needed if own == name)})

    def _read_labels(self, name: str, found: Numbers) -> bytes | None:
        """Reads the labels, unless their tag is that of the last time."""
        tag = found.tags.get(LABELS)
        if tag is None:
            return None
        known = self._labels.get(name)
        if known is None or not tag or known[0] != tag:
            content = self._objects.get(f"{name}/{LABELS}", LABELS_BYTES)
            if content is None:
                return None
            known = self._labels[name] = (content.tag, content.written)
        return known[1]

    def _wanted(self, name: str, numbers: list[int], labels: Labels, here: list[int]) -> list[int]:
        """Returns the versions that labels ask for; without `stable`, the newest whole one too."""
        present = [version for version in numbers if version in labels.labels.values()]
        if STABLE not in labels.labels:
            recent = numbers[-MOST_UNFINISHED:]
            newest = max((version for version in here if version in recent), default=0)
            beyond = [version for version in recent if version > newest]
            whole = newest_whole(self._objects, name, beyond) or newest
            present += [whole] if whole else []
        return served_among({*present}, labels.labels)

    def _drop_replaced(self, name: str, wanted: Iterable[int]) -> None:
        """Removes versions that are others in the store; compares each once."""
        for version in {*wanted} & {*versions(self._root, name)}:
            if (name, version) not in self._compared:
                there = read_manifest_bytes(self._objects, name, version)
                here = read_bounded(self._root / name / str(version) / MANIFEST, MANIFEST_BYTES, StoreError)
                if there is not None and there != here:
                    log.warning("%s:%d is another version in the store now", name, version)
                    self._remove(name, [version])
                self._compared.add((name, version))

    def _download_if_missing(self, name: str, version: int) -> None:
        key = name, version
        retry_at, _ = self._retries.get(key, (0.0, 0.0))
        if key in self._running or time.monotonic() < retry_at or (self._root / name / str(version)).is_dir():
            return
        thread = threading.Thread(target=self._download, args=key, name=f"download-{name}-{version}", daemon=True)
        self._running[key] = thread
        thread.start()

    def _download(self, name: str, version: int) -> None:
        key = name, version
        try:
            with self._slots:
                download_version(self._objects, self._root, name, version)
            self._compared.add(key)
            self.faults.pop(key, None)
            self._retries.pop(key, None)
        except Exception as error:
            if (self._root / name / str(version)).is_dir():
                return  # Another server that uses the folder was faster.
            text = str(error)
            _, delay = self._retries.get(key, (0.0, FIRST_RETRY / 2))
            self._retries[key] = time.monotonic() + min(LAST_RETRY, 2 * delay), min(LAST_RETRY, 2 * delay)
            own = f"it cannot be copied from the store: {text.replace(f'{self._objects.url}/', '')}"
            if isinstance(error, StoreError) or not isinstance(error, AbstainError):
                own = "it cannot be copied from the store; the log of the server says why"
            if self.faults.get(key) != own:
                log.error("%s:%d cannot be copied: %s", name, version, text)
            self.faults[key] = own
        finally:
            self._running.pop(key, None)
            self._wake.set()

    def _copy_small(self, name: str, file: str, written: bytes | None) -> None:
        path = self._root / name / file
        if written is None:
            path.unlink(missing_ok=True)
            return
        try:
            same = path.read_bytes() == written
        except FileNotFoundError:
            same = False
        if not same:
            path.parent.mkdir(parents=True, exist_ok=True)
            with lock_model(path.parent):
                put_file(path.parent, ".labels-", path, written)

    def _add_signatures(self, name: str, wanted: Iterable[int]) -> None:
        for version in {*wanted} & {*versions(self._root, name)}:
            path = self._root / name / str(version) / SIGNATURE
            if not path.exists() and (found := self._objects.get(f"{name}/{version}/{SIGNATURE}", SIGNATURE_BYTES)):
                put_signature(self._root / name, path, found.written)

    def _prune(self, name: str, labels: Labels, needed: Collection[int]) -> None:
        """Removes what neither labels, a rollback, nor this server needs, if no other server uses the folder."""
        here = versions(self._root, name)
        unneeded = [version for version in removable_versions(here, labels, 1) if version not in needed]
        if not unneeded:
            return
        try:
            fcntl.flock(self._use, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._remove(name, unneeded)
        except BlockingIOError:
            pass
        finally:
            fcntl.flock(self._use, fcntl.LOCK_SH)

    def _remove(self, name: str, unneeded: Iterable[int]) -> None:
        for version in unneeded:
            hidden = self._root / name / f"{REMOVED}{version}-{uuid.uuid4().hex}"
            with suppress(FileNotFoundError):
                (self._root / name / str(version)).rename(hidden)
                shutil.rmtree(hidden, ignore_errors=True)
            self._compared.discard((name, version))


def _candidates(name: str, written: bytes) -> set[int]:
    """Returns the version that a running rollout compares; none if the file is damaged, which its reader reports."""
    try:
        rollout = parse_rollout(written, name, name)
    except StoreError:
        return set()
    return {rollout.candidate} if rollout.outcome is None else set()
