"""Drift without labels: whether the rows of a stream are still like those that a model was calibrated on.

Among calibration rows and the stream so far, the rank of a new row's score is uniform as long as all are exchangeable,
and independent of the ranks before it (Vovk et al., 2005, theorem 8.2): where calibration alone is ranked against, it
is not, and false alarms are several times as many. A *test martingale* bets against that uniformity. It starts at 1 and
exceeds 1/α, at any time, with probability at most α (Ville, 1939): one may look as often as one likes.

Bets are made on a histogram of the ranks that is learnt while betting, from a Dirichlet prior around the uniform
(a plug-in martingale: Fedorova et al., 2012; the mixture has a closed form). One that has seen thousands of
ordinary rows would be slow to learn; so another begins every `EVERY` rows, and the martingale is their weighted mean
(Volkhonskiy et al., 2017, begin a bet at every row).

A stream has no end, and what it is ranked against must: an *epoch* is `EPOCH` rows, after which all but the calibration
is forgotten. The j-th is given the share 6/(π²j²) of α, so that all of them together keep to α.

The score of one and the same row is rounded differently in batches of different sizes, and on different processors.
Where rows repeat (categories, integers, flags), calibration rows and equal rows of the stream would then differ in the
last bits, and their ranks would not be uniform. So every value, the calibration's too, is first `dithered`: shifted by a
random share of `BLUR` times its rounding error. A fixed random function applied to every value keeps exchangeable values
exchangeable, hence ranks exactly uniform; and two roundings of the same value have the same distribution up to
1/`BLUR` in total variation. A fixed grid would do neither better nor worse for most values, but a value that happens to
lie at an edge of a cell would be in one cell in one batch size and in the next cell in another.

Beside it, of the last `WINDOW` rows, what people expect to see: the two-sample Kolmogorov–Smirnov test, and the
population stability index. Both look once; looked at all the time, they alarm sooner or later. From fewer than `FEWEST`
rows the index is mostly noise: of ordinary windows of 10 rows 84 % are above .25.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from abstain.models.decisions.decision import COMBINED, EvidenceMap, steepness

EDGES = np.array([0, 0.01, 0.05, 0.2, 0.6, 1.0])
"""Of the histogram's bins: narrow where strange rows are."""
CONCENTRATION = 100.0
"""Of the Dirichlet prior, in rows: how many it takes to be unlearnt."""
EPOCH = 20_000
EVERY = 1_000
TOGETHER = 128
"""Rows that are ranked at a time, after which the martingale is looked at."""
WINDOW = 1_000
FEWEST = 300
"""Rows of the window, and calibration rows, from which the population stability index means something."""
BLUR = 1_000.0
"""Width of the dither, in rounding errors."""
RELATIVE_ROUNDING = 1e-6
"""Largest rounding error of a score relative to its value, between batch sizes and processors (measured: up to 1e-6)."""
ABSOLUTE_ROUNDING = 2.5e-7
"""Rounding error of a score near 0, in its unit: a few float32 epsilons of numbers near 1."""
LARGER_ROUNDING = {"relative_mahalanobis": 5e-5, "vim": 1e-5, "subspace": 1e-6, COMBINED: 5e-5}
"""The same of scores that are differences of larger numbers, or made of such scores (measured on digits and tables)."""
PARTS = 10
"""Of the population stability index: the calibration's deciles."""
FIRST_WEIGHT = 0.5
"""Of the bet that begins with the epoch; the others share what is left."""

_SHARES = np.diff(EDGES)


class Watch(NamedTuple):
    """What is remembered of a stream within an epoch.

    Attributes:
        ranked: of each score the calibration's values and the epoch's so far, ascending.
        counts: of the epoch's ranks in each bin.
        begun: those counts when each bet began.
        rows: of the epoch.
    """

    ranked: tuple[Float[np.ndarray, " known"], ...]
    counts: Int[np.ndarray, "scores bins"]
    begun: Int[np.ndarray, "bets scores bins"]
    rows: int


def absolute_rounding(
    names: tuple[str, ...], units: Float[np.ndarray, " scores"], combined: float = 0.0
) -> Float[np.ndarray, " scores"]:
    """The rounding error that each score has near 0, in the score's own units.

    Args:
        names: of the scores.
        units: the size of 1 on the scale that each score is computed on: 1, or a regression target's scale.
        combined: of the combined evidence, nats (`combined_rounding`), if it is more than usual.
    """
    rounding = LARGER_ROUNDING | {COMBINED: max(LARGER_ROUNDING[COMBINED], combined)}
    return np.array([rounding.get(name, ABSOLUTE_ROUNDING) for name in names]) * units


def combined_rounding(maps: dict[str, EvidenceMap], units: dict[str, float]) -> float:
    """The rounding error of combined evidence, nats: no rule moves it further than its score that moves furthest.

    Args:
        maps: from each score of the decision to its evidence.
        units: of these scores; 1 where left out.
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


def dithered(
    values: Float[np.ndarray, "scores rows"],
    rounding: Float[np.ndarray, " scores"],
    uniform: Float[np.ndarray, "scores rows"],
) -> Float[np.ndarray, "scores rows"]:
    """The values, in float64, each shifted by a random share of `BLUR` times its rounding error.

    Values that differ by their rounding cannot be told apart afterwards; values further apart keep their order.

    Args:
        rounding: `absolute_rounding` of the scores.
        uniform: independent uniform numbers in [0, 1), drawn anew for every value.
    """
    wide = values.astype(np.float64)
    return wide + BLUR * (RELATIVE_ROUNDING * np.abs(wide) + rounding[:, None]) * uniform


def begin(calibration: Float[np.ndarray, "scores rows"]) -> Watch:
    """The start of an epoch.

    Args:
        calibration: the values of each score on the calibration split, `dithered` as the stream's will be.
    """
    counts = np.zeros((len(calibration), len(_SHARES)), np.int64)
    return Watch(tuple(np.sort(values) for values in calibration), counts, counts[None], 0)


def room(watch: Watch) -> int:
    """How many rows may be watched next: until the epoch or its bet ends, and no more than are ranked at a time."""
    return min(TOGETHER, EPOCH - watch.rows, EVERY - watch.rows % EVERY)


def watched(watch: Watch, values: Float[np.ndarray, "scores rows"], ties: Float[np.ndarray, "scores rows"]) -> Watch:
    """The watch after some more rows, no more than there is `room` for.

    Args:
        values: `dithered`.
        ties: uniform numbers in [0, 1), drawn anew: the place of each value among its equals, of which it is one.
    """
    counts = watch.counts.copy()
    ranked: list[np.ndarray] = []
    for score, (known, new, tie) in enumerate(zip(watch.ranked, values, ties, strict=True)):
        bins = np.searchsorted(EDGES[1:-1], online_ranks(known, new, tie), side="right")
        counts[score] += np.bincount(bins, minlength=len(_SHARES))
        order = np.sort(new)
        ranked.append(np.insert(known, np.searchsorted(known, order), order))
    rows = watch.rows + values.shape[1]
    begun = watch.begun if rows % EVERY or rows == EPOCH else np.concatenate([watch.begun, counts[None]])
    return Watch(tuple(ranked), counts, begun, rows)


def online_ranks(
    known: Float[np.ndarray, " known"], values: Float[np.ndarray, " rows"], ties: Float[np.ndarray, " rows"]
) -> Float[np.ndarray, " rows"]:
    """The share of what came before that is at least as strange as each value: among `known` and the values before it.

    Itself and its equals count by a random part: exchangeable values' shares are exactly uniform, and independent.

    Args:
        known: ascending.
    """
    before = np.tri(len(values), dtype=bool)
    greater = len(known) - np.searchsorted(known, values, side="right")
    greater = greater + ((values[None] > values[:, None]) & before).sum(axis=1)
    equal = np.searchsorted(known, values, side="right") - np.searchsorted(known, values, side="left")
    equal = equal + ((values[None] == values[:, None]) & before).sum(axis=1)
    return (greater + ties * equal) / (len(known) + np.arange(1, len(values) + 1))


def log_martingale(watch: Watch) -> Float[np.ndarray, " scores"]:
    """The logarithm of each score's martingale, in nats; 0 at the start of an epoch."""
    own, all_rows = _rising()
    counts = watch.counts - watch.begun
    bins = np.arange(len(_SHARES))
    # A Dirichlet-multinomial's probability over the uniform's: products of rising factorials.
    bets = (own[bins, counts] - counts * np.log(_SHARES)).sum(axis=-1) - all_rows[counts.sum(axis=-1)]
    largest = np.maximum(bets.max(axis=0), 0.0)
    weights = _weights()
    # The bets that have not begun are worth what they were given.
    idle = weights[len(bets) :].sum()
    mean = (weights[: len(bets), None] * np.exp(bets - largest)).sum(axis=0) + idle * np.exp(-largest)
    return np.log(mean) + largest


def alarm_level(alpha: float, streams: int, epoch: int) -> float:
    """What the log martingale must reach for an alarm, nats.

    With it the probability that any of the streams ever alarms falsely, in any epoch, is at most `alpha`.

    Args:
        alpha: strictly between 0 and 1.
        streams: how many martingales are watched side by side.
        epoch: which one it is, from 1.
    """
    return math.log(streams / alpha) + math.log(math.pi**2 / 6) + 2 * math.log(epoch)


@lru_cache(maxsize=1)
def _rising() -> tuple[Float[np.ndarray, "bins counts"], Float[np.ndarray, " counts"]]:
    """Logarithms of the rising factorials of each bin's pseudo-count, and of the concentration."""
    steps = np.arange(EPOCH)
    starts = CONCENTRATION * _SHARES[:, None]
    whole = np.concatenate([[0.0], np.cumsum(np.log(CONCENTRATION + steps))])
    return np.pad(np.cumsum(np.log(starts + steps), axis=1), ((0, 0), (1, 0))), whole


@lru_cache(maxsize=1)
def _weights() -> Float[np.ndarray, " bets"]:
    bets = EPOCH // EVERY
    return np.array([FIRST_WEIGHT, *np.full(bets - 1, (1 - FIRST_WEIGHT) / (bets - 1))])


def kolmogorov_smirnov(
    ascending: Float[np.ndarray, " rows"], window: Float[np.ndarray, " window"]
) -> tuple[float, float]:
    """The two-sample statistic, the largest difference of the distribution functions, and its p-value.

    The p-value is asymptotic, with the correction for few rows of Stephens (1970): of a handful of rows it is too small,
    of values that tie too large.

    Args:
        ascending: the calibration's values.
        window: at least one value.
    """
    latest, places = np.sort(window), np.concatenate([ascending, window])
    shares = [np.searchsorted(values, places, side="right") / len(values) for values in (ascending, latest)]
    statistic = float(np.abs(shares[0] - shares[1]).max())
    root = math.sqrt(len(ascending) * len(latest) / (len(ascending) + len(latest)))
    scaled = (root + 0.12 + 0.11 / root) * statistic
    if scaled < 0.2:  # The series converges slowly there, to a probability that is 1 to ten digits.
        return statistic, 1.0
    terms = np.arange(1, 101)
    p_value = 2 * ((-1.0) ** (terms - 1) * np.exp(-2 * (terms * scaled) ** 2)).sum()
    return statistic, float(np.clip(p_value, 0.0, 1.0))


def stability_index(ascending: Float[np.ndarray, " rows"], window: Float[np.ndarray, " window"]) -> float:
    """The population stability index Σ (q − p) ln(q/p), nats, over the calibration's deciles (Siddiqi, 2006).

    By custom, below .1 nothing has happened, beyond .25 something has. Each decile has half a row more than was
    counted, so that an empty one is not infinite; deciles that ties make one are one.

    Args:
        ascending: the calibration's values.
        window: at least one value.
    """
    edges = np.unique(ascending[np.arange(1, PARTS) * len(ascending) // PARTS])
    counts = [
        np.bincount(np.searchsorted(edges, values, side="right"), minlength=len(edges) + 1)
        for values in (ascending, window)
    ]
    shares = [(count + 0.5) / (count.sum() + 0.5 * len(count)) for count in counts]
    return float(((shares[1] - shares[0]) * np.log(shares[1] / shares[0])).sum())
