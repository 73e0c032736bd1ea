"""Reference rows: training rows that the densities are not fitted on, and that fix what each score is worth as evidence.

They are not calibration rows: an evidence map made from calibration rows would depend on the very rows that the combined
evidence is then ranked among (`models/decisions/decision.py`).
"""

from __future__ import annotations

import numpy as np

from abstain.training.data.rows import Rows

SHARE = 0.1
"""Of the training rows, that are reference rows …"""
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
    places = np.sort(order[: max(count, 1)]), np.sort(order[max(count, 1) :])
    return rows.take(places[0]), rows.take(places[1])
