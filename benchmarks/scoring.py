"""`make bench`, the cost of scores: an ensemble's predictions with every default score, compared with those without scores.

    python benchmarks/scoring.py [--rounds 30]

For networks of three sizes and every bucket it prints the median milliseconds of three calls, which take turns: the
ensemble alone, from rows to mean, standard deviations and entropies; the same with every score, including feature scores;
and the latter with the decision on the host: p-values, the combined decision, prediction sets. It also prints the size of
the feature scores. Weights and rows are random: no cost depends on them.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orjson

from abstain.models.decisions.calibration import calibrate
from abstain.models.decisions.judging import judge
from abstain.models.networks.architectures import MLPSpec
from abstain.models.prediction.packing import pack
from abstain.models.prediction.posterior import Model, Posterior
from abstain.models.prediction.predictive import Predictor, predict_packed
from abstain.models.prediction.preprocessing import Preprocessing
from abstain.training.calibration.feature_scores import fit_feature_scores
from abstain.training.calibration.pipeline import DEFAULT_DECISIONS
from abstain.training.data.rows import Rows

RESULTS = Path(__file__).resolve().parent / "results"
SHAPES: dict[str, dict[str, Any]] = {
    "784-400-400-10, 30 draws": {"hidden": (400, 400), "shape": (28, 28), "classes": 10, "draws": 30},
    "784-64-64-10, 100 draws": {"hidden": (64, 64), "shape": (28, 28), "classes": 10, "draws": 100},
    "16-64-64-20, 100 draws": {"hidden": (64, 64), "shape": (16,), "classes": 20, "draws": 100},
}
BATCHES = (1, 8, 32, 256)


def main() -> int:
    """Measures, prints, and writes `benchmarks/results/scoring.json`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=30)
    options = parser.parse_args()
    results = {name: measure(options.rounds, **shape) for name, shape in SHAPES.items()}
    print_results(results)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "scoring.json").write_bytes(orjson.dumps(results, option=orjson.OPT_INDENT_2))
    return 0


def measure(rounds: int, *, hidden: tuple[int, ...], shape: tuple[int, ...], classes: int, draws: int) -> Any:
    """Measures the milliseconds of one network by batch, and the megabytes of its feature scores."""
    posterior, rows = example(hidden=hidden, shape=shape, classes=classes, draws=draws)
    feature_scores = fit_feature_scores(posterior, rows, seed=0)
    times = {batch: measure_calls(posterior, feature_scores, rows, batch, rounds) for batch in BATCHES}
    return {
        "megabytes": {
            name: sum(leaf.nbytes for leaf in record) / 1e6 for name, record in feature_scores.records.items()
        },
        "batches": {str(batch): time for batch, time in times.items()},
    }


def example(*, hidden: tuple[int, ...], shape: tuple[int, ...], classes: int, draws: int) -> tuple[Posterior, Rows]:
    """Makes an ensemble of random networks and 20,000 rows in random clusters; an image has pixel values."""
    rng = np.random.default_rng(0)
    pixels = len(shape) > 1
    model = Model(
        network=MLPSpec(hidden=hidden),
        likelihood="categorical",
        preprocessing=Preprocessing(scale=(255.0,)) if pixels else Preprocessing(shift=(0.0,) * 16, scale=(1.0,) * 16),
        feature_shape=shape,
        class_names=tuple(map(str, range(classes))),
    )
    y = rng.integers(classes, size=20_000)
    centres = rng.uniform(0, 255, (classes, *shape)) if pixels else rng.normal(size=(classes, *shape))
    x = np.float32(centres[y] + rng.normal(size=(20_000, *shape)) * (40 if pixels else 0.5))
    example_row = jnp.zeros(shape)
    start = jax.vmap(lambda key: model.module.init(key, example_row)["params"])
    network = jax.device_get(start(jax.random.split(jax.random.key(0), draws)))
    return Posterior(model, {"network": network}), Rows(np.clip(x, 0, 255) if pixels else x, y)


def measure_calls(posterior: Posterior, feature_scores: Any, rows: Rows, batch: int, rounds: int) -> dict[str, float]:
    """Returns the median milliseconds of each call; the calls take turns."""
    predictor = Predictor(posterior, (batch,), feature_scores=feature_scores)
    large = Predictor(posterior, (256,), feature_scores=feature_scores)
    reference = {name: np.asarray(values) for name, values in large(rows.x[5000:6000]).scores.items()}
    calibration = calibrate(
        large(rows.x[:5000]), rows.y[:5000], decision=DEFAULT_DECISIONS["images"], reference=reference
    )
    x = rows.x[:batch]
    calls: dict[str, Callable[[], Any]] = {
        "pass": make_pass(posterior, batch, x),
        "scored": lambda: predictor(x),
        "judged": lambda: judge(calibration, predictor(x)),
    }
    milliseconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            start_time = time.perf_counter()
            call()
            milliseconds[name].append(1e3 * (time.perf_counter() - start_time))
    return {name: float(np.median(times)) for name, times in milliseconds.items()}


def make_pass(posterior: Posterior, batch: int, x: np.ndarray) -> Callable[[], Any]:
    """Compiles the ensemble without scores: XLA removes the computation of unused results."""
    packed = jax.device_put(pack(posterior.draws))
    rows = jax.ShapeDtypeStruct((batch, *posterior.model.feature_shape), jnp.float32)
    summary = jax.jit(lambda packed, rows: partial(predict_packed, posterior.model)(packed, rows).summary)
    compiled = summary.lower(packed, rows).compile()
    return lambda: jax.device_get(compiled(packed, np.float32(x)))


def print_results(results: dict[str, Any]) -> None:
    """Prints the table."""
    for name, figures in results.items():
        sizes = ", ".join(f"{score} {size:.1f}" for score, size in figures["megabytes"].items())
        print(f"\n{name}; feature scores {sum(figures['megabytes'].values()):.1f} MB ({sizes})")
        print("batch     no score ms   + every score ms       + decision ms")
        for batch, times in figures["batches"].items():
            alone = times["pass"]
            print(
                f"{batch:>5} {alone:>15.2f} {times['scored']:>12.2f} {times['scored'] / alone - 1:>+6.0%}"
                f" {times['judged']:>12.2f} {times['judged'] / alone - 1:>+6.0%}"
            )


if __name__ == "__main__":
    sys.exit(main())
