"""The private interfaces of prometheus_client that abstain uses: one addition for many values, and the files of dead workers.

Import it after `process.join_run`: prometheus_client reads `PROMETHEUS_MULTIPROC_DIR` when it is imported.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import prometheus_client
import psutil
from jaxtyping import Num
from prometheus_client import multiprocess, values


def keep_process_id() -> None:
    """Fixes the process id that metrics are kept under: a worker does not fork, so no count need look it up again."""
    worker = os.getpid()
    values.ValueClass = values.MultiProcessValue(lambda: worker)


class BatchHistogram(prometheus_client.Histogram):
    """A histogram that takes many values at once: one addition for each bucket of a batch, and not one for each value."""

    def observe_all(self, observed: Num[np.ndarray, " values"]) -> None:
        """Counts every value as `observe` does."""
        if len(observed) == 1:
            self.observe(float(observed[0]))
            return
        self._raise_if_not_observable()
        # A bucket counts values up to and including its bound; the last bound is infinite.
        counts = np.bincount(np.searchsorted(np.asarray(self._upper_bounds), observed, side="left"))
        for bucket in np.flatnonzero(counts).tolist():
            self._buckets[bucket].inc(int(counts[bucket]))
        self._sum.inc(float(observed.sum()))


def exposition_of_all(folder: Path) -> bytes:
    """The metrics of all workers that keep theirs in a folder, in Prometheus's text format."""
    _forget_dead_workers(folder)
    registry = prometheus_client.CollectorRegistry()
    multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return prometheus_client.generate_latest(registry)


def _forget_dead_workers(folder: Path) -> None:
    """Removes the gauges of workers that are gone, except those that are to outlive them."""
    for file in folder.glob("gauge_live*_*.db"):
        worker = file.stem.rsplit("_", 1)[1]
        if not psutil.pid_exists(int(worker)):
            multiprocess.mark_process_dead(worker)  # type: ignore[no-untyped-call]
