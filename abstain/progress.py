"""The function that long work calls with its progress."""

from __future__ import annotations

from typing import Protocol, runtime_checkable


@runtime_checkable
class ProgressCallback(Protocol):
    """A function that `fit` and `evaluate` call with their progress; the commands draw a progress bar."""

    def __call__(self, done: int, total: int, passage: str = "", **facts: float) -> None:
        """Reports that `done` of `total` steps of a passage are done, with the passage's latest figures."""


def no_progress(done: int, total: int, passage: str = "", **facts: float) -> None:
    """Ignores progress."""
