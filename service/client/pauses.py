"""How long a client waits before it sends a request again."""

from __future__ import annotations

import random
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

FIRST_WAIT, LONGEST_WAIT = 0.1, 8.0


def backoff(attempt: int) -> float:
    """Returns the seconds to wait after the attempt with this number, from 0."""
    return min(FIRST_WAIT * 2**attempt, LONGEST_WAIT) * random.uniform(0.5, 1)  # noqa: S311 - not a secret


def stated_pause(retry_after: str) -> float | None:
    """Returns the seconds that the header `Retry-After` states, as a number or as a date (RFC 9110, 10.2.3); None for neither."""
    text = retry_after.strip()
    if text.isascii() and text.isdigit() and len(text) < 10:
        return float(text)
    try:
        date = parsedate_to_datetime(text)
    except (ValueError, TypeError):
        return None
    date = date if date.tzinfo else date.replace(tzinfo=UTC)
    return max(0.0, (date - datetime.now(UTC)).total_seconds())
