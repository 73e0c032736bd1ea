"""Sequential tests that compare two versions of a model: valid however often one looks at them.

The question is whether the mean difference of two versions, such as of their reject rates, is within a margin. A test bets
against "the mean is at least the margin": its capital is multiplied by 1 + stake · (margin − difference) with each observation, so
under the hypothesis it is a non-negative supermartingale, and by Ville's inequality it ever reaches 1/α with probability α at most
(Waudby-Smith and Ramdas 2024, "Estimating means of bounded random variables by betting"). Such a capital is an *e-value*.

Each test bets with a few constant stakes, and its e-value is the average of their capitals. Because the stakes are constant, the
logarithms of capitals add up: the evidence of several workers and servers is the sum of theirs, in any order.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float

STAKES = 0.9 * 2.0 ** -np.arange(10)
"""The stakes of a test, as parts of the largest one that cannot make the capital negative."""
TESTS = ("below +m", "above -m", "above +m", "below -m")
"""What each test finds evidence for: the mean is below the margin, above its negative, and so on."""
_BELOW, _ABOVE_NEGATIVE, _ABOVE, _BELOW_NEGATIVE = range(4)
Verdict = Literal["promote", "abort"]


class Bounds(NamedTuple):
    """The smallest and largest value that a difference can have."""

    low: float
    high: float


PAIRED = Bounds(-1.0, 1.0)
"""The difference of two shares of the same rows."""
DISAGREEMENT = Bounds(0.0, 1.0)
"""The share of rows whose labels differ."""


@dataclass(frozen=True)
class Evidence:
    """What observations of one difference say about its mean.

    Attributes:
        count: the number of observations.
        total: their sum.
        squares: the sum of their squares.
        capital: the natural logarithm of the capital of every test and stake, in nats.
    """

    count: int
    total: float
    squares: float
    capital: Float[np.ndarray, "tests stakes"]

    def __add__(self, other: Evidence) -> Evidence:
        """Joins the evidence of two sets of observations."""
        return Evidence(
            self.count + other.count,
            self.total + other.total,
            self.squares + other.squares,
            self.capital + other.capital,
        )

    @property
    def mean(self) -> float | None:
        """The mean of the observations; None without any."""
        return self.total / self.count if self.count else None

    @property
    def standard_error(self) -> float | None:
        """The standard error of the mean, as of independent observations; None with fewer than two."""
        if self.mean is None or self.count < 2:
            return None
        variance = max(0.0, self.squares - self.count * self.mean**2) / (self.count - 1)
        return math.sqrt(variance / self.count)

    @property
    def log_e_values(self) -> Float[np.ndarray, " tests"]:
        """The natural logarithm of the e-value of each test, in nats."""
        return average_stakes(self.capital)


def average_stakes(capital: Float[np.ndarray, "tests stakes ..."]) -> Float[np.ndarray, "tests ..."]:
    """Returns the logarithm of the average of the stakes' capitals, in nats: an average of e-values is one."""
    return np.logaddexp.reduce(capital, axis=1) - np.log(len(STAKES))


NO_EVIDENCE = Evidence(0, 0.0, 0.0, np.zeros((len(TESTS), len(STAKES))))


def log_factors(
    differences: Float[np.ndarray, "..."], margin: float, bounds: Bounds
) -> Float[np.ndarray, "tests stakes ..."]:
    """Returns the logarithm of what each difference multiplies the capital of each test and stake by, in nats.

    Args:
        margin: a positive number below the largest possible difference.
        bounds: between which every difference lies.
    """
    payoffs = np.stack([margin - differences, differences + margin, differences - margin, -margin - differences])
    losses = np.array([bounds.high - margin, -bounds.low - margin, margin - bounds.low, bounds.high + margin])
    # A test that cannot lose has no hypothesis to bet against, such as that a share is at most -m.
    largest = np.where(losses > 0, 1 / np.where(losses > 0, losses, 1), 0)
    stakes = (largest[:, None] * STAKES).reshape(len(TESTS), len(STAKES), *(1,) * differences.ndim)
    return np.log1p(stakes * payoffs[:, None])


def weigh(differences: Float[np.ndarray, " observations"], margin: float, bounds: Bounds) -> Evidence:
    """Returns the evidence of observed differences.

    Args:
        margin: a positive number below the largest possible difference.
        bounds: between which every difference lies; the tests are only valid if that is so.

    Raises:
        ValueError: a difference is outside of the bounds, or the margin is not between 0 and the upper bound.
    """
    if not 0 < margin < bounds.high:
        raise ValueError(f"the margin {margin} is not between 0 and {bounds.high}")
    if len(differences) and not (bounds.low <= differences.min() and differences.max() <= bounds.high):
        raise ValueError(f"a difference is not between {bounds.low} and {bounds.high}")
    capital = log_factors(differences, margin, bounds).sum(axis=2)
    return Evidence(len(differences), float(differences.sum()), float((differences**2).sum()), capital)


def canary_bounds(share: float, center: float) -> Bounds:
    """Returns the bounds of `canary_difference`."""
    return Bounds(
        -max(center / share, (1 - center) / (1 - share)),
        max((1 - center) / share, center / (1 - share)),
    )


def canary_difference(value: float, share: float, center: float, *, candidate: bool) -> float:
    """Returns an observation whose mean is the difference of the two versions' means, from a caller who got one of them.

    The value is weighted by the probability of the version that the caller got (Horvitz and Thompson 1952). Subtracting a
    constant from all values does not change the mean of the result, and makes its variance smaller.

    Args:
        value: what the caller got, such as the share of rejected rows; between 0 and 1.
        share: the probability of the candidate, between 0 and 1.
        center: the constant, near the usual value.
        candidate: whether the caller got the candidate.
    """
    centered = value - center
    return centered / share if candidate else -centered / (1 - share)


class Comparison(NamedTuple):
    """What the evidence on two versions says.

    Attributes:
        promote: the natural logarithm of the e-value against "a difference is at least the margin", in nats.
        abort: that against "every difference is at most the margin".
        verdict: which of them has reached 1/α; None while neither has.
        missing: about how many more observations a verdict needs at the present rate; None if that cannot be said.
    """

    promote: float
    abort: float
    verdict: Verdict | None
    missing: int | None


def combine(
    rejects: Float[np.ndarray, "tests ..."], labels: Float[np.ndarray, "tests ..."] | None
) -> tuple[Float[np.ndarray, "..."], Float[np.ndarray, "..."]]:
    """Combines the e-values of all differences, as logarithms in nats, to those for promoting and for aborting.

    "Some difference is at least the margin" is a union of hypotheses: the e-value against it is the smallest of those against
    each. "No difference is larger" is an intersection: the average of the e-values is one (Vovk and Wang 2021, "E-values:
    calibration, combination and applications").
    """
    keeping = [rejects[_BELOW], rejects[_ABOVE_NEGATIVE]]
    breaking = [np.logaddexp(rejects[_ABOVE], rejects[_BELOW_NEGATIVE]) - np.log(2)]
    if labels is not None:
        keeping.append(labels[_BELOW])
        breaking.append(labels[_ABOVE])
    return np.asarray(np.minimum.reduce(keeping)), np.asarray(np.logaddexp.reduce(breaking) - np.log(len(breaking)))


def compare(rejects: Evidence, labels: Evidence | None, alpha: float) -> Comparison:
    """Compares two versions by the differences of their reject rates and, for paired observations, by their labels.

    Args:
        labels: the share of rows whose labels differ; None if versions are not compared on the same rows.
        alpha: the largest probability of a false verdict.
    """
    promote, abort = (
        float(value) for value in combine(rejects.log_e_values, None if labels is None else labels.log_e_values)
    )
    level = -np.log(alpha)
    verdict: Verdict | None = "promote" if promote >= level else "abort" if abort >= level else None
    return Comparison(promote, abort, verdict, None if verdict else _missing(rejects, labels, level))


def _missing(rejects: Evidence, labels: Evidence | None, level: float) -> int | None:
    """Estimates the observations until a verdict: every best stake goes on to win as it did so far."""

    def of(evidence: Evidence, *tests: int, parts: int = 1) -> list[float]:
        """Returns the observations until each test, which is one of so many parts of an average, has the level alone."""
        needed: list[float] = []
        for test in tests:
            best = float(evidence.capital[test].max())
            goal = level + np.log(len(STAKES) * parts) - best
            needed.append(evidence.count * goal / best if best > 0 else np.inf)
        return needed

    if not rejects.count:
        return None
    to_promote = of(rejects, _BELOW, _ABOVE_NEGATIVE) + (of(labels, _BELOW) if labels else [])
    differences = 2 if labels else 1
    to_abort = of(rejects, _ABOVE, _BELOW_NEGATIVE, parts=2 * differences)
    to_abort += of(labels, _ABOVE, parts=differences) if labels else []
    nearest = min(max(to_promote), *to_abort)
    return max(1, int(np.ceil(nearest))) if np.isfinite(nearest) else None
