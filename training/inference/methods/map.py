"""The posterior mode (maximum a posteriori) by stochastic gradients: a deterministic network, one draw."""

from __future__ import annotations

import numpy as np
from jaxtyping import PRNGKeyArray

from abstain.models.prediction.posterior import Posterior
from abstain.training.config.methods import MAPConfig
from abstain.training.inference.mode_search import find_modes
from abstain.training.inference.optimization import summarize_descent
from abstain.training.inference.problem import Fitted, Problem
from abstain.training.runs.journal import Journal


def fit(key: PRNGKeyArray, problem: Problem, settings: MAPConfig, draws: int, journal: Journal) -> Fitted:
    """Finds the mode, a posterior of one draw; `draws` is ignored."""
    del draws
    modes, traces = find_modes(key, problem, settings, 1, journal)
    return Fitted(Posterior(problem.bnn.model, problem.bnn.draws(np.asarray(modes))), summarize_descent(traces))
