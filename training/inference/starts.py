"""The starts of chains and guides.

network         initialisations of the network
prior           draws from the prior, one for each chain
overdispersed   prior draws multiplied by a factor, so that R-hat compares distant chains (Gelman & Rubin, 1992)
map             posterior modes, each the best iterate by held-out log-likelihood
vi              draws from a mean-field fit
run             evenly spaced draws of an earlier run
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from abstain.models.errors import ConfigError
from abstain.training.config.methods import ChainSettings, VIConfig
from abstain.training.inference.guides import fit_guides, sample_guides
from abstain.training.inference.mode_search import find_modes
from abstain.training.inference.problem import Problem
from abstain.training.runs.journal import Journal


def find_starts(
    key: PRNGKeyArray, problem: Problem, settings: ChainSettings | VIConfig, count: int, journal: Journal
) -> Float[Array, "count dim"]:
    """Finds `count` vectors to start from.

    Raises:
        ConfigError: `start` is "run" and no earlier run is named.
    """
    target, keys = problem.target, jax.random.split(key, count)
    match settings.start:
        case "network":
            return jax.jit(jax.vmap(problem.bnn.start))(keys)
        case "prior":
            return jax.jit(jax.vmap(target.sample_prior))(keys)
        case "overdispersed":
            return settings.overdispersion * jax.jit(jax.vmap(target.sample_prior))(keys)
        case "map":
            return find_modes(key, problem, settings.map, count, journal, settings.chain_method)[0]
        case "vi":
            key_start, key_fit, key_draws = jax.random.split(key, 3)
            locs = find_starts(key_start, problem, settings.vi, settings.vi.starts, journal)
            guides, _ = fit_guides(key_fit, problem, locs, settings.vi, journal)
            return sample_guides(key_draws, guides, count)
        case "run":
            return _starts_from_earlier_run(problem, count)


def _starts_from_earlier_run(problem: Problem, count: int) -> Float[Array, "count dim"]:
    if problem.earlier is None:
        raise ConfigError("method.start_from", expected='NAME:VERSION, because start = "run"', found="nothing")
    size = jax.tree.leaves(problem.earlier)[0].shape[0]
    indices = np.linspace(0, size - 1, count).round().astype(int)
    chosen: Any = jax.tree.map(lambda leaf: jnp.asarray(leaf[indices]), problem.earlier)
    return jax.jit(jax.vmap(problem.bnn.vector))(chosen)
