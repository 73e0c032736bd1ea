"""Follows the plans of the main process in a worker: loads the first, prepares each next one, swaps and says so."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from abstain.service.following.generation import Numbers, Prepared, lock_swap, note_prepared, read_plan
from abstain.service.live import Live
from abstain.service.live_versions import LiveVersions
from abstain.service.process import Process

log = logging.getLogger("abstain.following")

LOOK_SECONDS = 0.05
"""The time between two looks at the shared numbers, in seconds."""
FIRST_RETRY, LAST_RETRY = 2.0, 600.0
"""Seconds after which a version that only this worker could not load is tried again; each time twice as long."""
PATIENCE_SECONDS = 60.0
"""How long a worker that replaces another tries to load all versions before it answers requests without some."""


def follow_plans(
    versions: LiveVersions,
    process: Process,
    accepting: threading.Event,
    forget: Callable[[list[Live]], None],
    ready: Callable[[], None],
    progress: Callable[[str], None] | None = None,
) -> None:
    """Starts a thread that follows the plans.

    Args:
        accepting: is set when this worker may answer requests.
        forget: is called with the versions that are served, after every swap.
        ready: is called once, when this worker has become ready.
        progress: is called with a line of text for each version of the first plan.
    """
    follower = WorkerFollower(versions, process, forget, ready, progress)

    def follow() -> None:
        while True:
            try:
                follower.step()
            except Exception:
                log.exception("a plan of the store cannot be followed; it is tried again")
                time.sleep(1)
            if follower.accepting:
                accepting.set()
            time.sleep(LOOK_SECONDS)

    threading.Thread(target=follow, name="follow", daemon=True).start()


class WorkerFollower:
    """The state of a worker that follows plans."""

    def __init__(
        self,
        versions: LiveVersions,
        process: Process,
        forget: Callable[[list[Live]], None],
        ready: Callable[[], None],
        progress: Callable[[str], None] | None = None,
    ) -> None:
        self._versions = versions
        self._process = process
        self._forget = forget
        self._on_ready = ready
        self._progress = progress
        self._numbers = Numbers(process.folder)
        self._replaces = process.replaces_a_worker()
        self._started = time.monotonic()
        self._retry_at, self._delay = 0.0, FIRST_RETRY
        self.prepared = 0
        """The number of the newest plan that was prepared; 0 before the first one is loaded."""
        self.accepting = False
        """Whether this worker answers requests, and takes part in every change."""
        self._swapped = 0
        self._ready = False
        versions.follow(lambda: self._numbers.current)

    def step(self) -> None:
        """Prepares the proposed plan if there is a new one, and swaps if it has become current."""
        if not self.prepared:
            self._load_first()
            return
        self._swap_if_current()
        self._prepare_proposed()
        self._swap_if_current()
        self._retry_missing()
        if not (self.accepting and self._ready):
            self._announce()

    def _load_first(self) -> None:
        number = self._numbers.current
        # If a newer plan has become current meanwhile, this one was removed; the next step takes the newer one.
        with suppress(FileNotFoundError):
            plan = read_plan(self._process.folder, number)
            failures = self._versions.load_plan(plan, progress=self._progress)
            note_prepared(self._process.folder, number, self._process.index, Prepared(failures=failures))
            self.prepared = self._swapped = number
            self._retry_at = time.monotonic() + FIRST_RETRY

    def _swap_if_current(self) -> None:
        if self._numbers.current == self.prepared != self._swapped:
            self._versions.swap()
            self._swapped = self.prepared
            self._forget(self._versions.ready_versions())

    def _prepare_proposed(self) -> None:
        """Prepares the proposed plan, if it is new; if it was removed, there is a newer one at the next step."""
        number = self._numbers.proposed
        if number == self.prepared:
            return
        # The prepared plan may have become current just before the next one was proposed.
        self._swap_if_current()
        with suppress(FileNotFoundError):
            plan = read_plan(self._process.folder, number)
            failures = self._versions.prepare(plan)
            note_prepared(self._process.folder, number, self._process.index, Prepared(failures=failures))
            self.prepared = number

    def _retry_missing(self) -> None:
        """Loads the versions that only this worker could not load, some time after the last try."""
        if self._versions.missing() and time.monotonic() >= self._retry_at:
            self._versions.load_missing()
            self._retry_at, self._delay = time.monotonic() + self._delay, min(LAST_RETRY, 2 * self._delay)

    def _announce(self) -> None:
        """Says that this worker answers requests, and that it is ready, unless a newer plan was proposed meanwhile."""
        waits = self._replaces and time.monotonic() < self._started + PATIENCE_SECONDS
        if waits and not self.accepting and self._versions.missing():
            return
        became_ready = False
        with lock_swap(self._process.folder):
            if self._numbers.proposed != self.prepared or self._numbers.current != self._swapped:
                return
            if not self.accepting:
                self._process.mark_accepting()
                self.accepting = True
            if not self._ready and not self._versions.reasons_not_ready():
                self._process.mark_ready()
                self._ready = became_ready = True
        if became_ready:
            self._on_ready()
