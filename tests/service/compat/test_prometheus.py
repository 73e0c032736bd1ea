"""Prometheus's client: many values at once are counted as one by one, and dead workers' gauges go."""

import os
import subprocess
import sys

import numpy as np
import prometheus_client
import pytest

from abstain.service.compat.prometheus import BatchHistogram


@pytest.mark.parametrize("count", [1, 2, 300])
def test_many_values_are_counted_as_one_by_one(count):
    """Every bucket and the sum; values at a bound count below it."""
    values = np.r_[np.random.default_rng(0).normal(1, 1, count - 1), 1.0].astype(np.float32)
    one_by_one, together = (
        kind("seconds", "of a test", buckets=(0.5, 1.0, 2.0), registry=None)
        for kind in (prometheus_client.Histogram, BatchHistogram)
    )
    for value in values:
        one_by_one.observe(float(value))
    together.observe_all(values)
    [expected], [found] = one_by_one.collect(), together.collect()
    kept = [sample for sample in expected.samples if not sample.name.endswith("_created")]
    for known, sample in zip(
        kept, (sample for sample in found.samples if not sample.name.endswith("_created")), strict=True
    ):
        assert (sample.name, sample.labels) == (known.name, known.labels)
        assert sample.value == pytest.approx(known.value, rel=1e-6)


GAUGE = """
import prometheus_client, sys
from abstain.service.compat.prometheus import keep_process_id
keep_process_id()
for mode in ("livesum", "max"):
    prometheus_client.Gauge(f"gauge_{mode}", "of a test", multiprocess_mode=mode).set(float(sys.argv[1]))
if len(sys.argv) > 2:
    from pathlib import Path
    from abstain.service.compat.prometheus import exposition_of_all
    sys.stdout.write(exposition_of_all(Path(sys.argv[2])).decode())
"""


def test_gauges_of_dead_workers_are_removed_except_those_that_outlive_them(tmp_path):
    """A second process reads its own live gauge alone, and the largest of both of the other kind."""
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    for arguments in (["7"], ["3", str(tmp_path)]):
        result = subprocess.run(
            [sys.executable, "-c", GAUGE, *arguments], env=environment, capture_output=True, text=True, check=True
        )
    assert "gauge_livesum 3.0" in result.stdout
    assert "gauge_max 7.0" in result.stdout
