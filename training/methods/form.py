"""The form every method has: what it is given, and what it gives."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

from jaxtyping import PRNGKeyArray

from models.posterior import Posterior
from training.bnn import BNN, Observations


class Progress(Protocol):
    """Where a method says how far it is; the CLI draws a bar of it, a test may record it."""

    def __call__(self, done: int, total: int, **facts: float) -> None:
        """`done` of `total` steps are behind us, and these are the latest figures."""


class Fitted(NamedTuple):
    """A posterior, and what there is to say about how it was come by (plain JSON)."""

    posterior: Posterior
    diagnostics: dict[str, Any]


class Method(Protocol):
    """The signature of every method's `fit`."""

    def __call__(
        self,
        key: PRNGKeyArray,
        bnn: BNN,
        train: Observations,
        monitor: Observations,
        settings: Any,
        draws: int,
        progress: Progress,
    ) -> Fitted:
        """A posterior from observations; the module's text names the arguments."""
        ...
