"""How rarely the watch for drift alarms falsely, and how soon rightly: synthetic streams, no model.

    python benchmarks/drift.py [--streams 500]

Every stream has a fresh calibration split of 1,000 rows and, for false alarms, 10,000 rows like them; an alarm is a log
martingale of ln 100 at any time. For delays some rows of a stream are beyond nearly all calibration rows from some
row on, as letters are for a model of digits. Beside the martingale is the same bet on ranks among the calibration split
alone, as conformal p-values are, which is not entitled to its level.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Iterator

import numpy as np
from servers import save, say

from models import drift

ROWS, CALIBRATION, LEVEL = 10_000, 1_000, math.log(100)
TOGETHER = 50
STRANGE = 5.0
"""Added to an exponential score: beyond about 99.3 % of calibration rows."""


def main() -> int:
    """Prints rates and delays, and writes `benchmarks/results/drift.json`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=500)
    streams = parser.parse_args().streams
    found = {
        "false alarms, online ranks": false_alarms(streams, online),
        "false alarms, calibration ranks": false_alarms(streams, of_calibration),
    }
    for name, rate in found.items():
        error = 1.96 * math.sqrt(0.01 * 0.99 / streams)
        sys.stdout.write(f"{name:34} {100 * rate:5.2f} %   asked: at most 1 % ± {100 * error:.2f}\n")
    for share in (0.01, 0.05, 0.2):
        for ordinary in (0, 5_000):
            delays = sorted(delay(share, ordinary, seed) for seed in range(streams // 5))
            middle, late = (delays[int(place * len(delays))] for place in (0.5, 0.9))
            name = f"{100 * share:g} % strange after {ordinary:,} rows"
            found[name] = middle
            sys.stdout.write(f"{name:34} {middle:>6g} rows to the alarm, median; nine in ten by {late:g}\n")
    save("drift", found)
    return 0


def online(calibration: np.ndarray, stream: np.ndarray, random: np.random.Generator) -> Iterator[drift.Watch]:
    """The watch as it is kept."""
    watch = drift.begin(calibration[None])
    place = 0
    while place < len(stream):
        part = stream[None, place : place + min(drift.room(watch), TOGETHER)]
        watch = drift.watched(watch, part, random.random(part.shape))
        place += part.shape[1]
        yield watch


def of_calibration(calibration: np.ndarray, stream: np.ndarray, random: np.random.Generator) -> Iterator[drift.Watch]:
    """The same, but nothing of the stream is ranked against."""
    watch, known = drift.begin(calibration[None]), np.sort(calibration)
    for place in range(0, len(stream), TOGETHER):
        values = stream[None, place : place + TOGETHER]
        watch = drift.watched(watch, values, random.random(values.shape))._replace(ranked=(known,))
        yield watch


def false_alarms(streams: int, ranked: Callable[..., Iterator[drift.Watch]]) -> float:
    """The share of exchangeable streams that are ever taken for drift."""
    alarms = 0
    for seed in range(streams):
        random = np.random.default_rng(seed)
        calibration, stream = random.exponential(size=CALIBRATION), random.exponential(size=ROWS)
        alarms += any(drift.log_martingale(watch)[0] >= LEVEL for watch in ranked(calibration, stream, random))
    say(f"{streams} streams of {ROWS} rows, {ranked.__name__}")
    return alarms / streams


def delay(share: float, ordinary: int, seed: int) -> float:
    """Rows from the first that may be strange to the alarm; infinite where there is none in 10,000."""
    random = np.random.default_rng(seed)
    stream = random.exponential(size=ordinary + ROWS)
    stream[ordinary:][random.random(ROWS) < share] += STRANGE
    for watch in online(random.exponential(size=CALIBRATION), stream, random):
        if watch.rows > ordinary and drift.log_martingale(watch)[0] >= LEVEL:
            return watch.rows - ordinary
    return math.inf


if __name__ == "__main__":
    sys.exit(main())
