"""Requests → batches → answers: rows of many requests are computed in one call, and nobody's error is a neighbour's.

An idle server computes a request at once. While it computes, what arrives waits, and is then taken together: as many
rows as fill a bucket. Where that many wait already the next batch is begun before the last is done, so that the device
never waits for the loop. Models take turns. A request of more rows than the largest bucket goes in pieces, between which
others have theirs. What waits is bounded in number and in age.

The event loop has the device begin, a thread waits for it, the loop judges and encodes: nothing else of Python runs
beside the loop, for threads that take the interpreter from one another cost more than what they would do meanwhile.
Only many rows are judged and encoded in the thread.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import groupby
from typing import Any, Generic, NamedTuple, TypeVar, cast

import jax
import numpy as np
from jaxtyping import Array, Bool, Float

from abstain.models.decisions.calibration import Judgement, judge
from abstain.models.errors import AbstainError
from abstain.models.prediction.posterior import Model
from abstain.models.prediction.predictive import Prediction
from abstain.service.errors import HTTPError
from abstain.service.live_versions import Live
from abstain.service.monitoring import metrics
from abstain.service.open_inference.outputs import Column, Output, Records, column, on_the_wire, records
from abstain.service.predict import response
from abstain.service.predict.request import check_finite, finite_rows, overflow

T = TypeVar("T")
THREADS = 2
PARTIAL = object()
SMALL = 8
"""Buckets up to this cost hardly more than one row."""
UNDER_WAY = 2
"""Batches that a device is told of: the one that it computes, and the next."""
FEW = 32
"""Rows of requests up to this are judged and encoded in the event loop: a millisecond."""


@dataclass(frozen=True)
class Answer:
    """What is said of rows that were computed and judged together."""

    model: Model
    prediction: Prediction
    judgement: Judgement

    @cached_property
    def columns(self) -> dict[str, list[Any]]:
        """Every field of a JSON answer, one entry a row; made once for all requests that share the batch."""
        return response.columns(self.model, self.prediction, self.judgement)

    def output(self, name: str, output: Output) -> Column:
        """An output of the Open Inference Protocol for every row; each made once, too."""
        if name not in self._outputs:
            self._outputs[name] = on_the_wire(column(name, self.model, self.prediction, self.judgement), output)
        return self._outputs[name]

    def records(self, outputs: Mapping[str, Output]) -> Records:
        """All outputs of every row, side by side; made once, too."""
        if not self._records:
            self._records.append(records({name: self.output(name, kind) for name, kind in outputs.items()}, outputs))
        return self._records[0]

    @cached_property
    def _records(self) -> list[Records]:
        return []

    @cached_property
    def _outputs(self) -> dict[str, Column]:
        return {}


class Share(NamedTuple):
    """A request's own rows of an answer."""

    answer: Answer
    rows: slice


@dataclass
class Spent:
    """What a request has cost so far: nanoseconds of waiting and of computing, the latter shared with its neighbours."""

    queue: int = 0
    compute: int = 0
    batches: int = 0


@dataclass(eq=False)
class Job(Generic[T]):
    """A request's rows, and what becomes of them.

    Attributes:
        encode: makes the result of the request's shares, which are in the order of its rows; in the event loop, or a thread.
        taken: how many of its rows have gone into batches.
        shares: by the place of their first row; changed by `add` alone.
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
        """Takes in a piece's share; returns all shares, by their rows, with the last of them, and nothing before.

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


Judged = Callable[[Live, Judgement], None]
Outcomes = list[tuple[Piece, Any]]
"""A piece's result: an answer, an error, or that its request lacks other pieces still."""


class Batcher:
    """One worker's queue, and what is computed of it. Methods that do not say otherwise belong to the event loop.

    Args:
        queue: how many requests may wait or be computed.
        timeout_seconds: how long one may take.
        judged: is told of everything that has been judged.
    """

    def __init__(self, queue: int, timeout_seconds: float, judged: Judged) -> None:
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="compute")
        self._queue = queue
        self._timeout = timeout_seconds
        self._judged = judged
        self._pending = 0
        self._under_way = 0
        self._waiting: dict[int, deque[Job[Any]]] = {}

    @contextmanager
    def place(self) -> Generator[None]:
        """A request's place among those that wait or are computed.

        Raises:
            HTTPError: 429 when there is none.
        """
        if self._pending >= self._queue:
            raise HTTPError(429, "the queue is full", {"Retry-After": "1"}, expected=f"at most {self._queue} waiting")
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
        """What `encode` makes of the rows' predictions and judgements.

        Args:
            spent: where to write down what it cost.

        Raises:
            HTTPError: 504 past the deadline; what is not being computed by then never is.
            InputError: the prediction of a row is not finite; named by its place in these rows.
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
            future.set_exception(HTTPError(504, "past its deadline", expected=f"an answer within {self._timeout:g} s"))

    def _dispatch(self) -> None:
        """Begins the next batch if none is under way, or if no more than one is and it will not be small: models take turns."""
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
        """Takes pieces of those that wait, whose rows fill a bucket as well as can be; of requests given up, none.

        A request of which something is left goes to the end of the queue.
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
            launched = _launched(batch, began)
        except Exception as error:  # Whatever it is, those who wait must hear of it.
            self._settle(_failed(batch, error))
            return
        self._under_way += 1
        self._pool.submit(self._wait, batch, launched, began, asyncio.get_running_loop())

    def _wait(self, batch: list[Piece], launched: Array, began: int, loop: asyncio.AbstractEventLoop) -> None:
        """In a thread: waits until a batch is computed; what becomes of many rows is made here, of few in the loop."""
        try:
            whole = np.asarray(launched)
        except BaseException as error:
            loop.call_soon_threadsafe(self._computed, partial(_failed, batch, error))
            return
        for piece in batch:
            piece.job.add_computing(time.perf_counter_ns() - began)
        # Of a large request the last piece may be small, but with it the whole answer is encoded.
        if sum(len(piece.job.rows) for piece in batch) <= FEW:
            loop.call_soon_threadsafe(self._computed, partial(_outcomes, batch, whole, self._judged))
        else:
            loop.call_soon_threadsafe(self._computed)
            loop.call_soon_threadsafe(self._settle, _outcomes(batch, whole, self._judged))

    def _computed(self, outcomes: Callable[[], Outcomes] = list) -> None:
        """Begins the next batch, then settles the last."""
        self._under_way -= 1
        self._dispatch()
        self._settle(outcomes())

    def _settle(self, outcomes: Outcomes) -> None:
        """Gives every job that is whole its result, or the error of any piece."""
        for piece, outcome in outcomes:
            future = piece.job.future
            if not future.done():
                if isinstance(outcome, BaseException):
                    future.set_exception(outcome)
                elif outcome is not PARTIAL:
                    future.set_result(outcome)


def answer_now(
    live: Live, rows: Float[np.ndarray, "rows ..."], percentile: float | None = None, coverage: float | None = None
) -> Share:
    """The answer to rows that need not wait for others, in the caller's thread; raises as `Batcher.submit` does."""
    prediction = live.predictor(rows)
    check_finite(jax.tree.leaves(prediction))
    judgement = judge(live.bundle.calibration, prediction, percentile, coverage)
    metrics.record_prediction(live.name, live.version, prediction, judgement)
    return Share(Answer(live.bundle.manifest.model, prediction, judgement), slice(0, len(rows)))


def rows_to_take(waiting: int, buckets: Sequence[int]) -> int:
    """How many of the rows that wait go into the next batch: a bucket that they fill at least half, or the largest full one.

    A bucket costs the same whatever is in it; a small one hardly more than one row.
    """
    for bucket in buckets:
        if waiting <= bucket and (bucket <= SMALL or 2 * waiting >= bucket):
            return bucket
    return max((bucket for bucket in buckets if bucket <= waiting), default=buckets[0])


def _rows(batch: list[Piece]) -> int:
    return sum(piece.stop - piece.start for piece in batch)


def _launched(batch: list[Piece], began: int) -> Array:
    """Has one compiled call begin for all rows."""
    for job, start, _ in batch:
        if start == 0:
            job.spent.queue = began - job.submitted
            metrics.QUEUE_SECONDS.observe(job.spent.queue / 1e9)
    live, parts = batch[0].job.live, [piece.job.rows[piece.start : piece.stop] for piece in batch]
    metrics.BATCH_ROWS.labels(live.name, str(live.version)).observe(_rows(batch))
    return live.predictor.launch(parts[0] if len(parts) == 1 else np.concatenate(parts))


def _outcomes(batch: list[Piece], whole: np.ndarray, judged: Judged) -> Outcomes:
    """What becomes of every piece of a computed batch."""
    try:
        rows = _rows(batch)
        prediction = batch[0].job.live.predictor.read(whole, rows)
        return _judged(batch, prediction, finite_rows([whole[:, :rows].T]), judged)
    except Exception as error:
        return _failed(batch, error)


def _failed(batch: list[Piece], error: BaseException) -> Outcomes:
    return [(piece, error) for piece in batch]


def _judged(batch: list[Piece], prediction: Prediction, finite: Bool[np.ndarray, " rows"], judged: Judged) -> Outcomes:
    """Every piece's outcome, given which rows' predictions are finite; those that ask the same are judged together."""
    outcomes: Outcomes = []
    live = batch[0].job.live
    places = np.cumsum([0, *(piece.stop - piece.start for piece in batch)]).tolist()
    numbered = sorted(range(len(batch)), key=lambda number: _terms(batch[number]))
    for _, group in groupby(numbered, key=lambda number: _terms(batch[number])):
        sound: list[int] = []
        for number in group:
            own = finite[places[number] : places[number + 1]]
            if own.all():
                sound.append(number)
            else:
                outcomes.append((batch[number], overflow(batch[number].start + int(np.argmin(own)))))
        if sound:
            pieces = [batch[number] for number in sound]
            outcomes += _answered(live, pieces, [places[number] for number in sound], prediction, judged)
    return outcomes


def _terms(piece: Piece) -> tuple[float, float]:
    """What a request asks of the calibration; 0 for its own."""
    return piece.job.percentile or 0.0, piece.job.coverage or 0.0


def _answered(live: Live, pieces: list[Piece], places: list[int], prediction: Prediction, judged: Judged) -> Outcomes:
    """The outcomes of pieces that are judged by the same terms, given where each one's rows begin."""
    sizes = [piece.stop - piece.start for piece in pieces]
    if sum(sizes) < len(prediction.summary.mean):
        own = np.concatenate([np.arange(place, place + size) for place, size in zip(places, sizes, strict=True)])
        prediction = cast("Prediction", jax.tree.map(lambda leaf: leaf[own], prediction))  # pyright: ignore
    job = pieces[0].job
    try:
        judgement = judge(live.bundle.calibration, prediction, job.percentile, job.coverage)
    except AbstainError as error:
        return [(piece, error) for piece in pieces]
    metrics.record_prediction(live.name, live.version, prediction, judgement)
    judged(live, judgement)
    answer, end = Answer(live.bundle.manifest.model, prediction, judgement), 0
    outcomes: Outcomes = []
    for piece, size in zip(pieces, sizes, strict=True):
        outcomes.append((piece, _outcome(piece, Share(answer, slice(end, end + size)))))
        end += size
    return outcomes


def _outcome(piece: Piece, share: Share) -> Any:
    """The result of a job that this share makes whole; `PARTIAL` of one that lacks others still."""
    shares = piece.job.add(piece.start, share)
    if not shares:
        return PARTIAL
    try:
        return piece.job.encode(shares)
    except Exception as error:  # One request's encoding must not take its neighbours'.
        return error
