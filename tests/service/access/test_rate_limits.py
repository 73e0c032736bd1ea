"""Rate limits: how many requests a key may send, over several workers."""

import threading
import time

import pytest

from abstain.service.access.rate_limits import RateLimits


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test sets."""

    class Clock:
        now = 1000.0

    monkeypatch.setattr("abstain.service.access.rate_limits.time.monotonic", lambda: Clock.now)
    return Clock


@pytest.mark.parametrize("rate", [0.5, 1, 3, 10, 1000])
def test_as_many_pass_as_are_allowed(tmp_path, clock, rate):
    """Over 100 seconds of asking ten times as often, the rate's share passes, and one second's more at the start."""
    limits = RateLimits(tmp_path)
    passed, steps = 0, int(1000 * max(rate, 1))
    for step in range(steps):
        clock.now = 1000 + 100 * step / steps
        passed += limits.take("app", rate) == 0
    assert 100 * rate - 1 <= passed <= 101 * rate + 1


def test_what_is_refused_tells_when_to_come_again(tmp_path, clock):
    """Who waits so long is taken, who comes earlier is not."""
    limits = RateLimits(tmp_path)
    while limits.take("app", 4) == 0:
        pass
    seconds = limits.take("app", 4)
    assert 0 < seconds <= 0.25
    clock.now += seconds * 0.9
    assert limits.take("app", 4) > 0
    clock.now += seconds * 0.11
    assert limits.take("app", 4) == 0


def test_one_keys_requests_do_not_count_for_another(tmp_path, clock):
    """Also if names are no names of files."""
    limits = RateLimits(tmp_path)
    names = ["app", "app2", "../../etc", "a" * 5000, "ü\n"]
    for name in names:
        assert limits.take(name, 1) == 0
        assert limits.take(name, 1) > 0
    assert len(list(tmp_path.iterdir())) == len(names)


def test_workers_count_together(tmp_path):
    """Four that ask at once, each with the files of its own: together the rate, not four times that."""
    until, passed = time.monotonic() + 1.5, []

    def ask():
        limits = RateLimits(tmp_path)
        while time.monotonic() < until:
            passed.append(limits.take("app", 50) == 0)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lasted = time.monotonic() - began
    assert 50 <= sum(passed) <= 50 * (lasted + 1) * 1.1 + 1
    assert len(passed) > sum(passed)
