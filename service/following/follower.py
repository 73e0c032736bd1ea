"""Follows the store in the main process of a server: plans, lets new versions be tried, and swaps when all workers are prepared.

    every few seconds   (or when there is an order) read the store → plan → same as the current one? wait
                        try the new versions in another process → failures change the plan
                        propose the plan → workers prepare it and say so → the plan is current

The main process imports no jax and answers no requests.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path

from abstain.models.errors import AbstainError
from abstain.service.following.generation import (
    Numbers,
    lock_swap,
    read_prepared,
    remove_plans,
    write_plan,
)
from abstain.service.following.orders import Done, Order, answer_order, take_orders
from abstain.service.following.plans import Failure, Key, Plan, Stored, log_failures, make_plan, read_stored
from abstain.service.following.preparing import try_versions
from abstain.service.process import Process, worker_environment
from abstain.service.settings import Settings

log = logging.getLogger("abstain.following")

FIRST_RETRY, LAST_RETRY = 10.0, 3_600.0
"""Seconds after which a version that could not be served is tried again; each time twice as long."""
ORDER_SECONDS = 0.1
"""The time between two looks whether there are orders."""
LOOK_SECONDS = 0.05
"""The time between two looks whether the workers are prepared."""
PREPARE_SECONDS = 900.0
"""The longest time that the workers may take to prepare a plan."""

Try = Callable[[Iterable[Key], Iterable[Key]], dict[Key, Failure]]
"""Tries the new versions beside the served ones; returns why some of the new ones cannot be served."""


def follow_store(settings: Settings, process: Process) -> None:
    """Makes the first plan, and follows the store from then on, in a thread of the main process."""
    # Programs are found by the environment of the process that compiled them: here it must be that of a worker.
    environment = {**os.environ, **worker_environment(process.workers)}
    follower = Follower(settings.store, process, partial(try_versions, environment=environment))
    follower.start(settings.refresh_seconds)


@dataclass
class _Failed:
    failure: Failure
    delay: float
    retry_at: float


class Follower:
    """Keeps what a server serves equal to what its store asks for.

    Args:
        root: the store.
        process: the main process, whose folder the workers share.
        try_versions: tries versions before the workers load them; returns why some cannot be served.
    """

    def __init__(self, root: Path, process: Process, try_versions: Try) -> None:
        self._root = root
        self._process = process
        self._try = try_versions
        self._failed: dict[Key, _Failed] = {}
        self._unloaded: set[str] = set()
        self._numbers = Numbers(process.folder, writer=True)
        self.plan = self._first_plan()
        log_failures(self.plan)
        write_plan(process.folder, self.plan)
        self._numbers.proposed = self._numbers.current = self.plan.number

    def start(self, seconds: float) -> None:
        """Starts a thread that follows the store and orders.

        Args:
            seconds: the time between two looks at the store; 0 looks only when there is an order.
        """

        def follow() -> None:
            last = time.monotonic()
            while True:
                time.sleep(ORDER_SECONDS)
                orders = [*take_orders(self._process.folder)]
                if not orders and not (seconds and time.monotonic() >= last + seconds):
                    continue
                try:
                    self.follow_orders(orders)
                except Exception:
                    log.exception("the store cannot be followed; it is tried again")
                last = time.monotonic()

        threading.Thread(target=follow, name="follow", daemon=True).start()

    def follow_orders(self, orders: list[tuple[str, Order]]) -> None:
        """Looks at the store, having unloaded and loaded what the orders say, and answers them."""
        why = "the server could not follow its store; its log says why"
        try:
            for _, order in orders:
                if order.kind == "unload":
                    self._unloaded.add(order.model)
                else:
                    self._unloaded.discard(order.model)
                    # Whoever asks for a model has perhaps repaired it, or made room.
                    self._failed = {key: failed for key, failed in self._failed.items() if key.name != order.model}
            self.step()
            why = None
        finally:
            for name, _ in orders:
                answer_order(self._process.folder, name, Done(number=self.plan.number, why=why))

    def ready_workers(self) -> list[int]:
        """Returns the indices of the workers that answer requests."""
        return self._process.ready_indices()

    def step(self) -> None:
        """Looks at the store once, and makes the server serve what it asks for."""
        # A worker that replaces another may not find what the others serve from memory: they go on.
        self._note_failures(self.plan, range(1, self._process.workers + 1), of_all=True)
        while (plan := self._next_plan()) is not None:
            new = plan.keys - self.plan.keys
            failures = self._try(new, self.plan.keys) if new else {}
            for key, failure in failures.items():
                self._note_failure(key, failure)
            for key in new - failures.keys():
                self._failed.pop(key, None)
            if not failures:
                self._swap_to(plan)

    def _first_plan(self) -> Plan:
        try:
            return make_plan(read_stored(self._root))
        except (AbstainError, OSError) as error:
            return Plan(number=1, models={}, why=_words(error))

    def _next_plan(self) -> Plan | None:
        """Returns the plan for the store as it is now; None if it is the current one."""
        number = self._numbers.proposed + 1
        try:
            stored = read_stored(self._root)
        except (AbstainError, OSError) as error:
            plan = self.plan.model_copy(update={"number": number, "why": _words(error)})
        else:
            plan = self._plan(stored).model_copy(update={"number": number})
        same = plan.model_copy(update={"number": self.plan.number}) == self.plan
        # Workers may hold versions of a plan that never became current: the current one is then proposed again.
        return None if same and self._numbers.proposed == self.plan.number else plan

    def _plan(self, stored: Stored) -> Plan:
        if not stored and self.plan.models:
            # A folder whose file system is not mounted is empty too.
            why = "the store has no models; those that were there are still served"
            return self.plan.model_copy(update={"why": why})
        now = time.monotonic()
        known = {key: failed.failure for key, failed in self._failed.items() if now < failed.retry_at}
        # A version that is due for another try must not change the plan before it has succeeded.
        return make_plan(stored, known, self.plan, frozenset(self._unloaded))

    def _note_failure(self, key: Key, failure: Failure) -> None:
        before = self._failed.get(key)
        delay = min(LAST_RETRY, 2 * before.delay) if before else FIRST_RETRY
        self._failed[key] = _Failed(failure, delay, time.monotonic() + delay)
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
            if f"{key.name}:{key.version}" in names and key not in self._failed:
                found = next(
                    each[f"{key.name}:{key.version}"] for each in failures if f"{key.name}:{key.version}" in each
                )
                self._note_failure(key, found)
        return bool(names)

    def _swap_to(self, plan: Plan) -> None:
        """Proposes a plan, and makes it current when every ready worker has prepared it without a failure."""
        folder = self._process.folder
        write_plan(folder, plan)
        self._numbers.proposed = plan.number
        deadline = time.monotonic() + PREPARE_SECONDS
        missing: list[int] = []
        while time.monotonic() < deadline:
            with lock_swap(folder):
                ready = self.ready_workers()
                missing = [index for index in ready if read_prepared(folder, plan.number, index) is None]
                if not missing:
                    if self._note_failures(plan, ready, of_all=False):
                        return
                    self._numbers.current = plan.number
                    self.plan = plan
                    break
            time.sleep(LOOK_SECONDS)
        else:
            log.error("workers %s have not prepared plan %d in %g s", missing, plan.number, PREPARE_SECONDS)
            return
        remove_plans(folder, plan.number)


def _words(error: Exception) -> str:
    if isinstance(error, OSError):
        return f"the store cannot be read: {error.strerror or error}"
    return f"the store cannot be read: {error}"
