"""Processes of a test: finds the children of a process, and waits for conditions."""

import os
import signal
import time
from collections.abc import Callable

import psutil

PATIENCE = 300.0
"""Seconds that a test waits for what must happen: long, because a loaded machine is slow and a passing test waits no longer
than it has to."""


def children(pid: int) -> set[int]:
    """The running processes that a process has started."""
    try:
        return alive({child.pid for child in psutil.Process(pid).children()})
    except psutil.NoSuchProcess:
        return set()


def alive(pids: set[int]) -> set[int]:
    """The processes that still run."""
    running = set()
    for pid in pids:
        try:
            if psutil.Process(pid).status() not in {psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD}:
                running.add(pid)
        except psutil.NoSuchProcess:
            continue
    return running


def kill_all(workers: set[int]) -> None:
    """Ends processes that a failed test has left."""
    for worker in alive(workers):
        os.kill(worker, signal.SIGKILL)


def until(condition: Callable[[], object], seconds: float = PATIENCE) -> bool:
    """Waits for a condition; returns whether it is true before the deadline."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def wait_for(condition: Callable[[], bool], seconds: float = PATIENCE) -> None:
    """Waits for a condition, and asserts it."""
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert condition()
