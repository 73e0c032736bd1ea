"""Plots of a regression: predicted against true, interval widths against errors, and where targets fall."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from scipy import stats

from training.canvas import ACCENT, INK, MUTED, VIOLET, WARM, plain, titled_figure
from training.mixtures import probability_integral_transform
from training.quality import covered
from training.seen import View


def draw_predicted(view: View) -> Figure:
    """Predicted against true, with the conformal intervals of three hundred rows."""
    inside, interval = covered(view.familiar.judgement, view.rows.y), view.familiar.judgement.interval
    mean, target = np.asarray(view.familiar.prediction.summary.mean), view.rows.y
    asked = view.familiar.judgement.coverage
    figure = titled_figure(
        f"{view.name}: {inside.mean():.1%} of the intervals reach the line, of {asked:.0%} asked for", 6.4, 5.6
    )
    axis = figure.subplots()
    shown = np.argsort(target, kind="stable")[np.unique(np.linspace(0, len(target) - 1, 300).astype(int))]
    for hit, color, label in ((True, ACCENT, "holds the target"), (False, WARM, "misses it")):
        part = shown[inside[shown] == hit]
        bars = np.maximum([mean[part] - interval[part, 0], interval[part, 1] - mean[part]], 0)
        axis.errorbar(
            target[part], mean[part], bars, fmt="o", markersize=3, elinewidth=0.7, color=color, alpha=0.75, label=label
        )
    ends = [min(target.min(), interval[shown].min()), max(target.max(), interval[shown].max())]
    axis.plot(ends, ends, color=INK, linewidth=1)
    axis.set(xlabel=f"true {view.posterior.model.target_name}", ylabel=f"predicted, with the {asked:.0%} interval")
    axis.legend(loc="upper left", fontsize=9, frameon=False)
    plain(axis)
    return figure


def draw_width_error(view: View) -> Figure:
    """The absolute error against the width of the conformal interval."""
    interval = view.familiar.judgement.interval
    widths = np.diff(interval, axis=1)[:, 0]
    errors = np.abs(np.asarray(view.familiar.prediction.summary.mean) - view.rows.y)
    reject = view.familiar.judgement.reject
    figure = titled_figure(
        f"{view.name}: wider intervals should mean larger errors; above the line the interval missed", 7.4, 4.6
    )
    axis = figure.subplots()
    axis.scatter(widths[~reject], errors[~reject], s=9, color=ACCENT, alpha=0.5, linewidth=0, label="accepted")
    axis.scatter(widths[reject], errors[reject], s=26, color=WARM, marker="x", label="rejected")
    ends = np.array([0, widths.max()])
    axis.plot(ends, ends / 2, color=INK, linewidth=1, label="half the width")
    parts = np.array_split(np.argsort(widths, kind="stable"), min(10, len(widths)))
    axis.plot(
        [widths[part].mean() for part in parts],
        [np.median(errors[part]) for part in parts],
        "s-",
        color=VIOLET,
        markersize=4,
        label="median error, by tenths",
    )
    axis.set(
        xlabel="width of the conformal interval",
        ylabel="absolute error",
        ylim=(0, errors.max() * 1.05),
        xlim=(0, widths.max() * 1.05),
    )
    axis.legend(loc="upper left", fontsize=9, frameon=False)
    plain(axis)
    return figure


def draw_pit(view: View, bins: int = 20) -> Figure:
    """Histogram of the probability integral transform, with the band that chance allows."""
    figure = titled_figure(
        f"{view.name}: where targets fall in their predicted distribution; flat is calibrated, ∪ is too sure", 7.4, 4.2
    )
    axis = figure.subplots()
    edges = np.linspace(0, 1, bins + 1)
    rows = len(view.rows)
    axis.hist(
        probability_integral_transform(view.posterior, view.familiar.prediction.summary, view.rows),
        edges,
        color=ACCENT,
        alpha=0.85,
        label=view.name,
        rwidth=0.92,
    )
    if view.twin:
        twin = probability_integral_transform(view.twin.posterior, view.twin.familiar.summary, view.rows)
        axis.hist(twin, edges, histtype="step", color=INK, linestyle="--", label=f"twin: {view.twin.name}")
    low, high = stats.binom.ppf([0.025, 0.975], rows, 1 / bins)
    axis.axhspan(low, high, color=MUTED, alpha=0.45, label="95 % of bins, if calibrated", zorder=0)
    axis.axhline(rows / bins, color=INK, linewidth=0.8)
    axis.set(xlabel="predicted probability of a smaller target", ylabel=f"rows of {rows:,}", xlim=(0, 1))
    axis.legend(loc="upper center", fontsize=8.5, frameon=False)
    plain(axis)
    return figure
