"""Plots of a fit: the loss, or the chains' traces, ranks and agreement."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Int
from matplotlib import colormaps
from matplotlib.figure import Figure

from abstain.training.inference.diagnostics import ESS_LIMIT, RHAT_LIMIT, Agreement, rhat_text
from abstain.training.report.canvas import ACCENT, INK, MUTED, SETS, WARM, remove_spines

MOST_RHAT = 3.0
"""The right end of the histogram of R-hat; its last bar includes larger values."""
MOST_CHAINS = 8
"""The largest number of chains that get a panel."""

PARTS = {"train": "training rows", "held_out": "held-out training rows", "test": "test rows"}
"""The rows that a fit reports on; `test` only in bundles of earlier versions, which used the test part during a fit."""


def reported_parts(report: dict[str, Any]) -> tuple[str, dict[str, str]]:
    """Returns `accuracy` or `rmse`, and the `PARTS` for which the fit reports it."""
    kind = "accuracy" if "train_accuracy" in report else "rmse"
    return kind, {part: words for part, words in PARTS.items() if f"{part}_{kind}" in report}


def draw_loss(facts: dict[str, Any]) -> Figure:
    """Draws the loss over the steps, and accuracy or RMSE on training rows and held-out rows, if there are any."""
    figure = Figure(figsize=(7.2, 2.7), layout="constrained")
    left, right = figure.subplots(1, 2)
    # JSON has no NaN; it is written as null and read as None.
    loss, reports = np.array(facts["loss"], np.float64), facts["reports"]
    steps = np.linspace(0, reports[-1]["step"], len(loss) + 1)[1:]
    left.plot(steps, loss, color=ACCENT, linewidth=1.2)
    unit = facts.get("loss_unit", "nats")
    left.set(title=f"loss: {unit}", xlabel="step", yscale="log" if np.all(loss > 0) else "linear")
    kind, parts = reported_parts(reports[-1])
    for (part, label), color in zip(parts.items(), (WARM, ACCENT), strict=False):
        values = [row[f"{part}_{kind}"] for row in reports]
        right.plot([row["step"] for row in reports], values, color=color, label=label, marker="." * (len(values) < 3))
    right.set(title=kind.replace("rmse", "RMSE"), xlabel="step")
    right.legend(frameon=False, fontsize=8.5)
    _small_titles(left, right)
    return figure


def draw_trace(facts: dict[str, Any]) -> Figure:
    """Draws each chain's log density over its samples, and its histogram."""
    figure = Figure(figsize=(7.2, 2.9), layout="constrained")
    # JSON has no NaN; it is written as null and read as None.
    trace = np.array(facts["trace"], np.float64)
    steps = np.linspace(1, facts["samples"] / facts["chains"], trace.shape[1])
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(4, 1))
    finite = trace[np.isfinite(trace)]
    bins = np.histogram_bin_edges(finite if finite.size else np.zeros(1), 30)
    for chain, (values, color) in enumerate(zip(trace, _chain_colors(len(trace)), strict=True)):
        left.plot(steps, values, color=color, linewidth=0.8, alpha=0.8, label=f"chain {chain}")
        right.hist(values[np.isfinite(values)], bins, orientation="horizontal", histtype="step", color=color)
    left.set(title="log posterior density (nats)", xlabel="sample of each chain")
    right.set(title="histogram", xticks=[])
    if len(trace) <= MOST_CHAINS:
        figure.legend(*left.get_legend_handles_labels(), frameon=False, fontsize=8, ncols=4, loc="outside lower center")
    _small_titles(left, right)
    return figure


def draw_ranks(agreed: Agreement) -> Figure:
    """Draws rank histograms of the predictions with the worst and the best R-hat, in a panel for each chain.

    If there are many chains, it shows those with the least even ranks of the worst prediction.
    """
    shown = least_even(agreed.worst)
    figure = Figure(figsize=(max(3.6, 0.95 * len(shown) + 0.6), 2.9), layout="constrained")
    panels = figure.subplots(2, len(shown), squeeze=False, sharex=True, sharey=True)
    lines = (("worst", agreed.worst, agreed.rhat.max()), ("best", agreed.best, agreed.rhat.min()))
    for axes, (kind, counts, rhat) in zip(panels, lines, strict=True):
        expected = counts[0].sum() / counts.shape[1]
        for axis, chain in zip(axes, shown, strict=True):
            color = ACCENT if kind == "best" else WARM
            axis.stairs(counts[chain] / expected, np.linspace(0, 1, counts.shape[1] + 1), fill=True, color=color)
            axis.axhline(1, color=INK, linewidth=1)
            axis.set(xticks=[0, 1], xlim=(0, 1))
        axes[0].set_ylabel(f"{kind}\nR-hat {rhat_text(rhat)}", fontsize=8.5)
    for axis, chain in zip(panels[0], shown, strict=True):
        axis.set_title(f"chain {chain}", fontsize=8.5)
    figure.supxlabel(
        "rank among the samples of all chains, as a share; the line is an even spread", fontsize=8.5, color=INK
    )
    remove_spines(*panels.flat)
    return figure


def least_even(counts: Int[np.ndarray, "chains bins"]) -> list[int]:
    """Returns the chains to show, ascending: all, or those with the least equal counts."""
    spread = ((counts - counts.mean(axis=1, keepdims=True)) ** 2).sum(axis=1)
    return sorted(np.argsort(-spread, kind="stable")[:MOST_CHAINS].tolist())


def draw_agreement(agreed: Agreement) -> Figure:
    """Draws histograms of R-hat and of bulk and tail ESS over predictions, with the limits."""
    figure = Figure(figsize=(7.2, 2.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    rhat = np.minimum(agreed.rhat, MOST_RHAT)
    # The limit is always visible, even if every R-hat is far below it.
    ends = (min(1.0, rhat.min()), max(RHAT_LIMIT, rhat.max()) + 0.002)
    left.hist(rhat, np.linspace(*ends, 41), color=ACCENT)
    _mark(left, RHAT_LIMIT, f"limit {RHAT_LIMIT}")
    beyond = f" (last bar: {MOST_RHAT:.0f} or more)" if agreed.rhat.max() > MOST_RHAT else ""
    left.set(xlabel=f"R-hat{beyond}", ylabel="predictions", xlim=ends)
    sizes = np.concatenate([agreed.ess_bulk, agreed.ess_tail])
    bins = np.linspace(0, max(ESS_LIMIT, sizes.max()) * 1.05, 41)
    right.hist(agreed.ess_bulk, bins, color=ACCENT, label="bulk")
    right.hist(agreed.ess_tail, bins, color=WARM, histtype="step", linewidth=1.4, label="tail")
    right.set(xlabel="effective sample size", xlim=(0, bins[-1]))
    _mark(right, ESS_LIMIT, f"limit {ESS_LIMIT:.0f}")
    right.legend(frameon=False, fontsize=8.5)
    remove_spines(left, right)
    return figure


def _mark(axis: Any, limit: float, text: str) -> None:
    axis.axvline(limit, color=INK, linestyle="--", linewidth=1)
    at = {"xycoords": ("data", "axes fraction"), "xytext": (0, 2), "textcoords": "offset points"}
    axis.annotate(text, (limit, 1), ha="center", va="bottom", fontsize=8, color=INK, **at)


def _chain_colors(count: int) -> list[Any]:
    """Returns the page's colours or, for more chains, shades that are visible on light and dark pages."""
    own = (ACCENT, *SETS, MUTED)
    return list(own[:count]) if count <= len(own) else list(colormaps["viridis"](np.linspace(0.3, 0.9, count)))


def _small_titles(*axes: Any) -> None:
    remove_spines(*axes)
    for axis in axes:
        axis.title.set_fontsize(9.5)
