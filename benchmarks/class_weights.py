"""What class weights gain and cost, on a simulated rare class whose true probabilities are known.

    python benchmarks/class_weights.py [--seeds 5] [--rows 4000]

A row has four standard normal features, and its log odds are -5.6 + 1.5 a - b + c d, so that about 2 % of the rows are of the
rare class. A network with 16 hidden units is fitted by each method to `--rows` rows, without weights and with
`class_weights = "balanced"`, and predicts 20,000 new rows.

It prints the means over seeds, with their standard errors:

    excess      the mean Kullback-Leibler divergence of the predicted probabilities from the true ones, in nats of a thousand
    ratio       the mean predicted probability of the rare class over the mean true one; 1 if calibrated
    weighted    the same ratio, had the weights not been undone
    z           the root mean square of (predicted - true log odds) / standard deviation over draws; 1 if the spread is right
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np
from scipy.special import expit, logit, rel_entr

from abstain.models.networks.architectures import MLPSpec
from abstain.models.prediction.posterior import Posterior
from abstain.models.prediction.preprocessing import transform
from abstain.training.config.config import Config
from abstain.training.config.data import DataConfig
from abstain.training.config.methods import EnsembleConfig, MethodConfig, VIConfig
from abstain.training.config.priors import PriorConfig
from abstain.training.fit import build_model, build_problem, infer, load_dataset
from abstain.training.runs.journal import Journal

METHODS: dict[str, MethodConfig] = {
    "vi": VIConfig(steps=4_000, starts=3, reports=1),
    "ensemble": EnsembleConfig(steps=3_000, members=5, reports=10),
}
NEW_ROWS = 20_000


def simulate(rng: np.random.Generator, rows: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns features, classes and the true log odds of the rare class."""
    x = rng.normal(size=(rows, 4))
    truth = -5.6 + 1.5 * x[:, 0] - x[:, 1] + x[:, 2] * x[:, 3]
    return x, (rng.random(rows) < expit(truth)).astype(int), truth


def log_odds(posterior: Posterior, x: np.ndarray) -> np.ndarray:
    """Returns the log odds of the rare class, `[draws, rows]`."""
    model = posterior.model

    def of_row(draw: Any, row: Any) -> Any:
        outputs: Any = model.module.apply({"params": draw["network"]}, transform(model.preprocessing, row))
        return outputs[0]

    predict = jax.jit(jax.vmap(jax.vmap(of_row, in_axes=(None, 0)), in_axes=(0, None)))
    return np.asarray(predict(posterior.draws, x.astype(np.float32)), np.float64)


def figures(folder: Path, method: MethodConfig, seed: int, rows: int, *, balanced: bool) -> tuple[float, ...]:
    """Fits one network and returns the figures of the module's docstring."""
    x, y, _ = simulate(np.random.default_rng([seed, 0]), rows)
    np.savez(folder / "rows.npz", x=x, y=y, class_names=np.array(["common", "rare"]))
    weights = "balanced" if balanced else None
    data = DataConfig(source=str(folder / "rows.npz"), stratify=True, class_weights=weights)
    config = Config(
        name="rare",
        seed=seed,
        draws=60,
        likelihood="bernoulli",
        data=data,
        network=MLPSpec(hidden=(16,), activation="tanh"),
        prior=PriorConfig(fan_in=True),
        method=method,
    )
    dataset = load_dataset(config, None)
    problem = build_problem(config, build_model(config, dataset), dataset)
    posterior = infer(config, problem, Journal()).posterior
    new, _, truth = simulate(np.random.default_rng([seed, 1]), NEW_ROWS)
    found, true = log_odds(posterior, new), expit(truth)
    mean = expit(found).mean(axis=0)
    excess = (rel_entr(true, mean) + rel_entr(1 - true, 1 - mean)).mean()
    used = problem.bnn.class_weights
    shift = 0.0 if used is None else float(np.log(used[1] / used[0]))
    z = (logit(mean) - truth) / found.std(axis=0)
    ratios = (mean.mean() / true.mean(), expit(found + shift).mean() / true.mean())
    return 1e3 * float(excess), *map(float, ratios), float(np.sqrt((z**2).mean()))


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=4_000)
    options = parser.parse_args()
    print(f"{options.rows} rows, {options.seeds} seeds; mean ± standard error")
    print(f"{'method':<10}{'weights':<10}" + "".join(f"{name:>18}" for name in ("excess", "ratio", "weighted", "z")))
    for name, method in METHODS.items():
        for balanced in (False, True):
            with tempfile.TemporaryDirectory() as folder:
                found = np.array(
                    [
                        figures(Path(folder), method, seed, options.rows, balanced=balanced)
                        for seed in range(options.seeds)
                    ]
                )
            means, errors = found.mean(axis=0), found.std(axis=0, ddof=1) / len(found) ** 0.5
            shown = "".join(f"{mean:>10.3g} ± {error:<5.2g}" for mean, error in zip(means, errors, strict=True))
            print(f"{name:<10}{'balanced' if balanced else 'none':<10}{shown}")


if __name__ == "__main__":
    main()
