"""Drift without labels: tests whether the rows of a stream are still like the calibration rows.

As long as all rows are exchangeable, the rank of a new row's score among the calibration rows and the stream so far is
uniform, and independent of the ranks before it (Vovk et al., 2005, theorem 8.2). Ranks among the calibration rows alone are
not independent, and would raise several times as many false alarms. A *test martingale* bets against uniform ranks. It
starts at 1, and the probability that it ever exceeds 1/α is at most α (Ville, 1939), so it may be checked at any time.

A bet is a histogram of the ranks that is learned while betting, from a Dirichlet prior around the uniform distribution (a
plug-in martingale: Fedorova et al., 2012; the mixture has a closed form). After thousands of ordinary rows it learns
slowly; so another bet starts every `BET_ROWS` rows, and the martingale is their weighted mean (Volkhonskiy et al., 2017,
start a bet at every row).

A stream may be endless, but the memory for its values is not: an *epoch* is `EPOCH` rows, after which all values but the
calibration's are dropped. The j-th epoch gets the share 6/(π²j²) of α, so that the total is α.

The score of the same row is rounded differently in batches of different sizes and on different processors. If rows repeat
(categories, integers, flags), calibration rows and equal rows of the stream would then differ in the last bits, and their
ranks would not be uniform. So `dither` first shifts every value, also the calibration's, by a random share of
`DITHER_WIDTH` times its rounding error. The same random function for every value keeps exchangeable values exchangeable,
hence ranks exactly uniform; and two roundings of a value have the same distribution up to 1/`DITHER_WIDTH` in total
variation. With a fixed grid instead, a value near the edge of a cell would fall into different cells in different batches.

For the last `WINDOW` rows there are two common statistics as well: the two-sample Kolmogorov–Smirnov test, and the
population stability index. They are valid for a single test; repeated tests raise an alarm sooner or later. With fewer than
`LEAST_ROWS` rows the index is mostly noise: for ordinary windows of 10 rows, 84 % are above .25.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from abstain.models.decisions.decision import COMBINED, NOVELTY, EvidenceMap, steepness

EDGES = np.array([0, 0.01, 0.05, 0.2, 0.6, 1.0])
"""Edges of the histogram's bins, narrow for the ranks of strange rows."""
CONCENTRATION = 100.0
"""Weight of the Dirichlet prior, in rows."""
EPOCH = 20_000
"""Rows of an epoch."""
BET_ROWS = 1_000
"""Rows after which another bet starts."""
STEP_ROWS = 128
"""Most rows that are ranked at a time; the martingale is checked after each step."""
WINDOW = 1_000
"""Rows of the window for the Kolmogorov–Smirnov test and the population stability index."""
LEAST_ROWS = 300
"""Least number of rows, of the window and of the calibration, for a meaningful population stability index."""
DITHER_WIDTH = 1_000.0
"""Width of the dither, in rounding errors."""
RELATIVE_ROUNDING = 1e-6
"""Largest rounding error of a score relative to its value, between batch sizes and processors (measured: up to 1e-6)."""
ABSOLUTE_ROUNDING = 2.5e-7
"""Rounding error of a score near 0, in its unit: a few float32 epsilons."""
LARGER_ROUNDING = {"relative_mahalanobis": 5e-5, "vim": 1e-5, "subspace": 1e-6, COMBINED: 5e-5}
"""The same for differences of larger numbers, and for combinations of these scores (measured on digits and tables)."""
PSI_BINS = 10
"""Bins of the population stability index: the calibration's deciles."""
FIRST_WEIGHT = 0.5
"""Weight of the bet that starts with the epoch; the others share the rest."""

_SHARES = np.diff(EDGES)


class EpochState(NamedTuple):
    """The state of the drift test within an epoch.

    Attributes:
        ranked: the values of each score, of the calibration and of the epoch so far, ascending.
        counts: the number of the epoch's ranks in each bin.
        begun: the counts at the start of each bet.
        rows: the number of the epoch's rows so far.
    """

    ranked: tuple[Float[np.ndarray, " known"], ...]
    counts: Int[np.ndarray, "scores bins"]
    begun: Int[np.ndarray, "bets scores bins"]
    rows: int


def absolute_rounding(
    names: tuple[str, ...], units: Float[np.ndarray, " scores"], combined: float = 0.0
) -> Float[np.ndarray, " scores"]:
    """Returns the rounding error of each score near 0, in the score's own unit.

    Args:
        names: the names of the scores.
        units: the unit of each score: 1, or a regression target's scale.
        combined: the rounding error of the combined evidence, in nats (`combined_rounding`), if larger than usual.
    """
    of_evidence = max(LARGER_ROUNDING[COMBINED], combined)
    rounding = LARGER_ROUNDING | {COMBINED: of_evidence, NOVELTY: of_evidence}
    return np.array([rounding.get(name, ABSOLUTE_ROUNDING) for name in names]) * units


def combined_rounding(maps: dict[str, EvidenceMap], units: dict[str, float]) -> float:
    """Returns the rounding error of the combined evidence, in nats: the largest among its scores, for every rule.

    Args:
        maps: the evidence map of each score of the decision.
        units: the units of these scores; 1 by default.
    """
    errors = [
        steepness(fixed)
        * (
            LARGER_ROUNDING.get(name, ABSOLUTE_ROUNDING) * units.get(name, 1.0)
            + RELATIVE_ROUNDING * float(np.abs(fixed.knots).max())
        )
        for name, fixed in maps.items()
    ]
    return max(errors, default=0.0)


def dither(
    values: Float[np.ndarray, "scores rows"],
    rounding: Float[np.ndarray, " scores"],
    uniform: Float[np.ndarray, "scores rows"],
) -> Float[np.ndarray, "scores rows"]:
    """Shifts each value by a random share of `DITHER_WIDTH` times its rounding error; returns float64.

    Values that differ only by rounding become indistinguishable; values that differ by more keep their order.

    Args:
        rounding: `absolute_rounding` of the scores.
        uniform: independent uniform numbers in [0, 1), new ones for every value.
    """
    wide = values.astype(np.float64)
    return wide + DITHER_WIDTH * (RELATIVE_ROUNDING * np.abs(wide) + rounding[:, None]) * uniform


def start_epoch(calibration: Float[np.ndarray, "scores rows"]) -> EpochState:
    """Returns the state at the start of an epoch.

    Args:
        calibration: the values of each score on the calibration part, after `dither`.
    """
    counts = np.zeros((len(calibration), len(_SHARES)), np.int64)
    return EpochState(tuple(np.sort(values) for values in calibration), counts, counts[None], 0)


def rows_allowed(state: EpochState) -> int:
    """Returns how many rows `observe` may take next: at most `STEP_ROWS`, and not beyond the end of the epoch or bet."""
    return min(STEP_ROWS, EPOCH - state.rows, BET_ROWS - state.rows % BET_ROWS)


def observe(
    state: EpochState, values: Float[np.ndarray, "scores rows"], ties: Float[np.ndarray, "scores rows"]
) -> EpochState:
    """Returns the state after some more rows, at most `rows_allowed`.

    Args:
        values: the scores after `dither`.
        ties: new uniform numbers in [0, 1): the position of each value among equal values, itself included.
    """
    counts = state.counts.copy()
    ranked: list[np.ndarray] = []
    for score, (known, new, tie) in enumerate(zip(state.ranked, values, ties, strict=True)):
        bins = np.searchsorted(EDGES[1:-1], online_ranks(known, new, tie), side="right")
        counts[score] += np.bincount(bins, minlength=len(_SHARES))
        order = np.sort(new)
        ranked.append(np.insert(known, np.searchsorted(known, order), order))
    rows = state.rows + values.shape[1]
    begun = state.begun if rows % BET_ROWS or rows == EPOCH else np.concatenate([state.begun, counts[None]])
    return EpochState(tuple(ranked), counts, begun, rows)


def online_ranks(
    known: Float[np.ndarray, " known"], values: Float[np.ndarray, " rows"], ties: Float[np.ndarray, " rows"]
) -> Float[np.ndarray, " rows"]:
    """Returns for each value the share of earlier values, `known` and those before it, that are at least as strange.

    The value itself and equal ones count by a random part, so that the shares of exchangeable values are exactly uniform
    and independent.

    Args:
        known: ascending.
    """
    before = np.tri(len(values), dtype=bool)
    greater = len(known) - np.searchsorted(known, values, side="right")
    greater = greater + ((values[None] > values[:, None]) & before).sum(axis=1)
    equal = np.searchsorted(known, values, side="right") - np.searchsorted(known, values, side="left")
    equal = equal + ((values[None] == values[:, None]) & before).sum(axis=1)
    return (greater + ties * equal) / (len(known) + np.arange(1, len(values) + 1))


def log_martingale(state: EpochState) -> Float[np.ndarray, " scores"]:
    """Returns the logarithm of each score's martingale, in nats; 0 at the start of an epoch."""
    own, all_rows = _log_rising_factorials()
    counts = state.counts - state.begun
    bins = np.arange(len(_SHARES))
    # The probability under a Dirichlet-multinomial divided by that under the uniform: products of rising factorials.
    bets = (own[bins, counts] - counts * np.log(_SHARES)).sum(axis=-1) - all_rows[counts.sum(axis=-1)]
    largest = np.maximum(bets.max(axis=0), 0.0)
    weights = _weights()
    # Bets that have not started yet keep their weight.
    idle = weights[len(bets) :].sum()
    mean = (weights[: len(bets), None] * np.exp(bets - largest)).sum(axis=0) + idle * np.exp(-largest)
    return np.log(mean) + largest


def alarm_level(alpha: float, streams: int, epoch: int) -> float:
    """Returns the level at which the log martingale raises an alarm, in nats.

    With this level the probability of any false alarm, in any stream and epoch, is at most `alpha`.

    Args:
        alpha: strictly between 0 and 1.
        streams: the number of martingales in parallel.
        epoch: the number of the epoch, from 1.
    """
    return math.log(streams / alpha) + math.log(math.pi**2 / 6) + 2 * math.log(epoch)


@lru_cache(maxsize=1)
def _log_rising_factorials() -> tuple[Float[np.ndarray, "bins counts"], Float[np.ndarray, " counts"]]:
    """Returns the logarithms of the rising factorials of each bin's pseudo-count, and of the concentration."""
    steps = np.arange(EPOCH)
    starts = CONCENTRATION * _SHARES[:, None]
    whole = np.concatenate([[0.0], np.cumsum(np.log(CONCENTRATION + steps))])
    return np.pad(np.cumsum(np.log(starts + steps), axis=1), ((0, 0), (1, 0))), whole


@lru_cache(maxsize=1)
def _weights() -> Float[np.ndarray, " bets"]:
    bets = EPOCH // BET_ROWS
    return np.array([FIRST_WEIGHT, *np.full(bets - 1, (1 - FIRST_WEIGHT) / (bets - 1))])


def kolmogorov_smirnov(
    ascending: Float[np.ndarray, " rows"], window: Float[np.ndarray, " window"]
) -> tuple[float, float]:
    """Returns the two-sample statistic, the largest difference of the distribution functions, and its p-value.

    The p-value is asymptotic, with the correction of Stephens (1970) for few rows: it is too small for a handful of rows,
    and too large for values that tie.

    Args:
        ascending: the calibration's values.
        window: at least one value.
    """
    latest, points = np.sort(window), np.concatenate([ascending, window])
    shares = [np.searchsorted(values, points, side="right") / len(values) for values in (ascending, latest)]
    statistic = float(np.abs(shares[0] - shares[1]).max())
    root = math.sqrt(len(ascending) * len(latest) / (len(ascending) + len(latest)))
    scaled = (root + 0.12 + 0.11 / root) * statistic
    if scaled < 0.2:  # Here the series converges slowly, to a probability of 1 up to ten digits.
        return statistic, 1.0
    terms = np.arange(1, 101)
    p_value = 2 * ((-1.0) ** (terms - 1) * np.exp(-2 * (terms * scaled) ** 2)).sum()
    return statistic, float(np.clip(p_value, 0.0, 1.0))


def stability_index(ascending: Float[np.ndarray, " rows"], window: Float[np.ndarray, " window"]) -> float:
    """Returns the population stability index Σ (q − p) ln(q/p), in nats, over the calibration's deciles (Siddiqi, 2006).

    By convention, below .1 means no change, above .25 a change. Half a row is added to each decile, so that an empty one
    does not give infinity; deciles with equal edges are merged.

    Args:
        ascending: the calibration's values.
        window: at least one value.
    """
    edges = np.unique(ascending[np.arange(1, PSI_BINS) * len(ascending) // PSI_BINS])
    counts = [
        np.bincount(np.searchsorted(edges, values, side="right"), minlength=len(edges) + 1)
        for values in (ascending, window)
    ]
    shares = [(count + 0.5) / (count.sum() + 0.5 * len(count)) for count in counts]
    return float(((shares[1] - shares[0]) * np.log(shares[1] / shares[0])).sum())
