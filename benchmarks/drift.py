"""How rarely the watch for drift alarms falsely, and how soon rightly: synthetic streams, no model.

    python benchmarks/drift.py [--streams 500] [--model mnist-strong --store DIR --data FOLDER]

Every stream has a fresh calibration split of 1,000 rows and, for false alarms, 10,000 rows like them; an alarm is a log
martingale of ln 100 at any time. For delays some rows of a stream are beyond nearly all calibration rows from some
row on, as letters are for a model of digits. Beside the martingale is the same bet on ranks among the calibration split
alone, as conformal p-values are, which is not entitled to its level.

With a model of MNIST also its own scores: of `mnist.npz`'s test digits in forty orders, alone, and with letters of
`emnist_letters_test.npz` among them after 5,000 rows; at the level of a server with two workers, which all scores share.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from servers import save, say

from models import drift
from models import store as stores
from models.bundle import load
from models.calibration import judge

ROWS, CALIBRATION, LEVEL = 10_000, 1_000, math.log(100)
TOGETHER = 50
ORDERS, ORDINARY = 40, 5_000
STRANGE = 5.0
"""Added to an exponential score: beyond about 99.3 % of calibration rows."""


def main() -> int:
    """Prints rates and delays, and writes `benchmarks/results/drift.json`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=500)
    parser.add_argument("--model", help="fitted to MNIST, in a store")
    parser.add_argument("--store", type=Path, default=Path("artifacts"))
    parser.add_argument("--data", type=Path, help="the folder of the two files")
    options = parser.parse_args()
    streams = options.streams
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
    if options.model and options.data:
        found |= of_letters(options.store, options.model, options.data)
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


def of_letters(store: Path, model: str, data: Path) -> dict[str, float]:
    """Alarms on digits, and rows to the alarm on letters, by any of a version's scores."""
    name, version = stores.resolve(store, model)
    bundle = load(store / name / str(version))
    predictor = bundle.predictor((256,))
    names = tuple(bundle.calibration.all_scores)

    def scored(file: str) -> np.ndarray:
        rows = np.load(data / file, allow_pickle=False)["x_test"]
        shaped = rows.reshape(len(rows), *bundle.manifest.model.feature_shape)
        judgement = judge(bundle.calibration, predictor(shaped))
        return np.stack([judgement.scores[name].value for name in names])

    digits, letters = scored("mnist.npz"), scored("emnist_letters_test.npz")
    calibration = np.stack([bundle.calibration.ascending[name] for name in names])
    level, found = drift.alarm_level(0.01, 2 * len(names), 1), {}
    for share in (0.0, 0.05, 0.2):
        delays = []
        for seed in range(ORDERS):
            random = np.random.default_rng(seed)
            stream = digits[:, random.permutation(digits.shape[1])]
            strange = (np.arange(stream.shape[1]) >= ORDINARY) & (random.random(stream.shape[1]) < share)
            stream[:, strange] = letters[:, random.integers(0, letters.shape[1], int(strange.sum()))]
            delays.append(rows_to_alarm(calibration, stream, level, random))
        heard = [delay - ORDINARY for delay in delays if math.isfinite(delay)]
        told = f"{len(heard)} of {ORDERS} orders alarm"
        if share:
            told += f", after {np.median(heard):g} rows, median; the latest after {max(heard)}"
        sys.stdout.write(f"{name}:{version}, {100 * share:g} % letters: {told}\n")
        found[f"{name}, {100 * share:g} % letters"] = float(np.median(heard)) if heard else math.inf
    return found


def rows_to_alarm(calibration: np.ndarray, stream: np.ndarray, level: float, random: np.random.Generator) -> float:
    """Rows until any score's log martingale is at its level; infinite where none is."""
    watch = drift.begin(calibration)
    while watch.rows < stream.shape[1]:
        end = watch.rows + min(drift.room(watch), TOGETHER)
        part = stream[:, watch.rows : end]
        watch = drift.watched(watch, part, random.random(part.shape))
        if (drift.log_martingale(watch) >= level).any():
            return watch.rows
    return math.inf


if __name__ == "__main__":
    sys.exit(main())
