"""Plots of how reliable a version's confidence is: reliability diagram, and risk against coverage."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

from abstain.models.prediction.predictive import Prediction
from abstain.models.prediction.summaries import ClassificationSummary
from abstain.training.evaluation.bootstrap import share_interval
from abstain.training.evaluation.metrics import ECE_BINS, reliability_bins, risks
from abstain.training.evaluation.quality import confidence
from abstain.training.evaluation.records import ReportView
from abstain.training.evaluation.reliability import ReliabilityBins
from abstain.training.report.canvas import ACCENT, INK, MUTED, WARM, remove_spines, thin_indices, titled_figure


def draw_reliability(view: ReportView) -> Figure:
    """Draws accuracy against confidence in bins of equal mass, the counts, and the gap in each bin; the twin on the right.

    A confident model has most of its bins in one corner of the diagram, so the gaps are drawn again below, bin by bin.
    """
    sides = [(view.name, view.familiar.prediction, ACCENT)]
    if view.twin:
        sides.append((f"twin: {view.twin.name}", view.twin.familiar, INK))
    title = "Does the confidence match the accuracy? Below the line the model is overconfident, above it underconfident"
    figure = titled_figure(title, 4.9 * len(sides), 7.4)
    panels = figure.subplots(3, len(sides), squeeze=False, sharey="row", height_ratios=(4, 1, 1.6))
    for column, (name, prediction, color) in zip(panels.T, sides, strict=True):
        certain = confidence(prediction)
        draw_reliability_panels(column, reliability_bins(certain, row_losses(prediction, view) == 0), certain, color)
        column[0].set_title(name, fontsize=10)
    panels[0, 0].set_ylabel(f"accuracy, {ECE_BINS} bins of equal mass")
    panels[1, 0].set_ylabel("rows")
    panels[2, 0].set_ylabel("accuracy −\nconfidence")
    return figure


def draw_reliability_wide(bins: ReliabilityBins, certain: Float[np.ndarray, " rows"]) -> Figure:
    """Draws the reliability diagram for the report, with the counts and the gaps on its right.

    Args:
        bins: `metrics.reliability` of the manifest.
        certain: the confidence of each test row.
    """
    figure = Figure(figsize=(7.2, 3.7), layout="constrained")
    panels = figure.subplot_mosaic([["diagram", "counts"], ["diagram", "gaps"]], width_ratios=(1.25, 1))
    diagram, counts, gaps = (panels[name] for name in ("diagram", "counts", "gaps"))
    draw_reliability_panels((diagram, counts, gaps), bins, certain, ACCENT)
    diagram.tick_params(labelbottom=True)
    diagram.set(xlabel="confidence: the largest probability", ylabel="accuracy")
    counts.set_ylabel("rows")
    gaps.set_ylabel("accuracy −\nconfidence")
    return figure


def draw_reliability_panels(
    panels: Any, bins: ReliabilityBins, certain: Float[np.ndarray, " rows"], color: str
) -> None:
    """Draws the diagram, the counts and the gaps on three axes, in this order."""
    diagram, counts, gaps = panels
    sizes, means, shares = np.array(bins.rows), np.array(bins.confidence), np.array(bins.accuracy)
    exact = np.array([share_interval(round(share * rows), rows) for share, rows in zip(shares, bins.rows, strict=True)])
    bars = np.maximum([shares - exact[:, 0], exact[:, 1] - shares], 0)
    look = {"fmt": "o", "color": color, "markersize": 4.5, "elinewidth": 1, "capsize": 2}
    diagram.plot([0, 1], [0, 1], color=MUTED, linewidth=1)
    diagram.errorbar(means, shares, bars, **look)
    summary = f"ECE {calibration_error(bins):.4f}\n{sizes.min():,} rows in a bin"
    diagram.text(0.04, 0.95, summary, transform=diagram.transAxes, va="top", fontsize=9)
    diagram.set(xlim=(0, 1.01), ylim=(0, 1.02))
    diagram.tick_params(labelbottom=False)
    counts.hist(certain, np.linspace(0, 1, 41), color=color)
    counts.set(yscale="log", xlim=(0, 1.01), xlabel="confidence: the largest probability")
    gaps.axhline(0, color=MUTED, linewidth=1)
    gaps.errorbar(np.arange(1, len(sizes) + 1), shares - means, bars, **look)
    gaps.set(xlabel="bin, from the least to the most confident", xticks=range(1, len(sizes) + 1, 2))
    remove_spines(diagram, counts, gaps)


def calibration_error(bins: ReliabilityBins) -> float:
    """Returns the ECE: the mean of |accuracy − confidence| over the bins, weighted by their rows."""
    gaps = np.abs(np.array(bins.accuracy) - np.array(bins.confidence))
    return float(np.average(gaps, weights=bins.rows))


def draw_risk_coverage(view: ReportView) -> Figure:
    """Draws the error of the answered rows against their share: by confidence, by the decision score, and of the twin."""
    classify = isinstance(view.familiar.prediction.summary, ClassificationSummary)
    what = "error" if classify else "RMSE"
    figure = titled_figure(
        f"{view.name}: the {what} among the answered rows should fall as more rows are rejected (to the left)", 8, 4.2
    )
    axis = figure.subplots()
    own = view.familiar.prediction
    curves = [
        ("most confident first", confidence(own), own, ACCENT, "-", 2.2),
        (
            f"lowest decision score first ({view.familiar.decision_name.replace('_', ' ')})",
            -np.asarray(view.familiar.decision.value),
            own,
            WARM,
            "-",
            1.3,
        ),
    ]
    if view.twin:
        curves.append(
            ("twin, most confident first", confidence(view.twin.familiar), view.twin.familiar, INK, "--", 1.3)
        )
    for label, certain, prediction, color, style, width in curves:
        risk = risks(certain, row_losses(prediction, view))
        risk = 100 * risk if classify else np.sqrt(risk)
        # The first percent of the rows is too few for a share of errors.
        first = len(risk) // 100
        kept = first + thin_indices(len(risk) - first)
        axis.plot((kept + 1) / len(risk) * 100, risk[kept], color=color, linestyle=style, linewidth=width, label=label)
    kept = ~view.familiar.judgement.reject
    accepted = 100 * float(kept.mean())
    axis.axvline(accepted, color=MUTED, linewidth=1)
    if kept.any():
        # With thresholds per class the point may not lie on the curve, which has one threshold for all rows.
        risk = row_losses(own, view)[kept].mean()
        axis.plot(accepted, 100 * risk if classify else np.sqrt(risk), "o", color=WARM, markersize=7, zorder=5)
    axis.annotate(
        "accepted now",
        (accepted, 0.97),
        xycoords=("data", "axes fraction"),
        xytext=(-5, 0),
        textcoords="offset points",
        ha="right",
        va="top",
        fontsize=8.5,
        color=INK,
    )
    axis.set(xlabel="rows answered (%)", ylabel=f"{what} among them" + (" (%)" if classify else ""), xlim=(0, 101))
    axis.set_ylim(bottom=0)
    figure.legend(loc="outside lower center", fontsize=9, frameon=False, ncols=3)
    remove_spines(axis)
    return figure


def row_losses(prediction: Prediction, view: ReportView) -> Float[np.ndarray, " rows"]:
    """Returns each row's loss: 1 for a mistake and 0 otherwise, or the squared error of a regression."""
    if isinstance(prediction.summary, ClassificationSummary):
        return (np.asarray(prediction.summary.mean).argmax(axis=1) != view.rows.y).astype(np.float64)
    return (np.asarray(prediction.summary.mean) - view.rows.y) ** 2
