"""A limit on the error of accepted rows: the largest ambiguity at which accepted answers are rarely wrong.

A row is accepted if it is not novel and its ambiguity A is at most λ. `certify` finds the largest λ such that

    P(wrong | accepted) ≤ max_error    with probability ≥ confidence over calibration parts,

for rows that are independent draws of one law. Nothing else is assumed: the risk need not grow with λ, A may have ties, and
the model may be of any quality. This is selective prediction (Geifman & El-Yaniv, 2017) as a case of Learn-then-Test
(Angelopoulos et al., 2021), with all λ tested at once. Given the number n of familiar (not novel) calibration rows:

1. Count the errors S(c) among the c familiar rows of least ambiguity, for every c that does not divide ties.
2. A count c allows g(c) errors: the largest e with P(Bin(c, max_error) ≤ e) ≤ level, at the same `level` for every c.
3. `level` is the largest number for which P(W(c) ≤ g(c) for any c) ≤ 1 − confidence, where W(c) is the number of errors
   in c independent rows that are each wrong with probability max_error. It depends on n alone, not on any label or score.
4. λ is that of the largest c with S(c) ≤ g(c). It lies halfway to the next calibration row, so that rounding a score does
   not change the verdict on a row that ties with a calibration row; above the last row, a tolerance is added.

Proof that the risk at λ exceeds ε = max_error with probability at most 1 − confidence. Given n, the familiar rows are
independent. Let V, uniform on [0, 1], be a row's rank by A among all familiar rows of the law, with ties broken at random;
r(v) = P(wrong | V = v), and D(v) = ∫₀ᵛ (r − ε), which is continuous. A rule V ≤ v has a risk above ε if and only if
D(v) > 0: v is *bad*. Every rule A ≤ λ is such a rule.

- D may be taken as ≥ 0. Replace r by ε where D ≤ 0. D does not change at bad v. As D = 0 at the ends of a bad interval, r
  averaged ε over the replaced rows between two of them, so the errors up to all bad v keep their joint law: given the
  number of rows in each part, each part of the replaced rows has binomially many errors with probability ε.
- D(1) may be taken as 0: if it is larger, set r to 0 above the last v with D(v) = ε·(1 − v). D stays ≥ 0, and this only
  takes errors away.
- Now a share ε of rows is wrong. Wrong rows have the distribution function v + D(v)/ε ≥ v, right rows v − D(v)/(1 − ε) ≤ v.
  So draw each row as: wrong with probability ε, and an independent uniform place U, which is then moved forward if it is
  wrong and backward if it is right, to its V. The errors among the first c rows by U are W(c), and by V at least as many.

Hence S(c) ≥ W(c) at all bad v at once, c being the number of rows up to v, and S(c) ≤ g(c) at any bad v has at most the
probability in step 3. A threshold that is certified wrongly is such a v. ∎

A fixed sequence of tests (each at 1 − confidence, until the first failure) needs a start that does not depend on labels:
it certifies nothing where the start accepts too few rows, or already too many errors. `benchmarks/risk.py` compares both.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from abstain.models.decisions.ranks import LEAST_TOLERANCE, TOLERANCE, exact
from abstain.models.errors import CalibrationError, InputError, convert

COUNTS = 500
"""The largest number of counts at which the allowed errors may change. Between two of them the lower one's are allowed, which
adds no chance: if W(c) is at most a number, so was W of every lower count."""
HALVINGS = 30
"""Steps of the search for the level, whose relative error is about 2⁻³⁰ of 1 − confidence."""
NEGLIGIBLE = 1e-20
"""A probability that is left out of sums, and is far below their rounding."""
ROUNDING = 1e-12
"""Relative rounding error of a probability: equal numbers count as equal."""


class RiskLimit(NamedTuple):
    """The largest ambiguity at which the error of accepted rows is certified, and the counts that certify it.

    Attributes:
        threshold: λ, in the ambiguity's unit: a row that is not novel is accepted if its ambiguity is at most λ. None if no
            λ is certified; every row is then rejected.
        accepted_rows: the number of calibration rows that are accepted.
        errors: the number of wrong rows among them.
        p_value: P(Bin(accepted_rows, max_error) ≤ errors), at most `level`; 1 if no λ is certified.
        level: the p-value that one threshold needs, so that all thresholds together have the confidence; 0 if there are
            fewer than `rows_needed` familiar rows.
        familiar_rows: the number of calibration rows that are not novel.
        rows: the number of calibration rows.
        max_error: the largest share of wrong rows among accepted rows.
        confidence: the probability, over calibration parts, that the share is not exceeded.
    """

    threshold: float | None
    accepted_rows: int
    errors: int
    p_value: float
    level: float
    familiar_rows: int
    rows: int
    max_error: float
    confidence: float


class Allowance(NamedTuple):
    """How many errors each count of accepted rows allows.

    Attributes:
        errors: the errors allowed among 0, 1 … n accepted rows; −1 where even none would be too little evidence.
        level: the largest p-value at each count.
    """

    errors: Int[np.ndarray, " counts"]
    level: float


class _Tail(NamedTuple):
    """P(Bin(count, max_error) ≤ e) for e = first, first + 1 …; below `first` it is negligible, as above the mean not needed."""

    first: int
    values: Float[np.ndarray, " errors"]


def certify(
    ambiguity: Float[np.ndarray, " rows"],
    novel: Bool[np.ndarray, " rows"],
    wrong: Bool[np.ndarray, " rows"],
    *,
    max_error: float,
    confidence: float,
) -> RiskLimit:
    """Finds the largest ambiguity at which accepted rows are wrong with probability at most `max_error`.

    Args:
        ambiguity: how unsure each calibration row's answer is, in any unit.
        novel: which rows are rejected anyway, by a fixed rule, or because their novelty is at least the k-th largest of
            all: given that value, the rows below it are independent draws of the law below it.
        wrong: which rows have a wrong answer: another label, or an error above a fixed size.
        max_error: strictly between 0 and 1.
        confidence: strictly between 0 and 1.

    Raises:
        CalibrationError: an ambiguity is not finite, or one of the two numbers is out of range.
    """
    _check(ambiguity, max_error, confidence)
    familiar = ~novel
    known = ambiguity[familiar].astype(np.float64)
    order = np.argsort(known, kind="stable")
    ascending, errors = known[order], np.cumsum(wrong[familiar][order])
    allowance = allowed_errors(len(known), max_error, confidence)
    # The last row of each group of ties: a threshold accepts all of a group, or none.
    lasts = np.flatnonzero(np.append(ascending[1:] > ascending[:-1], True)) if len(known) else np.zeros(0, int)
    certified = lasts[errors[lasts] <= allowance.errors[lasts + 1]]
    common = allowance.level, len(known), len(ambiguity), max_error, confidence
    if not len(certified):
        return RiskLimit(None, 0, 0, 1.0, *common)
    last = int(certified[-1])
    count, found = last + 1, int(errors[last])
    return RiskLimit(_between(ascending, last), count, found, binomial_tail(count, found, max_error), *common)


def choose_limit(own: RiskLimit, others: tuple[RiskLimit, ...], max_error: float | None) -> RiskLimit:
    """Returns the limit for a requested error: of those certified, that with the largest `max_error` not above it.

    A limit for a smaller error holds for a larger one, too, and may be certified where the larger one is not.

    Args:
        own: the calibration's own limit, which is returned if no error is requested.
        others: the limits for other errors.
        max_error: the requested error, strictly between 0 and 1; None for the calibration's own.

    Raises:
        InputError: there is no limit for so small an error.
        CalibrationError: none of them is certified; the text is about the largest one, and names the number of rows needed.
    """
    if max_error is None:
        return own
    known = sorted({own, *others}, key=lambda limit: limit.max_error)
    fitting = [limit for limit in known if limit.max_error <= max_error]
    if not fitting:
        raise InputError(
            where="max_error",
            expected=f"at least {known[0].max_error!r}, the smallest for which this model has a limit",
            found=max_error,
            fix="request a larger one, or calibrate again with this one in calibration.max_error",
        )
    certified = [limit for limit in fitting if limit.threshold is not None]
    if certified:
        return certified[-1]
    try:
        check_certified(fitting[-1])
    except CalibrationError as error:
        raise convert(
            error, CalibrationError, f"max_error {max_error!r}, of known limits {fitting[-1].max_error!r}"
        ) from error
    return fitting[-1]


def is_ambiguous(limit: RiskLimit, ambiguity: Float[np.ndarray, " batch"]) -> Bool[np.ndarray, " batch"]:
    """Returns which rows are above the limit; a row whose ambiguity is NaN is.

    The comparison is in float64, as in `certify`: NumPy would round the threshold to the float32 of a score.
    """
    if limit.threshold is None:
        return np.ones(len(ambiguity), bool)
    return ~(ambiguity.astype(np.float64) <= limit.threshold)


def check_certified(limit: RiskLimit) -> None:
    """Refuses a limit without a threshold.

    Raises:
        CalibrationError: no threshold is certified; the text names the least number of rows, or the errors found.
    """
    if limit.threshold is not None:
        return
    needed = rows_needed(limit.max_error, limit.confidence)
    what = f"no threshold has an error of at most {limit.max_error!r} with confidence {limit.confidence!r}"
    if limit.familiar_rows < needed:
        raise CalibrationError(
            what,
            where="max_error",
            expected=f"at least {needed} calibration rows that are not novel, and more if any of them is wrong",
            found=f"{limit.familiar_rows} of {limit.rows} rows",
            fix="calibrate with more rows, raise max_error, or lower confidence",
        )
    raise CalibrationError(
        what,
        where="max_error",
        expected=f"few enough errors among the least ambiguous of {limit.familiar_rows} calibration rows",
        found="too many at every threshold",
        fix="raise max_error, lower confidence, calibrate with more rows, or improve the model",
    )


def rows_needed(max_error: float, confidence: float) -> int:
    """Returns the least number of accepted rows, none of them wrong, that certify a threshold.

    It is ⌈ln(1 − confidence) / ln(1 − max_error)⌉, in exact arithmetic.
    """
    right, chance = 1 - exact(max_error), 1 - exact(confidence)
    # Within one row of the exact number, which is then found in fractions; their size limits how often that is possible.
    guess = math.ceil(math.log(chance) / math.log1p(-float(max_error)))
    if guess > 100_000:
        return guess
    rows = max(guess - 1, 1)
    while right**rows > chance:
        rows += 1
    return rows


@lru_cache(maxsize=64)
def allowed_errors(rows: int, max_error: float, confidence: float) -> Allowance:
    """Finds the number of errors that each count of accepted rows allows, of this number of familiar rows.

    It depends on no score and on no label.
    """
    chance = float(1 - exact(confidence)) * (1 + ROUNDING)
    counts = counts_to_test(rows)
    tails = [_tail(count, max_error, chance) for count in counts]
    steps = {size: _binomial(size, max_error) for size in {after - before for before, after in _pairs(counts)}}

    def is_valid(level: float) -> bool:
        return _crossing(counts, _errors_at(tails, level), steps) <= chance

    level = chance if is_valid(chance) else _largest(is_valid, chance)
    allowed = _errors_at(tails, level)
    spread = np.repeat([-1, *allowed], np.diff([0, *counts, rows + 1]))
    return Allowance(spread, min(level, float(1 - exact(confidence))) if (spread >= 0).any() else 0.0)


def counts_to_test(rows: int) -> list[int]:
    """Returns the counts at which the allowed errors may change: all, or `COUNTS` evenly spread ones, the last one `rows`."""
    number = min(rows, COUNTS)
    return [-(-rows * place // number) for place in range(1, number + 1)]


def crossing_probability(max_error: float, counts: list[int], allowed: list[int]) -> float:
    """Returns P(W(c) ≤ the errors allowed at c, for any of the ascending counts c), W(c) ~ Bin(c, max_error) with common rows."""
    steps = {size: _binomial(size, max_error) for size in {after - before for before, after in _pairs(counts)}}
    return _crossing(counts, allowed, steps)


def binomial_tail(rows: int, errors: int, max_error: float) -> float:
    """Returns P(Bin(rows, max_error) ≤ errors)."""
    return min(math.fsum(_binomial(rows, max_error, 0, errors + 1).tolist()), 1.0)


def _check(ambiguity: Float[np.ndarray, " rows"], max_error: float, confidence: float) -> None:
    for name, number in {"max_error": max_error, "confidence": confidence}.items():
        if not 0 < number < 1:
            raise CalibrationError(where=name, expected="a number above 0 and below 1", found=number)
    if not np.isfinite(ambiguity).all():
        row = int(np.flatnonzero(~np.isfinite(ambiguity))[0])
        raise CalibrationError(
            where=f"ambiguity of calibration row {row}", expected="a finite number", found=float(ambiguity[row])
        )


def _between(ascending: Float[np.ndarray, " rows"], last: int) -> float:
    """Returns the threshold that accepts the rows up to index `last`: halfway to the next row, or a little above the last one."""
    low = float(ascending[last])
    if last + 1 == len(ascending):
        return low + max(TOLERANCE * abs(low), LEAST_TOLERANCE)
    high = float(ascending[last + 1])
    # Halves are added, since a difference of large numbers may overflow; between neighbours the middle may round up.
    middle = low / 2 + high / 2
    return middle if low < middle < high else low


def _pairs(counts: list[int]) -> list[tuple[int, int]]:
    return list(zip([0, *counts], counts, strict=False))


def _binomial(rows: int, chance: float, start: int = 0, stop: int | None = None) -> Float[np.ndarray, " errors"]:
    """Returns P(Bin(rows, chance) = e) for e from `start` to before `stop`."""
    stop = rows + 1 if stop is None else min(stop, rows + 1)
    errors = np.arange(start + 1, stop)
    first = math.lgamma(rows + 1) - math.lgamma(start + 1) - math.lgamma(rows - start + 1)
    first += start * math.log(chance) + (rows - start) * math.log1p(-chance)
    # Ratios of neighbours, in logarithms: for many rows, P(no error) is less than the least float.
    ratios = np.log((rows - errors + 1) / errors) + math.log(chance) - math.log1p(-chance)
    return np.exp(first + np.append(0.0, np.cumsum(ratios)))


def _tail(rows: int, max_error: float, chance: float) -> _Tail:
    """Returns the lower tail, up to the first probability above `chance`."""
    # 12 standard deviations below the mean the tail is below e⁻⁷²; a tail of up to 1 − 1e-12 ends 8 above it.
    mean, deviation = rows * max_error, math.sqrt(rows * max_error * (1 - max_error))
    first = max(0, math.floor(mean - 12 * deviation))
    values = np.cumsum(_binomial(rows, max_error, first, math.ceil(mean + 8 * deviation) + 8))
    return _Tail(first, values[: np.searchsorted(values, chance, side="right") + 1])


def _errors_at(tails: list[_Tail], level: float) -> list[int]:
    return [tail.first - 1 + int(np.searchsorted(tail.values, level, side="right")) for tail in tails]


def _crossing(counts: list[int], allowed: list[int], steps: dict[int, Float[np.ndarray, " errors"]]) -> float:
    """Returns the probability that a walk has at most the allowed errors at any count.

    The distribution of the errors of walks that have not crossed is carried from count to count; entry 0 is for `least`
    errors.
    """
    alive, least, crossed = np.ones(1), 0, 0.0
    for (before, after), limit in zip(_pairs(counts), allowed, strict=True):
        alive = np.convolve(alive, steps[after - before])
        cut = min(max(limit + 1 - least, 0), len(alive))
        crossed += float(alive[:cut].sum())
        alive, least = alive[cut:], least + cut
        kept = np.flatnonzero(alive > NEGLIGIBLE)
        if not len(kept):
            break
        alive = alive[: kept[-1] + 1]
    return crossed


def _largest(is_valid: Callable[[float], bool], upper: float) -> float:
    """Returns about the largest valid level below `upper`, which is not valid; all levels below a valid one are."""
    lower = 0.0
    for _ in range(HALVINGS):
        middle = (lower + upper) / 2
        lower, upper = (middle, upper) if is_valid(middle) else (lower, middle)
    return lower
