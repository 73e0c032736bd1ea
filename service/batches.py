"""Batches: pieces of requests that are computed in one call, and their outcomes. No function here waits."""

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

from abstain.models.decisions.records import Judgement, Levels
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
    """The functions that make decisions on a computed batch and count it.

    Attributes:
        judge: makes the decisions for a prediction, at the levels of a request.
        finite_rows: returns which rows of the packed predictions have only finite numbers.
        overflow_error: makes the error for a row with another number, from its index in the request.
        count_wait: counts the seconds that a request waited.
        count_batch: counts a batch and its number of rows.
        count_answer: counts predictions and decisions.
    """

    judge: Callable[[Live, Prediction, Levels], Judgement]
    finite_rows: Callable[[np.ndarray], Bool[np.ndarray, " rows"]]
    overflow_error: Callable[[int], AbstainError]
    count_wait: Callable[[float], None]
    count_batch: Callable[[Live, int], None]
    count_answer: Callable[[Live, Prediction, Judgement], None]


@dataclass(frozen=True, eq=False)
class Answer:
    """Predictions and decisions of rows that were computed together."""

    live: Live
    prediction: Prediction
    judgement: Judgement
    _values: dict[Hashable, Any] = field(default_factory=dict[Hashable, Any], repr=False)

    def make_once(self, key: Hashable, make: Callable[[Answer], T]) -> T:
        """Returns the result of `make` for this answer; calls it once for all requests that share the batch."""
        if key not in self._values:
            self._values[key] = make(self)
        return self._values[key]


class Share(NamedTuple):
    """The rows of an answer that belong to one request."""

    answer: Answer
    rows: slice


@dataclass
class Cost:
    """The cost of a request so far.

    Attributes:
        queue: nanoseconds of waiting.
        compute: nanoseconds of computing, including the other requests of the same batches.
        batches: the number of batches with rows of the request.
    """

    queue: int = 0
    compute: int = 0
    batches: int = 0


@dataclass(eq=False)
class Job(Generic[T]):
    """The rows of a request, and their results so far.

    Attributes:
        encode: makes the result from all shares, in the order of the rows; runs in the event loop or in a thread.
        submitted: when the request was submitted, in nanoseconds of `time.perf_counter_ns`.
        rows_in_batches: the number of its rows that are, or were, in batches.
        shares: the shares by their first row; only `add` changes them.
    """

    live: Live
    rows: Float[np.ndarray, "rows ..."]
    levels: Levels
    encode: Callable[[list[Share]], T]
    future: asyncio.Future[T]
    cost: Cost = field(default_factory=Cost)
    submitted: int = field(default_factory=time.perf_counter_ns)
    rows_in_batches: int = 0
    shares: dict[int, Share] = field(default_factory=dict[int, Share])
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, start: int, share: Share) -> list[Share]:
        """Adds the share of a piece; returns all shares in the order of the rows, or an empty list while some are missing.

        The threads of two batches may add to one request at the same time.
        """
        with self.lock:
            self.shares[start] = share
            if sum(share.rows.stop - share.rows.start for share in self.shares.values()) < len(self.rows):
                return []
            return [self.shares[start] for start in sorted(self.shares)]

    def add_computing(self, nanoseconds: int) -> None:
        """Adds the cost of a batch that has computed some of the rows."""
        with self.lock:
            self.cost.compute += nanoseconds
            self.cost.batches += 1

    @property
    def next_rows(self) -> int:
        """The number of rows of the next piece: the remaining ones, at most those of the largest bucket."""
        return min(len(self.rows) - self.rows_in_batches, self.live.predictor.buckets[-1])


class Piece(NamedTuple):
    """Some rows of a job, at most those of the largest bucket."""

    job: Job[Any]
    start: int
    stop: int


Outcomes = list[tuple[Piece, Any]]
"""The outcome of each piece: the result of its request, an error, or `PARTIAL` if other pieces are missing."""


def _rows(batch: list[Piece]) -> int:
    return sum(piece.stop - piece.start for piece in batch)


def launch(batch: list[Piece], start_time: int, stages: Stages) -> Computation:
    """Starts one compiled call for all rows."""
    for job, start, _ in batch:
        if start == 0:
            job.cost.queue = start_time - job.submitted
            stages.count_wait(job.cost.queue / 1e9)
    live, parts = batch[0].job.live, [piece.job.rows[piece.start : piece.stop] for piece in batch]
    stages.count_batch(live, _rows(batch))
    return live.predictor.launch(parts[0] if len(parts) == 1 else np.concatenate(parts))


def outcomes_of(batch: list[Piece], packed: np.ndarray, stages: Stages) -> Outcomes:
    """Makes the outcome of every piece of a computed batch."""
    try:
        rows = _rows(batch)
        prediction = batch[0].job.live.predictor.read(packed, rows)
        return _decide(batch, prediction, stages.finite_rows(packed[:, :rows].T), stages)
    except Exception as error:
        return fail(batch, error)


def fail(batch: list[Piece], error: BaseException) -> Outcomes:
    """Makes the same error the outcome of every piece."""
    return [(piece, error) for piece in batch]


def _decide(batch: list[Piece], prediction: Prediction, finite: Bool[np.ndarray, " rows"], stages: Stages) -> Outcomes:
    """Makes the outcome of every piece; pieces with the same levels are decided together.

    Args:
        finite: which rows have only finite predictions.
    """
    outcomes: Outcomes = []
    starts = np.cumsum([0, *(piece.stop - piece.start for piece in batch)]).tolist()
    ordered = sorted(range(len(batch)), key=lambda index: _levels(batch[index]))
    for _, group in groupby(ordered, key=lambda index: _levels(batch[index])):
        valid: list[int] = []
        for index in group:
            piece_finite = finite[starts[index] : starts[index + 1]]
            if piece_finite.all():
                valid.append(index)
            else:
                row = batch[index].start + int(np.argmin(piece_finite))
                outcomes.append((batch[index], stages.overflow_error(row)))
        if valid:
            all_valid = len(valid) == len(batch)
            selected = prediction if all_valid else _select(prediction, [slice(*starts[i : i + 2]) for i in valid])
            outcomes += _answer([batch[index] for index in valid], selected, stages)
    return outcomes


def _levels(piece: Piece) -> tuple[float, ...]:
    """Returns the levels of a request as a sort key; 0 stands for the model's own."""
    return tuple(level or 0.0 for level in piece.job.levels)


def _select(prediction: Prediction, parts: list[slice]) -> Prediction:
    """Selects some rows of a prediction."""

    def select(leaf: np.ndarray) -> np.ndarray:
        return np.concatenate([leaf[part] for part in parts])

    return cast("Prediction", jax.tree.map(select, prediction))


def _answer(pieces: list[Piece], prediction: Prediction, stages: Stages) -> Outcomes:
    """Makes the outcomes of pieces with the same levels, from the prediction of their rows."""
    job = pieces[0].job
    try:
        judgement = stages.judge(job.live, prediction, job.levels)
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
    """Returns the result of a job that this share completes; `PARTIAL` if other shares are missing."""
    shares = piece.job.add(piece.start, share)
    if not shares:
        return PARTIAL
    try:
        return piece.job.encode(shares)
    except Exception as error:  # any error, because it must not affect the other requests of the batch
        return error
