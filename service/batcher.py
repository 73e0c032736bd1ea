"""The queue of a worker: rows of many requests are computed in one call, and an error affects only its own request.

An idle server computes a request at once. Requests that arrive meanwhile wait, and are then computed together in batches
that fill a bucket. If at least `SMALL` rows wait, the next batch starts before the running one is done, so that the device
never waits for the event loop. Models take turns. A request with more rows than the largest bucket is computed in pieces,
and other requests are computed between them. The length of the queue and the time of a request are limited.

The event loop starts a computation on the device, a thread waits for it, and the event loop decides and encodes. Other
threads run little Python code, because threads that compete for the interpreter cost more than they save: only requests
with many rows are decided and encoded in the thread.

This module does not depend on the formats of requests and responses, or on metrics: `Stages` holds these functions.
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

from abstain.models.decisions.records import Levels
from abstain.service.batches import (
    PARTIAL,
    Computation,
    Cost,
    Job,
    Outcomes,
    Piece,
    Share,
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
"""The largest bucket that takes hardly longer than one row."""
MAX_BATCHES = 2
"""The number of batches that a device has at a time: the one that it computes, and the next."""
FEW_ROWS = 32
"""The most rows, of all requests in a batch, that the event loop decides and encodes; this takes about a millisecond."""


class Batcher:
    """The queue of one worker. Methods run in the event loop, unless their description names a thread.

    Args:
        queue: the most requests that may wait or be computed at a time.
        timeout_seconds: the longest time of one request.
        stages: the functions that make decisions on a computed batch and count it.
    """

    def __init__(self, queue: int, timeout_seconds: float, stages: Stages) -> None:
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="compute")
        self._queue = queue
        self._timeout = timeout_seconds
        self._stages = stages
        self._pending = 0
        self._batches = 0
        self._waiting: dict[int, deque[Job[Any]]] = {}

    @property
    def idle(self) -> bool:
        """Whether no request waits or is computed; may be read in any thread."""
        return not self._waiting and not self._batches

    @contextmanager
    def reserve(self) -> Generator[None]:
        """Counts a request as one that waits or is computed, until the context ends.

        Raises:
            HTTPError: 429, the queue is full.
        """
        if self._pending >= self._queue:
            raise HTTPError(
                429,
                "the queue is full",
                {"Retry-After": "1"},
                expected=f"at most {self._queue} waiting",
                fix="send the request again after the seconds in Retry-After",
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
        levels: Levels,
        encode: Callable[[list[Share]], T],
        cost: Cost | None = None,
    ) -> T:
        """Computes rows and makes decisions on them; returns the result of `encode`.

        Args:
            cost: the record that receives the cost.

        Raises:
            HTTPError: 504, the deadline has passed; rows whose computation has not started by then are not computed.
            InputError: the prediction of a row is not finite; names the row by its index in `rows`.
            CalibrationError: the model's calibration is too small for one of the levels.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        job = Job(live, rows, levels, encode, future, cost or Cost())
        self._waiting.setdefault(id(live), deque()).append(job)
        deadline = loop.call_later(self._timeout, self._expire, future)
        self._dispatch()
        try:
            return await future
        finally:
            deadline.cancel()

    def _expire(self, future: asyncio.Future[Any]) -> None:
        if not future.done():
            future.set_exception(
                HTTPError(
                    504,
                    "past its deadline",
                    expected=f"a response within {self._timeout:g} s",
                    fix="send fewer rows in one request, or try again when fewer are waiting",
                )
            )

    def _dispatch(self) -> None:
        """Starts the next batch if the device has none, or has one and the next is not small; models take turns."""
        while self._waiting and self._batches < MAX_BATCHES:
            key, waiting = next(iter(self._waiting.items()))
            if self._batches and sum(job.next_rows for job in waiting) < SMALL:
                return
            # Added again at the end, so that the other models are computed first.
            del self._waiting[key]
            batch = self._next_batch(waiting)
            if waiting:
                self._waiting[key] = waiting
            if batch:
                self._begin(batch)

    def _next_batch(self, waiting: deque[Job[Any]]) -> list[Piece]:
        """Returns pieces of waiting requests that fill a bucket as well as possible; removes requests that have ended.

        A request that has more rows goes to the end of the queue.
        """
        for job in [job for job in waiting if job.future.done()]:
            waiting.remove(job)
        if not waiting:
            return []
        limit = rows_to_take(sum(job.next_rows for job in waiting), waiting[0].live.predictor.buckets)
        batch: list[Piece] = []
        unfinished: list[Job[Any]] = []
        while waiting and (not batch or waiting[0].next_rows <= limit):
            job = waiting.popleft()
            batch.append(Piece(job, job.rows_in_batches, job.rows_in_batches + job.next_rows))
            limit -= job.next_rows
            job.rows_in_batches = batch[-1].stop
            if job.next_rows:
                unfinished.append(job)
        waiting.extend(unfinished)
        return batch

    def _begin(self, batch: list[Piece]) -> None:
        start_time = time.perf_counter_ns()
        try:
            computation = launch(batch, start_time, self._stages)
        except Exception as error:  # any error, because otherwise the requests would wait for their deadline
            self._settle(fail(batch, error))
            return
        self._batches += 1
        self._pool.submit(self._wait, batch, computation, start_time, asyncio.get_running_loop())

    def _wait(
        self, batch: list[Piece], computation: Computation, start_time: int, loop: asyncio.AbstractEventLoop
    ) -> None:
        """Waits in a thread until a batch is computed; makes the outcomes of many rows there, of few rows in the loop."""
        try:
            packed = np.asarray(computation)
        except BaseException as error:
            loop.call_soon_threadsafe(self._end, partial(fail, batch, error))
            return
        for piece in batch:
            piece.job.add_computing(time.perf_counter_ns() - start_time)
        # Counts all rows of each request: the last piece of a large request may be small, but completes a large response.
        if sum(len(piece.job.rows) for piece in batch) <= FEW_ROWS:
            loop.call_soon_threadsafe(self._end, partial(outcomes_of, batch, packed, self._stages))
        else:
            loop.call_soon_threadsafe(self._end)
            loop.call_soon_threadsafe(self._settle, outcomes_of(batch, packed, self._stages))

    def _end(self, outcomes: Callable[[], Outcomes] = list) -> None:
        """Starts the next batch, and then completes the requests of the computed one."""
        self._batches -= 1
        self._dispatch()
        self._settle(outcomes())

    def _settle(self, outcomes: Outcomes) -> None:
        """Completes every request that has all its outcomes, or an error."""
        for piece, outcome in outcomes:
            future = piece.job.future
            if not future.done():
                if isinstance(outcome, BaseException):
                    future.set_exception(outcome)
                elif outcome is not PARTIAL:
                    future.set_result(outcome)


def rows_to_take(waiting: int, buckets: Sequence[int]) -> int:
    """Returns the size of the next batch: the bucket that holds all waiting rows, if it is small or at least half full.

    Otherwise the largest full bucket. A call takes the same time for every number of rows in its bucket.
    """
    for bucket in buckets:
        if waiting <= bucket and (bucket <= SMALL or 2 * waiting >= bucket):
            return bucket
    return max((bucket for bucket in buckets if bucket <= waiting), default=buckets[0])
