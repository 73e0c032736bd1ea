"""Guides, the normals that variational inference fits to a posterior, and their objective.

mean_field   independent: N(m, diag s²)
low_rank     N(m, diag s² + F Fᵀ), F of a few columns (Ong et al., 2018)
full_rank    N(m, L Lᵀ), L lower triangular; for networks of up to a few thousand parameters

The objective is the evidence lower bound with a weight on its KL term (Blundell et al., 2015; β of Higgins et al., 2017):

    ELBO(q) = N · E_q[mean log p(y | x, θ)] − kl_weight · KL(q ‖ prior),   KL = −H(q) − E_q[log prior]

The entropy H is exact. E_q[log prior] is exact for normal priors, because it needs only the guide's means and variances;
for other priors it is the mean over the gradient's draws. A weight w < 1 fits q to the colder posterior
p(y | x, θ)^(1/w) p(θ).
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, Float, PRNGKeyArray

from abstain.models.errors import ConfigError
from abstain.training.config.methods import VIConfig
from abstain.training.inference.bnn import Observations
from abstain.training.inference.optimization import DescentRows, Objective, descend, summarize_descent
from abstain.training.inference.problem import Problem
from abstain.training.inference.records import DescentDiagnostics
from abstain.training.inference.target import Target
from abstain.training.inference.tracking import TrackedRows, progress_report, tracked_training_rows
from abstain.training.runs.journal import Journal

PROGRESS_DRAWS = 10
Guide = dict[str, Array]
"""The optimised parameters of a guide."""
FULL_RANK_LIMIT = 5_000
"""The largest number of parameters for full_rank: L takes 100 MB at this size, three times that with Adam."""


def guide_at(loc: Float[Array, " dim"], settings: VIConfig) -> Guide:
    """Returns a guide with mean `loc` and standard deviations `init_scale`, without correlations."""
    raw = jnp.full_like(loc, inverse_softplus(settings.init_scale))
    match settings.family:
        case "mean_field":
            return {"loc": loc, "raw_scale": raw}
        case "low_rank":
            # Not zero, because the gradient of F would be zero too; small compared with the diagonal.
            factor = jax.random.normal(jax.random.key(0), (loc.size, settings.rank))
            return {"loc": loc, "raw_scale": raw, "factor": factor * settings.init_scale / 10 / settings.rank**0.5}
        case "full_rank":
            return {"loc": loc, "raw_scale": raw, "below": jnp.zeros((loc.size, loc.size))}


def guide_distribution(guide: Guide) -> dist.Distribution:
    """Returns the guide's distribution."""
    scale = jax.nn.softplus(guide["raw_scale"])
    if "factor" in guide:
        return dist.LowRankMultivariateNormal(guide["loc"], guide["factor"], scale**2)
    if "below" in guide:
        # The rows of L are in units of their diagonal, so that one learning rate suits wide and narrow parameters.
        lower = scale[:, None] * (jnp.tril(guide["below"], -1) + jnp.eye(scale.size))
        return dist.MultivariateNormal(guide["loc"], scale_tril=lower)
    return dist.Normal(guide["loc"], scale).to_event(1)


def inverse_softplus(value: float) -> Array:
    """Inverts the softplus function."""
    return jnp.log(jnp.expm1(value))


def fit_guides(
    key: PRNGKeyArray,
    problem: Problem,
    locs: Float[Array, "starts dim"],
    settings: VIConfig,
    journal: Journal,
    name: str = "vi",
) -> tuple[Guide, DescentDiagnostics]:
    """Fits a guide from each start (leading axis); returns also the loss curve and the reports.

    Raises:
        ConfigError: `full_rank` over too many parameters.
    """
    target, rows = problem.target, len(problem.train.y)
    if settings.family == "full_rank" and target.dim > FULL_RANK_LIMIT:
        raise ConfigError(
            "method.family",
            expected=f"at most {FULL_RANK_LIMIT} parameters for full_rank",
            found=target.dim,
            fix='use "low_rank"',
        )

    def loss(guide: Guide, key: PRNGKeyArray, batch: Observations) -> Array:
        zs = jnp.asarray(guide_distribution(guide).sample(key, (settings.particles,)))
        fitted = jax.vmap(lambda z: target.log_likelihood(target.constrain(z), batch).mean())(zs).mean()
        return -fitted + settings.kl_weight / rows * kl_divergence(target, guide, zs)

    def report(guide: Guide, key: PRNGKeyArray, tracked_rows: TrackedRows) -> dict[str, Array]:
        zs = jnp.asarray(guide_distribution(guide).sample(key, (PROGRESS_DRAWS,)))
        return progress_report(problem.bnn, zs, tracked_rows) | {"kl_divergence": kl_divergence(target, guide, zs)}

    start = jax.jit(jax.vmap(lambda loc: guide_at(loc, settings)))(locs)
    guides, traces = descend(
        name,
        key,
        start,
        Objective(loss, report, augment=problem.augment),
        DescentRows(problem.train, tracked_training_rows(problem)),
        settings,
        journal,
        settings.chain_method,
    )
    return guides, summarize_descent(traces, "negative ELBO per training row, nats")


def kl_divergence(target: Target, guide: Guide, zs: Float[Array, "draws dim"]) -> Float[Array, ""]:
    """Computes KL(q ‖ prior) in nats, over all parameters; exact for normal priors, else estimated from the draws `zs`."""
    q = guide_distribution(guide)
    mean, variance = guide["loc"], jnp.asarray(q.variance)
    expected = jnp.float32(0)
    for site in target.sites:
        part = slice(site.first, site.last)
        prior: Any = site.prior.base_dist if isinstance(site.prior, dist.ExpandedDistribution) else site.prior
        if site.is_real and isinstance(prior, dist.Normal):
            loc, scale = jnp.asarray(prior.loc), jnp.asarray(prior.scale)
            spread = (mean[part].reshape(site.shape) - loc) ** 2 + variance[part].reshape(site.shape)
            expected -= (0.5 * spread / scale**2 + jnp.log(scale) + 0.5 * jnp.log(2 * jnp.pi)).sum()
        else:
            expected += jax.vmap(lambda z, part=part, site=site: site.log_prior(z[part]))(zs).mean()
    return -q.entropy() - expected


def sample_guides(key: PRNGKeyArray, guides: Guide, draws: int) -> Float[Array, "draws dim"]:
    """Pools draws of all guides in nearly equal numbers, one guide after the other."""
    starts = jax.tree.leaves(guides)[0].shape[0]
    each = -(-draws // starts)
    keys = jax.random.split(key, starts)
    zs = jax.jit(jax.vmap(lambda key, guide: guide_distribution(guide).sample(key, (each,))))(keys, guides)
    flat = zs.reshape(-1, zs.shape[-1])
    return flat[np.linspace(0, len(flat) - 1, draws).round().astype(int)]
