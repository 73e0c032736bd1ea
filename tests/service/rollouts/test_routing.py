"""Which callers get the candidate, and what is observed of them."""

import numpy as np
import pytest
from scipy import stats

from abstain.models.bundles.rollouts import Rollout
from abstain.service.live import Live
from abstain.service.rollouts import callers
from abstain.service.rollouts.callers import Callers
from abstain.service.rollouts.routing import Caller, choose

OLD, NEW = (object.__new__(Live) for _ in range(2))


def rollout(number=1, **changes):
    """A canary of 2 with a tenth of the callers."""
    fields = {
        "id": "0" * 32,
        "key": f"{number:032x}",
        "candidate": 2,
        "baseline": 1,
        "mode": "canary",
        "share": 0.1,
        "margin": 0.1,
        "alpha": 0.05,
        "auto": False,
        "started": "2026-01-01T00:00:00+00:00",
    }
    return Rollout(**{**fields, **changes})


def sides(own, count=5_000):
    """Which of many callers get the candidate."""
    return np.array(
        [choose("m", own, OLD, NEW, Caller(b"%d" % number, may_repeat=True)).live is NEW for number in range(count)]
    )


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5])
def test_the_share_is_within_its_binomial_band(share):
    """Callers with similar names, as real ones have."""
    low, high = stats.binom.interval(1 - 1e-6, 5_000, share)
    assert low <= sides(rollout(share=share)).sum() <= high


def test_a_caller_stays_on_one_side_and_another_rollout_chooses_anew():
    """The callers of one rollout are independent of those of the next."""
    first, again, other = sides(rollout()), sides(rollout()), sides(rollout(2))
    assert (first == again).all()
    low, high = stats.binom.interval(1 - 1e-6, 5_000, 0.01)
    assert low <= (first & other).sum() <= high
    grown = sides(rollout(share=0.2))
    assert grown[first].all()  # Whoever has the candidate keeps it when the share grows.


def test_a_shadow_is_answered_by_the_baseline():
    """A part of the requests is also for the candidate."""
    own = rollout(mode="shadow", share=0.5)
    chosen = [choose("m", own, OLD, NEW, Caller(b"%d" % number, may_repeat=False)) for number in range(200)]
    assert all(choice.live is OLD for choice in chosen)
    parts = [choice.part for choice in chosen if choice.part]
    assert 50 < len(parts) < 150
    assert all(part.fingerprint is None for part in parts)


def test_callers_are_counted_once(tmp_path):
    """Over all workers of a server, as they share the table; zero is a fingerprint too."""
    one, other = Callers(tmp_path / "callers"), Callers(tmp_path / "callers")
    assert [one.add(fingerprint) for fingerprint in (0, 5, 5, 0)] == [True, True, False, False]
    assert [other.add(fingerprint) for fingerprint in (5, 6, callers.SLOTS + 5)] == [False, True, True]


def test_a_full_table_counts_nobody_twice(tmp_path, monkeypatch):
    """It stops to count new callers instead."""
    monkeypatch.setattr(callers, "SLOTS", 64)
    table, random = Callers(tmp_path / "callers"), np.random.default_rng(0)
    fingerprints = [int(value) for value in random.integers(1, 2**63, 500)]
    new = [fingerprint for fingerprint in fingerprints if table.add(fingerprint)]
    assert 32 < len(new) <= 64
    assert not any(table.add(fingerprint) for fingerprint in new)
