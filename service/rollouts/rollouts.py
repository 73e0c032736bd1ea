"""What the handlers of requests need for rollouts."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

import numpy as np
from jaxtyping import Float
from starlette.requests import Request

from abstain.models.decisions.records import Levels
from abstain.service.batches import Share
from abstain.service.responses import request_id
from abstain.service.rollouts.observing import RolloutWatch, observe_shares
from abstain.service.rollouts.routing import Caller, Part
from abstain.service.rollouts.shadowing import ShadowQueue

T = TypeVar("T")


class Rollouts:
    """The rollouts of a worker.

    Args:
        watch: gets what is observed.
        shadows: gets the requests that a candidate computes too.
        caller_header: the header that names callers; None if requests do not say who sends them.
    """

    def __init__(self, watch: RolloutWatch, shadows: ShadowQueue, caller_header: str | None) -> None:
        self._watch = watch
        self._shadows = shadows
        self._header = caller_header
        self._started = False

    def caller(self, request: Request) -> Caller:
        """Returns who sends a request: the value of the header, or the request itself if it has none."""
        named = request.headers.get(self._header) if self._header else None
        if named:
            return Caller(b"caller:" + named.encode(), may_repeat=True)
        own = request_id(request.scope)
        return Caller(b"request:" + own.encode(), may_repeat="x-request-id" in request.headers)

    def observe(
        self,
        part: Part,
        rows: Float[np.ndarray, "rows ..."],
        levels: Levels,
        encode: Callable[[list[Share]], T],
    ) -> Callable[[list[Share]], T]:
        """Returns `encode` with the addition that the answer is observed, and computed by the candidate of a shadow.

        Runs in the event loop.
        """
        if not self._started:  # Most servers have no rollout, and need no threads for one.
            self._started = True
            self._watch.start()
            self._shadows.start()
        started = time.perf_counter()

        def encode_and_observe(shares: list[Share]) -> T:
            content = encode(shares)
            seconds, observed = time.perf_counter() - started, observe_shares(shares)
            if part.rollout.mode == "canary":
                self._watch.note_canary(part, observed, seconds)
            else:
                self._shadows.add(part, rows, levels, observed, seconds)
            return content

        return encode_and_observe
