"""The private interfaces of prometheus_client that abstain uses: to count many values at once, and to forget dead workers.

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
    """Makes the metrics of this process read its id only once: a worker does not fork, so the id does not change."""
    process_id = os.getpid()
    values.ValueClass = values.MultiProcessValue(lambda: process_id)


class BatchHistogram(prometheus_client.Histogram):
    """A histogram that counts many values with one addition for each bucket, not one for each value."""

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
    """Returns the metrics of all workers that use this folder, in Prometheus's text format."""
    _forget_dead_workers(folder)
    registry = prometheus_client.CollectorRegistry()
    multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return prometheus_client.generate_latest(registry)


def _forget_dead_workers(folder: Path) -> None:
    """Removes the `live…` gauges of workers that have ended; other gauges remain."""
    for file in folder.glob("gauge_live*_*.db"):
        worker = file.stem.rsplit("_", 1)[1]
        if not psutil.pid_exists(int(worker)):
            multiprocess.mark_process_dead(worker)  # type: ignore[no-untyped-call]
