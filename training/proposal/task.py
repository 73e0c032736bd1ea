"""Chooses the likelihood for a target, and the sizes of the parts and the percentile that go together."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy import stats

from abstain.models.errors import DataError
from abstain.models.prediction.likelihoods import LikelihoodName
from abstain.training.config.section import Size
from abstain.training.data.tables import MOST_CLASSES
from abstain.training.proposal.table_facts import ColumnFacts

NUMBERED_CLASSES = 10
"""Up to this number of different whole numbers, a target names classes; more are a number to predict."""
ROWS_PER_CLASS = 10
"""The least average number of rows of such a class."""
LEAST_ROWS = 30
"""The least number of rows of a fit: 6 to test, 10 to calibrate the 90th percentile, and 14 to train."""
SKEW = 1.0
"""The skewness from which a target above 0 spreads more where it is larger, as prices do."""
SKEW_ROWS = 1_000
"""The least number of rows from which a separate variance for every input can be learned."""
RARE, RARE_SHARE = 20, 0.5
"""A class with fewer rows, and with less than this part of the rows that it had if all classes had equally many, is named in the
config."""
LEAST_CLASS_ROWS = 3
"""A class with fewer rows is always named: the three parts cannot each have one."""


class Task(NamedTuple):
    """The likelihood, and what the target holds."""

    likelihood: LikelihoodName
    why: str
    notes: tuple[str, ...] = ()

    @property
    def classify(self) -> bool:
        """Whether the target is a class."""
        return self.likelihood in {"categorical", "bernoulli"}


class Parts(NamedTuple):
    """The sizes of test and calibration part, the percentile that these rows allow, and why."""

    test_size: Size
    calibration_size: Size
    percentile: float
    why: str


def choose_task(target: ColumnFacts, values: Float[np.ndarray, " rows"] | None, where: str) -> Task:
    """Chooses the likelihood of a target.

    Args:
        values: the numbers or codes of the target, with NaN for a gap; None if it has no values.

    Raises:
        DataError: no likelihood fits; the text says why.
    """
    if values is None or target.kind == "date" or target.distinct < 2:
        found = {
            "empty": "only gaps",
            "unreadable": f"values that cannot be read: {target.problem}",
            "date": "dates",
        }.get(target.kind, f"the value {target.counts[0][0]!r} in every row" if target.counts else "nothing")
        raise DataError(
            f"target {target.name!r}",
            where=where,
            expected="at least two classes, or numbers",
            found=found,
            fix="choose another target; a date can be predicted as a number of days, in a column of its own",
        )
    if target.distinct == 2:
        return Task("bernoulli", f"two classes: {_class_counts(target)}", _class_notes(target))
    is_numbered = target.whole and target.distinct <= min(NUMBERED_CLASSES, target.filled / ROWS_PER_CLASS)
    if target.kind == "category" or is_numbered:
        if target.distinct > max(MOST_CLASSES, target.filled / 2):
            raise DataError(
                f"target {target.name!r}",
                where=where,
                expected="classes of several rows each, or numbers",
                found=f"text with {target.distinct:,} different values in {target.filled:,} rows",
                fix="choose another target, or merge its values into classes",
            )
        notes = _class_notes(target)
        if is_numbered:
            notes = ('the classes are numbers: if their distance matters, set likelihood = "normal" instead', *notes)
        return Task("categorical", f"{target.distinct} classes: {_class_counts(target)}", notes)
    return _number_task(target, values[~np.isnan(values)])


def _number_task(target: ColumnFacts, known: Float[np.ndarray, " rows"]) -> Task:
    spread = f"a number from {target.low:.6g} to {target.high:.6g}, mean {known.mean():.6g}, standard deviation {known.std():.3g}"
    notes = ()
    if target.whole and target.low in {0, 1} and target.high < 1_000:
        notes = ("the target looks like a count: its likelihood is a normal, so intervals may reach below 0",)
    is_skewed = target.low > 0 and float(stats.skew(known)) > SKEW
    if is_skewed and len(known) >= SKEW_ROWS:
        return Task(
            "heteroscedastic_normal", f"{spread}; skewed, so large values may vary more: a variance for each row", notes
        )
    if is_skewed or float(stats.skew(known)) > 2 * SKEW:
        notes = (*notes, "the target is skewed: a column with its logarithm may be predicted better")
    return Task("normal", spread, notes)


def _class_counts(target: ColumnFacts) -> str:
    more = f", … and {target.distinct - 5} more" if target.distinct > 5 else ""
    return list_counts(target.counts[:5]) + more


def list_counts(counts: Iterable[tuple[str, int]]) -> str:
    """Returns values with their numbers of rows: `red (2,110), blue (7)`. A value may be a number itself."""
    return ", ".join(f"{value} ({count:,})" for value, count in counts)


def _class_notes(target: ColumnFacts) -> tuple[str, ...]:
    least = max(min(RARE, RARE_SHARE * target.filled / target.distinct), LEAST_CLASS_ROWS)
    rare = [(value, count) for value, count in target.rarest if count < least]
    if not rare:
        return ()
    return (
        f"classes with few rows: {list_counts(rare)}; little can be learned about them, and fewer than three rows may all be "
        "in one part. class_weights is not set: weights make probabilities of rare classes worse where a network can fit them",
    )


def needed_rows(percentile: float) -> int:
    """Returns how many calibration rows a percentile needs: 99 for the 99th, 19 for the 95th, 9 for the 90th."""
    return math.ceil(round(percentile / (100 - percentile), 9))


def choose_parts(rows: int, where: str) -> Parts:
    """Chooses sizes and percentile for a number of rows.

    Raises:
        DataError: there are too few rows for three parts.
    """
    if rows < LEAST_ROWS:
        raise DataError(
            "rows with a target",
            where=where,
            expected=f"at least {LEAST_ROWS}: {needed_rows(90)} calibration rows for the 90th percentile, and some to train "
            "and to test",
            found=f"{rows}",
            fix="add rows",
        )
    if rows < 120:
        return Parts(0.2, max(10, round(0.2 * rows)), 90.0, _why(90.0, 95.0))
    if rows < 500:
        return Parts(0.2, max(30, round(0.2 * rows)), 95.0, _why(95.0, 99.0))
    if rows < 800:
        return Parts(0.2, 120, 99.0, f"the 99th percentile needs {needed_rows(99)} calibration rows")
    if rows <= 50_000:
        return Parts(0.2, 0.2, 99.0, "")
    return Parts(10_000, 10_000, 99.0, "")


def _why(percentile: float, next_percentile: float) -> str:
    return (
        f"the {percentile:g}th, because the {next_percentile:g}th needs {needed_rows(next_percentile)} calibration rows or "
        "more, which this file cannot spare"
    )


def can_stratify(target: ColumnFacts, parts: Parts) -> bool:
    """Whether every class has enough rows for a share of at least one row in each part."""
    rarest = target.rarest[0][1]
    test = parts.test_size if isinstance(parts.test_size, float) else parts.test_size / target.filled
    rest = target.filled * (1 - test)
    calibration = parts.calibration_size if isinstance(parts.calibration_size, float) else parts.calibration_size / rest
    left = rarest - math.ceil(rarest * test)
    return rarest * test >= 1 and left * calibration >= 1 and left - math.ceil(left * calibration) >= 1
