"""Rates of false alarms of drift detection, and its delays: synthetic streams, without a model.

    python benchmarks/drift.py [--streams 500] [--model mnist-strong --store DIR --data FOLDER]

False alarms: six distributions of scores that tables have, and a combination of three. Every stream has a new calibration
part of 1,000 rows, and 4,000 rows of the same distribution; an alarm is a log martingale of ln 100 at any time. The
calibration is computed in one batch size, the stream in five that change every 100 rows. Each batch size rounds each
distinct value with its own error, up to 1e-6 of the value. `as they are` is the same without dither, which does not
guarantee the rate if rows repeat.

Delays: from some row on, a share of the rows has scores above nearly all calibration rows, like letters for a model of
digits; at the alarm level of the first epoch and of the hundredth. Then 5 % strange rows of every distribution, with and
without dither, without rounding: this shows the cost of dither.

With a model of MNIST, also its scores: the test digits of `mnist.npz` in forty orders, alone, and with letters of
`emnist_letters_test.npz` among them after 5,000 rows; at the alarm level that all scores of two workers share.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from servers import print_progress, save_results

from abstain.models.bundles import store as stores
from abstain.models.bundles.bundle import load
from abstain.models.decisions import drift
from abstain.models.decisions.judging import judge

ROWS, CALIBRATION, LEVEL = 10_000, 1_000, math.log(100)
FAMILIAR_ROWS = 4_000
"""Rows of a stream with the same distribution as its calibration rows."""
BUCKETS, ROWS_IN_ONE = 5, 100
EPOCHS = (1, 100)
ROWS_IN_A_STEP = 50
ORDERS, ORDINARY = 40, 5_000
STRANGE, STRANGE_IN_HEAVY_TAILS = 5.0, 45.0
"""Added to a score; above about 99.3 % of exponential, or of Cauchy calibration rows."""

Law = Callable[[np.random.Generator, int], np.ndarray]
LAWS: dict[str, Law] = {
    "continuous": lambda random, rows: random.exponential(size=rows),
    "atoms": lambda random, rows: random.choice([0.011, 0.2, 0.57, 3.0], rows, p=[0.5, 0.3, 0.15, 0.05]),
    "constant": lambda _, rows: np.full(rows, 0.31),
    "zero-inflated": lambda random, rows: np.where(random.random(rows) < 0.8, 0.0, random.exponential(size=rows)),
    "heavy tails": lambda random, rows: random.standard_cauchy(rows),
    "discretised": lambda random, rows: np.round(random.exponential(size=rows), 1) * 1.1,
}
COMBINED = ("atoms", "discretised", "continuous")
"""The distributions of the scores with added evidence."""


def main() -> int:
    """Prints rates and delays, and writes `benchmarks/results/drift.json`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=500)
    parser.add_argument("--model", help="a model of MNIST in the store")
    parser.add_argument("--store", type=Path, default=Path("artifacts"))
    parser.add_argument("--data", type=Path, help="the folder of mnist.npz and emnist_letters_test.npz")
    options = parser.parse_args()
    results = print_false_alarms(options.streams) | print_delays(options.streams // 5)
    if options.model and options.data:
        results |= print_letters(options.store, options.model, options.data)
    save_results("drift", results)
    return 0


def print_false_alarms(streams: int) -> dict[str, float]:
    """Prints and returns the rates of false alarms of every distribution and of the combination."""
    bound = 0.01 + 3 * math.sqrt(0.01 * 0.99 / streams)
    sys.stdout.write(f"{streams} streams each; at most 1 % is allowed, {100 * bound:.2f} % with 3 standard errors\n")
    rates = {}
    for law in (*LAWS, "combination"):
        rates[f"false alarms, {law}"] = rate = false_alarms(law, streams)
        sys.stdout.write(f"{law:34} {100 * rate:5.2f} % false alarms{'' if rate <= bound else '   TOO MANY'}\n")
    for law in ("continuous", "atoms"):
        rates[f"false alarms, {law}, as they are"] = rate = false_alarms(law, streams // 10, dither=False)
        sys.stdout.write(f"{law + ', as they are':34} {100 * rate:5.2f} % false alarms\n")
    return rates


def print_delays(streams: int) -> dict[str, float]:
    """Prints and returns the rows to the alarm: by share of strange rows and epoch; by distribution, with and without dither."""
    delays_by_case = {}
    levels = [drift.alarm_level(0.01, 1, epoch) for epoch in EPOCHS]
    for share in (0.01, 0.05, 0.2):
        for ordinary in (0, 5_000):
            delays = [delay("continuous", share, ordinary, seed, levels) for seed in range(streams)]
            for epoch, rows in zip(EPOCHS, np.array(delays).T, strict=True):
                middle, late = np.quantile(rows, (0.5, 0.9), method="higher")
                name = f"{100 * share:g} % strange after {ordinary:,} rows, epoch {epoch}"
                delays_by_case[name] = float(middle)
                sys.stdout.write(f"{name:46} {middle:>6g} rows to the alarm, median; nine in ten by {late:g}\n")
    for law in LAWS:
        both = [
            float(np.median([delay(law, 0.05, 0, seed, [LEVEL], dither=dither) for seed in range(streams)]))
            for dither in (True, False)
        ]
        delays_by_case |= {f"5 % strange, {law}": both[0], f"5 % strange, {law}, as they are": both[1]}
        sys.stdout.write(f"5 % strange, {law:33} {both[0]:>6g} rows to the alarm, median; as they are {both[1]:g}\n")
    return delays_by_case


def online(
    calibration: np.ndarray,
    stream: np.ndarray,
    random: np.random.Generator,
    *,
    dither: bool = True,
    step_rows: int = drift.STEP_ROWS,
) -> Iterator[drift.EpochState]:
    """Yields the state of drift detection after each part of a stream of one score."""
    if dither:
        rounding = np.array([drift.ABSOLUTE_ROUNDING])
        calibration, stream = (
            drift.dither(values[None], rounding, random.random((1, len(values))))[0] for values in (calibration, stream)
        )
    watch = drift.start_epoch(calibration[None])
    start = 0
    while start < len(stream):
        part = stream[None, start : start + min(drift.rows_allowed(watch), step_rows)]
        watch = drift.observe(watch, part, random.random(part.shape))
        start += part.shape[1]
        yield watch


def false_alarms(law: str, streams: int, *, dither: bool = True) -> float:
    """Returns the share of exchangeable streams that ever raise an alarm."""
    alarms = 0
    for seed in range(streams):
        random = np.random.default_rng(seed)
        calibration, stream = np.split(draw_scores(law, random), [CALIBRATION])
        watches = online(calibration, stream, random, dither=dither)
        alarms += any(drift.log_martingale(watch)[0] >= LEVEL for watch in watches)
    print_progress(f"{streams} streams of {FAMILIAR_ROWS} rows, {law}")
    return alarms / streams


def draw_scores(law: str, random: np.random.Generator) -> np.ndarray:
    """Draws the scores of calibration rows and of a stream with the same distribution, with rounding by batch size."""
    if law != "combination":
        return add_rounding(LAWS[law](random, CALIBRATION + FAMILIAR_ROWS), random)
    # The map from a score to its evidence comes from rows that are neither calibration rows nor the stream's.
    evidence = []
    for name in COMBINED:
        known = np.unique(LAWS[name](random, CALIBRATION))
        at_least = np.linspace(1, 1 / len(known), len(known))
        scores = add_rounding(LAWS[name](random, CALIBRATION + FAMILIAR_ROWS), random)
        evidence.append(-np.log(np.interp(scores, known, at_least)))
    return np.sum(evidence, axis=0)


def add_rounding(values: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Adds an error to each distinct value in each batch size; all calibration rows have the same batch size."""
    distinct, indices = np.unique(values, return_inverse=True)
    errors = 1e-6 * random.uniform(-1, 1, (BUCKETS, len(distinct)))
    sizes = np.arange(len(values)) // ROWS_IN_ONE % BUCKETS
    sizes[:CALIBRATION] = 0
    return values * (1 + errors[sizes, indices])


def delay(law: str, share: float, ordinary: int, seed: int, levels: list[float], *, dither: bool = True) -> list[float]:
    """Returns the rows from the first possibly strange one to the alarm at each level; infinite if 10,000 raise none."""
    random = np.random.default_rng(seed)
    stream = LAWS[law](random, ordinary + ROWS)
    strange = STRANGE_IN_HEAVY_TAILS if law == "heavy tails" else STRANGE
    stream[ordinary:][random.random(ROWS) < share] += strange
    delays = [math.inf] * len(levels)
    for watch in online(LAWS[law](random, CALIBRATION), stream, random, dither=dither, step_rows=ROWS_IN_A_STEP):
        if watch.rows <= ordinary:
            continue
        value = drift.log_martingale(watch)[0]
        for index, level in enumerate(levels):
            if value >= level:
                delays[index] = min(delays[index], watch.rows - ordinary)
        if max(delays) < math.inf:
            break
    return delays


def print_letters(store: Path, model: str, data: Path) -> dict[str, float]:
    """Prints and returns the alarms on digits, and the rows to the alarm on letters, by any score of a version."""
    name, version = stores.resolve(store, model)
    bundle = load(store / name / str(version))
    predictor = bundle.predictor((256,))
    calibrated = bundle.calibration.plain_all_scores
    names = tuple(calibrated)
    rounding, coins = drift.absolute_rounding(names, np.ones(len(names))), np.random.default_rng(0)

    def read_scores(file: str) -> np.ndarray:
        """Returns the dithered scores of the rows in a file, `[scores, rows]`."""
        rows = np.load(data / file, allow_pickle=False)["x_test"]
        shaped = rows.reshape(len(rows), *bundle.manifest.model.feature_shape)
        judgement = judge(bundle.calibration, predictor(shaped))
        values = np.stack([judgement.scores[name].value for name in names])
        return drift.dither(values, rounding, coins.random(values.shape))

    digits, letters = read_scores("mnist.npz"), read_scores("emnist_letters_test.npz")
    values = np.stack(list(calibrated.values()))
    calibration = drift.dither(values, rounding, coins.random(values.shape))
    level, results = drift.alarm_level(0.01, 2 * len(names), 1), {}
    for share in (0.0, 0.05, 0.2):
        delays = []
        for seed in range(ORDERS):
            random = np.random.default_rng(seed)
            stream = digits[:, random.permutation(digits.shape[1])]
            strange = (np.arange(stream.shape[1]) >= ORDINARY) & (random.random(stream.shape[1]) < share)
            stream[:, strange] = letters[:, random.integers(0, letters.shape[1], int(strange.sum()))]
            delays.append(rows_to_alarm(calibration, stream, level, random))
        waits = [delay - ORDINARY for delay in delays if math.isfinite(delay)]
        summary = f"{len(waits)} of {ORDERS} orders alarm"
        if share:
            summary += f", after {np.median(waits):g} rows, median; the latest after {max(waits)}"
        sys.stdout.write(f"{name}:{version}, {100 * share:g} % letters: {summary}\n")
        results[f"{name}, {100 * share:g} % letters"] = float(np.median(waits)) if waits else math.inf
    return results


def rows_to_alarm(calibration: np.ndarray, stream: np.ndarray, level: float, random: np.random.Generator) -> float:
    """Returns the rows until the log martingale of any score reaches the level; infinite if none does."""
    watch = drift.start_epoch(calibration)
    while watch.rows < stream.shape[1]:
        end = watch.rows + min(drift.rows_allowed(watch), ROWS_IN_A_STEP)
        part = stream[:, watch.rows : end]
        watch = drift.observe(watch, part, random.random(part.shape))
        if (drift.log_martingale(watch) >= level).any():
            return watch.rows
    return math.inf


if __name__ == "__main__":
    sys.exit(main())
