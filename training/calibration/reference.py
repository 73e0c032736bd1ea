"""Reference rows: training rows that feature scores are not fitted to, and that map each score to evidence.

They are not calibration rows: an evidence map from calibration rows would depend on the rows among which the combined
evidence is then ranked (`models/decisions/decision.py`).
"""

from __future__ import annotations

import numpy as np

from abstain.training.data.rows import Rows

SHARE = 0.1
"""The share of the training rows that are reference rows …"""
FEWEST = 64
"""… but no fewer than this, …"""
MOST = 1_000
"""… no more than this, …"""
MOST_SHARE = 0.2
"""… and never more than this share."""


def set_aside(rows: Rows, seed: int) -> tuple[Rows, Rows]:
    """Splits rows at random into the reference rows, at least one, and the rest.

    Args:
        rows: at least two.
    """
    count = min(max(round(SHARE * len(rows)), FEWEST), MOST, int(MOST_SHARE * len(rows)))
    order = np.random.default_rng([seed, 7]).permutation(len(rows))
    indices = np.sort(order[: max(count, 1)]), np.sort(order[max(count, 1) :])
    return rows.take(indices[0]), rows.take(indices[1])
