"""Work off the event loop: a bounded queue in front of a few threads, so that a busy server still says so."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from service import metrics
from service.errors import HTTPError

T = TypeVar("T")
THREADS = 2


class Compute:
    """Runs functions in threads; refuses when too many wait, and gives up on one that takes too long.

    Args:
        queue: how many may be under way or waiting.
        timeout_seconds: how long one may wait and run.
    """

    def __init__(self, queue: int, timeout_seconds: float) -> None:
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="compute")
        self._queue = queue
        self._timeout = timeout_seconds
        self._pending = 0

    async def run(self, work: Callable[[], T]) -> T:
        """The result of `work`, from another thread.

        Raises:
            HTTPError: 429 when the queue is full, 504 past the deadline.
        """
        if self._pending >= self._queue:
            raise HTTPError(429, "the queue is full", {"Retry-After": "1"}, expected=f"at most {self._queue} waiting")
        submitted = time.perf_counter()

        def timed() -> T:
            metrics.QUEUE_SECONDS.observe(time.perf_counter() - submitted)
            return work()

        self._pending += 1
        future = self._pool.submit(timed)
        # A thread cannot be stopped: work that outlives its deadline keeps its place in the queue until it ends.
        loop = asyncio.get_running_loop()
        future.add_done_callback(lambda _: loop.call_soon_threadsafe(self._done))
        try:
            return await asyncio.wait_for(asyncio.wrap_future(future), self._timeout)
        except TimeoutError as error:
            raise HTTPError(504, "past its deadline", expected=f"an answer within {self._timeout:g} s") from error

    def _done(self) -> None:
        self._pending -= 1
