"""The queue of a worker: batches, turns of models, pieces, deadlines; an error affects only its own request."""

import asyncio
import sys
import threading

import numpy as np
import pytest

from abstain.models.decisions.records import Judgement, Levels
from abstain.models.errors import AbstainError
from abstain.models.prediction.predictive import Prediction
from abstain.service.batcher import FEW_ROWS, Batcher, rows_to_take
from abstain.service.batches import Cost, Share, Stages
from abstain.service.errors import HTTPError
from abstain.service.live import Live
from abstain.service.rows import overflow_error

BUCKETS = (1, 8, 32, 128, 256)


@pytest.mark.parametrize(
    ("waiting", "expected"),
    [
        (1, 1),
        (2, 8),
        (8, 8),
        (9, 8),
        (15, 8),
        (16, 32),
        (32, 32),
        (33, 32),
        (64, 128),
        (130, 256),
        (127, 128),
        (900, 256),
    ],
)
def test_a_batch_fills_a_bucket(waiting, expected):
    """The bucket that holds all rows, if they fill half of it or it is small; else the largest full one."""
    assert rows_to_take(waiting, BUCKETS) == expected


class Recorder(Live):
    """A version that is its own predictor: it records its batches, and computes them when its gate opens."""

    __setattr__ = object.__setattr__

    def __init__(self, buckets=BUCKETS):
        self.batches, self.buckets, self.gate = [], buckets, None
        self.predictor = self

    def launch(self, rows):
        """Starts a computation that returns the rows; it fails if one is below zero."""
        self.batches.append(rows[:, 0].tolist())
        return Computation(rows, self.gate)

    def read(self, packed, rows):
        """Returns the rows as a prediction."""
        assert packed.shape == (1, rows)
        return Prediction(packed.T, {})


class Computation:
    """A computation of rows that ends when a gate opens."""

    def __init__(self, rows, gate):
        self.rows, self.gate = rows, gate

    def __array__(self, dtype=None, copy=None):
        if self.gate:
            assert self.gate.wait(20)
        if (self.rows < 0).any():
            raise ValueError("below zero")
        return self.rows.T


def judge(_live, prediction, levels):
    """Makes decisions that contain the rows; refuses the percentile 50."""
    if levels.percentile == 50:
        raise AbstainError("too small")
    return Judgement(99.0, 0.95, "std", prediction.summary, {}, {}, {}, [], None, None)


def ignore(*_):
    """Does not count."""


STAGES = Stages(
    judge=judge,
    finite_rows=lambda packed: np.isfinite(packed).all(axis=1),
    overflow_error=overflow_error,
    count_wait=ignore,
    count_batch=ignore,
    count_answer=ignore,
)


def numbers(*values):
    """Rows of one column."""
    return np.array(values, np.float32)[:, None]


def encode(shares: list[Share]):
    """The numbers of a request's rows."""
    return [value for share in shares for value in share.answer.judgement.reject[share.rows][:, 0].tolist()]


async def submit(queue, live, *values, percentile=None):
    """The result of a request with these rows, or its error."""
    try:
        with queue.reserve():
            return await queue.submit(live, numbers(*values), Levels(percentile), encode)
    except Exception as error:
        return error


async def while_busy(queue, live, *requests):
    """The results of a first request, and of requests that arrive while it is computed."""
    live.gate = threading.Event()
    first = asyncio.ensure_future(submit(queue, live, 100))
    while not live.batches:
        await asyncio.sleep(0.001)
    rest = [asyncio.ensure_future(request) for request in requests]
    await asyncio.sleep(0.01)
    live.gate.set()
    return await asyncio.gather(first, *rest)


def test_an_idle_server_computes_at_once_and_a_busy_one_makes_batches():
    """The first request is computed alone, those that arrive meanwhile together; each gets its own rows."""
    live, queue = Recorder(), Batcher(99, 20, STAGES)
    results = asyncio.run(
        while_busy(queue, live, submit(queue, live, 1), submit(queue, live, 2, 3), submit(queue, live, 4))
    )
    assert results == [[100], [1], [2, 3], [4]]
    assert live.batches == [[100], [1, 2, 3, 4]]


def test_the_next_batch_starts_before_the_last_is_done_if_it_is_not_small():
    """The device has at most two batches at a time."""
    live, queue = Recorder((1, 8)), Batcher(99, 20, STAGES)

    async def scenario():
        live.gate = threading.Event()
        waiting = [asyncio.ensure_future(submit(queue, live, number)) for number in range(8)]
        await asyncio.sleep(0.05)
        small = len(live.batches)
        waiting += [asyncio.ensure_future(submit(queue, live, number)) for number in range(8, 30)]
        await asyncio.sleep(0.05)
        whole = len(live.batches)
        live.gate.set()
        return small, whole, await asyncio.gather(*waiting)

    small, whole, results = asyncio.run(scenario())
    assert (small, whole) == (1, 2)
    assert live.batches[:2] == [[0], list(range(1, 9))]
    assert results == [[number] for number in range(30)]


def test_an_error_stays_with_its_request():
    """A row that overflows, or a refused percentile, does not affect other requests of the batch."""
    live, queue = Recorder(), Batcher(99, 20, STAGES)
    results = asyncio.run(
        while_busy(
            queue,
            live,
            submit(queue, live, 1),
            submit(queue, live, 2, np.nan),
            submit(queue, live, 3, percentile=50),
            submit(queue, live, 4, percentile=90),
        )
    )
    assert len(live.batches) == 2
    assert (results[1], results[4]) == ([1], [4])
    assert "inputs[1]" in str(results[2])
    assert str(results[3]) == "too small"


def test_an_error_of_the_computation_is_the_result_of_all_requests_of_its_batch():
    """The next request succeeds, and the queue is empty after it."""
    live, queue = Recorder(), Batcher(3, 20, STAGES)

    async def scenario():
        results = await while_busy(queue, live, submit(queue, live, -1), submit(queue, live, 2))
        return results, [await submit(queue, live, number) for number in range(5)]

    results, after = asyncio.run(scenario())
    assert [type(error) for error in results[1:]] == [ValueError, ValueError]
    assert after == [[0], [1], [2], [3], [4]]


def test_many_rows_are_computed_in_pieces_with_other_requests_between_them():
    """A request of one row does not wait for the last of 28 rows, if the largest bucket is 8."""
    live, queue = Recorder((1, 8)), Batcher(99, 20, STAGES)
    results = asyncio.run(while_busy(queue, live, submit(queue, live, *range(28)), submit(queue, live, 50)))
    assert results[1:] == [list(range(28)), [50]]
    assert live.batches.index([50]) < live.batches.index(list(map(float, range(24, 28))))
    assert sorted(map(len, live.batches)) == [1, 1, 4, 8, 8, 8]


@pytest.fixture
def threads_that_switch_often():
    """Makes threads switch so often that a race shows in one request instead of a thousand."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(usual)


@pytest.mark.usefixtures("threads_that_switch_often")
def test_pieces_that_two_threads_finish_at_once_are_all_counted():
    """Batches with many rows are decided in two threads."""
    size, pieces = FEW_ROWS + 1, 400
    live, queue = Recorder((size,)), Batcher(99, 60, STAGES)
    values = list(range(size * pieces))
    cost = Cost()

    async def scenario():
        return await queue.submit(live, numbers(*values), Levels(), encode, cost)

    assert asyncio.run(scenario()) == values
    assert cost.batches == pieces


@pytest.mark.parametrize(("rows", "in_loop"), [(1, True), (FEW_ROWS, True), (FEW_ROWS + 1, False), (10_000, False)])
def test_a_large_response_is_not_encoded_in_the_event_loop(rows, in_loop):
    """Not even if the last piece of its rows is small: all other requests would wait."""
    live, queue, threads = Recorder((1, 8, 32, 256)), Batcher(99, 60, STAGES), []

    def encode_and_note(shares):
        threads.append(threading.current_thread() is threading.main_thread())
        return encode(shares)

    async def scenario():
        return await queue.submit(live, numbers(*range(rows)), Levels(), encode_and_note)

    assert asyncio.run(scenario()) == list(range(rows))
    assert threads == [in_loop]


def test_models_take_turns():
    """A request for one model does not wait for all requests for another."""
    one, other, queue = Recorder((1,)), Recorder((1,)), Batcher(99, 20, STAGES)
    order = []
    one.batches = other.batches = order
    asyncio.run(
        while_busy(queue, one, *(submit(queue, one, n) for n in (1, 2, 3)), *(submit(queue, other, n) for n in (7, 8)))
    )
    assert order == [[100], [1], [7], [2], [8], [3]]


def test_a_full_queue_and_a_deadline():
    """429 at once; 504 after the deadline, and requests that were not started are never computed."""
    live, queue = Recorder(), Batcher(2, 0.2, STAGES)

    async def scenario():
        live.gate = threading.Event()
        running = asyncio.ensure_future(submit(queue, live, 1))
        while not live.batches:
            await asyncio.sleep(0.001)
        late, refused = await asyncio.gather(submit(queue, live, 2), submit(queue, live, 3))
        live.gate.set()
        return await running, late, refused, await submit(queue, live, 4)

    running, late, refused, after = asyncio.run(scenario())
    assert isinstance(refused, HTTPError)
    assert (refused.status, refused.headers) == (429, {"Retry-After": "1"})
    assert [error.status for error in (running, late)] == [504, 504]
    assert after == [4]
    assert live.batches == [[1], [4]]


def test_a_cancelled_request_is_not_computed():
    """A request of a client that disconnects before its turn is not part of a batch."""
    live, queue = Recorder(), Batcher(9, 20, STAGES)

    async def scenario():
        live.gate = threading.Event()
        first = asyncio.ensure_future(submit(queue, live, 1))
        while not live.batches:
            await asyncio.sleep(0.001)
        gone = asyncio.ensure_future(submit(queue, live, 2))
        stays = asyncio.ensure_future(submit(queue, live, 3))
        await asyncio.sleep(0.01)
        gone.cancel()
        live.gate.set()
        return await first, await stays

    assert asyncio.run(scenario()) == ([1], [3])
    assert live.batches == [[1], [3]]
