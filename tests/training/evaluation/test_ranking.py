"""The note on decisions whose strangest rows have the smallest errors."""

import re

import numpy as np
import pytest

from abstain.training.evaluation.checks import ranking_notes
from abstain.training.notes import note_code

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
    assert note.startswith(
        "a high decision score does not mean a doubtful answer: of 1000 test rows, the share of wrong"
    )
    assert re.search("is 0.05.* among the 199 with the highest score, and 0.3 among the others", note)
    assert "set calibration.novelty_share or calibration.max_error" in note
    assert note_code(note) == "ranks_wrongly"


@pytest.mark.parametrize("shares", [(0.3, 0.05), (0.2, 0.2), (0.29, 0.3), (0.0, 0.0)])
def test_other_decisions_are_not(shares):
    """Nor is a difference that chance explains."""
    assert notes_of(*shares) == ()


def test_few_rows_are_not_compared():
    """Of 95 rows, the fifth is 19."""
    assert notes_of(0.0, 1.0, rows=95) == ()


def test_ties_are_not_divided():
    """A constant score ranks nothing, whatever the order of the rows; nor does one that ties in more than the top fifth."""
    errors = np.repeat([1.0, 0.0], [800, 200])
    assert ranking_notes(np.zeros(ROWS), errors, "") == ()
    assert ranking_notes(np.repeat([0.0, 1.0], [500, 500]), errors, "") == ()


@pytest.mark.parametrize(("rows", "share"), [(114, 0.05), (200, 0.05), (400, 0.02), (1000, 0.01), (1000, 0.3)])
def test_chance_alone_hardly_ever_gives_a_note(rows, share):
    """Errors that do not depend on the score: at most one in a hundred, and three standard errors."""
    rng, repeats = np.random.default_rng(1), 1000
    found = [
        bool(ranking_notes(rng.random(rows), (rng.random(rows) < share).astype(float), "")) for _ in range(repeats)
    ]
    assert np.mean(found) <= 0.01 + 3 * np.sqrt(0.01 * 0.99 / repeats)


def test_heavy_tails_of_numbers_hardly_ever_give_a_note():
    """Squared errors of a t distribution with three degrees of freedom; and a real difference is found."""
    rng, repeats = np.random.default_rng(2), 500
    squares = rng.standard_t(3, (repeats, 300)) ** 2
    scores = rng.random((repeats, 300))
    found = [bool(ranking_notes(score, square, "")) for score, square in zip(scores, squares, strict=True)]
    assert np.mean(found) <= 0.01 + 3 * np.sqrt(0.01 * 0.99 / repeats)
    assert ranking_notes(scores[0], squares[0] * np.where(scores[0] > 0.8, 0.05, 1), "")
