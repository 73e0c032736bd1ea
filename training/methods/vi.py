"""Mean-field variational inference: an independent normal for every parameter, fitted by stochastic gradients.

The objective is the evidence lower bound with a weight on its KL term (Blundell et al., 2015; β of Higgins et al., 2017):

    ELBO(q) = N · E_q[mean log p(y | x, θ)] − kl_weight · KL(q ‖ prior)

by NumPyro's SVI over minibatches, drawn by reshuffled epochs, all steps between two reports in one jitted scan.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
from jaxtyping import Array, Int, PRNGKeyArray
from numpyro.infer import SVI, TraceMeanField_ELBO

from models.posterior import Draws, Posterior
from training.bnn import BNN, Observations, Sites, as_draws, log_likelihood, network_start, numpyro_model, prior_sites
from training.config import VIConfig
from training.methods.form import Fitted, Progress

MONITOR_DRAWS = 10
MONITOR_ROWS = 5_000


def fit(
    key: PRNGKeyArray,
    bnn: BNN,
    train: Observations,
    monitor: Observations,
    settings: VIConfig,
    draws: int,
    progress: Progress,
) -> Fitted:
    """Draws from the fitted mean-field posterior; diagnostics hold the loss curve and the reports on the way."""
    key_start, key_svi, key_batches, key_reports, key_draws = jax.random.split(key, 5)
    start = jax.jit(partial(network_start, bnn))(key_start)
    svi = _svi(bnn, start, settings, len(train.y))
    state = jax.jit(svi.init)(key_svi, _batch(train, jnp.arange(min(settings.batch_size, len(train.y)))))

    @jax.jit
    def steps(state: Any, train: Observations, batches: Int[Array, "steps batch"]) -> tuple[Any, Array]:
        return jax.lax.scan(lambda state, rows: svi.update(state, _batch(train, rows)), state, batches)

    report = jax.jit(partial(_report, bnn))
    losses, reports, done = [], [], 0
    for batches in _batches(key_batches, len(train.y), settings):
        state, chunk = steps(state, train, batches)
        done += len(batches)
        losses.append(np.asarray(chunk))
        facts = report(jax.random.fold_in(key_reports, done), svi.get_params(state), _head(train), _head(monitor))
        reports.append({"step": done, **{name: float(value) for name, value in facts.items()}})
        progress(done, settings.steps, loss=float(chunk.mean()), **_shown(reports[-1]))

    sites = jax.jit(partial(sample_guide, bnn, draws=draws))(key_draws, svi.get_params(state))
    curve = np.concatenate(losses)
    diagnostics = {
        "loss_unit": "negative ELBO per training row, nats",
        "loss": [float(part.mean()) for part in np.array_split(curve, min(200, len(curve)))],
        "reports": reports,
    }
    return Fitted(Posterior(bnn.model, jax.device_get(as_draws(sites))), diagnostics)


def guide_sites(bnn: BNN, params: dict[str, Array]) -> dict[str, dist.Distribution]:
    """The guide's distribution of every site: normal, and log-normal for the noise."""
    kinds = {site: dist.LogNormal if site == "noise" else dist.Normal for site in prior_sites(bnn)}
    return {
        site: kind(params[f"{site}.loc"], params[f"{site}.scale"]).to_event(params[f"{site}.loc"].ndim)
        for site, kind in kinds.items()
    }


def sample_guide(bnn: BNN, key: PRNGKeyArray, params: dict[str, Array], draws: int) -> Sites:
    """Draws from the guide, sample axis 0."""
    sites = guide_sites(bnn, params)
    keys = jax.random.split(key, len(sites))
    return {site: law.sample(key, (draws,)) for key, (site, law) in zip(keys, sites.items(), strict=True)}


def _svi(bnn: BNN, start: Sites, settings: VIConfig, rows: int) -> SVI:
    """SVI on the negative weighted ELBO per training row: a scale on which one learning rate suits any data size.

    The weight is put on the latent sites of the model and of the guide alike; on one of them it would be another
    objective, or none at all.
    """

    def model(observations: Observations) -> None:
        with numpyro.handlers.scale(scale=1 / rows):
            numpyro_model(bnn, observations, rows, settings.kl_weight)

    def guide(_observations: Observations) -> None:
        params = _guide_params(bnn, start, settings.init_scale)
        with numpyro.handlers.scale(scale=settings.kl_weight / rows):
            for site, law in guide_sites(bnn, params).items():
                numpyro.sample(site, law)

    rate = (
        settings.learning_rate
        if settings.schedule == "constant"
        else optax.cosine_decay_schedule(settings.learning_rate, settings.steps)
    )
    return SVI(model, guide, optax.adam(rate), TraceMeanField_ELBO(num_particles=settings.particles))


def _guide_params(bnn: BNN, start: Sites, init_scale: float) -> dict[str, Array]:
    """Location and scale of every site, on the scale of the parameter (of its logarithm, for the noise)."""
    params: dict[str, Any] = {}
    for site in prior_sites(bnn):
        loc = jnp.log(start[site]) if site == "noise" else start[site]
        params[f"{site}.loc"] = numpyro.param(f"{site}.loc", loc)
        params[f"{site}.scale"] = numpyro.param(
            f"{site}.scale", jnp.full_like(loc, init_scale), constraint=dist.constraints.softplus_positive
        )
    return params


def _batch(observations: Observations, rows: Array) -> Observations:
    return Observations(observations.x[rows], observations.y[rows])


def _batches(key: PRNGKeyArray, rows: int, settings: VIConfig) -> Iterator[Int[np.ndarray, "steps batch"]]:
    """Row numbers of every step's minibatch, in one piece per report: epochs, each in a new order."""
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)).tolist())
    size = min(settings.batch_size, rows)
    waiting = np.empty(0, np.int32)
    for steps in _pieces(settings.steps, settings.reports):
        while len(waiting) < steps * size:
            waiting = np.concatenate([waiting, rng.permutation(rows).astype(np.int32)])
        now, waiting = waiting[: steps * size], waiting[steps * size :]
        yield now.reshape(steps, size)


def _pieces(total: int, pieces: int) -> list[int]:
    """`total` cut into at most `pieces` near-equal parts; at most two different sizes, hence two compilations."""
    size = -(-total // pieces)
    return [size] * (total // size) + ([total % size] if total % size else [])


def _head(observations: Observations) -> Observations:
    return Observations(observations.x[:MONITOR_ROWS], observations.y[:MONITOR_ROWS])


def _report(
    bnn: BNN, key: PRNGKeyArray, params: dict[str, Array], train: Observations, monitor: Observations
) -> dict[str, Array]:
    """Accuracy (or RMSE) of the mean prediction, log-likelihood a row, and the KL, of a few draws."""
    draws = as_draws(sample_guide(bnn, key, params, draws=MONITOR_DRAWS))
    facts = {"kl_divergence": kl_divergence(bnn, params)}
    for part, rows in (("train", train), ("test", monitor)):
        facts |= {f"{part}_{name}": value for name, value in _quality(bnn, draws, rows).items()}
    return facts


def kl_divergence(bnn: BNN, params: dict[str, Array]) -> Array:
    """KL(q ‖ prior) over the network's parameters, in nats, summed over all of them: the full KL, in closed form."""
    guide, prior = guide_sites(bnn, params), prior_sites(bnn)
    return sum(
        (dist.kl_divergence(guide[site], prior[site]) for site in prior if site != "noise"), start=jnp.float32(0)
    )


def _quality(bnn: BNN, draws: Draws, rows: Observations) -> dict[str, Array]:
    def of_draw(draw: Draws) -> tuple[Array, Array]:
        outputs = jax.vmap(lambda x: bnn.model.module.apply({"params": draw["network"]}, x))(rows.x)
        parts = jax.vmap(lambda out: bnn.model.law.predict(out, draw.get("noise", jnp.float32(0))))(outputs)
        return parts, log_likelihood(bnn.model, draw, rows)

    parts, log_probs = jax.lax.map(of_draw, draws)
    quality = {"log_likelihood": log_probs.mean()}
    if bnn.model.law.task == "classification":
        return quality | {"accuracy": (jnp.exp(parts).mean(axis=0).argmax(axis=-1) == rows.y).mean()}
    error = parts[..., 0].mean(axis=0) - rows.y
    return quality | {"rmse": jnp.sqrt((error**2).mean()) * bnn.model.preprocessing.target_scale}


def _shown(report: dict[str, float]) -> dict[str, float]:
    name = "test_accuracy" if "test_accuracy" in report else "test_rmse"
    return {name.removeprefix("test_"): report[name]}
