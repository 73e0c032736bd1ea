"""Rate limits: the number of requests that a key may send, over several workers."""

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
def test_as_many_requests_pass_as_the_rate_allows(tmp_path, clock, rate):
    """In 100 seconds with ten times the rate, the requests of the rate pass, plus those of one second at the start."""
    limits = RateLimits(tmp_path)
    passed, steps = 0, int(1000 * max(rate, 1))
    for step in range(steps):
        clock.now = 1000 + 100 * step / steps
        passed += limits.take("app", rate) == 0
    assert 100 * rate - 1 <= passed <= 101 * rate + 1


def test_a_refused_request_gets_the_time_to_wait(tmp_path, clock):
    """After that time the next request is accepted, before it is not."""
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
    """Also with names that are not valid file names."""
    limits = RateLimits(tmp_path)
    names = ["app", "app2", "../../etc", "a" * 5000, "ü\n"]
    for name in names:
        assert limits.take(name, 1) == 0
        assert limits.take(name, 1) > 0
    assert len(list(tmp_path.iterdir())) == len(names)


def test_workers_count_together(tmp_path):
    """Four workers at once, each with its own open files, accept the rate together, not each."""
    until, passed = time.monotonic() + 1.5, []

    def take_often():
        limits = RateLimits(tmp_path)
        while time.monotonic() < until:
            passed.append(limits.take("app", 50) == 0)

    threads = [threading.Thread(target=take_often) for _ in range(4)]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lasted = time.monotonic() - began
    assert 50 <= sum(passed) <= 50 * (lasted + 1) * 1.1 + 1
    assert len(passed) > sum(passed)
