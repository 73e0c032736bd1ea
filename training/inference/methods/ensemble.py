"""A deep ensemble (Lakshminarayanan et al., 2017): a posterior mode from each of several starts, one draw each."""

from __future__ import annotations

import numpy as np
from jaxtyping import PRNGKeyArray

from abstain.models.prediction.posterior import Posterior
from abstain.training.config.methods import EnsembleConfig
from abstain.training.inference.mode_search import find_modes
from abstain.training.inference.optimization import summarize_descent
from abstain.training.inference.problem import Fitted, Problem
from abstain.training.inference.records import EnsembleDiagnostics
from abstain.training.runs.journal import Journal


def fit(key: PRNGKeyArray, problem: Problem, settings: EnsembleConfig, draws: int, journal: Journal) -> Fitted:
    """Finds the members' modes, one draw each; `draws` is ignored."""
    del draws
    modes, traces = find_modes(key, problem, settings, settings.members, journal, settings.chain_method)
    diagnostics = EnsembleDiagnostics(summarize_descent(traces), settings.members)
    return Fitted(Posterior(problem.bnn.model, problem.bnn.draws(np.asarray(modes))), diagnostics)
