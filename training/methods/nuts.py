"""The No-U-Turn sampler (Hoffman & Gelman, 2014) by NumPyro, on the whole training set.

Chains start at different initialisations of the network and run in lockstep, in blocks of one compiled scan, so that
progress can be shown and a block's compilation is reused.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray
from numpyro.infer import NUTS
from numpyro.infer.util import unconstrain_fn

from models.posterior import Draws, Posterior
from training.bnn import BNN, Observations, Sites, as_draws, network_start, numpyro_model
from training.config import NUTSConfig
from training.diagnostics import chain_diagnostics
from training.methods.form import Fitted, Progress


def fit(
    key: PRNGKeyArray,
    bnn: BNN,
    train: Observations,
    monitor: Observations,
    settings: NUTSConfig,
    draws: int,
    progress: Progress,
) -> Fitted:
    """`draws` draws, evenly thinned from all chains; diagnostics are of all samples, before thinning."""
    key_starts, key_chains = jax.random.split(key)
    model = partial(numpyro_model, bnn)

    def start(key: PRNGKeyArray) -> Sites:
        return unconstrain_fn(model, (train,), {}, network_start(bnn, key))

    starts = jax.jit(jax.vmap(start))(jax.random.split(key_starts, settings.chains))
    kernel = NUTS(model, target_accept_prob=settings.target_acceptance, max_tree_depth=settings.max_tree_depth)
    keys = jax.random.split(key_chains, settings.chains)

    def init(keys: Array, starts: Sites, train: Observations) -> Any:
        return kernel.init(keys, settings.warmup, init_params=starts, model_args=(train,))

    state = jax.jit(init)(keys, starts, train)

    total = settings.warmup + settings.samples
    size = -(-total // settings.reports)

    @jax.jit
    def block(state: Any, train: Observations) -> tuple[Any, Any]:
        def step(state: Any, _: None) -> tuple[Any, Any]:
            state = kernel.sample(state, (train,), {})
            return state, (state.z, state.diverging, state.num_steps, state.accept_prob)

        return jax.lax.scan(step, state, None, length=size)

    kept = []
    for start in range(0, total, size):
        state, trace = block(state, train)
        # Every block has one length, for one compilation; steps before the warm-up's end or past the total are cut.
        first, last = max(settings.warmup - start, 0), total - start
        kept.append(jax.device_get(jax.tree.map(lambda leaf, first=first, last=last: leaf[first:last], trace)))
        facts = {"acceptance": float(trace[3].mean()), "divergences": float(trace[1].sum())}
        progress(min(start + size, total), total, **facts)

    z, diverging, leapfrogs, acceptance = jax.tree.map(lambda *parts: np.concatenate(parts), *kept)
    chains = _constrained(kernel.postprocess_fn((train,), {}), z)
    diagnostics = chain_diagnostics(bnn.model, chains, monitor) | {
        "chains": settings.chains,
        "divergences": int(diverging.sum()),
        "acceptance": float(acceptance.mean()),
        "leapfrogs_per_sample": float(leapfrogs.mean()),
        "max_tree_depth_hits": int((leapfrogs >= 2**settings.max_tree_depth - 1).sum()),
        "step_size": np.asarray(state.adapt_state.step_size).tolist(),
    }
    return Fitted(Posterior(bnn.model, thin(chains, draws)), diagnostics)


def thin(chains: Draws, draws: int) -> Draws:
    """`draws` draws at even distances over all chains, one chain after the other; all there are if they are fewer."""
    flat = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), chains)
    present = jax.tree.leaves(flat)[0].shape[0]
    kept = np.linspace(0, present - 1, min(draws, present)).round().astype(int)
    return jax.tree.map(lambda leaf: np.ascontiguousarray(leaf[kept]), flat)


def _constrained(postprocess: Any, z: dict[str, np.ndarray]) -> Draws:
    """Unconstrained samples `[samples, chains, …]` as draws `[chains, samples, …]`."""
    sites = jax.jit(jax.vmap(jax.vmap(postprocess)))(jax.tree.map(jnp.asarray, z))
    return as_draws({site: np.asarray(leaf, np.float32).swapaxes(0, 1) for site, leaf in sites.items()})
