"""One decision from several scores: scores become evidence, the evidence is combined, and the result is calibrated.

The evidence of a score is −ln of the share of *reference rows* with at least that score, in nats. Reference rows are
training rows that the feature scores were not fitted on. They are not calibration rows, so the combined evidence is a fixed
function of a row, and split conformal prediction bounds its reject rate with any number of calibration rows.

The shares may be estimated from few rows, but they do not decide by themselves: the decision is the rank of the combined
evidence among that of the calibration rows.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, model_validator

Rule = Literal["min", "weighted", "harmonic"]
COMBINED = "combined"
NOVELTY = "novelty"
"""The combined evidence of the decision's scores, if an ambiguity score decides too; otherwise it is `COMBINED`."""
TAIL_ROWS = 8
"""Least number of reference rows to estimate the tail from, so that no single row sets its scale."""
LEAST_STEP = 0.05
"""Least distance of two knots as a fraction of the tail's scale: evidence grows strictly and does not jump at ties."""
ROUNDED = 1e-4
"""Least scale of every tail, in the score's unit; relative to the top knot, ten times as much. Less may be rounding."""
LEAST_SCALE = {"range": 0.05}
"""Least scale of a score's tail, in the score's unit; for `range`, in widths of the training range."""


class Decision(BaseModel):
    """The scores that decide, and the rule that combines them; a single score is used unchanged.

    min        the least p-value (Tippett, 1931): finds rows that only one score finds
    weighted   the weighted sum of −ln p (Good, 1955; with equal weights Fisher's): finds rows with high values of several scores
    harmonic   the weighted harmonic mean of p (Wilson, 2019): between the two
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    scores: Annotated[tuple[str, ...], Field(min_length=1, strict=False)]
    rule: Rule = "min"
    weights: Annotated[tuple[PositiveFloat, ...], Field(strict=False)] = ()
    """One weight for each score; equal weights if empty."""

    @model_validator(mode="after")
    def _check_weights(self) -> Decision:
        if len(set(self.scores)) < len(self.scores):
            raise ValueError(f"every score once, found {', '.join(self.scores)}")
        if self.weights and len(self.weights) != len(self.scores):
            raise ValueError(f"one weight for each of {len(self.scores)} scores, found {len(self.weights)}")
        return self

    @property
    def name(self) -> str:
        """The name of the decision score."""
        return self.scores[0] if len(self.scores) == 1 else COMBINED

    @property
    def shares(self) -> tuple[float, ...]:
        """The weights, scaled to a sum of 1."""
        weights = self.weights or (1.0,) * len(self.scores)
        return tuple(weight / math.fsum(weights) for weight in weights)


class EvidenceMap(NamedTuple):
    """A function from a score to its evidence in nats, fixed by the reference rows.

    It is 0 up to the least reference score and strictly increasing above.

    Between knots it is linear. A share 2⁻ᵏ of the reference rows has at least the score of knot k, so its evidence is
    k·ln 2. Above the last knot it grows by log1p(excess / scale), as for a generalised Pareto distribution of shape 1
    (peaks over threshold; Pickands, 1975): it has no upper bound, but grows so slowly that one extreme score does not
    outweigh the others.

    Attributes:
        knots: scores, strictly ascending.
        nats: the evidence at each knot.
        scale: the scale of the tail, in the score's unit.
    """

    knots: Float[np.ndarray, " knots"]
    nats: Float[np.ndarray, " knots"]
    scale: float


def evidence_map(reference: Float[np.ndarray, " rows"], least_scale: float = 0.0, unit: float = 1.0) -> EvidenceMap:
    """Fits the evidence map of a score.

    Args:
        reference: the score's values on the reference rows, at least one, in any order.
        least_scale: least scale of the tail (`LEAST_SCALE`).
        unit: the score's unit: 1 for probabilities, nats and standardised distances.
    """
    ascending = np.sort(reference.astype(np.float64))
    indices = _knot_indices(len(ascending))
    halvings = np.arange(len(indices))
    knots = ascending[indices]
    # The median of this Pareto distribution is its scale. With a mean, one extreme row would flatten the tail.
    spread = float(np.median(ascending[indices[-1] :])) - float(knots[-1])
    # If all top scores tie, or differ only by rounding, the spread does not give the scale.
    scale = max(spread, least_scale, ROUNDED * unit, 10 * ROUNDED * abs(float(knots[-1])))
    step = LEAST_STEP * scale
    apart = np.maximum.accumulate(knots - step * halvings) + step * halvings
    return EvidenceMap(apart, math.log(2) * halvings, scale)


def _knot_indices(rows: int) -> Int[np.ndarray, " knots"]:
    """Returns the indices of the map's knots among this number of reference scores in ascending order."""
    halvings = np.arange(max(1, (rows // TAIL_ROWS).bit_length()))
    return (rows * (1 - 0.5**halvings)).astype(int)


def evidence(fixed: EvidenceMap, values: Float[np.ndarray, " batch"]) -> Float[np.ndarray, " batch"]:
    """Returns the evidence of each score, in nats; 0 up to the least reference score."""
    wide = values.astype(np.float64)
    excess = np.maximum(wide - fixed.knots[-1], 0.0) / fixed.scale
    return np.interp(wide, fixed.knots, fixed.nats) + np.log1p(excess)


def steepness(fixed: EvidenceMap) -> float:
    """Returns the largest slope of the map, in nats per unit of the score: how much a rounding error changes the evidence."""
    steps = np.diff(fixed.nats) / np.diff(fixed.knots)
    return float(max(steps.max(initial=0.0), 1 / fixed.scale))


def leave_one_out(
    values: Float[np.ndarray, " rows"], least_scale: float = 0.0, unit: float = 1.0
) -> Float[np.ndarray, " rows"]:
    """Returns each row's evidence with the other rows as reference: for bundles of schema 1, which have no reference rows.

    Consecutive rows in ascending order mostly share a map: it only changes if one of the few rows that define it is left
    out. So a few dozen maps are fitted, not one for each row.
    """
    order = np.argsort(values)
    ascending, result = values[order], np.empty(len(values))
    starts = _starts_of_maps(len(values))
    for start, end in zip(starts, [*starts[1:], len(values)], strict=True):
        others = np.delete(ascending, start) if len(values) > 1 else ascending
        result[order[start:end]] = evidence(evidence_map(others, least_scale, unit), ascending[start:end])
    return result


def _starts_of_maps(rows: int) -> list[int]:
    """Returns the ascending indices at which the map of `leave_one_out` changes; the first is 0."""
    indices = _knot_indices(rows - 1) if rows > 1 else np.zeros(1, int)
    # In addition to the knots, the map uses the median of the tail: its middle row, or the mean of two rows.
    first, tail = int(indices[-1]), rows - 1 - int(indices[-1])
    used = {*indices.tolist(), first + (tail - 1) // 2, first + tail // 2}
    # Leaving out a row up to a used index shifts the next row to that index.
    return sorted({0, *(index + 1 for index in used if index + 1 < rows)})


def combine(decision: Decision, parts: Float[np.ndarray, "scores batch"]) -> Float[np.ndarray, " batch"]:
    """Combines the evidence of the decision's scores to one number for each row, in nats."""
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
    """Returns the evidence of each score, weighted as in the rule; the largest of a row contributes most."""
    shares = np.asarray(decision.shares)[:, None]
    return parts * shares if decision.rule == "weighted" else parts + np.log(shares)


def main_scores(weighted: dict[str, Float[np.ndarray, " batch"]]) -> list[str]:
    """Returns the score that contributes most to each row's combined evidence; the first of equal ones.

    Args:
        weighted: the `contributions` by score.
    """
    names = list(weighted)
    return [names[index] for index in np.stack(list(weighted.values())).argmax(axis=0)]
