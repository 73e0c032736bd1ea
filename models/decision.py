"""One decision from several scores: each becomes evidence, evidence is combined, and the combination is calibrated again.

Evidence is −ln p in nats, p being a score's place among the calibration rows; on its own it is no test. What is tested is
the combined evidence, by its own place among the calibration rows' combined evidence: whatever the rule, the reject rate
is the stated one. For that a calibration row's evidence must be made as a new row's is, from rows other than itself:
each is ranked among the rest (leave-one-out cross-fitting).
"""

from __future__ import annotations

import math
from typing import Annotated, Literal, NamedTuple

import numpy as np
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, model_validator

Rule = Literal["min", "weighted", "harmonic"]
COMBINED = "combined"
TAIL = 0.975
"""Where the tail begins whose mean excess is the scale of what lies beyond all calibration rows."""


class Decision(BaseModel):
    """Which scores decide, and how they are combined; one score is taken as it is.

    min        the least p-value (Tippett, 1931): finds what only one score finds
    weighted   the weighted sum of −ln p (Good, 1955; with equal weights Fisher's): finds what several half find
    harmonic   the weighted harmonic mean of p (Wilson, 2019): between the two
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    scores: Annotated[tuple[str, ...], Field(min_length=1, strict=False)]
    rule: Rule = "min"
    weights: Annotated[tuple[PositiveFloat, ...], Field(strict=False)] = ()
    """One for each score; all alike if left out."""

    @model_validator(mode="after")
    def _is_whole(self) -> Decision:
        if len(set(self.scores)) < len(self.scores):
            raise ValueError(f"every score once, found {', '.join(self.scores)}")
        if self.weights and len(self.weights) != len(self.scores):
            raise ValueError(f"one weight for each of {len(self.scores)} scores, found {len(self.weights)}")
        return self

    @property
    def name(self) -> str:
        """The decision score's name."""
        return self.scores[0] if len(self.scores) == 1 else COMBINED

    @property
    def shares(self) -> tuple[float, ...]:
        """The weights, summing to 1."""
        weights = self.weights or (1.0,) * len(self.scores)
        return tuple(weight / math.fsum(weights) for weight in weights)


class Ladder(NamedTuple):
    """The calibration rows' values of a score, made ready for `evidence`.

    Attributes:
        known: the distinct values, ascending.
        at_least: how many calibration rows have at least each.
        rows: how many there are.
        tail: the mean excess over the `TAIL` quantile, `tail_scale`.
    """

    known: Float[np.ndarray, " steps"]
    at_least: Float[np.ndarray, " steps"]
    rows: int
    tail: float


def ladder(ascending: Float[np.ndarray, " rows"]) -> Ladder:
    """The ladder of a score's calibration values."""
    return Ladder(*_steps(ascending), len(ascending), tail_scale(ascending))


def evidence(ranked: Ladder, values: Float[np.ndarray, " batch"]) -> Float[np.ndarray, " batch"]:
    """−ln p of new rows' scores among the calibration scores, in nats.

    Between calibration scores p is interpolated, so that rows a hair apart are not equally strange. Beyond all of them p
    would be the same for the strange and the absurd: there an exponential tail, whose scale is the mean excess over the
    `TAIL` quantile, tells them apart (a peaks-over-threshold model; Pickands, 1975).
    """
    wide = values.astype(np.float64)
    count = np.interp(wide, ranked.known, ranked.at_least, left=ranked.rows)
    return -np.log((1 + count) / (ranked.rows + 1)) + np.maximum(wide - ranked.known[-1], 0.0) / ranked.tail


def leave_one_out(values: Float[np.ndarray, " rows"]) -> Float[np.ndarray, " rows"]:
    """−ln p of every calibration row's score among the other rows' scores, as `evidence` has it for a new row."""
    known, at_least = _steps(np.sort(values))
    place = np.searchsorted(known, values.astype(np.float64))
    counts = np.append(at_least, 0.0)
    own = counts[place] - counts[place + 1]
    # Without the row, counts at and below its score are one less; a score that only it has is no step any more.
    below = np.where(place > 0, counts[np.maximum(place - 1, 0)] - 1, len(values) - 1)
    above = counts[place + 1]
    low, high = known[np.maximum(place - 1, 0)], known[np.minimum(place + 1, len(known) - 1)]
    share = np.divide(known[place] - low, high - low, out=np.zeros(len(values)), where=high > low)
    alone = np.where(place == 0, len(values) - 1, below + share * (above - below))
    count = np.where(own > 1, counts[place] - 1, alone)
    beyond = (own == 1) & (place == len(known) - 1) & (place > 0)
    count = np.where(beyond, below, count)
    excess = np.where(beyond, known[place] - low, 0.0)
    # One row alone is beyond the rest, and the tail that it is measured by is the rest's: its own would make it small.
    return -np.log((1 + count) / len(values)) + excess / tail_scale(np.sort(values)[: max(len(values) - 1, 1)])


def combine(decision: Decision, parts: Float[np.ndarray, "scores batch"]) -> Float[np.ndarray, " batch"]:
    """The combined evidence of each row, from that of the decision's scores, in nats."""
    logs = np.log(np.asarray(decision.shares))[:, None]
    match decision.rule:
        case "min":
            return (parts + logs).max(axis=0)
        case "weighted":
            return (parts * np.exp(logs)).sum(axis=0)
        case "harmonic":
            largest = (parts + logs).max(axis=0)
            return largest + np.log(np.exp(parts + logs - largest).sum(axis=0))


def contributions(decision: Decision, parts: Float[np.ndarray, "scores batch"]) -> Float[np.ndarray, "scores batch"]:
    """The evidence of each score as the rule weighs it: which of a row's is larger says which adds more."""
    shares = np.asarray(decision.shares)[:, None]
    return parts * shares if decision.rule == "weighted" else parts + np.log(shares)


def loudest(weighed: dict[str, Float[np.ndarray, " batch"]]) -> list[str]:
    """The score that adds most to each row's combined evidence, from the `contributions`; the first of equals."""
    names = list(weighed)
    return [names[place] for place in np.stack(list(weighed.values())).argmax(axis=0)]


def tail_scale(ascending: Float[np.ndarray, " rows"]) -> float:
    """The mean excess of the calibration scores over their `TAIL` quantile; never 0.

    Scores that are all alike there have no scale; then it is the rounding of the largest.
    """
    start = min(int(TAIL * len(ascending)), len(ascending) - 1)
    excess = float((ascending[start:].astype(np.float64) - float(ascending[start])).mean())
    rounding = float(np.finfo(np.float32).eps) * max(abs(float(ascending[-1])), 1e-6)
    return max(excess, rounding)


def _steps(ascending: Float[np.ndarray, " rows"]) -> tuple[np.ndarray, np.ndarray]:
    """The distinct scores, ascending, and how many calibration scores are at least each."""
    known, first = np.unique(ascending.astype(np.float64), return_index=True)
    return known, (len(ascending) - first).astype(np.float64)
