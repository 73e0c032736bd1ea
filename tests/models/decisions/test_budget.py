"""Joint thresholds of novelty and ambiguity: against a loop over turns, and against Tukey's distribution."""

import numpy as np
import pytest
from scipy import stats

from abstain.models.decisions.budget import is_turn_of_novelty, nats_of, nats_of_turns, spend_budget
from abstain.models.decisions.ranks import exact
from tests.helpers.montecarlo import FALSE_ALARM

SHARES = [0.1, 0.5, 0.8]


def levels(budget, novelty, ambiguity):
    """The level of each row: its p-value times n + 1, and which part it comes from."""
    rows = len(budget.turns)
    nats = np.stack([nats_of(budget.novelty, novelty, rows), nats_of(budget.ambiguity, ambiguity, rows)])
    known = np.sort(nats_of_turns(budget))
    at_least = rows - np.searchsorted(known, nats.max(axis=0), side="left")
    return 1 + at_least, nats.argmax(axis=0)


def levels_by_loop(calibration, new, share):
    """The turn after which the region contains each new row, turn by turn as in the definition; n + 1 if none does."""
    left, limits = list(range(len(calibration))), [np.inf, np.inf]
    found = np.full(len(new), len(calibration) + 1)
    for turn in range(1, len(calibration) + 1):
        column = 0 if is_turn_of_novelty(turn, exact(share)) else 1
        taken = max(left, key=lambda row: calibration[row, column])
        left.remove(taken)
        limits[column] = calibration[taken, column]
        inside = (new > limits).any(axis=1)
        found[inside] = np.minimum(found[inside], turn)
    return found


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("rows", [1, 2, 3, 10, 99])
def test_levels_are_those_of_a_loop_over_turns(rows, share):
    """Random rows, rows with ties, and rows beyond all calibration rows."""
    rng = np.random.default_rng(rows)
    for calibration in (rng.normal(size=(rows, 2)), rng.integers(0, 4, (rows, 2)).astype(float)):
        new = np.concatenate([rng.normal(size=(200, 2)), rng.integers(-1, 5, (200, 2)), [[9, 9], [9, -9], [-9, 9]]])
        budget = spend_budget(*calibration.T, share)
        assert sorted(budget.turns) == list(range(1, rows + 1))
        found, _ = levels(budget, *new.T)
        np.testing.assert_array_equal(found, levels_by_loop(calibration, new, share))


@pytest.mark.parametrize(("share", "correlation"), [(0.25, -0.9), (0.5, 0.0), (0.8, 0.9)])
def test_every_level_is_equally_probable(share, correlation):
    """A new row of the same law: P(p ≤ k/(n + 1)) = k/(n + 1) for every k, whatever the dependence of the two scores."""
    rng, rows, splits = np.random.default_rng(1), 19, 2000
    covariance = [[1, correlation], [correlation, 1]]
    counts = np.zeros(rows + 1)
    for sample in rng.multivariate_normal([0, 0], covariance, (splits, rows + 1)):
        level, _ = levels(spend_budget(*sample[1:].T, share), *sample[:1].T)
        counts[level[0] - 1] += 1
    assert stats.chisquare(counts).pvalue > FALSE_ALARM


@pytest.mark.parametrize(("share", "turn"), [(0.25, 1), (0.5, 2), (0.8, 10)])
def test_the_reject_rate_of_a_split_is_beta(share, turn):
    """With independent uniform scores the rate of the region is known: Beta(k, n + 1 − k) over splits."""
    rng, rows, rates = np.random.default_rng(2), 99, []
    for _ in range(500):
        budget = spend_budget(*rng.random((2, rows)), share)
        limit = [cuts.values[cuts.turns <= turn].min(initial=1.0) for cuts in budget[:2]]
        rates.append(1 - np.prod(limit))
    assert stats.kstest(rates, stats.beta(turn, rows + 1 - turn).cdf).pvalue > FALSE_ALARM


@pytest.mark.parametrize("share", SHARES)
def test_novelty_has_its_share_of_the_turns(share):
    """After every turn, rounded up; and the first turn, so that a row beyond all others is always novel."""
    turns = [is_turn_of_novelty(turn, exact(share)) for turn in range(1, 1001)]
    assert turns[0]
    np.testing.assert_array_equal(np.cumsum(turns), [np.ceil(exact(share) * turn) for turn in range(1, 1001)])


def test_ties_only_lower_the_rate():
    """Scores that are all equal reject nothing; a value of many rows is above its own rows only if it is larger."""
    budget = spend_budget(np.zeros(50), np.zeros(50), 0.5)
    assert levels(budget, np.zeros(1), np.zeros(1))[0] == [51]
    assert levels(budget, np.full(1, 1e-3), np.zeros(1))[0] == [1]


@pytest.mark.parametrize("share", SHARES)
def test_evidence_grows_with_each_score(share):
    """Strictly between calibration rows, and without a bound above all of them for novelty."""
    rng = np.random.default_rng(3)
    budget = spend_budget(rng.normal(size=200), rng.normal(size=200), share)
    grid = np.linspace(-6, 6, 5001)
    for cuts in budget[:2]:
        nats = nats_of(cuts, grid, 200)
        assert np.all(np.diff(nats) >= 0)
        above = grid > cuts.values[0]
        assert np.all(np.diff(nats[above]) > 0)
    far = nats_of(budget.novelty, np.array([1e3, 1e6, 1e30, np.inf, np.nan]), 200)
    assert np.all(np.diff(far[:4]) > 0)
    assert np.isnan(far[4])


def test_every_row_of_a_large_calibration_part_is_taken():
    """Each row is visited once by each score, so the time grows with the rows and not with their square."""
    rng = np.random.default_rng(4)
    budget = spend_budget(rng.normal(size=300_000), rng.normal(size=300_000), 0.5)
    assert len(budget.novelty.values) + len(budget.ambiguity.values) == 300_000
