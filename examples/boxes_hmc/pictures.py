"""Draws the pictures of `run.py`."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.animation import FuncAnimation, PillowWriter
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from abstain.training.inference.bnn import Observations
from abstain.training.inference.problem import Fitted
from abstain.training.report.canvas import INK, MUTED

OTHER = "#c2410c"
LEVELS = np.linspace(0, 1, 11)
CHAINS = ["#0b7285", "#e8590c", "#5f3dc4", "#2b8a3e", "#1c2733", "#c2255c", "#5c940d", "#868e96"]
mpl.rcParams.update(
    {"font.size": 9, "axes.titlesize": 10, "axes.labelcolor": INK, "text.color": INK, "legend.frameon": False}
)


def draw_map(axis: Axes, data: Observations, inputs: np.ndarray, probabilities: np.ndarray) -> object:
    """Draws the probability of class 1 on the square, its contour at one half, and the points."""
    side = round(len(inputs) ** 0.5)
    x1, x2 = (inputs[:, column].reshape(side, side) for column in (0, 1))
    grid = probabilities.reshape(side, side)
    shade = axis.contourf(x1, x2, grid, levels=LEVELS, cmap="PuOr_r", alpha=0.75, vmin=0, vmax=1)
    axis.contour(x1, x2, grid, levels=[0.5], colors=INK, linewidths=1)
    for label, color, marker in ((1, OTHER, "o"), (0, "#3b1f7a", "s")):
        points = np.asarray(data.x)[np.asarray(data.y) == label]
        axis.plot(*points.T, marker, color=color, markersize=4, markeredgecolor="white", markeredgewidth=0.6)
    axis.set(xlabel="x₁", xlim=(-6, 6), ylim=(-6, 6), aspect="equal", xticks=range(-6, 7, 3), yticks=range(-6, 7, 3))
    return shade


def contours(path: Path, data: Observations, inputs: np.ndarray, maps: dict[str, np.ndarray]) -> None:
    """Draws the mean probability of each set of draws in a panel."""
    figure = Figure(figsize=(10, 3.5), layout="constrained")
    axes = figure.subplots(1, len(maps), sharey=True)
    for axis, (name, by_draw) in zip(axes, maps.items(), strict=True):
        shade = draw_map(axis, data, inputs, by_draw.mean(axis=0))
        axis.set_title(name)
    axes[0].set_ylabel("x₂")
    figure.colorbar(shade, ax=axes, label="probability of class 1 (circles)", ticks=LEVELS[::2], shrink=0.9)
    figure.savefig(path, dpi=110)


def chains(path: Path, runs: dict[str, Fitted]) -> None:
    """Draws the running mean of each chain's prediction at one input; converged chains agree."""
    figure = Figure(figsize=(10, 3.4), layout="constrained")
    predicted = [class_one(fitted) for fitted in runs.values()]
    index = np.var(predicted[0].mean(axis=1), axis=0).argmax()
    axes = figure.subplots(1, len(runs), sharey=True)
    for axis, (name, fitted), values in zip(axes, runs.items(), predicted, strict=True):
        means = np.cumsum(values[..., index], axis=1) / np.arange(1, values.shape[1] + 1)
        for chain, color in zip(means, CHAINS, strict=False):
            axis.plot(np.arange(1, len(chain) + 1), chain, color=color, linewidth=1.2)
        rhat, ess = (fitted.diagnostics.to_json()["function"][key] for key in ("rhat", "ess_bulk"))
        axis.set_title(f"{name}\nworst R-hat {rhat:.3f}, least bulk ESS {ess:,.0f}")
        axis.set(xlabel="draw", xlim=(1, values.shape[1]), ylim=(0, 1))
        axis.grid(color=MUTED, alpha=0.3, linewidth=0.6)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("running mean of p(class 1)\nat one place, by chain")
    figure.savefig(path, dpi=110)


def class_one(fitted: Fitted) -> np.ndarray:
    """Returns the probability of class 1 at the inputs of the diagnostics, `[chains, draws, inputs]`."""
    assert fitted.chains is not None  # noqa: S101 - a sampler made it
    return fitted.chains.column("values")[..., 1::2].astype(float)


def animation(path: Path, data: Observations, inputs: np.ndarray, by_draw: np.ndarray, steps: np.ndarray) -> None:
    """Draws the network of one draw after another as a GIF."""
    figure = Figure(figsize=(4, 4.2), layout="constrained", dpi=75)
    FigureCanvasAgg(figure)
    axis = figure.subplots()

    def draw_frame(index: int) -> None:
        axis.clear()
        draw_map(axis, data, inputs, by_draw[index])
        axis.set(ylabel="x₂", title=f"draw {steps[index] + 1:,}")

    film = FuncAnimation(figure, draw_frame, frames=len(steps), init_func=lambda: None)
    film.save(path, writer=PillowWriter(fps=3))
