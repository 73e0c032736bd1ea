"""Follows the store in the main process of a server: plans, has new versions tried, and swaps when all workers are prepared.

    every few seconds   (or when there is an order) read the store → plan → same as the current one? wait
                        new versions are tried in other processes, one after another; until then the plan leaves them out
                        propose the plan → workers prepare it and say so → the plan is current

The main process imports no jax and answers no requests. Trying a version does not keep other changes waiting.
"""

from __future__ import annotations

import logging
import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path

from abstain.models.bundles.remote.mirror import Looked, Mirror
from abstain.models.bundles.remote.objects import open_objects
from abstain.models.bundles.remote.url import RemoteURL
from abstain.models.errors import AbstainError
from abstain.service.following.generation import (
    Numbers,
    keep_files,
    lock_swap,
    read_prepared,
    remove_plans,
    write_plan,
)
from abstain.service.following.orders import Done, Order, answer_order, take_orders
from abstain.service.following.preparing import try_version
from abstain.service.plans import (
    LOADING,
    Failure,
    Key,
    Plan,
    Stored,
    describe_changes,
    keys_of,
    log_changes,
    make_plan,
    read_stored,
    with_faults,
)
from abstain.service.process import Process, worker_environment
from abstain.service.rollouts.gathering import Gatherer
from abstain.service.settings import Settings

log = logging.getLogger("abstain.following")

FIRST_RETRY, LAST_RETRY = 10.0, 3_600.0
"""Seconds after which a version that could not be served is tried again; each time twice as long."""
ORDER_SECONDS = 0.1
"""The time between two looks whether there are orders, or versions that have been tried."""
LOOK_SECONDS = 0.05
"""The time between two looks whether the workers are prepared."""
PREPARE_SECONDS = 900.0
"""The longest time that the workers may take to prepare a plan."""

Try = Callable[[Key, Iterable[Key], threading.Event], Failure | None]
"""Tries a version beside the served ones, until the event is set; returns why it cannot be served, None if it can."""


def follow_store(settings: Settings, process: Process) -> None:
    """Makes the first plan, and follows the store from then on, in a thread of the main process."""
    # Programs are found by the environment of the process that compiled them: here it must be that of a worker.
    environment = {**os.environ, **worker_environment(process.workers)}

    def announce(text: str) -> None:
        """Prints what is served from now on, as the start of the server does."""
        if not settings.quiet:
            with suppress(OSError):  # Nobody reads it any more.
                sys.stderr.write(f"abstain: {text}\n")
                sys.stderr.flush()

    mirror = None
    if isinstance(settings.store, RemoteURL):
        mirror = Mirror(open_objects(settings.store), settings.folder, signatures=bool(settings.trusted_keys))
    follower = Follower(
        settings.folder, process, partial(try_version, environment=environment), announce, mirror, settings.store
    )
    if mirror:
        mirror.start(settings.refresh_seconds, lambda: {(key.name, key.version) for key in follower.plan.keys})
    follower.start(settings.refresh_seconds)


@dataclass
class _Failed:
    failure: Failure
    retry_at: float


@dataclass
class _Trial:
    """A version that is being tried, or waits for it; `failure` is its result when it is done."""

    key: Key
    served: frozenset[Key]
    cancelled: threading.Event = field(default_factory=threading.Event)
    done: threading.Event = field(default_factory=threading.Event)
    failure: Failure | None = None


class Follower:
    """Keeps what a server serves equal to what its store asks for.

    Args:
        root: the store.
        process: the main process, whose folder the workers share.
        try_one: tries a version before the workers load it.
        announce: is called with a line of text when other versions are served.
        mirror: what fills the store, if it is a copy of a store elsewhere.
        store: that store elsewhere.
    """

    def __init__(
        self,
        root: Path,
        process: Process,
        try_one: Try,
        announce: Callable[[str], None] = lambda _text: None,
        mirror: Mirror | None = None,
        store: Path | RemoteURL | None = None,
    ) -> None:
        self._mirror = mirror
        self._looked = Looked()
        self._asked = 0
        self._announce = announce
        self._root = root
        self._process = process
        self._try = try_one
        self._queue: queue.SimpleQueue[_Trial] = queue.SimpleQueue()
        self._trials: dict[Key, _Trial] = {}
        self._sound: set[Key] = set()
        self._failed: dict[Key, _Failed] = {}
        self._delays: dict[Key, float] = {}
        self._unloaded: set[str] = set()
        self._orders: list[tuple[str, Order]] = []
        self._gatherer = Gatherer(store or root, process.folder, announce)
        self._numbers = Numbers(process.folder, writer=True)
        self.plan = self._first_plan()
        log_changes(self.plan, None)
        write_plan(process.folder, self.plan)
        self._numbers.proposed = self._numbers.current = self.plan.number
        threading.Thread(target=self._try_queued, name="try", daemon=True).start()

    def start(self, seconds: float) -> None:
        """Starts a thread that follows the store and orders.

        Args:
            seconds: the time between two looks at the store; 0 looks only when there is an order.
        """

        def follow() -> None:
            last = time.monotonic()
            while True:
                time.sleep(ORDER_SECONDS)
                try:
                    due = bool(seconds) and time.monotonic() >= last + seconds
                    tried = any(trial.done.is_set() for trial in self._trials.values())
                    ended = self._gatherer.ended.is_set()
                    if self.take_orders() or due or tried or ended or self._mirror_changed():
                        self._gatherer.ended.clear()
                        last = time.monotonic()
                        self.step()
                    self.answer_orders()
                except Exception:
                    log.exception("the store cannot be followed; it is tried again")
                    time.sleep(1)

        self._gatherer.start(lambda: self.plan)
        threading.Thread(target=follow, name="follow", daemon=True).start()

    def take_orders(self) -> bool:
        """Takes the orders that wait, and notes which models are to be loaded; returns whether there were any."""
        orders = [*take_orders(self._process.folder)]
        for _, order in orders:
            if order.kind == "unload":
                self._unloaded.add(order.model)
            elif order.kind == "load":
                self._unloaded.discard(order.model)
                # Whoever asks for a model has perhaps repaired it, or made room.
                for key in [key for key in self._failed if key.name == order.model]:
                    self._failed[key].retry_at = 0.0
                    self._delays.pop(key, None)
        self._orders += orders
        if orders and self._mirror:
            self._asked = self._mirror.ask()
        return bool(orders)

    def answer_orders(self) -> None:
        """Answers the orders for models of which no version is being tried."""
        trying = {key.name for key in self._trials}
        waiting, self._orders = self._orders, []
        for name, order in waiting:
            if order.model in trying or self._is_copying(order.model):
                self._orders.append((name, order))
            else:
                answer_order(self._process.folder, name, Done(number=self.plan.number))

    def _mirror_changed(self) -> bool:
        """Whether the mirror has looked at its store since the last step; notes it before the step reads the mirror."""
        before, self._looked = self._looked, self._mirror.looked() if self._mirror else self._looked
        return self._looked != before

    def _is_copying(self, name: str) -> bool:
        """Whether the mirror has not yet copied what a model's labels asked for when the last order was taken."""
        return self._looked.number < self._asked or name in self._looked.copying

    def step(self) -> None:
        """Looks at the store once, and makes the server serve what it asks for, as far as that has been tried."""
        keep_files(self._process.folder, self.plan.number)
        # A worker that replaces another may not find what the others serve from memory: they go on.
        self._note_failures(self.plan, range(1, self._process.workers + 1), of_all=True)
        self._collect_trials()
        while (plan := self._next_plan()) is not None:
            if not self._swap_to(plan):
                return

    def settle(self) -> None:
        """Looks at the store, and again when each new version has been tried."""
        self.step()
        while self._trials:
            for trial in self._trials.values():
                trial.done.wait()
            self.step()

    def accepting_workers(self) -> list[int]:
        """Returns the indices of the workers that answer requests."""
        return self._process.accepting_indices()

    def _first_plan(self) -> Plan:
        try:
            return self._with_away(make_plan(self._read()))
        except (AbstainError, OSError) as error:
            return Plan(number=1, models={}, why=_words(error))

    def _read(self) -> Stored:
        stored = read_stored(self._root)
        return with_faults(stored, dict(self._mirror.faults)) if self._mirror else stored

    def _with_away(self, plan: Plan) -> Plan:
        """Adds to a plan that the store elsewhere is away."""
        why = self._mirror.why if self._mirror else None
        return plan.model_copy(update={"why": plan.why or why})

    def _next_plan(self) -> Plan | None:
        """Returns the plan for the store as it is now; None if it is the current one."""
        number = self._numbers.proposed + 1
        try:
            stored = self._read()
        except (AbstainError, OSError) as error:
            plan = self.plan.model_copy(update={"number": number, "why": _words(error)})
        else:
            plan = self._with_away(self._plan(stored)).model_copy(update={"number": number})
        same = plan.model_copy(update={"number": self.plan.number}) == self.plan
        # Workers may hold versions of a plan that never became current: the current one is then proposed again.
        return None if same and self._numbers.proposed == self.plan.number else plan

    def _plan(self, stored: Stored) -> Plan:
        if not stored and self.plan.models:
            # A folder whose file system is not mounted is empty too.
            why = "the store has no models; those that were there are still served"
            return self.plan.model_copy(update={"why": why})
        wanted = {key for key in keys_of(stored) if key.name not in self._unloaded}
        self._start_trials(wanted - self.plan.keys - self._sound)
        self._cancel_trials(self._trials.keys() - wanted)
        left_out = dict.fromkeys(self._trials, LOADING)
        left_out |= {key: failed.failure for key, failed in self._failed.items() if key not in self._sound}
        return make_plan(stored, left_out, self.plan, frozenset(self._unloaded))

    def _start_trials(self, keys: set[Key]) -> None:
        """Has versions tried that are new, or whose next try is due."""
        for key in sorted(keys - self._trials.keys()):
            failed = self._failed.get(key)
            if failed is None or time.monotonic() >= failed.retry_at:
                self._trials[key] = _Trial(key, frozenset(self.plan.keys))
                self._queue.put(self._trials[key])

    def _cancel_trials(self, keys: set[Key]) -> None:
        """Ends the trials of versions that the store does not ask for any more."""
        for key in keys:
            self._trials.pop(key).cancelled.set()

    def _try_queued(self) -> None:
        """Tries one version after another, in a thread of its own."""
        while True:
            trial = self._queue.get()
            if not trial.cancelled.is_set():
                try:
                    trial.failure = self._try(trial.key, trial.served, trial.cancelled)
                except Exception as error:
                    log.exception("%s:%d cannot be tried", trial.key.name, trial.key.version)
                    trial.failure = Failure(state="failed", why=f"it cannot be tried: {error}")
            trial.done.set()

    def _collect_trials(self) -> None:
        for key in [key for key, trial in self._trials.items() if trial.done.is_set()]:
            failure = self._trials.pop(key).failure
            if failure is None:
                self._sound.add(key)
            else:
                self._note_failure(key, failure)

    def _note_failure(self, key: Key, failure: Failure) -> None:
        before, self._delays[key] = self._failed.get(key), min(LAST_RETRY, 2 * self._delays.get(key, FIRST_RETRY / 2))
        self._failed[key] = _Failed(failure, time.monotonic() + self._delays[key])
        self._sound.discard(key)
        if before is None or before.failure != failure:
            log.error("%s:%d cannot be served: %s", key.name, key.version, failure.why)

    def _note_failures(self, plan: Plan, indices: Iterable[int], *, of_all: bool) -> bool:
        """Notes the versions of a plan that workers could not load; returns whether there are any.

        Args:
            of_all: whether only the versions count that none of these workers could load.
        """
        prepared = [read_prepared(self._process.folder, plan.number, index) for index in indices]
        failures = [note.failures if note else {} for note in prepared]
        names = {*chain.from_iterable(failures)}
        if of_all:
            names = names.intersection(*failures)
        for key in sorted(plan.keys):
            name = f"{key.name}:{key.version}"
            if name in names and not (of_all and key in self._failed):
                self._note_failure(key, next(each[name] for each in failures if name in each))
        return bool(names)

    def _swap_to(self, plan: Plan) -> bool:
        """Proposes a plan, and makes it current when every worker that accepts requests has prepared it without a failure.

        Returns:
            Whether a further plan may be made now; False if the workers took too long.
        """
        folder = self._process.folder
        write_plan(folder, plan)
        self._numbers.proposed = plan.number
        deadline = time.monotonic() + PREPARE_SECONDS
        while True:
            with lock_swap(folder):
                workers = self.accepting_workers()
                missing = [index for index in workers if read_prepared(folder, plan.number, index) is None]
                if not missing:
                    if self._note_failures(plan, workers, of_all=False):
                        return True
                    self._numbers.current = plan.number
                    break
            if time.monotonic() >= deadline:
                log.error("workers %s have not prepared plan %d in %g s", missing, plan.number, PREPARE_SECONDS)
                return False
            time.sleep(LOOK_SECONDS)
        log_changes(plan, self.plan)
        for text in describe_changes(plan, self.plan):
            self._announce(text)
        self.plan = plan
        for key in plan.keys:
            self._failed.pop(key, None)
            self._delays.pop(key, None)
        # What has been served is not tried again: its programs are in the cache, so a rollback takes a second.
        self._sound |= plan.keys
        remove_plans(folder, plan.number)
        return True


def _words(error: BaseException) -> str:
    if isinstance(error, OSError):
        return f"the store cannot be read: {error.strerror or error}"
    return f"the store cannot be read: {error}"
