"""How the methods that `abstain init` writes were chosen: by the log-likelihood of calibration rows, never of test rows.

    pip install --group tables
    python -m benchmarks.init_methods [--tables mpg,barley,midwest] [--methods vi-0.1,vi-0.3,vi-0.3-long]

For each table of benchmarks/public_tables.py, `abstain init` writes a config, and each method replaces its `[method]`. It prints the
mean negative log-likelihood and the second proper score (Brier, or squared error) on the calibration part, those of the baseline,
the negative log-likelihood of the mode that the draws were made around, and the CPU seconds of the inference alone.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

import numpy as np

from abstain.models.prediction.posterior import Posterior
from abstain.models.prediction.predictive import Predictor, buckets_for
from abstain.training.config.methods import EnsembleConfig, MethodConfig, NUTSConfig, VIConfig
from abstain.training.config.reading import read_config
from abstain.training.evaluation.baselines import training_baseline
from abstain.training.evaluation.mixtures import pooled_log_likelihood
from abstain.training.evaluation.quality import proper_terms
from abstain.training.fit import build_model, build_problem, infer, load_dataset
from abstain.training.initialize import initialize
from abstain.training.runs.journal import Journal
from benchmarks.public_tables import TABLES

METHODS: dict[str, MethodConfig] = {
    **{
        f"vi-{weight:g}": VIConfig(starts=5, steps=3_000, learning_rate=3e-3, kl_weight=weight)
        for weight in (0.1, 0.3, 1.0)
    },
    "vi-0.3-narrow": VIConfig(starts=5, steps=3_000, learning_rate=3e-3, kl_weight=0.3, init_scale=0.003),
    "vi-0.3-long": VIConfig(starts=5, steps=8_000, learning_rate=3e-3, kl_weight=0.3),
    "vi-0.3-low-rank": VIConfig(starts=5, steps=3_000, learning_rate=3e-3, kl_weight=0.3, family="low_rank"),
    "vi-large": VIConfig(starts=3, steps=8_000, learning_rate=3e-3, kl_weight=0.1),
    "ensemble": EnsembleConfig(members=5, steps=3_000, learning_rate=3e-3),
    "nuts": NUTSConfig(chains=2, warmup=300, samples=300, max_tree_depth=7),
}


def measure(name: str, method: str) -> str:
    """Fits the config of a table with another method, and returns its line."""
    table = TABLES[name]
    table.load().to_csv(f"{name}.csv", index=False)
    config = read_config(initialize(Path(f"{name}.csv"), table.target, force=True).path)
    config = config.model_copy(update={"method": METHODS[method]})
    dataset = load_dataset(config, None)
    model = build_model(config, dataset)
    problem = build_problem(config, model, dataset)
    begin = time.process_time()
    fitted = infer(config, problem, Journal())
    seconds = time.process_time() - begin
    rows = dataset.calibration
    prediction = Predictor(fitted.posterior, buckets_for(len(rows)))(rows.x)
    terms = proper_terms(fitted.posterior, prediction, rows)
    baseline = training_baseline(dataset.train.y, model.class_names).terms(rows.y)
    mode = ""
    if fitted.mode is not None:
        at_mode = pooled_log_likelihood(Posterior(fitted.posterior.model, fitted.mode), rows)
        mode = f"  mode nll {-at_mode.mean():.4g}"
    shown = " ".join(f"{key} {np.mean(terms[key]):.4g} ({np.mean(baseline[key]):.4g})" for key in terms)
    return f"{name:<16}{method:<10}{len(dataset.train):>7,} training rows  {shown}{mode}  {seconds:.1f} cpu"


def main() -> None:
    """Prints a line for each table and method."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", default="mpg,barley,midwest,tips")
    parser.add_argument("--methods", default="vi-0.1,vi-0.3,vi-0.3-long")
    options = parser.parse_args()
    os.chdir(tempfile.mkdtemp(prefix="abstain-init-methods-"))
    for name in options.tables.split(","):
        for method in options.methods.split(","):
            print(measure(name, method), flush=True)


if __name__ == "__main__":
    main()
