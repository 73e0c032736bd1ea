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
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from typing import Any, Generic, NamedTuple, Protocol, TypeVar, cast, runtime_checkable

import jax
import numpy as np
from jaxtyping import Bool, Float

from abstain.models.decisions.records import Judgement
from abstain.models.errors import AbstainError
from abstain.models.prediction.predictive import Prediction
from abstain.service.errors import HTTPError
from abstain.service.live import Live

T = TypeVar("T")
THREADS = 2
PARTIAL = object()
SMALL = 8
"""Buckets up to this size cost hardly more than one row."""
UNDER_WAY = 2
"""Batches that a device has at a time: the one that it computes, and the next."""
FEW = 32
"""Rows of requests up to this number are decided and encoded in the event loop: a millisecond."""


@runtime_checkable
class Computation(Protocol):
    """A result that a device may still be computing: `numpy.asarray` waits for it."""

    def __array__(self) -> np.ndarray: ...


@dataclass(frozen=True)
class Stages:
    """What a worker does with a computed batch, and what it counts.

    Attributes:
        judge: decides on the rows of a prediction at a percentile and a coverage, each None for the model's own.
        finite: which rows of the packed predictions are finite throughout.
        overflow: the error of a row, by its place in the request, whose prediction is not finite.
        count_wait: counts the seconds that a request waited.
        count_batch: counts a batch of so many rows.
        count_answer: counts predictions and decisions.
    """

    judge: Callable[[Live, Prediction, float | None, float | None], Judgement]
    finite: Callable[[np.ndarray], Bool[np.ndarray, " rows"]]
    overflow: Callable[[int], AbstainError]
    count_wait: Callable[[float], None]
    count_batch: Callable[[Live, int], None]
    count_answer: Callable[[Live, Prediction, Judgement], None]


@dataclass(frozen=True, eq=False)
class Answer:
    """Predictions and decisions of rows that were computed together."""

    live: Live
    prediction: Prediction
    judgement: Judgement
    _made: dict[Hashable, Any] = field(default_factory=dict[Hashable, Any], repr=False)

    def once(self, key: Hashable, make: Callable[[Answer], T]) -> T:
        """What `make` returns for this answer, made once for all requests that share the batch."""
        if key not in self._made:
            self._made[key] = make(self)
        return self._made[key]


class Share(NamedTuple):
    """The rows of an answer that belong to one request."""

    answer: Answer
    rows: slice


@dataclass
class Spent:
    """The cost of a request so far: nanoseconds of waiting and of computing, the latter shared with its neighbours."""

    queue: int = 0
    compute: int = 0
    batches: int = 0


@dataclass(eq=False)
class Job(Generic[T]):
    """The rows of a request, and their results so far.

    Attributes:
        encode: makes the result from the shares of the request, which are in the order of its rows; runs in the event loop or in a thread.
        taken: how many of its rows have gone into batches.
        shares: by their first row; only `add` changes them.
    """

    live: Live
    rows: Float[np.ndarray, "rows ..."]
    percentile: float | None
    coverage: float | None
    encode: Callable[[list[Share]], T]
    future: asyncio.Future[T]
    spent: Spent = field(default_factory=Spent)
    submitted: int = field(default_factory=time.perf_counter_ns)
    taken: int = 0
    shares: dict[int, Share] = field(default_factory=dict[int, Share])
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, start: int, share: Share) -> list[Share]:
        """Adds the share of a piece; returns all shares, by their rows, once the last one is there, and nothing before.

        Two batches' threads may add to one request at the same time.
        """
        with self.lock:
            self.shares[start] = share
            if sum(share.rows.stop - share.rows.start for share in self.shares.values()) < len(self.rows):
                return []
            return [self.shares[start] for start in sorted(self.shares)]

    def add_computing(self, nanoseconds: int) -> None:
        """Counts a batch that computed some of its rows."""
        with self.lock:
            self.spent.compute += nanoseconds
            self.spent.batches += 1

    @property
    def next_rows(self) -> int:
        """How many rows its next piece has: what is left, or what the largest bucket holds."""
        return min(len(self.rows) - self.taken, self.live.predictor.buckets[-1])


class Piece(NamedTuple):
    """Some rows of a job, which fit the largest bucket."""

    job: Job[Any]
    start: int
    stop: int


Outcomes = list[tuple[Piece, Any]]
"""The result of a piece: an answer, an error, or `PARTIAL` while its request lacks other pieces."""


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
            launched = _launch(batch, began, self._stages)
        except Exception as error:  # Whatever it is, the requests that wait must get it.
            self._settle(_failed(batch, error))
            return
        self._under_way += 1
        self._pool.submit(self._wait, batch, launched, began, asyncio.get_running_loop())

    def _wait(self, batch: list[Piece], launched: Computation, began: int, loop: asyncio.AbstractEventLoop) -> None:
        """Waits in a thread until a batch is computed; the outcomes of many rows are made here, those of few in the loop."""
        try:
            whole = np.asarray(launched)
        except BaseException as error:
            loop.call_soon_threadsafe(self._computed, partial(_failed, batch, error))
            return
        for piece in batch:
            piece.job.add_computing(time.perf_counter_ns() - began)
        # The last piece of a large request may be small, but with it the whole response is encoded.
        if sum(len(piece.job.rows) for piece in batch) <= FEW:
            loop.call_soon_threadsafe(self._computed, partial(_outcomes, batch, whole, self._stages))
        else:
            loop.call_soon_threadsafe(self._computed)
            loop.call_soon_threadsafe(self._settle, _outcomes(batch, whole, self._stages))

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


def _rows(batch: list[Piece]) -> int:
    return sum(piece.stop - piece.start for piece in batch)


def _launch(batch: list[Piece], began: int, stages: Stages) -> Computation:
    """Starts one compiled call for all rows."""
    for job, start, _ in batch:
        if start == 0:
            job.spent.queue = began - job.submitted
            stages.count_wait(job.spent.queue / 1e9)
    live, parts = batch[0].job.live, [piece.job.rows[piece.start : piece.stop] for piece in batch]
    stages.count_batch(live, _rows(batch))
    return live.predictor.launch(parts[0] if len(parts) == 1 else np.concatenate(parts))


def _outcomes(batch: list[Piece], whole: np.ndarray, stages: Stages) -> Outcomes:
    """The outcome of every piece of a computed batch."""
    try:
        rows = _rows(batch)
        prediction = batch[0].job.live.predictor.read(whole, rows)
        return _decide(batch, prediction, stages.finite(whole[:, :rows].T), stages)
    except Exception as error:
        return _failed(batch, error)


def _failed(batch: list[Piece], error: BaseException) -> Outcomes:
    return [(piece, error) for piece in batch]


def _decide(batch: list[Piece], prediction: Prediction, finite: Bool[np.ndarray, " rows"], stages: Stages) -> Outcomes:
    """Every piece's outcome, given which rows' predictions are finite; pieces at the same levels are decided together."""
    outcomes: Outcomes = []
    starts = np.cumsum([0, *(piece.stop - piece.start for piece in batch)]).tolist()
    ordered = sorted(range(len(batch)), key=lambda index: _levels(batch[index]))
    for _, group in groupby(ordered, key=lambda index: _levels(batch[index])):
        sound: list[int] = []
        for index in group:
            own = finite[starts[index] : starts[index + 1]]
            if own.all():
                sound.append(index)
            else:
                outcomes.append((batch[index], stages.overflow(batch[index].start + int(np.argmin(own)))))
        if sound:
            whole = len(sound) == len(batch)
            chosen = prediction if whole else _take(prediction, [slice(*starts[i : i + 2]) for i in sound])
            outcomes += _answer([batch[index] for index in sound], chosen, stages)
    return outcomes


def _levels(piece: Piece) -> tuple[float, float]:
    """Percentile and coverage of a request; 0 for the model's own."""
    return piece.job.percentile or 0.0, piece.job.coverage or 0.0


def _take(prediction: Prediction, parts: list[slice]) -> Prediction:
    """Some rows of a prediction."""

    def take(leaf: np.ndarray) -> np.ndarray:
        return np.concatenate([leaf[part] for part in parts])

    return cast("Prediction", jax.tree.map(take, prediction))


def _answer(pieces: list[Piece], prediction: Prediction, stages: Stages) -> Outcomes:
    """The outcomes of pieces at the same levels, given the prediction of their rows."""
    job = pieces[0].job
    try:
        judgement = stages.judge(job.live, prediction, job.percentile, job.coverage)
    except AbstainError as error:
        return _failed(pieces, error)
    stages.count_answer(job.live, prediction, judgement)
    answer, end = Answer(job.live, prediction, judgement), 0
    outcomes: Outcomes = []
    for piece in pieces:
        start, end = end, end + piece.stop - piece.start
        outcomes.append((piece, _outcome(piece, Share(answer, slice(start, end)))))
    return outcomes


def _outcome(piece: Piece, share: Share) -> Any:
    """The result of a job that this share completes; `PARTIAL` for a job that lacks other shares."""
    shares = piece.job.add(piece.start, share)
    if not shares:
        return PARTIAL
    try:
        return piece.job.encode(shares)
    except Exception as error:  # An error of one request's encoding must not reach its neighbours.
        return error
