"""The steps of every sampler: starts → chains → diagnostics → draws."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray

from abstain.models.bundles.shortfalls import Shortfall
from abstain.models.errors import ConfigError
from abstain.models.prediction.posterior import Posterior
from abstain.training.config.methods import ChainSettings
from abstain.training.inference.chains import Kernel, sample_chains
from abstain.training.inference.diagnostics import FUNCTION_ROWS, chain_diagnostics, chain_shortfalls, function_values
from abstain.training.inference.problem import Fitted, Problem
from abstain.training.inference.records import SamplingDiagnostics
from abstain.training.inference.starts import find_starts
from abstain.training.runs.failures import Failure, attempt
from abstain.training.runs.journal import Journal
from abstain.training.runs.progress import stage


def fit_by_chains(
    key: PRNGKeyArray, kernel: Kernel, problem: Problem, settings: ChainSettings, draws: int, journal: Journal
) -> Fitted:
    """Samples chains with a kernel and thins them evenly to `draws` draws; diagnostics use all samples.

    Raises:
        ConfigError: there are fewer samples than draws.
        FitError: the posterior density at the start of a chain is zero.
    """
    if draws > settings.chains * settings.samples:
        raise ConfigError(
            "draws",
            expected=f"at most chains × samples = {settings.chains * settings.samples}",
            found=draws,
            fix="raise method.samples, or lower draws",
        )
    key_starts, key_chains = jax.random.split(key)
    first = find_starts(key_starts, problem, settings, settings.chains, journal)
    # For every sample, the predictions at the first diagnostic rows are recorded with its position.
    watch = partial(function_values, problem.bnn, x=jnp.asarray(problem.diagnostic_rows.x[:FUNCTION_ROWS]))
    chains = sample_chains(key_chains, kernel, problem.target, problem.train, first, settings, journal, watch)
    tuning = {name: np.asarray(value).tolist() for name, value in kernel.tuning(chains.state).items()}
    posterior = Posterior(problem.bnn.model, problem.bnn.draws(chains.thinned_positions(draws)))
    mode = problem.bnn.draws(np.asarray(first)) if settings.start == "map" else None
    with stage(journal.progress, "diagnostics"):
        diagnostics = attempt(
            "the diagnostics of the chains", lambda: chain_diagnostics(problem.target, chains, settings), []
        )
    if isinstance(diagnostics, Failure):
        # Chains without diagnostics cannot be relied on, so this is a shortfall; a missing picture is only a note.
        shortfalls = (Shortfall("unchecked_chains", diagnostics.sentence),)
        return Fitted(posterior, SamplingDiagnostics(None, tuning), shortfalls, chains=chains, mode=mode)
    shortfalls = chain_shortfalls(diagnostics)
    return Fitted(posterior, SamplingDiagnostics(diagnostics, tuning), shortfalls, chains=chains, mode=mode)
