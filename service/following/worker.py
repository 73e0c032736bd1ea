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


def follow_plans(
    versions: LiveVersions,
    process: Process,
    loaded: threading.Event,
    forget: Callable[[list[Live]], None],
    ready: Callable[[], None],
    progress: Callable[[str], None] | None = None,
) -> None:
    """Starts a thread that follows the plans.

    Args:
        loaded: is set when the first plan has been loaded.
        forget: is called with the versions that are served, after every swap.
        ready: is called once, when this worker has become ready.
        progress: is called with a line of text for each version of the first plan.
    """
    follower = WorkerFollower(versions, process, forget, ready, progress)

    def follow() -> None:
        try:
            follower.load_first()
        finally:
            loaded.set()
        while True:
            time.sleep(LOOK_SECONDS)
            try:
                follower.step()
            except Exception:
                log.exception("a plan of the store cannot be followed")
                time.sleep(1)

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
        self.prepared = 0
        """The number of the newest plan that was prepared."""
        self.loaded = False
        """Whether the first plan has been loaded."""
        self._swapped = 0
        self._ready = False
        versions.follow(lambda: self._numbers.current)

    def load_first(self) -> None:
        """Loads the current plan, and then becomes ready, if it serves anything."""
        folder, index = self._process.folder, self._process.index
        while True:
            number = self._numbers.current
            with suppress(FileNotFoundError):  # A newer plan has become current, and this one was removed.
                plan = read_plan(folder, number)
                break
        failures = self._versions.load_plan(plan, progress=self._progress)
        self.prepared = self._swapped = number
        note_prepared(folder, number, index, Prepared(failures=failures))
        self.step()
        self.loaded = True

    def step(self) -> None:
        """Prepares the proposed plan if there is a new one, and swaps if it has become current."""
        self._swap_if_current()
        while not self._prepare_proposed():
            pass
        self._swap_if_current()
        if not self._ready:
            self._become_ready()

    def _swap_if_current(self) -> None:
        if self._numbers.current == self.prepared != self._swapped:
            self._versions.swap()
            self._swapped = self.prepared
            self._forget(self._versions.ready_versions())

    def _prepare_proposed(self) -> bool:
        """Prepares the proposed plan; returns whether it is prepared now, because there may be a newer one already."""
        number = self._numbers.proposed
        if number != self.prepared:
            # The prepared plan may have become current just before the next one was proposed.
            self._swap_if_current()
            plan = read_plan(self._process.folder, number)
            failures = self._versions.prepare(plan)
            self.prepared = number
            note_prepared(self._process.folder, number, self._process.index, Prepared(failures=failures))
        return self._numbers.proposed == self.prepared

    def _become_ready(self) -> None:
        """Becomes ready, unless a newer plan was proposed meanwhile, or nothing is served."""
        with lock_swap(self._process.folder):
            if self._numbers.proposed != self.prepared or self._versions.reasons_not_ready():
                return
            self._process.mark_ready()
        self._ready = True
        self._on_ready()
