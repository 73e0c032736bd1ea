"""Chooses network, prior and method for a number of rows.

The choices were made by the log-likelihood of calibration rows, `python -m benchmarks.init_methods`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

FEW_ROWS, MANY_ROWS = 500, 10_000
"""Rows with a target, below which the prior counts more, and from which networks are larger and starts fewer."""


class Fitting(NamedTuple):
    """The network's hidden layers, and the settings of `[prior]` and `[method]` with their reasons."""

    hidden: tuple[int, ...]
    prior: dict[str, tuple[Any, str]]
    method: dict[str, tuple[Any, str]]
    duration: str


def choose_fitting(rows: int, *, classify: bool) -> Fitting:
    """Chooses network and method for a number of rows that have a target, a class or a number."""
    if rows < FEW_ROWS:
        hidden, starts, duration = (32,), 5, "half a minute"
        # With less weight the guide of a number overfits; with fewer steps it is still too wide, and predicts worse than its mode.
        steps, kl_weight = (3_000, 0.1) if classify else (8_000, 0.3)
    elif rows < MANY_ROWS:
        hidden, starts, steps, kl_weight, duration = (64,), 5, 3_000, 0.1, "half a minute"
    else:
        hidden, starts, steps, kl_weight, duration = (64, 64), 3, 8_000, 0.1, "two minutes"
    weight = "how much the prior counts; 1 is Bayes' rule, less often trains better"
    if kl_weight > 0.1:
        weight += ", and much less overfits few rows"
    return Fitting(
        hidden,
        {"fan_in": (True, "standard deviation 1 / √inputs")},
        {
            "kind": ("vi", "variational inference: fast on any number of rows"),
            "starts": (starts, "fits from random starts; their draws are pooled"),
            "steps": (steps, "gradient steps of each"),
            "learning_rate": (0.003, ""),
            "kl_weight": (kl_weight, weight),
        },
        duration,
    )
