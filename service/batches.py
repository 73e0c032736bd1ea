"""Batches: pieces of requests that are computed in one call, and what becomes of them. Nothing here waits."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, Generic, NamedTuple, Protocol, TypeVar, cast, runtime_checkable

import jax
import numpy as np
from jaxtyping import Bool, Float

from abstain.models.decisions.records import Judgement
from abstain.models.errors import AbstainError
from abstain.models.prediction.predictive import Prediction
from abstain.service.live import Live

T = TypeVar("T")


PARTIAL = object()


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


def _rows(batch: list[Piece]) -> int:
    return sum(piece.stop - piece.start for piece in batch)


def launch(batch: list[Piece], began: int, stages: Stages) -> Computation:
    """Starts one compiled call for all rows."""
    for job, start, _ in batch:
        if start == 0:
            job.spent.queue = began - job.submitted
            stages.count_wait(job.spent.queue / 1e9)
    live, parts = batch[0].job.live, [piece.job.rows[piece.start : piece.stop] for piece in batch]
    stages.count_batch(live, _rows(batch))
    return live.predictor.launch(parts[0] if len(parts) == 1 else np.concatenate(parts))


def outcomes_of(batch: list[Piece], whole: np.ndarray, stages: Stages) -> Outcomes:
    """The outcome of every piece of a computed batch."""
    try:
        rows = _rows(batch)
        prediction = batch[0].job.live.predictor.read(whole, rows)
        return _decide(batch, prediction, stages.finite(whole[:, :rows].T), stages)
    except Exception as error:
        return fail(batch, error)


def fail(batch: list[Piece], error: BaseException) -> Outcomes:
    """The same error as the outcome of every piece."""
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
        return fail(pieces, error)
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
