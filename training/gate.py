"""The gate: what a fit lacks to be relied on, in plain words.

Chains say for themselves where they fall short (`diagnostics.chain_shortfalls`); here it is the predictions: a fit that
has learned nothing, and a decision that can never reject.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from jaxtyping import Num

from models.calibration import Calibration

ENOUGH_DRAWS = 20
CONSTANT_DECISION = "its decision score, "
"""How the shortfall begins that another calibration may mend."""
NOT_FINITE = "metrics on the test part that are not finite: "


def draws_notes(draws: int) -> tuple[str, ...]:
    """What there is to say of few draws."""
    if draws >= ENOUGH_DRAWS:
        return ()
    kept = "one draw is kept, which has no spread" if draws == 1 else f"only {draws} draws are kept"
    return (f"{kept}: standard deviations and mutual information are as coarse as that",)


def prediction_shortfalls(
    metrics: dict[str, Any], y: Num[np.ndarray, " rows"], calibration: Calibration
) -> tuple[str, ...]:
    """What the predictions lack.

    Args:
        metrics: on the test part.
        y: the test part's targets: class indices, or numbers.
    """
    said = []
    if "accuracy" in metrics:
        commonest = float(np.bincount(y.astype(int)).max() / len(y))
        if metrics["accuracy"] <= commonest:
            said.append(
                f"it has learned nothing: its accuracy on the test part is {metrics['accuracy']:.3f}, and always saying "
                f"the commonest class gives {commonest:.3f}; lower kl_weight or the prior's scale, or train longer"
            )
    elif metrics["rmse"] >= float(np.std(y)):
        said.append(
            f"it has learned nothing: its RMSE on the test part is {metrics['rmse']:.3g}, and always saying the mean "
            f"gives {float(np.std(y)):.3g}; lower kl_weight or the prior's scale, or train longer"
        )
    return (*said, *decision_shortfalls(calibration))


def metric_shortfalls(metrics: dict[str, Any]) -> tuple[str, ...]:
    """Which metrics are no numbers: a fit that publishes them must say so."""
    broken = [name for name, value in metrics.items() if isinstance(value, float) and not math.isfinite(value)]
    if not broken:
        return ()
    return (f"{NOT_FINITE}{', '.join(broken)}; check the scale of the data and of the predictions",)


def decision_shortfalls(calibration: Calibration) -> tuple[str, ...]:
    """What the decision lacks."""
    name = calibration.decision.name
    scores = calibration.ascending[name]
    if scores[0] < scores[-1]:
        return ()
    return (
        f"{CONSTANT_DECISION}{name}, is the same for every calibration row ({scores[0]:.3g}), so "
        "that it tells nothing apart: one draw has no spread; choose another decision, or a method with more draws",
    )
