"""What the handlers of requests need for rollouts."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from starlette.requests import Request

from abstain.service.errors import HTTPError
from abstain.service.rollouts.observing import RolloutWatch, observe_shares
from abstain.service.rollouts.routing import Caller, Choice
from abstain.service.rollouts.shadowing import ShadowQueue

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Float

    from abstain.models.decisions.records import Levels
    from abstain.service.batches import Share

log = logging.getLogger("abstain.rollouts")
T = TypeVar("T")
FULL = 429


Choose = Callable[[str | None, Callable[[], Caller]], Choice]
"""Returns the version that a request for a model gets, with the function that returns who sends it (`LiveVersions.choose`)."""


class Turn:
    """The part of one request in a rollout, from the choice of its version to its end."""

    def __init__(self, rollouts: Rollouts, request: Request) -> None:
        self._rollouts = rollouts
        self._request = request
        self._choice: Choice | None = None
        self.answered = False
        """Whether there is an answer, which was observed."""

    def choose(self, choose: Choose, text: str | None) -> Choice:
        """Chooses the version that responds to the request."""
        self._choice = choose(text, self._caller)
        return self._choice

    def observe(
        self, rows: Float[np.ndarray, "rows ..."], levels: Levels, encode: Callable[[list[Share]], T]
    ) -> Callable[[list[Share]], T]:
        """Returns `encode` with the addition that the answer is observed, and computed by the candidate of a shadow.

        If the request has no part in a rollout, that is `encode` itself.
        """
        part = self._choice and self._choice.part
        if not part:
            return encode
        started = time.perf_counter()

        def encode_and_observe(shares: list[Share]) -> T:
            content = encode(shares)
            self.answered = True
            try:
                seconds, observed = time.perf_counter() - started, observe_shares(shares)
                if part.rollout.mode == "canary":
                    self._rollouts.watch.note_canary(part, observed, seconds)
                else:
                    self._rollouts.shadows.add(part, rows, levels, observed, seconds)
            except Exception:  # The answer must not depend on what is observed of it.
                log.exception("%s: a request cannot be observed", part.name)
            return content

        return encode_and_observe

    def end(self) -> None:
        """Ends the turn: a request whose version was chosen, and that was not answered, is a failure of this version."""
        if self._choice and self._choice.part and not self.answered:
            try:
                self._rollouts.watch.note_failure(self._choice.part)
            except Exception:
                log.exception("%s: a failed request cannot be observed", self._choice.part.name)

    def _caller(self) -> Caller:
        """Returns who sends the request; called if there is a rollout."""
        self._rollouts.start()
        header = self._rollouts.caller_header
        if header and (named := self._request.headers.get(header)):
            return Caller(b"caller:" + named.encode(), may_repeat=True)
        if own := self._request.headers.get("x-request-id"):
            return Caller(b"request:" + own.encode(), may_repeat=True)
        return Caller(secrets.token_bytes(16), may_repeat=False)


class Rollouts:
    """The rollouts of a worker.

    Args:
        watch: gets what is observed.
        shadows: gets the requests that a candidate computes too.
        caller_header: the header that names callers; None if requests do not say who sends them.
    """

    def __init__(self, watch: RolloutWatch, shadows: ShadowQueue, caller_header: str | None) -> None:
        self.watch = watch
        self.shadows = shadows
        self.caller_header = caller_header
        self._started = False

    def start(self) -> None:
        """Starts the threads at the first request with a part in a rollout: most servers have none."""
        if not self._started:
            self._started = True
            self.watch.start()
            self.shadows.start()

    @contextmanager
    def turn(self, request: Request) -> Generator[Turn]:
        """Yields the part of a request in a rollout, and ends it.

        A request that finds the queue full is no failure of the version that it would have got.
        """
        turn = Turn(self, request)
        try:
            yield turn
        except HTTPError as error:
            if error.status != FULL:
                turn.end()
            raise
        except BaseException:
            turn.end()
            raise
