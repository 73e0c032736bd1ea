"""Draws the pictures of `run.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from abstain.training.report.canvas import ACCENT, INK, MUTED

OTHER = "#e8590c"
mpl.rcParams.update(
    {"font.size": 9, "axes.titlesize": 10, "axes.labelcolor": INK, "text.color": INK, "legend.frameon": False}
)


def metrics(path: Path, curves: dict[str, Any], article: dict[str, Any]) -> None:
    """Draws accuracy, log-likelihood and KL divergence over the steps, with the article's last values as points."""
    figure = Figure(figsize=(10, 3.4), layout="constrained")
    axes = figure.subplots(1, 3)
    colors = {"first try": MUTED, "second try": ACCENT}
    labels = {"first try": "beta 1, variance 0.37", "second try": "beta 0.001, variance 0.001"}
    for axis, name in zip(axes, ("accuracy", "log_likelihood", "kl"), strict=True):
        for fit, traces in curves.items():
            steps = traces.column("report_step")
            for part, line in (("train", "--"), ("test", "-")):
                if name == "kl" and part == "train":
                    continue
                prefix = "held_out" if part == "test" else part
                values = traces.column("report_kl" if name == "kl" else f"report_{prefix}_{name}")[:, 0]
                sign = -1 if name == "log_likelihood" else 1
                axis.plot(steps, sign * values, line, color=colors[fit], label=f"{labels[fit]}, {part}")
                axis.plot(
                    steps[-1] * 1.03,
                    sign * article[fit][part][name],
                    "o" if part == "test" else "s",
                    color=OTHER,
                    markersize=4,
                    markerfacecolor=OTHER if part == "test" else "white",
                    clip_on=False,
                    label=f"the article's, {part}" if fit == "second try" else None,
                )
        axis.set(xlabel="step", xlim=(0, steps[-1] * 1.05))
        axis.grid(color=MUTED, alpha=0.3, linewidth=0.6)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set(title="accuracy", ylim=(0, 1.02))
    axes[1].set(title="− log-likelihood of a row (nats)", yscale="log")
    axes[2].set(title="KL, as the article reduces it (nats)", yscale="log")
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=3)
    figure.savefig(path, dpi=110)


def spread(path: Path, scores: dict[str, np.ndarray], limit: float) -> None:
    """Draws the disagreement of the draws for digits of the test set and for letters."""
    figure = Figure(figsize=(8, 3.4), layout="constrained")
    axis = figure.subplots()
    bins = np.linspace(0, 0.5, 41)
    for (name, values), color in zip(scores.items(), (ACCENT, OTHER), strict=True):
        weights = np.full(len(values), 100 / len(values))
        label = f"{name}: {100 * np.mean(values > limit):.1f} % beyond"
        axis.hist(values, bins=bins, weights=weights, color=color, alpha=0.45, label=label)
    axis.axvline(limit, color=INK, linestyle=":", label=f"{limit:.2f}: 99th percentile, calibration")
    axis.set(
        xlabel="largest standard deviation, over draws, of a class's probability",
        ylabel="images (%, log scale)",
        yscale="log",
        xlim=(0, 0.5),
        ylim=(0.008, 110),
    )
    figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=3, columnspacing=1.2)
    axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)


def verdicts(path: Path, images: dict[str, np.ndarray], summaries: list[Any], limit: float) -> None:
    """Draws each image, the probabilities of its classes with standard deviations, and the verdict."""
    figure = Figure(figsize=(8, 2 + 1.6 * len(images)), layout="constrained")
    axes = figure.subplots(len(images), 2, width_ratios=(1, 3))
    for (left, right), (name, image), (mean, std) in zip(axes, images.items(), summaries, strict=True):
        left.imshow(image, cmap="gray_r")
        left.set(xticks=[], yticks=[], title=name)
        rejected = std.max() > limit
        right.bar(range(10), mean, color=OTHER if rejected else ACCENT, alpha=0.7)
        error = [np.minimum(std, mean), np.minimum(std, 1 - mean)]
        right.errorbar(range(10), mean, yerr=error, fmt="none", ecolor=INK, elinewidth=1, capsize=3)
        right.set(xticks=range(10), ylim=(0, 1.05), ylabel="probability")
        verdict = "rejected: I don't know" if rejected else f"accepted as a {mean.argmax()}"
        sign = ">" if rejected else "≤"
        right.set_title(f"{verdict} (largest std {std.max():.2f} {sign} {limit:.2f})")
        right.spines[["top", "right"]].set_visible(False)
    axes[-1, 1].set_xlabel("class (mean over draws, ± one standard deviation)")
    figure.savefig(path, dpi=110)
