"""Running statistics of batch normalisation as fixed numbers beside the parameters, for imported networks.

Flax keeps running means and variances in a collection of its own, `batch_stats`. A trained network has them once and for
all, and each draw of an ensemble has its own. So a draw holds them as a branch of its parameters, with the collection's
name. Only an import makes such draws: inference would take the branch for parameters.
"""

from __future__ import annotations

from typing import Any

STATISTICS = "batch_stats"
"""Flax's name of the collection, and of the branch of a draw's parameters."""


def fold(variables: dict[str, Any]) -> dict[str, Any]:
    """Moves the collection of running statistics, if there is one, into the parameters."""
    rest = {name: tree for name, tree in variables.items() if name not in {"params", STATISTICS}}
    parameters = dict(variables.get("params", {}))
    if STATISTICS in variables:
        parameters[STATISTICS] = variables[STATISTICS]
    return {"params": parameters, **rest}


def unfold(variables: dict[str, Any]) -> dict[str, Any]:
    """Moves the branch of running statistics, if there is one, out of the parameters."""
    parameters = dict(variables["params"])
    statistics = parameters.pop(STATISTICS, None)
    return {**variables, "params": parameters} | ({} if statistics is None else {STATISTICS: statistics})
