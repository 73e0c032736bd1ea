"""The manifest's record of a calibration, with confidence bounds of its thresholds and rates."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
from jaxtyping import Float
from scipy.special import betaincinv, gammaln

from abstain.models.bundles.guarantees import CoverageRecord, RiskRecord
from abstain.models.bundles.manifest import CalibrationRecord
from abstain.models.decisions.ranks import exact, percentile_rank, rank_of, threshold
from abstain.models.decisions.records import Calibration
from abstain.models.decisions.risk import RiskLimit
from abstain.models.decisions.unseen import TOP
from abstain.models.prediction.temperature import Recalibration
from abstain.models.tables.unseen import UNSEEN_SCORE
from abstain.training.notes import write_note


def calibration_record(
    calibration: Calibration,
    recalibration: Recalibration,
    class_names: tuple[str, ...],
    error_size: float | None = None,
) -> CalibrationRecord:
    """Builds the manifest's record of a calibration.

    Args:
        error_size: as in `ErrorLimit`.
    """
    decision, percentile, ascending = calibration.decision, calibration.percentile, calibration.ascending
    per_class = calibration.per_class
    by_class = calibration.by_class[calibration.decision_name] if per_class else {}
    named = {class_names[label]: values for label, values in by_class.items()}
    coverage, limits = coverage_record(calibration, class_names), calibration.part_limits
    counts_unseen = UNSEEN_SCORE in calibration.scores
    if counts_unseen:
        limits |= {UNSEEN_SCORE: 0.0}
    return CalibrationRecord(
        rows=calibration.rows,
        decision=calibration.decision_name,
        percentile=percentile,
        coverage=calibration.coverage,
        thresholds={name: threshold(values, percentile) for name, values in ascending.items()} | limits,
        combination=decision if len(decision.scores) > 1 or calibration.ambiguity is not None else None,
        ambiguity=calibration.ambiguity,
        novelty_share=calibration.novelty_share if calibration.shares_budget else None,
        risk=None if calibration.risk is None else risk_record(calibration.risk, error_size),
        other_limits=tuple(risk_record(limit, error_size) for limit in calibration.other_limits),
        reference_rows=calibration.reference_rows,
        per_class=per_class,
        sets=calibration.sets,
        intervals=calibration.intervals,
        recalibration=recalibration,
        class_thresholds={name: threshold(values, percentile) for name, values in named.items()},
        threshold_bounds={}
        if per_class
        else {name: threshold_bounds(values, percentile) for name, values in ascending.items() if name not in limits},
        reject_rate_bounds=None
        if per_class or calibration.risk is not None
        else reject_rate_bounds(percentile, calibration.rows, unseen=int(calibration.unseen.sum())),
        class_threshold_bounds={name: threshold_bounds(values, percentile) for name, values in named.items()},
        class_reject_rate_bounds={
            name: reject_rate_bounds(percentile, len(values), unseen=int((values == TOP).sum()))
            for name, values in named.items()
        },
        coverage_bounds=None
        if coverage and coverage.per_class
        else beta_bounds(calibration.coverage, coverage.rows if coverage else calibration.radius_count),
        conditional_coverage=coverage,
        unseen_rows=int(calibration.unseen.sum()) if counts_unseen else None,
        expected_reject_rate=calibration.expected_reject_rate if counts_unseen else None,
    )


def unseen_notes(calibration: Calibration) -> tuple[str, ...]:
    """Returns a note if more calibration rows have an unseen category than the percentile rejects."""
    stated, expected = 1 - calibration.percentile / 100, calibration.expected_reject_rate
    if not calibration.unseen.any() or calibration.risk is not None or expected <= stated:
        return ()
    only = "" if calibration.per_class else ", and at this percentile no other row is"
    return (
        write_note(
            "unseen",
            f"about {expected:.2%}, not {stated:.2%}, because {int(calibration.unseen.sum()):,} of {calibration.rows:,} "
            f"calibration rows have a category that the training part lacks: all such rows are rejected{only}; set "
            'data.unseen = "missing" for a column of rare categories, drop it, or fit with more rows',
        ),
    )


def coverage_record(calibration: Calibration, class_names: tuple[str, ...]) -> CoverageRecord | None:
    """Builds the manifest's record of the rows over which the coverage holds; None if these are all rows."""
    if calibration.has_one_radius:
        return None
    radii = calibration.radii(calibration.percentile, calibration.coverage, len(class_names))
    per_class = calibration.true_classes is not None
    class_rows = dict(zip(class_names, radii.rows, strict=True)) if per_class else {}
    return CoverageRecord(
        among=calibration.coverage_among,
        per_class=per_class,
        rows=sum(radii.rows),
        class_rows=class_rows,
        class_bounds={name: beta_bounds(calibration.coverage, rows) for name, rows in class_rows.items()},
    )


def risk_record(risk: RiskLimit, error_size: float | None) -> RiskRecord:
    """Builds the manifest's record of a limit of the error."""
    fields = {name: value for name, value in risk._asdict().items() if name != "rows"}
    return RiskRecord(**fields, error_size=error_size)


def beta_bounds(level: float | Fraction, rows: int, confidence: float = 0.95) -> tuple[float, float]:
    """Returns the bounds of the true share of scores at or below the threshold, over calibration splits.

    For one split, that share is not exactly `level`: over splits its distribution is Beta(k, n + 1 − k), where k is the
    rank (Vovk, 2012; Angelopoulos & Bates, 2023, section 3.2). The interval is equal-tailed, and exact if scores do not
    tie; ties can only raise the share.

    Args:
        level: strictly between 0 and 1, a coverage or a percentile's hundredth.
        rows: n, the size of the calibration part.
        confidence: strictly between 0 and 1.

    Raises:
        CalibrationError: the split is too small for the level.
    """
    rank = rank_of(level, rows, f"level {float(level)!r}")
    tail = (1 - confidence) / 2
    low, high = betaincinv(rank, rows + 1 - rank, [tail, 1 - tail])
    return float(low), float(high)


def reject_rate_bounds(percentile: float, rows: int, confidence: float = 0.95, unseen: int = 0) -> tuple[float, float]:
    """Returns the bounds (0 … 1) of the true reject rate at a percentile, over calibration splits (`beta_bounds`).

    If as many rows are unseen as the percentile rejects, exactly the unseen ones are rejected, and the bounds are those of their
    share (Clopper & Pearson, 1934). With the rate max(B, q) of `models/decisions/unseen.py`, the two kinds of bounds together
    miss it in at most 1 − confidence of all splits.

    Args:
        unseen: the number of calibration rows with an unseen category.

    Raises:
        CalibrationError: the split is too small for the percentile.
    """
    if unseen >= rows + 1 - percentile_rank(percentile, rows):
        tail = (1 - confidence) / 2
        low = betaincinv(unseen, rows + 1 - unseen, tail)
        high = betaincinv(unseen + 1, rows - unseen, 1 - tail) if unseen < rows else 1.0
        return float(low), float(high)
    low, high = beta_bounds(exact(percentile) / 100, rows, confidence)
    return 1 - high, 1 - low


def threshold_bounds(
    ascending: Float[np.ndarray, " rows"], percentile: float, confidence: float = 0.95
) -> tuple[float | None, float | None]:
    """Returns a distribution-free confidence interval of the scores' true P-quantile; its ends are scores.

    The number of n scores below the quantile is Binomial(n, P/100). Each end is the innermost score that is beyond the
    quantile with probability at most (1 − confidence)/2 (Conover, 1999, section 3.2); None if the end lies beyond all n, or
    at an unseen row.

    Args:
        ascending: the calibration scores.
        percentile: P, strictly between 0 and 100.
        confidence: strictly between 0 and 1.
    """
    rows, tail = len(ascending), (1 - confidence) / 2
    counts = np.arange(rows + 1)
    # Not log(percentile / 100): for the smallest percentiles the quotient is rounded to 0.
    log_share, log_rest = math.log(percentile) - math.log(100), math.log1p(-percentile / 100)
    log_ways = gammaln(rows + 1) - gammaln(counts + 1) - gammaln(rows - counts + 1)
    masses = np.exp(log_ways + counts * log_share + (rows - counts) * log_rest)
    lower = int(np.searchsorted(np.cumsum(masses), tail, side="right"))  # ranks r with P(fewer than r below) ≤ tail
    upper = rows + 1 - int(np.searchsorted(np.cumsum(masses[::-1]), tail, side="right"))  # P(at least r below) ≤ tail
    ends = (ascending[lower - 1] if lower >= 1 else TOP, ascending[upper - 1] if upper <= rows else TOP)
    low, high = (None if end == TOP else float(end) for end in ends)
    return low, high
