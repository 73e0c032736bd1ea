"""Statistics as Triton defines them: the counts and durations of each version's requests in this worker since its start."""

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


class VersionStatistics:
    """The statistics of one version; only the event loop changes and reads them, so they need no lock."""

    def __init__(self) -> None:
        self._last_milliseconds = 0
        self._rows = 0
        self._calls = 0
        self._spans = {name: [0, 0] for name in SPANS}

    def count_success(self, rows: int, calls: int, **nanoseconds: int) -> None:
        """Counts a successful request.

        Args:
            calls: the number of calls of the compiled program.
            nanoseconds: the durations of some of the `SPANS`.
        """
        self._last_milliseconds = time.time_ns() // 1_000_000
        self._rows += rows
        self._calls += calls
        for name, duration in nanoseconds.items():
            self._add(name, duration)

    def count_failure(self, nanoseconds: int) -> None:
        """Counts a request that was refused or failed."""
        self._add("fail", nanoseconds)

    def _add(self, span: str, nanoseconds: int) -> None:
        self._spans[span][0] += 1
        self._spans[span][1] += nanoseconds

    def document(self, name: str, version: int) -> dict[str, Any]:
        """Returns one entry of Triton's `model_stats`."""
        return {
            "name": name,
            "version": str(version),
            "last_inference": self._last_milliseconds,
            "inference_count": self._rows,
            "execution_count": self._calls,
            "inference_stats": {span: {"count": count, "ns": ns} for span, (count, ns) in self._spans.items()},
            "batch_stats": [],
        }
