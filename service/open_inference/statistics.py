"""What Triton calls statistics: how often, and for how long, each version was asked; of this worker, since its start."""

from __future__ import annotations

import time
from typing import Any

SPANS = (
    "success",
    "fail",
    "queue",
    "compute_input",
    "compute_infer",
    "compute_output",
    "cache_hit",
    "cache_miss",
)


class Tally:
    """One version's counts; changed and read by the event loop alone, so it needs no lock."""

    def __init__(self) -> None:
        self._last_milliseconds = 0
        self._rows = 0
        self._calls = 0
        self._spans = {name: [0, 0] for name in SPANS}

    def succeeded(self, rows: int, calls: int, **nanoseconds: int) -> None:
        """Counts a request that was answered.

        Args:
            calls: of the compiled program.
            nanoseconds: what each of some of the `SPANS` took.
        """
        self._last_milliseconds = time.time_ns() // 1_000_000
        self._rows += rows
        self._calls += calls
        for name, took in nanoseconds.items():
            self._add(name, took)

    def failed(self, nanoseconds: int) -> None:
        """Counts a request that was refused, or not answered."""
        self._add("fail", nanoseconds)

    def _add(self, span: str, nanoseconds: int) -> None:
        self._spans[span][0] += 1
        self._spans[span][1] += nanoseconds

    def document(self, name: str, version: int) -> dict[str, Any]:
        """One entry of Triton's `model_stats`."""
        return {
            "name": name,
            "version": str(version),
            "last_inference": self._last_milliseconds,
            "inference_count": self._rows,
            "execution_count": self._calls,
            "inference_stats": {span: {"count": count, "ns": ns} for span, (count, ns) in self._spans.items()},
            "batch_stats": [],
        }
