"""Draws the pictures of `run.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from numpyro.distributions import Distribution

from abstain.training.inference.bnn import Observations
from abstain.training.report.canvas import ACCENT, INK

X = np.linspace(-1.3, 1.3, 100)
CHAINS = ["#0b7285", "#e8590c", "#5f3dc4", "#2b8a3e"]
mpl.rcParams.update(
    {"font.size": 9, "axes.titlesize": 10, "axes.labelcolor": INK, "text.color": INK, "legend.frameon": False}
)


def save(figure: Figure, path: Path) -> None:
    """Writes a figure to a PNG file."""
    for axis in figure.axes:
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)


def traces(
    path: Path, samples: dict[str, np.ndarray], priors: dict[str, Distribution], article: dict[str, Any]
) -> None:
    """Draws the traces of the chains, and their posterior with the prior and the article's interval."""
    figure = Figure(figsize=(9, 6), layout="constrained")
    axes = figure.subplots(len(samples), 2, width_ratios=(3, 2))
    for (left, right), (name, values) in zip(axes, samples.items(), strict=True):
        for chain, color in zip(values, CHAINS, strict=True):
            left.plot(chain, color=color, linewidth=0.4)
        left.set(ylabel=name, xlim=(0, values.shape[1]))
        grid = np.linspace(*np.quantile(values, [0.0005, 0.9995]), 200)
        right.hist(values.ravel(), bins=60, density=True, color=ACCENT, alpha=0.35, label="posterior, ours")
        right.plot(grid, np.exp(priors[name].log_prob(grid)), color=INK, linestyle=":", label="prior")
        height = right.get_ylim()[1]
        right.errorbar(
            article[name]["mean"],
            -0.07 * height,
            xerr=[
                [article[name]["mean"] - article[name]["5%"]],
                [article[name]["95%"] - article[name]["mean"]],
            ],
            color=CHAINS[1],
            fmt="o",
            markersize=4,
            capsize=3,
            label="article: mean, 5 % and 95 %",
        )
        right.set(xlabel=name, ylabel="density", ylim=(-0.14 * height, height))
    axes[-1, 0].set_xlabel("sample after the warm-up (four chains)")
    handles, names = axes[0, 1].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=3)
    save(figure, path)


def bands(path: Path, data: Observations, predicted: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
    """Draws the data, the means of the draws and the noisy observations in a panel for each prior."""
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    axes = figure.subplots(1, len(predicted), sharey=True)
    for axis, (name, (means, noisy)) in zip(axes, predicted.items(), strict=True):
        axis.fill_between(
            X, *np.quantile(noisy, [0.05, 0.95], axis=0), color=ACCENT, alpha=0.18, lw=0, label="90 % of noisy draws"
        )
        axis.fill_between(
            X, *np.quantile(means, [0.05, 0.95], axis=0), color=ACCENT, alpha=0.45, lw=0, label="90 % of the means"
        )
        axis.plot(X, means.mean(axis=0), color=ACCENT, label="mean")
        axis.plot(X, truth(), color=INK, linestyle=":", linewidth=1, label="0.3 + sin(2πx / 2.5)")
        axis.plot(data.x[:, 0], data.y, ".", color=INK, markersize=3.5, label="data")
        axis.set(title=name, xlabel="x", xlim=(-1.3, 1.3))
    axes[0].set_ylabel("y")
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=len(names))
    save(figure, path)


def functions(path: Path, data: Observations, before: dict[str, np.ndarray], after: dict[str, np.ndarray]) -> None:
    """Draws the functions of forty networks from each prior and each posterior."""
    figure = Figure(figsize=(9, 5.6), layout="constrained")
    axes = figure.subplots(2, 2, sharex=True, sharey="row")
    for column, name in enumerate(before):
        indices = np.linspace(0, len(after[name]) - 1, 40).astype(int)
        for axis, values in zip(axes[:, column], (before[name], after[name][indices]), strict=True):
            axis.plot(X, values.T, color=ACCENT, linewidth=0.7, alpha=0.5)
            axis.plot(data.x[:, 0], data.y, ".", color=INK, markersize=3)
        axes[0, column].set(title=f"{name}: prior", ylim=(-15, 15), xlim=(-1.3, 1.3))
        axes[1, column].set(title=f"{name}: posterior", xlabel="x")
    for axis in axes[:, 0]:
        axis.set_ylabel("y")
    save(figure, path)


def truth() -> np.ndarray:
    """Returns the function from which the data were drawn."""
    return 0.3 + np.sin(2 * np.pi * X / 2.5)
