"""Draws the pictures of `run.py`."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

from abstain.training.inference.bnn import Observations
from abstain.training.report.canvas import ACCENT, INK, MUTED

X = np.linspace(-1.5, 1.5, 200)
CLASSES = ListedColormap(["#8ecae6", "#ffd27f", "#f4a3a8"])
POINTS = ["#1d5f8a", "#a86500", "#a8323e"]
mpl.rcParams.update(
    {"font.size": 9, "axes.titlesize": 10, "axes.labelcolor": INK, "text.color": INK, "legend.frameon": False}
)


def save(figure: Figure, path: Path) -> None:
    """Writes a figure to a PNG file."""
    figure.savefig(path, dpi=110)


def bands(path: Path, data: Observations, quantiles: dict[str, np.ndarray]) -> None:
    """Draws one panel for each posterior, all with the same axes."""
    columns = min(3, len(quantiles))
    rows = -(-len(quantiles) // columns)
    figure = Figure(figsize=(9, 0.5 + 2.7 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for axis, (name, values) in zip(axes.flat, quantiles.items(), strict=True):
        draw_band(axis, data, values)
        axis.set_title(name)
    for axis in axes[-1]:
        axis.set_xlabel("x")
    for axis in axes[:, 0]:
        axis.set_ylabel("y")
    handles, names = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=len(names))
    save(figure, path)


def draw_band(axis: Axes, data: Observations, quantiles: np.ndarray) -> None:
    """Draws the band over the draws, the wave, and the points."""
    low, middle, high = quantiles
    axis.axvspan(-1, 1, color=MUTED, alpha=0.15, linewidth=0, label="where there are data")
    axis.fill_between(X, low, high, color=ACCENT, alpha=0.3, linewidth=0, label="95 % of the draws")
    axis.plot(X, middle, color=ACCENT, label="median")
    axis.plot(X, X * np.sin(5 * X), color=INK, linestyle=":", linewidth=1, label="x sin 5x")
    axis.plot(data.x[:, 0], data.y, ".", color=INK, markersize=5, label="data")
    axis.set(xlim=(-1.5, 1.5), ylim=(-3, 3))
    axis.spines[["top", "right"]].set_visible(False)


def variational(path: Path, data: Observations, loss: np.ndarray, steps: int, quantiles: np.ndarray) -> None:
    """Draws the loss curve and the resulting band."""
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(np.linspace(0, steps, len(loss) + 1)[1:], loss, color=ACCENT)
    left.set(title="loss", xlabel="step", ylabel="negative ELBO (nats)", yscale="log")
    left.spines[["top", "right"]].set_visible(False)
    draw_band(right, data, quantiles)
    right.set(title="mean-field posterior, prior std 10", xlabel="x", ylabel="y")
    handles, names = right.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=len(names))
    save(figure, path)


def labels(path: Path, data: Observations, draws: np.ndarray) -> None:
    """Draws a map of random labels for each of a few posterior draws."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    for index, (axis, values) in enumerate(zip(figure.subplots(1, len(draws), sharey=True), draws, strict=True)):
        draw_map(axis, data, values, cmap=CLASSES, vmin=-0.5, vmax=2.5)
        axis.set_title(f"labels by posterior draw {index + 1}")
    save(figure, path)


def maps(path: Path, data: Observations, by_posterior: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
    """Draws the most probable class and the entropy in a row for each posterior."""
    figure = Figure(figsize=(7.4, 6.6), layout="constrained")
    axes = figure.subplots(2, 2, sharex=True, sharey=True)
    for row, (name, (mode, entropy)) in zip(axes, by_posterior.items(), strict=True):
        draw_map(row[0], data, mode, cmap=CLASSES, vmin=-0.5, vmax=2.5)
        shade = draw_map(row[1], data, entropy, cmap="Blues", vmin=0, vmax=np.log(3))
        row[0].set_title(f"{name}: likeliest class")
        row[1].set_title(f"{name}: entropy")
    figure.colorbar(shade, ax=axes[:, 1], label="entropy of the prediction (nats; ln 3 at most)", shrink=0.8)
    save(figure, path)


def draw_map(axis: Axes, data: Observations, values: np.ndarray, **style: object) -> mpl.image.AxesImage:
    """Draws values on the square, with the training points."""
    side = round(len(values) ** 0.5)
    image = axis.imshow(values.reshape(side, side), origin="lower", extent=(-0.5, 0.5, -0.5, 0.5), **style)
    for arm, color in enumerate(POINTS):
        in_arm = np.asarray(data.y) == arm
        axis.plot(*np.asarray(data.x)[in_arm].T, ".", color=color, markersize=2.5)
    axis.set(xlabel="x₁", xlim=(-0.52, 0.52), ylim=(-0.52, 0.52))
    if axis.get_subplotspec().is_first_col():
        axis.set_ylabel("x₂")
    return image
