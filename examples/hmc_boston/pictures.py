"""Draws the pictures of `run.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from abstain.training.inference.problem import Fitted
from abstain.training.inference.target import Target
from abstain.training.report.canvas import ACCENT, INK, MUTED

CHAINS = ["#0b7285", "#e8590c", "#5f3dc4", "#2b8a3e"]
mpl.rcParams.update(
    {"font.size": 9, "axes.titlesize": 10, "axes.labelcolor": INK, "text.color": INK, "legend.frameon": False}
)


def mixture(path: Path, target: Target, draws: np.ndarray, visits: int) -> None:
    """Draws the density with the draws of one chain, and the path of the chain."""
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.4))
    ticks = np.linspace(-6, 6, 121)
    points = np.stack(np.meshgrid(ticks, ticks), axis=-1).reshape(-1, 2).astype(np.float32)
    density = np.exp(jax.vmap(target.log_prior)(points)).reshape(121, 121)
    shade = left.contourf(ticks, ticks, density, levels=8, cmap="Greys", alpha=0.8)
    left.plot(*draws.T, "-", color=ACCENT, linewidth=0.4, alpha=0.5)
    left.plot(*draws.T, ".", color=ACCENT, markersize=4)
    left.set(xlabel="x₁", ylabel="x₂", aspect="equal", title=f"density and {len(draws)} draws of a chain")
    figure.colorbar(shade, ax=left, label="density", shrink=0.9)
    steps = np.arange(1, len(draws) + 1)
    right.plot(steps, draws[:, 0], "-", color=MUTED, linewidth=0.6)
    for sign, color, name in ((1, CHAINS[1], "(2, −2)"), (-1, ACCENT, "(−2, 2)")):
        is_nearer = np.sign(draws[:, 0] - draws[:, 1]) == sign
        right.plot(steps[is_nearer], draws[is_nearer, 0], ".", color=color, markersize=4, label=f"nearer {name}")
    right.axvline(visits, color=INK, linestyle=":", linewidth=1, label=f"both visited: draw {visits}")
    right.set(xlabel="draw after the warm-up", ylabel="x₁", xlim=(0, len(draws) + 1), title="path of the chain")
    right.spines[["top", "right"]].set_visible(False)
    handles, names = right.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower right", ncols=3, columnspacing=1.5)
    figure.savefig(path, dpi=110)


def parity(path: Path, predicted: dict[str, dict[str, np.ndarray]], facts: dict[str, Any]) -> None:
    """Draws predictions against true values; long thin bars are the whole standard deviation, thick ones the aleatoric."""
    figure = Figure(figsize=(9, 4.6), layout="constrained")
    for axis, (name, parts) in zip(figure.subplots(1, 2, sharex=True, sharey=True), predicted.items(), strict=True):
        truth, mean = parts["truth"], parts["mean"]
        axis.plot([0, 55], [0, 55], color=MUTED, linewidth=1, zorder=0)
        axis.errorbar(
            truth,
            mean,
            parts["aleatoric+epistemic"],
            fmt="none",
            ecolor=CHAINS[1],
            elinewidth=1,
            capsize=2,
            label="aleatoric + epistemic",
        )
        axis.errorbar(truth, mean, parts["aleatoric"], fmt="none", ecolor=ACCENT, elinewidth=2.4, label="aleatoric")
        axis.plot(truth, mean, "o", color=INK, markersize=3.5)
        message = f"log-likelihood {facts[name]['log_likelihood']:.3f} nats, RMSE {facts[name]['rmse']:.2f}"
        message = message.replace("-0", "−0")
        axis.set(title=f"{name}: {message}", xlabel="price (1,000 dollars)", xlim=(0, 55), ylim=(0, 55), aspect="equal")
        axis.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("predicted price (1,000 dollars)")
    handles, names = figure.axes[1].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=2)
    figure.savefig(path, dpi=110)


def traces(path: Path, fits: dict[str, Fitted]) -> None:
    """Draws the log posterior density of every chain in a panel for each sampler."""
    figure = Figure(figsize=(10, 4.8), layout="constrained")
    for axis, (name, fitted) in zip(figure.subplots(2, 2, sharey=True).flat, fits.items(), strict=True):
        assert fitted.chains is not None  # noqa: S101 - a sampler made it
        for index, chain in enumerate(fitted.chains.column("log_density")):
            axis.plot(chain, color=CHAINS[index % len(CHAINS)], linewidth=0.5, alpha=0.8)
        axis.set_title(f"{name}: R-hat of predictions {fitted.diagnostics.to_json()['function']['rhat']:.2f}")
        axis.set(xlim=(0, len(chain)), ylabel="log posterior (nats)", xlabel="draw")
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)
