"""`make bench`: what one compiled call of an ensemble costs, beside what one would write without thought.

    packed   models.predictive: draws next to the output axis, one matrix product a layer
    vmap     jax.vmap over draws stored sample-first
    loop     one jitted network, a Python loop over draws

One process, one posterior of random draws, calls interleaved; the median over rounds and the spread between quartiles.
Ratios are of the medians of the same run. Answers are compared before anything is timed.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orjson

from models.networks import MLPSpec
from models.posterior import Model, Posterior
from models.predictive import Predictor, predict_draw
from models.preprocessing import Preprocessing
from models.summaries import summarise_classification

RESULTS = Path(__file__).resolve().parent / "results"
NETWORKS = {"784-64-64-10": (64, 64), "784-400-400-10": (400, 400)}
DRAWS = 100
BATCHES = (1, 8, 32, 256)
ROUNDS = 15


def main() -> int:
    """Times every network and batch, prints a table, and writes `benchmarks/results/predictive.json`."""
    print(f"{DRAWS} draws, milliseconds a call: median (quartiles), and ratios to packed\n")
    print(f"{'network':<16} {'batch':>5}   {'packed':<22} {'vmap':<22} {'loop':<22} vmap×  loop×")
    results = [measure(name, hidden, batch) for name, hidden in NETWORKS.items() for batch in BATCHES]
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "predictive.json").write_bytes(orjson.dumps(results, option=orjson.OPT_INDENT_2))
    return 0


def measure(name: str, hidden: tuple[int, ...], batch: int) -> dict[str, Any]:
    """One line of the table."""
    posterior = random_posterior(hidden)
    rows = np.random.default_rng(1).uniform(0, 1, (batch, 784)).astype(np.float32)
    ways = {
        "packed": packed(posterior, batch),
        "vmap": vmapped(posterior),
        "loop": looped(posterior),
    }
    answers = {way: np.asarray(call(rows)) for way, call in ways.items()}
    for answer in answers.values():
        np.testing.assert_allclose(answer, answers["packed"], atol=1e-5)
    times: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(ROUNDS):
        for way, call in ways.items():
            started = time.perf_counter()
            call(rows)
            times[way].append(1000 * (time.perf_counter() - started))
    quartiles = {way: np.percentile(values, (25, 50, 75)).tolist() for way, values in times.items()}
    shown = "".join(f"{q[1]:8.2f} ({q[0]:.2f}–{q[2]:.2f})".ljust(23) for q in quartiles.values())
    ratios = [quartiles[way][1] / quartiles["packed"][1] for way in ("vmap", "loop")]
    print(f"{name:<16} {batch:>5} {shown} {ratios[0]:5.1f} {ratios[1]:6.1f}")
    return {"network": name, "batch": batch, "draws": DRAWS, "quartiles_ms": quartiles}


def random_posterior(hidden: tuple[int, ...]) -> Posterior:
    """Draws of the right shapes."""
    model = Model(
        network=MLPSpec(hidden=hidden),
        likelihood="categorical",
        preprocessing=Preprocessing(),
        feature_shape=(784,),
        class_names=tuple("0123456789"),
    )
    rng = np.random.default_rng(0)
    draws = jax.tree.map(
        lambda shape: rng.normal(0, 0.05, (DRAWS, *shape.shape)).astype(np.float32), model.parameter_shapes()
    )
    return Posterior(model, draws)


def packed(posterior: Posterior, batch: int) -> Callable[[np.ndarray], Any]:
    """The served way."""
    predictor = Predictor(posterior, (batch,))
    return lambda rows: predictor(rows).summary.mean


def vmapped(posterior: Posterior) -> Callable[[np.ndarray], Any]:
    """Vmap over draws as they are stored."""
    over_rows = jax.vmap(lambda draw, x: predict_draw(posterior.model, draw, x), in_axes=(None, 0))
    call = jax.jit(lambda draws, rows: summarise_classification(jax.vmap(over_rows, in_axes=(0, None))(draws, rows)))
    draws = jax.device_put(posterior.draws)
    return lambda rows: jax.device_get(call(draws, rows)).mean


def looped(posterior: Posterior) -> Callable[[np.ndarray], Any]:
    """One network at a time."""
    call = jax.jit(jax.vmap(lambda draw, x: predict_draw(posterior.model, draw, x), in_axes=(None, 0)))
    draws = [jax.device_put(jax.tree.map(lambda leaf, s=s: leaf[s], posterior.draws)) for s in range(posterior.size)]
    summarise = jax.jit(summarise_classification)
    return lambda rows: jax.device_get(summarise(jax.numpy.stack([call(draw, rows) for draw in draws]))).mean


if __name__ == "__main__":
    sys.exit(main())
