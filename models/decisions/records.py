"""The records of a decision: the calibration, and the judgement of a batch of rows."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from abstain.models.decisions.budget import Budget, limit_of, nats_of_turns, spend_budget
from abstain.models.decisions.conformal import IntervalKind, SetKind
from abstain.models.decisions.decision import (
    COMBINED,
    LEAST_SCALE,
    NOVELTY,
    Decision,
    EvidenceMap,
    combine,
    evidence,
    evidence_map,
    leave_one_out,
)
from abstain.models.decisions.radii import MOST_RADII, Among, Radii, Turns, find_radii, sort_rows, take_turns, turns_of
from abstain.models.decisions.ranks import less_tolerance, percentile_rank
from abstain.models.decisions.risk import RiskLimit
from abstain.models.decisions.unseen import TOP, expected_rate, raise_unseen, unseen_rows
from abstain.models.decisions.venn_abers import MAX_PROBABILITY, VennAbers, fit_venn_abers, second_class_probability

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
        decision: the score, or the combination of scores, that `reject` compares with its threshold; its novelty part, if
            there is an ambiguity score.
        ambiguity: the score of the ambiguity part of the decision; None if the decision has no such part.
        novelty_share: the share of the reject budget that is novelty's (`models/decisions/budget.py`), if both parts
            share it.
        risk: the limit of the ambiguity that bounds the error of accepted rows (`models/decisions/risk.py`); None if both
            parts share the reject budget.
        other_limits: the limits for other errors, from which a request can choose; empty without `risk`.
        percentile: the percentile of the decision, strictly between 0 and 100.
        coverage: the coverage of prediction sets and intervals, strictly between 0 and 1.
        per_class: whether a row is ranked only among the calibration rows of its own predicted class.
        coverage_among: the rows over which the coverage holds: all, or the accepted ones.
        true_classes: each row's true class, if the coverage holds within each true class; else None.
        sets: the score of prediction sets.
        intervals: the score of intervals.
        reference: each score's values on the reference rows (`models/decisions/decision.py`); None in bundles of schema 1,
            which rank each calibration row among the others instead.
        target_scale: the unit of the scores in `IN_TARGET_UNITS`, for regression.
        plain_scores: each score's values before augmentation of the calibration rows, which the drift test compares with.
            None without augmentation, and in older bundles.
        radius_rows: the rows whose nonconformity sets the radius of sets and intervals, ascending: all but those that the
            recalibration was fitted to. None for all rows.
        targets: each row's true class, 0 or 1, for probability intervals (`models/decisions/venn_abers.py`); None without
            them.
    """

    scores: dict[str, Float[np.ndarray, " rows"]]
    nonconformity: Float[np.ndarray, " rows"]
    labels: Int[np.ndarray, " rows"] | None = None
    decision: Decision = STD
    ambiguity: str | None = None
    novelty_share: float = 0.5
    risk: RiskLimit | None = None
    other_limits: tuple[RiskLimit, ...] = ()
    percentile: float = 99.0
    coverage: float = 0.9
    per_class: bool = False
    coverage_among: Among = "all"
    true_classes: Int[np.ndarray, " rows"] | None = None
    sets: SetKind = "lac"
    intervals: IntervalKind = "normalised"
    reference: dict[str, Float[np.ndarray, " reference"]] | None = None
    target_scale: float = 1.0
    plain_scores: dict[str, Float[np.ndarray, " rows"]] | None = None
    radius_rows: Int[np.ndarray, " radius"] | None = None
    targets: Int[np.ndarray, " rows"] | None = None

    @property
    def rows(self) -> int:
        """The number of rows of the split."""
        return len(self.nonconformity)

    @property
    def radius_count(self) -> int:
        """The number of rows that set the radius of sets and intervals."""
        return self.rows if self.radius_rows is None else len(self.radius_rows)

    @property
    def reference_rows(self) -> int:
        """The number of reference rows; 0 if there are none."""
        return 0 if self.reference is None else len(next(iter(self.reference.values())))

    @property
    def decision_name(self) -> str:
        """The name of the score that `reject` compares with its threshold."""
        return COMBINED if self.shares_budget else self.decision.name

    @property
    def shares_budget(self) -> bool:
        """Whether novelty and ambiguity share the reject budget."""
        return self.ambiguity is not None and self.risk is None

    @property
    def expected_reject_rate(self) -> float:
        """The share of rows like the calibration rows that are rejected, 0 … 1; at most this, without a limit of the error."""
        if self.risk is not None:
            return 1 - self.risk.accepted_rows / self.rows
        return expected_rate(1 - self.percentile / 100, self.unseen, self.labels if self.per_class else None)

    @cached_property
    def unseen(self) -> Bool[np.ndarray, " rows"]:
        """Which rows have an unseen category: they rank above all others (`models/decisions/unseen.py`)."""
        return unseen_rows(self.scores, self.rows)

    @property
    def part_limits(self) -> dict[str, float]:
        """The limits of the parts of the decision by score, at the calibration's own percentile, where they have one."""
        if self.ambiguity is None:
            return {}
        if self.budget is None:
            return {} if self.risk is None or self.risk.threshold is None else {self.ambiguity: self.risk.threshold}
        turns = self.rows + 1 - percentile_rank(self.percentile, self.rows)
        limits = zip(
            (self.novelty_name, self.ambiguity), (limit_of(cuts, turns) for cuts in self.budget[:2]), strict=True
        )
        return {name: limit for name, limit in limits if math.isfinite(limit)}

    @cached_property
    def least_novel(self) -> float:
        """The novelty score from which on a row is novel, if the error of accepted rows is limited.

        It is the threshold less its tolerance: of the rows below it, calibration rows and new ones alike, the error is
        certified, also if many rows tie with the threshold.
        """
        name = self.decision_name
        unit = float(self.units[list(self.scores).index(name), 0]) if name in self.scores else 1.0
        limit = self.ascending[name][percentile_rank(self.percentile, self.rows) - 1]
        return float(less_tolerance(np.array([limit]), unit)[0])

    @property
    def novelty_name(self) -> str:
        """The name of the score that the decision's scores are combined to."""
        return NOVELTY if self.shares_budget and self.decision.name == COMBINED else self.decision.name

    @cached_property
    def all_scores(self) -> dict[str, Float[np.ndarray, " rows"]]:
        """The scores, the decision's combination of them if it combines several, and that of its two parts.

        The score of `novelty_name` is `TOP` for unseen rows.
        """
        name, values = self.novelty_name, self.novelty_scores
        ranked = values | {name: raise_unseen(values[name], self.unseen, TOP)}
        return ranked if self.budget is None else ranked | {COMBINED: nats_of_turns(self.budget)}

    @cached_property
    def novelty_scores(self) -> dict[str, Float[np.ndarray, " rows"]]:
        """The scores, and the combination of the decision's scores if it combines several."""
        if self.decision.name != COMBINED:
            return self.scores
        if self.reference is not None:
            return self.scores | {self.novelty_name: self.combined(self.scores)}
        parts = [leave_one_out(self.scores[name], *self.least_scale(name)) for name in self.decision.scores]
        return self.scores | {self.novelty_name: combine(self.decision, np.stack(parts))}

    @cached_property
    def budget(self) -> Budget | None:
        """The turns in which the two parts of the decision take the calibration rows; None if they share no budget."""
        if self.ambiguity is None or self.risk is not None:
            return None
        novelty = raise_unseen(self.novelty_scores[self.novelty_name], self.unseen)
        return spend_budget(novelty, raise_unseen(self.scores[self.ambiguity], self.unseen), self.novelty_share)

    @cached_property
    def plain_all_scores(self) -> dict[str, Float[np.ndarray, " rows"]]:
        """The scores of the calibration rows before augmentation, and their combination by a fixed function.

        The combination of two parts is left out: it depends on the calibration rows, so the scores of many new rows
        together are not exchangeable with theirs, as a test of drift needs them.
        """
        if self.plain_scores is None:
            return self.novelty_scores
        if self.decision.name != COMBINED:
            return self.plain_scores
        return self.plain_scores | {self.novelty_name: self.combined(self.plain_scores)}

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
    def ascending_nonconformity(self) -> Float[np.ndarray, " radius"]:
        """The nonconformity scores that set the radius, ascending."""
        return np.sort(self.nonconformity if self.radius_rows is None else self.nonconformity[self.radius_rows])

    @cached_property
    def venn_abers(self) -> VennAbers | None:
        """The probability interval at each calibration row; None without the rows' true classes."""
        if self.targets is None or self.labels is None:
            return None
        return fit_venn_abers(second_class_probability(self.scores[MAX_PROBABILITY], self.labels), self.targets == 1)

    @property
    def part_names(self) -> tuple[str, ...]:
        """The scores of the parts of the decision that have limits: one, or novelty and ambiguity."""
        return (self.novelty_name, self.ambiguity) if self.shares_budget and self.ambiguity else (self.decision_name,)

    @cached_property
    def turns(self) -> Turns:
        """The turns in which the parts of the decision take the calibration rows, which are judged like new rows."""
        lowered = dict(zip(self.scores, less_tolerance(np.stack(list(self.scores.values())), self.units), strict=True))
        if self.decision.name == COMBINED:
            lowered[self.novelty_name] = self.combined({name: lowered[name] for name in self.decision.scores})
        values, edges = (
            raise_unseen(np.stack([known[name] for name in self.part_names]).astype(np.float64), self.unseen)
            for known in (self.novelty_scores, lowered)
        )
        turns, takers = turns_of(values[0]), np.zeros(self.rows, int)
        if self.budget is not None:
            turns = self.budget.turns
            takers[np.isin(turns, self.budget.ambiguity.turns)] = 1
        return take_turns(values, edges, turns, takers)._replace(unseen=self.unseen)

    @cached_property
    def radii(self) -> Callable[[float, float, int], Radii]:
        """The function from a percentile, a coverage and a number of classes to the radii (`models/decisions/radii.py`)."""
        rows = sort_rows(self.nonconformity, self.true_classes, self.radius_rows)
        turns = self.turns if self.coverage_among == "accepted" else None
        return lru_cache(maxsize=MOST_RADII)(partial(find_radii, rows, turns))

    @property
    def has_one_radius(self) -> bool:
        """Whether the coverage holds over all rows, with one radius for all of them."""
        return self.coverage_among == "all" and self.true_classes is None

    def prepare(self) -> None:
        """Computes in advance the values that `judge` needs, which takes seconds for many rows."""
        _ = self.ascending, self.ascending_nonconformity, self.evidence_maps, self.units, self.budget, self.venn_abers
        if self.per_class:
            _ = self.by_class
        if not self.has_one_radius:
            _ = self.radii


class Levels(NamedTuple):
    """The levels that a request chooses; None for the model's own.

    Attributes:
        percentile: the percentile of the decision, strictly between 0 and 100.
        coverage: the coverage of prediction sets and intervals, strictly between 0 and 1.
        max_error: the largest share of wrong answers among accepted rows, strictly between 0 and 1.
    """

    percentile: float | None = None
    coverage: float | None = None
    max_error: float | None = None


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


PARTS = ("novel", "ambiguous")
"""The parts of a decision that may reject a row."""
PROBABILITY_INTERVAL = "probability_interval"
"""The name of the second class's probability interval, in `Judgement` and in responses."""


class Parts(NamedTuple):
    """The two parts of a decision on a batch; a rejected row is novel, ambiguous or both.

    Attributes:
        novelty: the name of the novelty part's score.
        ambiguity: the name of the ambiguity part's score.
        novelty_limit: the limit of the novelty score, above which a row is rejected. It is not the threshold of this score
            alone, which `ScoreJudgement` has.
        ambiguity_limit: the same of the ambiguity score; NaN if every row is rejected.
        novel: whether the novelty score is above its limit by more than the tolerance, or NaN.
        ambiguous: whether the ambiguity score is.
    """

    novelty: str
    ambiguity: str
    novelty_limit: float
    ambiguity_limit: float
    novel: Bool[np.ndarray, " batch"]
    ambiguous: Bool[np.ndarray, " batch"]


class Judgement(NamedTuple):
    """The calibration's judgement of a batch: the decision, each score, and a prediction set or interval.

    Attributes:
        decision: the name of the decision score among `scores`.
        reject: whether the decision score is above its threshold or, with a limit of the error, the row is novel or
            ambiguous.
        evidence: −ln p of each score of a combination, in nats; empty if a single score decides.
        contributions: the weighted evidence of each score of a combination; empty if a single score decides.
        main_scores: for each row, the score that contributes most.
        members: `[batch, classes]`, the classes in each row's prediction set; None for regression.
        interval: `[batch, 2]`, lower and upper end in the target's units; None for classification.
        parts: which parts of the decision reject each row; None for a decision of one part.
        risk: the limit of the error of accepted rows; None without one.
        probability_interval: `[batch, 2]`, lower and upper end of the probability of the second of two classes; None without
            the true classes of the calibration rows.
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
    parts: Parts | None = None
    risk: RiskLimit | None = None
    probability_interval: Float[np.ndarray, "batch 2"] | None = None

    @property
    def stated_levels(self) -> dict[str, float]:
        """The levels of the decision: percentile and coverage and, with a limit of the error, its error and confidence."""
        levels = {"percentile": self.percentile, "coverage": self.coverage}
        if self.risk is None:
            return levels
        return levels | {"max_error": self.risk.max_error, "confidence": self.risk.confidence}
