"""One decision from several scores: each becomes evidence, evidence is combined, and the combination is calibrated.

The evidence of a score is −ln of the share of *reference rows* that have at least that score, in nats. Reference rows are
training rows that the densities were not fitted on. They are not calibration rows, so the combined evidence is a fixed
function of a row, and split conformal prediction bounds its reject rate with any number of calibration rows.

A share estimated from few rows decides nothing by itself. What is tested is the combined evidence, by its rank among the
calibration rows' combined evidence.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, model_validator

Rule = Literal["min", "weighted", "harmonic"]
COMBINED = "combined"
TAIL_ROWS = 8
"""Reference rows that the tail is estimated from, at least: no single row sets its scale."""
LEAST_STEP = 0.05
"""Least distance of two knots, as a fraction of the tail's scale: evidence grows strictly, and does not jump at ties."""
ROUNDED = 1e-4
"""Least scale of every tail, in the score's unit, and ten times it relative to the top knot: less may be rounding."""
LEAST_SCALE = {"range": 0.05}
"""Least scale of a score's tail, in its own unit; of `range`, in widths of the training range."""


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


class EvidenceMap(NamedTuple):
    """A function from a score to its evidence in nats, fixed by the reference rows.

    It is 0 up to the least reference score, and strictly increasing above.

    Linear between knots. Knot k is the score that a share 2⁻ᵏ of the reference rows have at least, so its evidence is
    k·ln 2. Above the last knot it grows by log1p(excess / scale), as under a generalised Pareto distribution of shape 1
    (peaks over threshold; Pickands, 1975): it has no upper bound, and one far score does not drown the others.

    Attributes:
        knots: scores, strictly ascending.
        nats: the evidence at each knot.
        scale: of the tail, in the score's unit.
    """

    knots: Float[np.ndarray, " knots"]
    nats: Float[np.ndarray, " knots"]
    scale: float


def evidence_map(reference: Float[np.ndarray, " rows"], least_scale: float = 0.0, unit: float = 1.0) -> EvidenceMap:
    """The evidence map of a score.

    Args:
        reference: the score's values on the reference rows, at least one, in any order.
        least_scale: of the tail (`LEAST_SCALE`).
        unit: of the score: 1 for probabilities, nats and standardised distances.
    """
    ascending = np.sort(reference.astype(np.float64))
    places = _knot_places(len(ascending))
    halvings = np.arange(len(places))
    knots = ascending[places]
    # The median of this Pareto distribution is one scale. A mean would let one absurd row flatten the tail.
    spread = float(np.median(ascending[places[-1] :])) - float(knots[-1])
    # Ties up to the top, or differences that may be rounding, say nothing about the scale.
    scale = max(spread, least_scale, ROUNDED * unit, 10 * ROUNDED * abs(float(knots[-1])))
    step = LEAST_STEP * scale
    apart = np.maximum.accumulate(knots - step * halvings) + step * halvings
    return EvidenceMap(apart, math.log(2) * halvings, scale)


def _knot_places(rows: int) -> Int[np.ndarray, " knots"]:
    """Where, among so many reference scores in ascending order, the knots of the map are."""
    halvings = np.arange(max(1, (rows // TAIL_ROWS).bit_length()))
    return (rows * (1 - 0.5**halvings)).astype(int)


def evidence(fixed: EvidenceMap, values: Float[np.ndarray, " batch"]) -> Float[np.ndarray, " batch"]:
    """The evidence of each score, in nats; 0 at and below the least reference row's."""
    wide = values.astype(np.float64)
    excess = np.maximum(wide - fixed.knots[-1], 0.0) / fixed.scale
    return np.interp(wide, fixed.knots, fixed.nats) + np.log1p(excess)


def steepness(fixed: EvidenceMap) -> float:
    """The largest slope of the map, nats for each unit of the score: how far a rounding error moves the evidence."""
    steps = np.diff(fixed.nats) / np.diff(fixed.knots)
    return float(max(steps.max(initial=0.0), 1 / fixed.scale))


def leave_one_out(
    values: Float[np.ndarray, " rows"], least_scale: float = 0.0, unit: float = 1.0
) -> Float[np.ndarray, " rows"]:
    """Each row's evidence with the other rows as reference: for bundles of schema 1, which keep no reference rows.

    In ascending order, neighbours mostly have the same map: only where one of the few rows that make it is left out does
    it change. So there are a few dozen maps, and not one for each row.
    """
    order = np.argsort(values)
    ascending, found = values[order], np.empty(len(values))
    starts = _starts_of_maps(len(values))
    for start, end in zip(starts, [*starts[1:], len(values)], strict=True):
        others = np.delete(ascending, start) if len(values) > 1 else ascending
        found[order[start:end]] = evidence(evidence_map(others, least_scale, unit), ascending[start:end])
    return found


def _starts_of_maps(rows: int) -> list[int]:
    """The places, ascending, from which on `leave_one_out` has another map; the first is 0."""
    places = _knot_places(rows - 1) if rows > 1 else np.zeros(1, int)
    # Beside the knots the map knows the median of the tail: its middle row, or the mean of two.
    first, tail = int(places[-1]), rows - 1 - int(places[-1])
    read = {*places.tolist(), first + (tail - 1) // 2, first + tail // 2}
    # The row read at a place is the one there until rows before it are left out; then it is the next one.
    return sorted({0, *(place + 1 for place in read if place + 1 < rows)})


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
