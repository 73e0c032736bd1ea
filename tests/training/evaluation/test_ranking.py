"""The note on decisions whose strangest rows have the smallest errors."""

import numpy as np
import pytest

from abstain.training.evaluation.checks import ranking_notes

ROWS = 1000


def notes_of(share_of_high, share_of_low, rows=ROWS):
    """The notes for rows of which the fifth with the highest score, and the others, have these shares of errors."""
    score = np.random.default_rng(0).permutation(rows).astype(float)
    high = score >= rows - rows // 5
    errors = np.zeros(rows)
    for part, share in ((high, share_of_high), (~high, share_of_low)):
        indices = np.flatnonzero(part)
        errors[indices[: round(share * len(indices))]] = 1
    return ranking_notes(score, errors, "the share of wrong answers")


def test_a_decision_that_ranks_the_wrong_way_is_named():
    """With both shares, and what to do."""
    (note,) = notes_of(0.05, 0.3)
    assert "the share of wrong answers is 0.05 among the fifth with the highest score, and 0.3 among the others" in note
    assert "set calibration.novelty_share or calibration.max_error" in note


@pytest.mark.parametrize("shares", [(0.3, 0.05), (0.2, 0.2), (0.29, 0.3), (0.0, 0.0)])
def test_other_decisions_are_not(shares):
    """Nor is a difference that chance explains."""
    assert notes_of(*shares) == ()


def test_few_rows_are_not_compared():
    """Of 95 rows, the fifth is 19."""
    assert notes_of(0.0, 1.0, rows=95) == ()


def test_chance_alone_hardly_ever_gives_a_note():
    """Errors that do not depend on the score: one in a hundred, by 2.33 standard errors; three standard errors above."""
    rng = np.random.default_rng(1)
    found = [bool(ranking_notes(rng.random(ROWS), (rng.random(ROWS) < 0.3).astype(float), "")) for _ in range(1000)]
    assert np.mean(found) <= 0.01 + 3 * np.sqrt(0.01 * 0.99 / 1000)
