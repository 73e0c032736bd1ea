"""Mean acceptance after the warm-up, for several targets, dimensions and warm-up lengths.

    .venv/bin/python benchmarks/adaptation.py [--keys 12] [--kinds hmc nuts chees]

Each cell is the mean over independent keys of the acceptance after the warm-up, and in brackets the standard deviation
between keys. The target is a normal with standard deviations between 0.1 and 1.
"""

from __future__ import annotations

import argparse
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

from abstain.training.config.methods import ChEESConfig, HMCConfig, NUTSConfig
from abstain.training.inference.methods import chees, hmc, nuts
from abstain.training.inference.target import Target

KINDS: dict[str, tuple[Any, Any]] = {
    "hmc": (hmc.kernel, HMCConfig),
    "nuts": (nuts.kernel, NUTSConfig),
    "chees": (chees.kernel, ChEESConfig),
}
TARGETS, DIMENSIONS, WARMUPS = (0.6, 0.8, 0.9), (2, 10, 50), (100, 300, 1000)
CHAINS, SAMPLES = 8, 200


def acceptance(kind: str, target: float, dim: int, warmup: int, keys: int) -> np.ndarray:
    """Returns the mean acceptance after the warm-up for each key, over `CHAINS` chains."""
    make, config = KINDS[kind]
    posterior = Target({"z": dist.Normal(0, jnp.geomspace(0.1, 1, dim))}, lambda _, data: data, {"z": (dim,)})
    kernel = make(posterior, config(chains=CHAINS, warmup=warmup, target_acceptance=target))

    def run(key: Any, data: Any) -> Any:
        """Returns the acceptance of all chains of one key."""
        key_start, key_chains = jax.random.split(key)
        starts = jax.vmap(posterior.sample_prior)(jax.random.split(key_start, CHAINS))
        keys = jax.random.split(key_chains, CHAINS)
        if kernel.lockstep:
            return chain(keys, starts, data)
        return jax.vmap(chain, in_axes=(0, 0, None))(keys, starts, data)

    def chain(key: Any, start: Any, data: Any) -> Any:
        """Runs the warm-up and the samples; returns the mean acceptance."""
        state = kernel.init(key, start, data)
        state, _ = jax.lax.scan(lambda state, _: kernel.warm(state, data), state, None, length=warmup)
        _, info = jax.lax.scan(lambda state, _: kernel.step(state, data), kernel.settle(state), None, length=SAMPLES)
        return info["acceptance"].mean()

    return (
        np.asarray(jax.jit(jax.vmap(run, in_axes=(0, None)))(jax.random.split(jax.random.key(0), keys), jnp.zeros(1)))
        .reshape(keys, -1)
        .mean(axis=1)
    )


def main() -> None:
    """Prints one table for each sampler."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keys", type=int, default=12)
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--warmups", nargs="+", type=int, default=WARMUPS)
    arguments = parser.parse_args()
    for kind in arguments.kinds:
        print(f"\n{kind}: acceptance reached, mean (std) over {arguments.keys} keys")
        print("| target | dimensions | " + " | ".join(f"warm-up {warmup}" for warmup in arguments.warmups) + " |")
        print("|---|---|" + "---|" * len(arguments.warmups))
        for target in TARGETS:
            for dim in DIMENSIONS:
                acceptances = [acceptance(kind, target, dim, warmup, arguments.keys) for warmup in arguments.warmups]
                cells = " | ".join(f"{values.mean():.3f} ({values.std(ddof=1):.3f})" for values in acceptances)
                print(f"| {target} | {dim} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
