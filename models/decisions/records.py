"""The records of a decision: the calibration, and the judgement of a batch of rows."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from abstain.models.decisions.conformal import IntervalKind, SetKind
from abstain.models.decisions.decision import (
    COMBINED,
    LEAST_SCALE,
    Decision,
    EvidenceMap,
    combine,
    evidence,
    evidence_map,
    leave_one_out,
)

STD = Decision(scores=("std",))
IN_TARGET_UNITS = {"std", "total_std"}
"""Scores of a regression that are in the target's units."""
ROUNDED_MORE = {"relative_mahalanobis": 500.0, "vim": 100.0, "subspace": 100.0}
"""The factor of the least tolerance near 0, for scores that are differences of larger numbers."""


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """The scores of the calibration part, and the default settings of a request.

    Attributes:
        scores: each score's values, one for every row of the split, in the split's order.
        nonconformity: how badly each row's true target fits its prediction.
        labels: each row's predicted class; None for regression, and in older bundles.
        decision: the score, or the combination of scores, that `reject` compares with its threshold.
        percentile: the percentile of the decision, strictly between 0 and 100.
        coverage: the coverage of prediction sets and intervals, strictly between 0 and 1.
        per_class: whether a row is ranked only among the calibration rows of its own predicted class.
        sets: the score of prediction sets.
        intervals: the score of intervals.
        reference: each score's values on the reference rows (`models/decisions/decision.py`); None in bundles of schema 1,
            which rank each calibration row among the others instead.
        target_scale: the unit of the scores in `IN_TARGET_UNITS`, for regression.
        plain_scores: each score's values before augmentation of the calibration rows, which the drift test compares with.
            None without augmentation, and in older bundles.
    """

    scores: dict[str, Float[np.ndarray, " rows"]]
    nonconformity: Float[np.ndarray, " rows"]
    labels: Int[np.ndarray, " rows"] | None = None
    decision: Decision = STD
    percentile: float = 99.0
    coverage: float = 0.9
    per_class: bool = False
    sets: SetKind = "lac"
    intervals: IntervalKind = "normalised"
    reference: dict[str, Float[np.ndarray, " reference"]] | None = None
    target_scale: float = 1.0
    plain_scores: dict[str, Float[np.ndarray, " rows"]] | None = None

    @property
    def rows(self) -> int:
        """The number of rows of the split."""
        return len(self.nonconformity)

    @property
    def reference_rows(self) -> int:
        """The number of reference rows; 0 if there are none."""
        return 0 if self.reference is None else len(next(iter(self.reference.values())))

    @cached_property
    def all_scores(self) -> dict[str, Float[np.ndarray, " rows"]]:
        """The scores, and the decision's combination of them if it combines several."""
        if self.decision.name != COMBINED:
            return self.scores
        if self.reference is not None:
            return self.scores | {COMBINED: self.combined(self.scores)}
        parts = [leave_one_out(self.scores[name], *self.least_scale(name)) for name in self.decision.scores]
        return self.scores | {COMBINED: combine(self.decision, np.stack(parts))}

    @cached_property
    def plain_all_scores(self) -> dict[str, Float[np.ndarray, " rows"]]:
        """The scores of the calibration rows before augmentation, including the decision's combination."""
        if self.plain_scores is None:
            return self.all_scores
        if self.decision.name != COMBINED:
            return self.plain_scores
        return self.plain_scores | {COMBINED: self.combined(self.plain_scores)}

    @cached_property
    def ascending(self) -> dict[str, Float[np.ndarray, " rows"]]:
        """The values of every score, ascending."""
        return {name: np.sort(values) for name, values in self.all_scores.items()}

    @cached_property
    def evidence_maps(self) -> dict[str, EvidenceMap]:
        """The map from values to evidence of each score of the decision."""
        reference = self.scores if self.reference is None else self.reference
        return {name: evidence_map(reference[name], *self.least_scale(name)) for name in self.decision.scores}

    def least_scale(self, name: str) -> tuple[float, float]:
        """Returns the least scale of a score's tail, and the score's unit."""
        return LEAST_SCALE.get(name, 0.0), self.target_scale if name in IN_TARGET_UNITS else 1.0

    @cached_property
    def units(self) -> Float[np.ndarray, "scores 1"]:
        """The unit of each score's tolerance near 0, in the order of `scores`."""
        units = ROUNDED_MORE | dict.fromkeys(IN_TARGET_UNITS, self.target_scale)
        return np.array([[units.get(name, 1.0)] for name in self.scores])

    def combined(self, values: dict[str, Float[np.ndarray, " batch"]]) -> Float[np.ndarray, " batch"]:
        """Computes the combined evidence of rows with these scores, in nats."""
        return combine(self.decision, np.stack(list(self.evidence_of(values).values())))

    def evidence_of(self, values: dict[str, Float[np.ndarray, " batch"]]) -> dict[str, Float[np.ndarray, " batch"]]:
        """Computes the evidence of each of the decision's scores, in nats."""
        return {name: evidence(fixed, values[name]) for name, fixed in self.evidence_maps.items()}

    @cached_property
    def by_class(self) -> dict[str, dict[int, Float[np.ndarray, " own"]]]:
        """The values of every score by predicted class, ascending."""
        labels = np.zeros(self.rows, int) if self.labels is None else self.labels
        # One sort for all classes: a search through all rows for each of many classes would take quadratic time.
        known, starts = np.unique(np.sort(labels), return_index=True)
        return {
            name: dict(zip(known.tolist(), np.split(values[np.lexsort((values, labels))], starts[1:]), strict=True))
            for name, values in self.all_scores.items()
        }

    @cached_property
    def ascending_nonconformity(self) -> Float[np.ndarray, " rows"]:
        """The nonconformity scores, ascending."""
        return np.sort(self.nonconformity)

    def prepare(self) -> None:
        """Computes in advance the values that `judge` needs, which takes seconds for many rows."""
        _ = self.ascending, self.ascending_nonconformity, self.evidence_maps, self.units
        if self.per_class:
            _ = self.by_class


class ScoreJudgement(NamedTuple):
    """One score of a batch, compared with the calibration part.

    Attributes:
        above: whether each value is above its threshold by more than the tolerance (`less_tolerance`), or NaN.
        extrapolated: whether each value is above those of all calibration rows that it is ranked among.
    """

    value: Float[np.ndarray, " batch"]
    percentile: Float[np.ndarray, " batch"]
    threshold: Float[np.ndarray, " batch"]
    p_value: Float[np.ndarray, " batch"]
    above: Bool[np.ndarray, " batch"]
    extrapolated: Bool[np.ndarray, " batch"]


class Judgement(NamedTuple):
    """The calibration's judgement of a batch: the decision, each score, and a prediction set or interval.

    Attributes:
        decision: the name of the decision score among `scores`.
        reject: whether the decision score is above its threshold.
        evidence: −ln p of each score of a combination, in nats; empty if a single score decides.
        contributions: the weighted evidence of each score of a combination; empty if a single score decides.
        main_scores: for each row, the score that contributes most.
        members: `[batch, classes]`, the classes in each row's prediction set; None for regression.
        interval: `[batch, 2]`, lower and upper end in the target's units; None for classification.
    """

    percentile: float
    coverage: float
    decision: str
    reject: Bool[np.ndarray, " batch"]
    scores: dict[str, ScoreJudgement]
    evidence: dict[str, Float[np.ndarray, " batch"]]
    contributions: dict[str, Float[np.ndarray, " batch"]]
    main_scores: list[str]
    members: Bool[np.ndarray, "batch classes"] | None
    interval: Float[np.ndarray, "batch 2"] | None
