"""The live versions of a worker: those of the plan that the server follows, each loaded, verified and compiled.

If a version cannot be loaded, the reason is reported and the other versions are served. A version with shortfalls is served
and reported as such; under `require_sound` it is refused. If there are trusted keys, a version that none of them has signed
is refused in the same way.

The next plan is prepared beside the current one. A request gets its versions from a single record, the table, which is replaced
in one step; a request that has begun keeps the version that it has.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from abstain.models.bundles import store
from abstain.models.bundles.bundle import Bundle, read_published
from abstain.models.bundles.manifest import Manifest
from abstain.models.bundles.references import parse_reference, resolve_among
from abstain.models.bundles.shortfalls import texts
from abstain.models.bundles.signatures import TrustedKeys
from abstain.models.errors import AbstainError
from abstain.models.prediction.predictive import BUCKETS
from abstain.service.errors import HTTPError
from abstain.service.live import Live
from abstain.service.loading import Loader, report_not_served, report_ready, text_of, unexpected
from abstain.service.memory import return_memory, trim
from abstain.service.plans import Failure, Key, Plan, log_changes, make_plan, read_stored
from abstain.service.rollouts.routing import Caller, Choice, choose
from abstain.service.table_reports import report_failures, report_swap
from abstain.service.version_table import (
    Entry,
    Table,
    VersionState,
    asks_for_stable,
    describe_state,
    entries_of,
    find_entry,
    only_name,
)

log = logging.getLogger("abstain.serving")

_REASONS = ("why", "why_no_rollout")
COMPILING = 1
"""The number of versions that are compiled at a time."""


class LiveVersions:
    """The versions that a worker serves; `load_all` loads the first plan, `prepare` and `swap` the following ones.

    Args:
        devices: the number of devices that share the draws of each version.
        require_sound: whether to refuse versions with shortfalls, including labelled ones.
        trusted: a version must be signed with one of these keys; None if it need not be signed.
        memory_bytes: the most bytes of arrays that may be held; None for no limit.
        all_ready: whether the server is only ready if every version that the store asks for is.
    """

    def __init__(
        self,
        root: Path,
        devices: int = 1,
        *,
        require_sound: bool = False,
        trusted: TrustedKeys | None = None,
        memory_bytes: int | None = None,
        all_ready: bool = False,
    ) -> None:
        self._loader = Loader(root, devices, require_sound, trusted, memory_bytes)
        self._all_ready = all_ready
        self._lock = threading.Lock()
        self._table = Table(why="the store has not been read yet")
        self._next: Table | None = None
        self._current: Callable[[], int] | None = None
        self._read: list[Manifest] = []

    @property
    def trusted(self) -> TrustedKeys | None:
        """The keys, one of which must have signed every version; None if none need be signed."""
        return self._loader.trusted

    @property
    def number(self) -> int:
        """The number of the plan that requests are answered by."""
        return self._answering().number

    def follow(self, current: Callable[[], int]) -> None:
        """Makes requests get their versions from the plan whose number `current` returns, once it is prepared."""
        self._current = current

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
            plan = (
                make_plan(read_stored(self._loader.root)) if self._loader.root.is_dir() else Plan(number=1, models={})
            )
            log_changes(plan, None)
            self.load_plan(plan, buckets, progress)
        except Exception as error:
            log.error("the store cannot be read: %s", text_of(error), exc_info=unexpected(error))
            self._table = Table(why=self.hide_folders(text_of(error)))
            return
        if on_ready and not self.reasons_not_ready():
            on_ready()

    def load_plan(
        self,
        plan: Plan,
        buckets: tuple[int, ...] | None = None,
        progress: Callable[[str], None] | None = None,
    ) -> dict[str, Failure]:
        """Loads the first plan, and answers by it while its versions are still loading; returns what failed, by reference.

        Versions are read and verified one after another; each is compiled while the next one is read.
        """
        self._table = self._new_table(plan, entries_of(plan))
        report_failures(self._table, Table())
        with ThreadPoolExecutor(COMPILING, thread_name_prefix="compile") as pool:
            for number, key in enumerate(sorted(plan.keys), start=1):
                (progress or _silent)(f"reading {key.name}:{key.version}, {number} of {len(plan.keys)}")
                self._load(key, buckets or BUCKETS, pool, progress or _silent)
        self._read.clear()
        return_memory()
        return {
            f"{name}:{version}": Failure(state="refused" if entry.state == "refused" else "failed", why=entry.why or "")
            for name, version, _ in plan.keys
            for entry in [self._table.entries[name][version]]
            if entry.state in {"failed", "refused"}
        }

    def prepare(self, plan: Plan) -> dict[str, Failure]:
        """Loads what is new in a plan, beside what is served; returns the versions that cannot be, by reference.

        Versions that the current plan has too are not loaded again, and count as loaded: one that this worker alone could not
        load must not keep the others from changing (`load_missing`).
        """
        before, known = self._table, self._table.keys
        entries, failures = entries_of(plan), dict[str, Failure]()
        for key in sorted(plan.keys):
            own = entries[key.name]
            old = before.entries.get(key.name, {}).get(key.version)
            if key in known and old:
                own[key.version] = replace(own[key.version], state=old.state, why=old.why, live=old.live)
            elif live := self._load_beside(key, failures, entries):
                own[key.version] = replace(own[key.version], state="ready", live=live)
        self._next = self._new_table(plan, entries)
        return failures

    def missing(self) -> set[Key]:
        """Returns the versions of the current plan that this worker could not load."""
        return {key for key in self._table.keys if self._table.entries[key.name][key.version].live is None}

    def load_missing(self) -> None:
        """Tries again to load the versions of the current plan that this worker could not load."""
        for key in sorted(self.missing()):
            if live := self._load_beside(key, {}, {}):
                report_ready(live)
                self._set(key.name, key.version, state="ready", why=None, live=live)
                log.info("%s could be loaded now", live.described)

    def swap(self) -> None:
        """Answers by the prepared plan from now on, and returns the memory of what it does not serve any more."""
        if self._next is not None:
            before, self._table, self._next = self._table, self._next, None
            report_swap(before, self._table)
            del before
            trim()

    def _load_beside(self, key: Key, failures: dict[str, Failure], entries: dict[str, dict[int, Entry]]) -> Live | None:
        """Loads a version beside those that are served, and those of `entries`; notes the failure if it cannot be loaded."""
        held = {id(live): live for live in (*self._table.live(), *Table(entries=entries).live())}
        try:
            self._loader.check_room(key.name, key.version, [live.bundle.manifest for live in held.values()])
            bundle = self._loader.read(key.name, key.version, key.stamp)
            return self._loader.compile(key.name, key.version, bundle, BUCKETS)
        except Exception as error:
            failures[f"{key.name}:{key.version}"] = self._loader.failure(error)
            if unexpected(error):  # The main process logs the others, once for all workers.
                log.exception("%s:%d cannot be served", key.name, key.version)
            return None

    def _new_table(self, plan: Plan, entries: dict[str, dict[int, Entry]]) -> Table:
        """Makes the table of a plan; texts of a plan may have folders, which clients must not learn."""
        shown = {
            name: {
                version: replace(entry, why=self.hide_folders(entry.why)) if entry.why else entry
                for version, entry in versions.items()
            }
            for name, versions in entries.items()
        }
        models = {
            name: model.model_copy(
                update={key: self.hide_folders(text) for key in _REASONS if (text := getattr(model, key))}
            )
            for name, model in plan.models.items()
        }
        return Table(plan.number, shown, models, self.hide_folders(plan.why) if plan.why else None)

    def reasons_not_ready(self) -> list[str]:
        """Returns why the server is not ready; an empty list if it is ready."""
        table = self._answering()
        if table.number == 0:
            return [table.why or "the store has not been read yet"]
        if not table.entries:
            return [table.why or "the store has no models; publish one with abstain fit"]
        entries = [(name, entry) for name, versions in table.entries.items() for entry in versions.values()]
        any_ready = any(entry.state == "ready" for _, entry in entries)
        keeping = {"loading", "failed", "refused"}
        if any_ready:
            keeping = {"failed"} if self._all_ready else set[str]()
        return [describe_state(name, entry) for name, entry in entries if entry.state in keeping]

    def shortcomings(self) -> list[str]:
        """Returns what is not served although the store asks for it, whether or not the server is ready."""
        table = self._answering()
        found = [table.why] if table.why and table.number else []
        return [*found, *(reason for name in table.models for reason in table.shortcomings(name))]

    def why_not_served(self, name: str) -> list[str] | None:
        """Returns what is not served of one model although the store asks for it; None if there is no such model."""
        table = self._answering()
        if name not in table.models:
            return [table.why] if table.why else None
        return table.shortcomings(name)

    def find(self, text: str | None) -> Live:
        """Returns the live version that a request names; the only model's if it names none.

        Raises:
            InputError: no model is named, and the store does not have exactly one.
            UnknownModel: no such model, version or label is served.
            HTTPError: 503, the version is still loading, failed to load, or is refused.
        """
        table = self._answering()
        if table.number == 0:
            raise HTTPError(503, f"not ready: {table.why}")
        reference = parse_reference(only_name(table) if text is None else text)
        entry = find_entry(table, reference, text)
        if entry.live is None:
            raise HTTPError(
                503, f"{reference.name}:{entry.version} is {entry.state}{f': {entry.why}' if entry.why else ''}"
            )
        return entry.live

    def choose(self, text: str | None, caller: Callable[[], Caller]) -> Choice:
        """Returns the live version that a request gets: while a rollout runs, that is the candidate for some callers.

        Only requests for the model or its stable version take part in a rollout, not those for another label or a version.

        Args:
            caller: returns who sends the request; called if there is a rollout.

        Raises:
            InputError: as `find` does; so are UnknownModel and HTTPError.
        """
        live = self.find(text)
        table = self._answering()
        rollout = table.models[live.name].rollout if live.name in table.models else None
        if rollout is None or live.version != rollout.baseline or not asks_for_stable(text):
            return Choice(live)
        candidate = table.entries[live.name].get(rollout.candidate)
        if candidate is None or candidate.live is None:
            return Choice(live)
        return choose(live.name, rollout, live, candidate.live, caller())

    def _answering(self) -> Table:
        """Returns the table that a request gets now: that of the current plan of the server, once it is prepared."""
        table = self._table
        if self._current is None or table.number == 0 or (current := self._current()) <= table.number:
            return table
        following = self._next
        if following is not None and following.number == current:
            return following
        table = self._table  # The other thread may have swapped in between.
        if table.number >= current:
            return table
        return Table(why="this worker is still loading what the others serve; try again")

    def folder(self, text: str) -> Path:
        """Returns the folder of the version that `name:version` names, served or not.

        Raises:
            UnknownModel: the store had no such model or version when it was read.
            StoreError: the version or its model is a symbolic link.
        """
        reference, table = parse_reference(text), self._answering()
        present = table.entries.get(reference.name, {})
        labels = table.models[reference.name].labels if reference.name in table.models else {}
        version = resolve_among(reference, sorted(present), labels)
        return store.version_folder(self._loader.root, reference.name, version)

    def list_models(self) -> dict[str, Any]:
        """Returns the response of `GET /models`; reads manifests, as `list_versions` does."""
        table = self._answering()
        return {
            "models": [
                {
                    "name": name,
                    "versions": [self._describe(name, entry).to_json() for entry in versions.values()],
                    "rollout": table.describe_rollout(name),
                }
                for name, versions in table.entries.items()
            ],
            **({"why": table.why} if table.why else {}),
        }

    def list_versions(self) -> list[VersionState]:
        """Returns the states of all versions; reads, and verifies, the manifest of each version that is not ready."""
        return [
            self._describe(name, entry)
            for name, versions in self._answering().entries.items()
            for entry in versions.values()
        ]

    def ready_versions(self) -> list[Live]:
        """Returns the versions that serve requests, by model and ascending; reads nothing from the disk."""
        return self._answering().live()

    def hide_folders(self, text: str) -> str:
        """Makes paths in a text relative to the store, and cuts other paths to the file name: clients need no folders."""
        return self._loader.hide_folders(text)

    def _load(self, key: Key, buckets: tuple[int, ...], pool: Executor, progress: Callable[[str], None]) -> None:
        """Reads a version and lets the pool compile it; any error makes only this version fail."""
        name, version, stamp = key
        try:
            self._loader.check_room(name, version, self._read)
            bundle = self._loader.read(name, version, stamp)
            self._read.append(bundle.manifest)
        except Exception as error:
            self._fail(name, version, error)
            return
        # The future may be dropped, because `_compile` raises nothing.
        pool.submit(self._compile, name, version, bundle, buckets, progress)

    def _compile(
        self, name: str, version: int, bundle: Bundle, buckets: tuple[int, ...], progress: Callable[[str], None]
    ) -> None:
        """Compiles a version and makes it ready; any error makes only this version fail."""
        try:
            progress(f"compiling {name}:{version}")
            started = time.monotonic()
            live = self._loader.compile(name, version, bundle, buckets)
            report_ready(live)
            self._set(name, version, state="ready", live=live)
            log.info("%s is served from now on", live.described)
            progress(f"{name}:{version} is ready, compiled in {time.monotonic() - started:.1f} s")
        except Exception as error:
            self._fail(name, version, error)

    def _fail(self, name: str, version: int, error: Exception) -> None:
        failure = self._loader.failure(error)
        level = logging.WARNING if failure.state == "refused" else logging.ERROR
        words = "is refused" if failure.state == "refused" else "cannot be served"
        log.log(level, "%s:%d %s: %s", name, version, words, text_of(error), exc_info=unexpected(error))
        report_not_served(name, version, failure)
        self._set(name, version, state=failure.state, why=failure.why)

    def _set(self, name: str, version: int, **changes: Any) -> None:
        with self._lock:
            entries = self._table.entries
            entries[name] = {**entries[name], version: replace(entries[name][version], **changes)}

    def _describe(self, name: str, entry: Entry) -> VersionState:
        """Describes a version; one that is not ready by its manifest, if that can be read."""
        digest = method = None
        sound, shortfalls = False, tuple[str, ...]()
        try:
            if entry.live:
                manifest = entry.live.bundle.manifest
            else:
                manifest = read_published(self._loader.root, name, entry.version, self.trusted)
            digest, method = manifest.digest, manifest.method.kind
            sound, shortfalls = not manifest.shortfalls, tuple(texts(manifest.shortfalls))
        except AbstainError as error:
            entry = replace(entry, why=entry.why or self.hide_folders(str(error)))
        return VersionState(
            name,
            entry.version,
            entry.labels,
            entry.served_as,
            digest,
            method,
            entry.state,
            entry.why,
            sound,
            shortfalls,
        )


def _silent(_text: str) -> None:
    """Reports no progress."""
