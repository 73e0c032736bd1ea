"""Plots of a regression: predicted against true, interval widths against errors, and the PIT histogram."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure
from scipy import stats

from abstain.training.data.rows import Rows
from abstain.training.evaluation.mixtures import probability_integral_transform
from abstain.training.evaluation.quality import is_covered
from abstain.training.evaluation.records import Curve, ReportView, regression_of
from abstain.training.report.canvas import ACCENT, INK, MUTED, VIOLET, WARM, remove_spines, thin_indices, titled_figure


def draw_predicted(view: ReportView) -> Figure:
    """Draws predicted against true targets of up to three hundred rows, with their conformal intervals."""
    inside, interval = is_covered(view.familiar.judgement, view.rows.y), view.familiar.interval
    mean, target = np.asarray(view.familiar.prediction.summary.mean), view.rows.y
    requested = view.familiar.judgement.coverage
    figure = titled_figure(
        f"{view.name}: {inside.mean():.1%} of the intervals reach the line, {requested:.0%} requested", 6.4, 5.6
    )
    axis = figure.subplots()
    shown = np.argsort(target, kind="stable")[np.unique(np.linspace(0, len(target) - 1, 300).astype(int))]
    for hit, color, label in ((True, ACCENT, "contains the target"), (False, WARM, "misses it")):
        part = shown[inside[shown] == hit]
        bars = np.maximum([mean[part] - interval[part, 0], interval[part, 1] - mean[part]], 0)
        axis.errorbar(
            target[part], mean[part], bars, fmt="o", markersize=3, elinewidth=0.7, color=color, alpha=0.75, label=label
        )
    ends = [min(target.min(), interval[shown].min()), max(target.max(), interval[shown].max())]
    axis.plot(ends, ends, color=INK, linewidth=1)
    axis.set(xlabel=f"true {view.posterior.model.target_name}", ylabel=f"predicted, with the {requested:.0%} interval")
    axis.legend(loc="upper left", fontsize=9, frameon=False)
    remove_spines(axis)
    return figure


def draw_width_error(view: ReportView) -> Figure:
    """Draws the absolute error against the width of the conformal interval."""
    interval = view.familiar.interval
    widths = np.diff(interval, axis=1)[:, 0]
    errors = np.abs(np.asarray(view.familiar.prediction.summary.mean) - view.rows.y)
    reject = view.familiar.judgement.reject
    figure = titled_figure(
        f"{view.name}: wider intervals should mean larger errors; above the line the interval misses the target",
        7.4,
        4.6,
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
        label="median error, by tenths of the rows",
    )
    axis.set(
        xlabel="width of the conformal interval",
        ylabel="absolute error",
        ylim=(0, errors.max() * 1.05),
        xlim=(0, widths.max() * 1.05),
    )
    axis.legend(loc="upper left", fontsize=9, frameon=False)
    remove_spines(axis)
    return figure


def draw_pit(view: ReportView, bins: int = 20) -> Figure:
    """Draws the histogram of the probability integral transform, and the band with 95 % of the bins of a calibrated model."""
    figure = titled_figure(
        f"{view.name}: where targets lie in their predictive distribution (PIT); flat is calibrated, ∪ is overconfident",
        7.4,
        4.2,
    )
    axis = figure.subplots()
    edges = np.linspace(0, 1, bins + 1).tolist()
    rows = len(view.rows)
    axis.hist(
        probability_integral_transform(view.posterior, view.familiar.regression, view.rows),
        edges,
        color=ACCENT,
        alpha=0.85,
        label=view.name,
        rwidth=0.92,
    )
    if view.twin:
        twin = probability_integral_transform(view.twin.posterior, regression_of(view.twin.familiar), view.rows)
        axis.hist(twin, edges, histtype="step", color=INK, linestyle="--", label=f"twin: {view.twin.name}")
    low, high = stats.binom.ppf([0.025, 0.975], rows, 1 / bins)
    axis.axhspan(low, high, color=MUTED, alpha=0.45, label="95 % of bins, if calibrated", zorder=0)
    axis.axhline(rows / bins, color=INK, linewidth=0.8)
    axis.set(xlabel="predicted probability of a smaller target", ylabel=f"rows of {rows:,}", xlim=(0, 1))
    figure.legend(loc="outside lower center", fontsize=8.5, frameon=False, ncols=3)
    remove_spines(axis)
    return figure


def draw_band(curve: Curve, test: Rows | None, input_name: str, target_name: str) -> Figure:
    """Draws the posterior predictive along the one input: mean, epistemic and total band, conformal interval, and rows.

    The target axis shows all rows, and the bands up to the rows' range beyond them, because far out they may be very wide.
    """
    figure = titled_figure("", 7.2, 4.2)
    axis = figure.subplots()
    x, summary = curve.along.x[:, 0], curve.along.regression
    mean, quantiles = np.asarray(summary.mean), np.asarray(summary.quantiles)
    spread = stats.norm.ppf(0.975) * np.sqrt(np.asarray(summary.epistemic_variance))
    axis.fill_between(x, quantiles[:, 0], quantiles[:, -1], color=MUTED, alpha=0.35, linewidth=0, label="total, 95 %")
    axis.fill_between(x, mean - spread, mean + spread, color=ACCENT, alpha=0.35, linewidth=0, label="epistemic, 95 %")
    interval, coverage = curve.along.interval, curve.along.judgement.coverage
    for end, label in zip(interval.T, (f"conformal interval, {coverage:.0%}", None), strict=True):
        axis.plot(x, end, color=WARM, linewidth=1, linestyle="--", label=label)
    axis.plot(x, mean, color=ACCENT, linewidth=2, label="mean")
    shown: list[tuple[Rows, str, dict[str, Any]]] = [
        (curve.train, "training rows", {"color": INK, "s": 9, "zorder": 4})
    ]
    if test is not None:
        shown.append((test, "test rows", {"facecolors": "none", "edgecolors": VIOLET, "s": 9, "linewidths": 0.6}))
    for rows, label, look in shown:
        kept = thin_indices(len(rows), 250)
        axis.scatter(rows.x.reshape(len(rows), -1)[kept, 0], rows.y[kept], label=label, alpha=0.8, **look)
    edges = np.nanmin(curve.train.x), np.nanmax(curve.train.x)
    for edge in edges:
        axis.axvline(edge, color=MUTED, linewidth=1, linestyle=":")
    _keep_rows_in_sight(axis, np.concatenate([rows.y for rows, *_ in shown]), np.concatenate([quantiles, interval], 1))
    axis.set(xlabel=input_name, ylabel=target_name, xlim=(x[0], x[-1]))
    figure.legend(loc="outside lower center", fontsize=8.5, frameon=False, ncols=3)
    remove_spines(axis)
    return figure


def _keep_rows_in_sight(axis: Any, y: np.ndarray, bands: np.ndarray) -> None:
    low, high = float(y.min()), float(y.max())
    room = (high - low) or 1.0
    margin = 0.05 * room
    axis.set_ylim(
        max(min(low, float(bands.min())), low - room) - margin, min(max(high, float(bands.max())), high + room) + margin
    )
