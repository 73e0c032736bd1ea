"""The queue of a worker: rows of many requests are computed in one call, and an error stays with its own request.

An idle server computes a request at once. While it computes, arriving requests wait; they are then computed together, as
many rows as fill a bucket. Where that many wait already, the next batch begins before the last one is done, so that the
device never waits for the event loop. Models take turns. A request of more rows than the largest bucket is computed in
pieces, between which other requests have theirs. The queue is bounded in number and in time.

The event loop starts a computation on the device, a thread waits for it, and the event loop decides and encodes: no other
Python runs beside the loop, because threads that take the interpreter from one another cost more than they save. Only
many rows are decided and encoded in the thread.

This module knows no format of requests or responses and no metrics: `Stages` holds the functions of a worker.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Float

from abstain.service.batches import (
    PARTIAL,
    Computation,
    Job,
    Outcomes,
    Piece,
    Share,
    Spent,
    Stages,
    T,
    fail,
    launch,
    outcomes_of,
)
from abstain.service.errors import HTTPError
from abstain.service.live import Live

THREADS = 2
SMALL = 8
"""Buckets up to this size cost hardly more than one row."""
UNDER_WAY = 2
"""Batches that a device has at a time: the one that it computes, and the next."""
FEW = 32
"""Rows of requests up to this number are decided and encoded in the event loop: a millisecond."""


class Batcher:
    """The queue of one worker. Methods run in the event loop where they do not say otherwise.

    Args:
        queue: how many requests may wait or be computed at a time.
        timeout_seconds: how long one request may take.
        stages: the functions that a computed batch passes through.
    """

    def __init__(self, queue: int, timeout_seconds: float, stages: Stages) -> None:
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="compute")
        self._queue = queue
        self._timeout = timeout_seconds
        self._stages = stages
        self._pending = 0
        self._under_way = 0
        self._waiting: dict[int, deque[Job[Any]]] = {}

    @contextmanager
    def place(self) -> Generator[None]:
        """Reserves a place among the requests that wait or are computed.

        Raises:
            HTTPError: 429, the queue is full.
        """
        if self._pending >= self._queue:
            raise HTTPError(
                429,
                "the queue is full",
                {"Retry-After": "1"},
                expected=f"at most {self._queue} waiting",
                code="queue_full",
            )
        self._pending += 1
        try:
            yield
        finally:
            self._pending -= 1

    async def submit(
        self,
        live: Live,
        rows: Float[np.ndarray, "rows ..."],
        percentile: float | None,
        coverage: float | None,
        encode: Callable[[list[Share]], T],
        spent: Spent | None = None,
    ) -> T:
        """Returns what `encode` makes of the predictions and decisions of the rows.

        Args:
            spent: a record to write the cost to.

        Raises:
            HTTPError: 504, the deadline has passed; rows that are not being computed by then never are.
            InputError: the prediction of a row is not finite; names its place in these rows.
            CalibrationError: the model's calibration is too small for the percentile or coverage.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        job = Job(live, rows, percentile, coverage, encode, future, spent or Spent())
        self._waiting.setdefault(id(live), deque()).append(job)
        deadline = loop.call_later(self._timeout, self._expire, future)
        self._dispatch()
        try:
            return await future
        finally:
            deadline.cancel()

    def _expire(self, future: asyncio.Future[Any]) -> None:
        if not future.done():
            future.set_exception(HTTPError(504, "past its deadline", expected=f"a response within {self._timeout:g} s"))

    def _dispatch(self) -> None:
        """Starts the next batch if none is under way, or if only one is and the next will not be small; models take turns."""
        while self._waiting and self._under_way < UNDER_WAY:
            turn, waiting = next(iter(self._waiting.items()))
            if self._under_way and sum(job.next_rows for job in waiting) < SMALL:
                return
            del self._waiting[turn]
            batch = self._next_batch(waiting)
            if waiting:
                self._waiting[turn] = waiting
            if batch:
                self._begin(batch)

    def _next_batch(self, waiting: deque[Job[Any]]) -> list[Piece]:
        """Takes pieces of waiting requests that fill a bucket as well as possible; skips requests that were given up.

        A request with rows left goes to the end of the queue.
        """
        for job in [job for job in waiting if job.future.done()]:
            waiting.remove(job)
        if not waiting:
            return []
        limit = rows_to_take(sum(job.next_rows for job in waiting), waiting[0].live.predictor.buckets)
        batch: list[Piece] = []
        left: list[Job[Any]] = []
        while waiting and (not batch or waiting[0].next_rows <= limit):
            job = waiting.popleft()
            batch.append(Piece(job, job.taken, job.taken + job.next_rows))
            limit -= job.next_rows
            job.taken = batch[-1].stop
            if job.next_rows:
                left.append(job)
        waiting.extend(left)
        return batch

    def _begin(self, batch: list[Piece]) -> None:
        began = time.perf_counter_ns()
        try:
            launched = launch(batch, began, self._stages)
        except Exception as error:  # Whatever it is, the requests that wait must get it.
            self._settle(fail(batch, error))
            return
        self._under_way += 1
        self._pool.submit(self._wait, batch, launched, began, asyncio.get_running_loop())

    def _wait(self, batch: list[Piece], launched: Computation, began: int, loop: asyncio.AbstractEventLoop) -> None:
        """Waits in a thread until a batch is computed; the outcomes of many rows are made here, those of few in the loop."""
        try:
            whole = np.asarray(launched)
        except BaseException as error:
            loop.call_soon_threadsafe(self._computed, partial(fail, batch, error))
            return
        for piece in batch:
            piece.job.add_computing(time.perf_counter_ns() - began)
        # The last piece of a large request may be small, but with it the whole response is encoded.
        if sum(len(piece.job.rows) for piece in batch) <= FEW:
            loop.call_soon_threadsafe(self._computed, partial(outcomes_of, batch, whole, self._stages))
        else:
            loop.call_soon_threadsafe(self._computed)
            loop.call_soon_threadsafe(self._settle, outcomes_of(batch, whole, self._stages))

    def _computed(self, outcomes: Callable[[], Outcomes] = list) -> None:
        """Starts the next batch, then settles the last."""
        self._under_way -= 1
        self._dispatch()
        self._settle(outcomes())

    def _settle(self, outcomes: Outcomes) -> None:
        """Gives every complete job its result, or the error of one of its pieces."""
        for piece, outcome in outcomes:
            future = piece.job.future
            if not future.done():
                if isinstance(outcome, BaseException):
                    future.set_exception(outcome)
                elif outcome is not PARTIAL:
                    future.set_result(outcome)


def rows_to_take(waiting: int, buckets: Sequence[int]) -> int:
    """The size of the next batch: a bucket that the waiting rows fill at least half, or the largest one that they fill.

    A bucket costs the same however many rows are in it; a small one hardly more than one row.
    """
    for bucket in buckets:
        if waiting <= bucket and (bucket <= SMALL or 2 * waiting >= bucket):
            return bucket
    return max((bucket for bucket in buckets if bucket <= waiting), default=buckets[0])
