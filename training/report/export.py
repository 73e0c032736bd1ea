"""Optional exports of a fit: ArviZ InferenceData as netCDF, and traces for TensorBoard."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from abstain.models.files.drafts import draft_of
from abstain.models.files.locks import disk_errors
from abstain.training.inference.problem import Fitted, Problem
from abstain.training.runs.journal import RESUME

TENSORBOARD_STEPS = 200


@dataclass(frozen=True)
class Exports:
    """The files to write; None for no file."""

    netcdf: Path | None = None
    tensorboard: Path | None = None


def write_exports(exports: Exports, problem: Problem, fitted: Fitted) -> None:
    """Writes the requested exports.

    Raises:
        StoreError: the disk is full, read-only or fails.
    """
    if exports.netcdf is not None:
        with disk_errors(exports.netcdf, RESUME):
            write_netcdf(exports.netcdf, problem, fitted)
    if exports.tensorboard is not None:
        with disk_errors(exports.tensorboard, RESUME):
            write_tensorboard(exports.tensorboard, problem, fitted)


def write_netcdf(path: Path, problem: Problem, fitted: Fitted) -> None:
    """Writes all samples `[chain, draw, …]` and the sampler's statistics; without chains, the draws as one chain."""
    import arviz_base  # noqa: PLC0415 - a second to import

    groups: dict[str, Any] = {"posterior": _by_name(samples(problem, fitted))}
    if fitted.chains is not None:
        names = {"acceptance": "acceptance_rate", "diverging": "diverging", "leapfrogs": "n_steps", "energy": "energy"}
        groups["sample_stats"] = {name: fitted.chains.column(ours) for ours, name in names.items()} | {
            # ArviZ marks samples, so a sample is marked if any of its transitions diverged.
            "diverging": fitted.chains.column("diverging") > 0,
            "lp": fitted.chains.column("log_density"),
        }
    path.parent.mkdir(parents=True, exist_ok=True)
    with draft_of(path) as draft:
        arviz_base.from_dict(groups).to_netcdf(draft, engine="h5netcdf")


def samples(problem: Problem, fitted: Fitted) -> Any:
    """Returns the tree of draws with two leading axes, chain and sample."""
    if fitted.chains is None:
        return jax.tree.map(lambda leaf: leaf[None], fitted.posterior.draws)
    positions = fitted.chains.column("position")
    flat = problem.bnn.draws(positions.reshape(-1, positions.shape[-1]))
    return jax.tree.map(lambda leaf: leaf.reshape(*positions.shape[:2], *leaf.shape[1:]), flat)


def write_tensorboard(folder: Path, problem: Problem, fitted: Fitted) -> None:
    """Writes loss curve and reports; for chains, the log density of training rows and histograms of parameters."""
    from tensorboardX import SummaryWriter  # noqa: PLC0415

    facts: Any = fitted.diagnostics.to_json()
    with SummaryWriter(str(folder)) as writer:
        if "loss" in facts:
            steps = np.linspace(0, facts["reports"][-1]["step"], len(facts["loss"]) + 1)[1:]
            for step, loss in zip(steps, facts["loss"], strict=True):
                writer.add_scalar("loss", loss, int(step))
            for report in facts["reports"]:
                for name in report.keys() - {"step"}:
                    writer.add_scalar(f"report/{name}", report[name], report["step"])
        if fitted.chains is not None:
            _write_chains(writer, problem, fitted)


def _write_chains(writer: Any, problem: Problem, fitted: Fitted) -> None:
    assert fitted.chains is not None  # noqa: S101 - the caller checks it
    count = len(fitted.chains.traces.column("log_density"))
    steps = np.unique(np.linspace(0, count - 1, min(TENSORBOARD_STEPS, count)).round().astype(int))
    positions = fitted.chains.traces.rows("position", steps)
    train = _log_probabilities(problem, positions)
    acceptance = fitted.chains.traces.rows("acceptance", steps)
    for index, step in enumerate(steps):
        for chain in range(positions.shape[1]):
            writer.add_scalar(f"log_probability/train/chain_{chain}", train[index, chain], int(step))
            writer.add_scalar(f"acceptance/chain_{chain}", acceptance[index, chain], int(step))
        for name, values in _by_name(problem.bnn.draws(positions[index])).items():
            writer.add_histogram(name, values, int(step))


def _log_probabilities(
    problem: Problem, positions: Float[np.ndarray, "steps chains dim"]
) -> Float[np.ndarray, "steps chains"]:
    """Computes the mean log density of a training row at each position, in nats."""

    def of_position(z: Array) -> Array:
        return problem.target.log_likelihood(problem.target.constrain(z), problem.train).mean()

    flat = jnp.asarray(positions.reshape(-1, positions.shape[-1]))
    train = jax.device_get(jax.jit(lambda zs: jax.lax.map(of_position, zs))(flat))
    return train.reshape(positions.shape[:2])


def _by_name(tree: Any) -> dict[str, np.ndarray]:
    """Returns the leaves by their path, joined by dots, because netCDF allows no slash in a name."""
    leaves = jax.tree.leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): np.asarray(leaf) for path, leaf in leaves}
