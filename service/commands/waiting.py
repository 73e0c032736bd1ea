"""`abstain label --wait` and `abstain rollback --wait`: waits until a running server serves what its store asks for."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable

from abstain.models.errors import AbstainError, ConfigError
from abstain.service.client.client import Client
from abstain.service.commands.predict_url import KEY

LOOK_SECONDS = 0.2
"""The time between two requests, in seconds."""


def check_urls(urls: Iterable[str] | None) -> None:
    """Checks the URLs and the key of servers, before anything is changed.

    Raises:
        ConfigError: one is invalid.
    """
    for url in urls or ():
        Client(url, os.environ.get(KEY) or None).close()


def wait_until_served(url: str, name: str, label: str, version: int, seconds: float) -> None:
    """Waits until a server serves a version by a label; its workers change in one step, so one response is enough.

    Args:
        url: the server.
        seconds: the longest time to wait.

    Raises:
        ConfigError: the server did not follow in time; the error has its reasons.
    """
    deadline = time.monotonic() + seconds
    with Client(url, os.environ.get(KEY) or None, retries=0) as client:
        while True:
            found, failure = None, None
            try:
                found = client.model(f"{name}@{label}").version
                if found == version:
                    return
            except AbstainError as error:
                failure = str(error)
            if time.monotonic() >= deadline:
                break
            time.sleep(LOOK_SECONDS)
        reasons = _reasons(client, name, version)
    raise ConfigError(
        "the server does not follow",
        where=url,
        expected=f"{name}@{label} as {name}:{version} within {seconds:g} s",
        found=f"{name}:{found}" if found else failure,
        fix=reasons or "check that this server has the same store, and ABSTAIN_REFRESH_SECONDS above 0",
    )


def _reasons(client: Client, name: str, version: int) -> str | None:
    """Returns what the server says of the version; None if it says nothing."""
    try:
        states = [state for state in client.models() if (state.name, state.version) == (name, version)]
    except AbstainError:
        return None
    return next((f"its state is {state.state}: {state.why}" for state in states if state.why), None)
