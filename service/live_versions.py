"""The live versions: read from the store at start; each is loaded, verified and compiled before it serves requests.

If a version cannot be loaded, the reason is reported, the other versions are served, and the server is not ready. A
version with shortfalls is served and reported as such; under `require_sound` it is refused, and the server is ready with
the others. If there are trusted keys, a version that none of them has signed is refused in the same way.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import logging
import re
import threading
import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from abstain.models.bundles import store
from abstain.models.bundles.bundle import Bundle, load_published, read_published
from abstain.models.bundles.references import parse_reference, resolve_among
from abstain.models.bundles.shortfalls import texts
from abstain.models.bundles.signatures import TrustedKeys
from abstain.models.decisions.expected_rates import expected_part_rates
from abstain.models.errors import AbstainError, InputError, SignatureError, UnknownModel, printable, suggest
from abstain.models.prediction.predictive import BUCKETS
from abstain.service.errors import HTTPError
from abstain.service.live import Live
from abstain.service.monitoring import metrics

log = logging.getLogger("abstain.serving")

_FOLDERS = re.compile(r"(?<![\w.:/])/(?:[^\s/,:;'\"()]+/)+")
"""Matches the folders of an absolute path, but no URL."""
MOST_LISTED = 20
"""The largest number of models that an error lists."""
_RESTART = "this server has read its store when it started: restart it to serve what was published since"
COMPILING = 1
"""The number of versions that are compiled at a time."""


State = Literal["idle", "loading", "ready", "failed", "refused"]


@dataclass(frozen=True)
class Entry:
    """A version in the store, and its state."""

    version: int
    labels: tuple[str, ...]
    state: State
    why: str | None = None
    live: Live | None = None


@dataclass(frozen=True)
class VersionState:
    """What clients may know about a version; the fields of `to_json` in their order."""

    name: str
    version: int
    labels: tuple[str, ...]
    digest: str | None
    """None if the manifest cannot be read."""
    method: str | None
    state: State
    why: str | None
    sound: bool
    shortfalls: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Returns the entry of the version in `GET /models`, which lists it under the name of its model."""
        fields = {key: value for key, value in vars(self).items() if key != "name"}
        return {**fields, "labels": list(self.labels), "shortfalls": list(self.shortfalls)}


class LiveVersions:
    """The versions in the store; `load_all` loads those that are served.

    Args:
        devices: the number of devices that share the draws of each version.
        require_sound: whether to refuse versions with shortfalls, including labelled ones.
        trusted: a version must be signed with one of these keys; None if it need not be signed.
    """

    def __init__(
        self, root: Path, devices: int = 1, *, require_sound: bool = False, trusted: TrustedKeys | None = None
    ) -> None:
        self.trusted = trusted
        self._root = root
        self._devices = devices
        self._require_sound = require_sound
        self._lock = threading.Lock()
        self._entries: dict[str, dict[int, Entry]] = {}
        self._labels: dict[str, dict[str, int]] = {}
        self._why: str | None = "the store has not been read yet"

    def load_all(
        self,
        buckets: tuple[int, ...] | None = None,
        on_ready: Callable[[], None] | None = None,
        progress: Callable[[str], None] | None = None,
    ) -> None:
        """Reads the store and loads every served version; then calls `on_ready` if the server is ready.

        `progress` is called with a line of text for each version that is read, compiled and ready.

        Runs in a thread, where nobody would see an exception: any error becomes a reason why the server is not ready.
        """
        try:
            self._read_store()
            self._load_served(buckets or BUCKETS, progress or _silent)
        except Exception as error:
            log.error("the store cannot be read: %s", _text(error), exc_info=_unexpected(error))
            self._why = self.hide_folders(_text(error))
            return
        self._why = None
        _return_memory()
        if on_ready and not self.reasons_not_ready():
            on_ready()

    def _load_served(self, buckets: tuple[int, ...], progress: Callable[[str], None]) -> None:
        """Loads and compiles every version that is served."""
        for name, entries in self._entries.items():
            for version in (version for version, entry in entries.items() if entry.state == "failed"):
                metrics.MODEL_LOADS.labels(name, str(version), "failed").inc()
        served = [
            (name, entry)
            for name, entries in self._entries.items()
            for entry in entries.values()
            if entry.state == "loading"
        ]
        # Versions are read and verified one after another; each is compiled while the next one is read.
        with ThreadPoolExecutor(COMPILING, thread_name_prefix="compile") as pool:
            for number, (name, entry) in enumerate(served, start=1):
                progress(f"reading {name}:{entry.version}, {number} of {len(served)}")
                self._load(name, entry, buckets, pool, progress)

    def reasons_not_ready(self) -> list[str]:
        """Returns why the server is not ready; an empty list if it is ready."""
        if self._why:
            return [self._why]
        if not self._entries:
            return ["the store has no models; publish one with abstain fit"]
        entries = [(name, entry) for name, versions in self._entries.items() for entry in versions.values()]
        # A refused version does not stop the server from being ready, unless no other version is ready.
        none_ready = not any(entry.state == "ready" for _, entry in entries)
        return [
            f"{name}:{entry.version} is loading" if entry.state == "loading" else f"{name}:{entry.version}: {entry.why}"
            for name, entry in entries
            if entry.state in {"loading", "failed"} or (none_ready and entry.state == "refused")
        ]

    def find(self, text: str | None) -> Live:
        """Returns the live version that a request names; the only model's if it names none.

        Raises:
            InputError: no model is named, and the store does not have exactly one.
            UnknownModel: no such model, version or label is served.
            HTTPError: 503, the version is still loading, failed to load, or is refused.
        """
        if self._why:
            raise HTTPError(503, f"not ready: {self._why}")
        try:
            name, entry = self._find_entry(self._only_name() if text is None else text)
        except UnknownModel as error:
            error.fix = "; ".join(part for part in (error.fix, _RESTART) if part)
            raise
        if entry.live is None:
            raise HTTPError(503, f"{name}:{entry.version} is {entry.state}{f': {entry.why}' if entry.why else ''}")
        return entry.live

    def _find_entry(self, text: str) -> tuple[str, Entry]:
        """Returns the name of a model, and its served version that a reference means.

        Raises:
            UnknownModel: as `find`.
        """
        reference = parse_reference(text)
        name, entries = reference.name, self._entries.get(reference.name, {})
        served = {version: entry for version, entry in entries.items() if entry.state != "idle"}
        if not served:
            raise UnknownModel(
                where="model",
                expected=f"one of {_listed(self._entries)}",
                found=repr(text),
                fix=suggest(name, self._entries),
            )
        idle = entries.get(reference.version or 0)
        if idle and idle.state == "idle":
            raise UnknownModel(
                f"{name}:{idle.version} is not served",
                expected=f"one of {', '.join(map(str, served))}",
                found=repr(text),
                fix=f"give it a label: abstain label {name}:{idle.version} LABEL",
            )
        return name, served[resolve_among(reference, sorted(served), self._labels[name])]

    def folder(self, text: str) -> Path:
        """Returns the folder of the version that `name:version` names, served or not.

        Raises:
            UnknownModel: the store had no such model or version when it was read.
            StoreError: the version or its model is a symbolic link.
        """
        reference = parse_reference(text)
        present = self._entries.get(reference.name, {})
        version = resolve_among(reference, sorted(present), self._labels.get(reference.name, {}))
        return store.version_folder(self._root, reference.name, version)

    def list_models(self) -> dict[str, Any]:
        """Returns the response of `GET /models`; reads manifests, as `list_versions` does."""
        return {
            "models": [
                {"name": name, "versions": [self._describe(name, entry).to_json() for entry in versions.values()]}
                for name, versions in self._entries.items()
            ]
        }

    def list_versions(self) -> list[VersionState]:
        """Returns the states of all versions; reads, and verifies, the manifest of each version that is not ready."""
        return [self._describe(name, entry) for name, versions in self._entries.items() for entry in versions.values()]

    def ready_versions(self) -> list[Live]:
        """Returns the versions that serve requests, by model and ascending; reads nothing from the disk."""
        return [entry.live for versions in self._entries.values() for entry in versions.values() if entry.live]

    def hide_folders(self, text: str) -> str:
        """Makes paths in a text relative to the store, and cuts other paths to the file name: clients need no folders."""
        return _FOLDERS.sub("", text.replace(f"{self._root}/", "").replace(str(self._root), "the store"))

    def _read_store(self) -> None:
        self._entries = {name: self._read_entries(name) for name in store.model_names(self._root)}
        self._why = None

    def _read_entries(self, name: str) -> dict[int, Entry]:
        """Reads a model's versions without loading them; an invalid label makes only its own model fail."""
        present = store.versions(self._root, name)
        try:
            labels = store.read_labels(self._root, name).labels
        except AbstainError as error:
            self._labels[name] = {}
            log.error("%s: the labels cannot be read: %s", name, error)
            return {version: Entry(version, (), "failed", self.hide_folders(str(error))) for version in present}
        self._labels[name] = labels
        served = set(store.served_versions(self._root, name))
        entries: dict[int, Entry] = {}
        for version in sorted({*present, *labels.values()}):
            own_labels = tuple(sorted(label for label, target in labels.items() if target == version))
            if version in present:
                entries[version] = Entry(version, own_labels, "loading" if version in served else "idle")
            else:
                entries[version] = Entry(
                    version, own_labels, "failed", f"{', '.join(own_labels)}: no such version of {name} in the store"
                )
        return entries

    def _load(
        self, name: str, entry: Entry, buckets: tuple[int, ...], pool: Executor, progress: Callable[[str], None]
    ) -> None:
        """Reads a version and lets the pool compile it; any error makes only this version fail."""
        published = (self._root, name, entry.version)
        try:
            if self._require_sound and (shortfalls := read_published(*published, self.trusted).shortfalls):
                metrics.MODEL_SOUND.labels(name, str(entry.version)).set(0)
                self._refuse(name, entry, f"failed publication checks: {in_one_line(texts(shortfalls))}")
                return
            bundle = load_published(*published, self.trusted)
        except SignatureError as error:
            self._refuse(name, entry, str(error))
            return
        except Exception as error:
            self._fail(name, entry, error)
            return
        # The future may be dropped, because `_compile` raises nothing.
        pool.submit(self._compile, name, entry, bundle, buckets, progress)

    def _compile(
        self, name: str, entry: Entry, bundle: Bundle, buckets: tuple[int, ...], progress: Callable[[str], None]
    ) -> None:
        """Compiles a version and makes it ready; any error makes only this version fail."""
        started = time.monotonic()
        try:
            progress(f"compiling {name}:{entry.version}")
            # Both are done here, because otherwise the first request would do it while all others wait.
            bundle.calibration.prepare()
            _ = bundle.manifest.model.row_plan
            live = Live(name, entry.version, bundle, bundle.predictor(buckets, self._devices))
            self._report_ready(name, entry, bundle)
            self._set(name, replace(entry, state="ready", live=live))
            progress(f"{name}:{entry.version} is ready, compiled in {time.monotonic() - started:.1f} s")
        except Exception as error:
            self._fail(name, entry, error)

    def _report_ready(self, name: str, entry: Entry, bundle: Bundle) -> None:
        """Sets the metrics of a version that is about to be served, and warns of its shortfalls."""
        labels, manifest = (name, str(entry.version)), bundle.manifest
        metrics.MODEL_LOADS.labels(*labels, "loaded").inc()
        metrics.MODEL_INFO.labels(*labels, manifest.digest, manifest.method.kind, str(manifest.draws)).set(1)
        metrics.MODEL_SOUND.labels(*labels).set(not manifest.shortfalls)
        metrics.EXPECTED_REJECTS.labels(*labels).set(bundle.calibration.expected_reject_rate)
        for part, rate in expected_part_rates(bundle.calibration).items():
            metrics.EXPECTED_REJECTS_BY_PART.labels(*labels, part).set(rate)
        if manifest.shortfalls:
            shortfalls = in_one_line(texts(manifest.shortfalls))
            log.warning("%s:%d is served although it failed publication checks: %s", name, entry.version, shortfalls)

    def _fail(self, name: str, entry: Entry, error: Exception) -> None:
        self._set(name, replace(entry, state="failed", why=self.hide_folders(_text(error))))
        log.error("%s:%d cannot be served: %s", name, entry.version, _text(error), exc_info=_unexpected(error))
        metrics.MODEL_LOADS.labels(name, str(entry.version), "failed").inc()

    def _refuse(self, name: str, entry: Entry, why: str) -> None:
        metrics.MODEL_LOADS.labels(name, str(entry.version), "refused").inc()
        log.warning("%s:%d is refused: %s", name, entry.version, why)
        self._set(name, replace(entry, state="refused", why=self.hide_folders(why)))

    def _set(self, name: str, entry: Entry) -> None:
        with self._lock:
            self._entries[name] = {**self._entries[name], entry.version: entry}

    def _only_name(self) -> str:
        if len(self._entries) != 1:
            expected = f"one of {_listed(self._entries)}"
            raise InputError(where="model", expected=expected, found="no key 'model'")
        return next(iter(self._entries))

    def _describe(self, name: str, entry: Entry) -> VersionState:
        digest = method = None
        sound, shortfalls = False, tuple[str, ...]()
        try:
            if entry.live:
                manifest = entry.live.bundle.manifest
            else:
                manifest = read_published(self._root, name, entry.version, self.trusted)
            digest, method = manifest.digest, manifest.method.kind
            sound, shortfalls = not manifest.shortfalls, tuple(texts(manifest.shortfalls))
        except AbstainError as error:
            entry = replace(entry, why=entry.why or self.hide_folders(str(error)))
        return VersionState(
            name, entry.version, entry.labels, digest, method, entry.state, entry.why, sound, shortfalls
        )


def _silent(_text: str) -> None:
    """Reports no progress."""


def _listed(names: Collection[str]) -> str:
    """Returns the names of some models, and how many more there are."""
    more = [f"{len(names) - MOST_LISTED} more (GET /models)"] if len(names) > MOST_LISTED else []
    return ", ".join([*list(names)[:MOST_LISTED], *more]) or "none"


def _text(error: Exception) -> str:
    """Returns the text of an error; its type if it has none."""
    return str(error) or type(error).__name__


def _unexpected(error: Exception) -> Exception | None:
    """Returns the error if the log should show its traceback: not for the errors that abstain and the disk raise."""
    return None if isinstance(error, AbstainError | OSError) else error


def in_one_line(shortfalls: Sequence[str]) -> str:
    """Joins shortfalls to one printable line, numbered if there are several; a manifest may hold any text."""
    if len(shortfalls) == 1:
        return printable(shortfalls[0])
    return printable("; ".join(f"({number}) {shortfall}" for number, shortfall in enumerate(shortfalls, start=1)))


def _return_memory() -> None:
    """Returns the memory that the allocator keeps after compilation, about 100 MB per program, to the system.

    Also excludes all objects that exist now from garbage collection, which would stop the process for 0.1 s to check them.
    """
    gc.collect()
    gc.freeze()
    with contextlib.suppress(AttributeError, OSError):  # The C library is not glibc.
        ctypes.CDLL(None).malloc_trim(0)
