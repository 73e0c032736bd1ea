"""Variational inference: a normal over the unconstrained parameters, fitted by stochastic gradients.

The guides and their objective are in `training/inference/guides.py`. Several guides may be fitted from different starts,
and their draws pooled.
"""

from __future__ import annotations

import jax
import numpy as np
from jaxtyping import Array, PRNGKeyArray

from abstain.models.prediction.posterior import Posterior
from abstain.training.config.methods import VIConfig
from abstain.training.inference.bnn import Observations
from abstain.training.inference.diagnostics import K_HAT_LIMIT, arviz
from abstain.training.inference.guides import Guide, fit_guides, guide_distribution, sample_guides
from abstain.training.inference.problem import Fitted, Problem
from abstain.training.inference.records import VIDiagnostics
from abstain.training.inference.starts import find_starts
from abstain.training.runs.journal import Journal
from abstain.training.runs.progress import stage

K_HAT_DRAWS = 400
LARGEST_LOG = 600.0
K_HAT_WORK = 2e11
"""The largest cost (draws × rows × parameters) at which k-hat is computed."""


def fit(key: PRNGKeyArray, problem: Problem, settings: VIConfig, draws: int, journal: Journal) -> Fitted:
    """Fits guides and pools their draws; diagnostics hold loss curve, reports and k-hat."""
    key_start, key_fit, key_draws, key_k = jax.random.split(key, 4)
    locs = find_starts(key_start, problem, settings, settings.starts, journal)
    guides, descent = fit_guides(key_fit, problem, locs, settings, journal)
    zs = sample_guides(key_draws, guides, draws)
    with stage(journal.progress, "diagnostics"):
        shape = k_hat(key_k, problem, guides, settings)
    diagnostics = VIDiagnostics(descent, settings.starts, shape if shape is not None and np.isfinite(shape) else None)
    posterior = Posterior(problem.bnn.model, problem.bnn.draws(np.asarray(zs)))
    return Fitted(posterior, diagnostics, notes=k_hat_note(shape), mode=problem.bnn.draws(np.asarray(guides["loc"])))


def k_hat(key: PRNGKeyArray, problem: Problem, guides: Guide, settings: VIConfig) -> float | None:
    """Returns the Pareto shape of the importance ratios of a guide to its target (Yao et al., 2018): the worst over guides.

    Below 0.7 the weighted draws would give the posterior's expectations. In a network's parameter space it is rarely
    that low, even with good predictions. None if it would cost too much; infinite if one draw has all the weight.
    """
    target, rows = problem.target, problem.train
    if K_HAT_DRAWS * len(rows.y) * target.dim > K_HAT_WORK:
        return None

    @jax.jit
    def ratios(key: PRNGKeyArray, guide: Guide, rows: Observations) -> Array:
        q = guide_distribution(guide)

        def of_draw(z: Array) -> Array:
            likelihood = target.total_log_likelihood(target.constrain(z), rows)
            return likelihood / settings.kl_weight + target.log_prior(z) - q.log_prob(z)

        return jax.lax.map(of_draw, q.sample(key, (K_HAT_DRAWS,)))

    starts = jax.tree.leaves(guides)[0].shape[0]
    worst = -np.inf
    for index in range(starts):
        guide = jax.tree.map(lambda leaf, index=index: leaf[index], guides)
        log_ratios = np.asarray(ratios(jax.random.fold_in(key, index), guide, rows), np.float64)
        # If a few draws have all the weight in float64, there is no tail to fit a shape to.
        tail = np.sort(log_ratios)[-K_HAT_DRAWS // 5 :]
        has_tail = np.isfinite(log_ratios).all() and tail[-1] - tail[0] < LARGEST_LOG
        # ArviZ weights by the reciprocals of likelihoods, so the log ratios are negated.
        worst = max(worst, float(arviz.psislw(-log_ratios)[1]) if has_tail else np.inf)
    return worst


def k_hat_note(value: float | None) -> tuple[str, ...]:
    """Returns a note if k-hat is above its limit."""
    if value is None or value <= K_HAT_LIMIT:
        return ()
    return (
        f"the guide is not close to the posterior of the parameters: k-hat is {value:.2f}, above {K_HAT_LIMIT}; "
        "its predictions may still be good",
    )
