"""Galleries: images that a model predicts wrongly, and images that it accepts."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Int, Num
from matplotlib.figure import Figure

from abstain.training.evaluation.quality import confidence
from abstain.training.evaluation.records import JudgedRows, ReportView
from abstain.training.report.canvas import ACCENT, INK, WARM

ACROSS = 10
MISTAKES = 30
ACCEPTED, REJECTED = WARM, ACCENT


def draw_mistakes(view: ReportView) -> Figure | None:
    """Draws the most confident mistakes among the test rows: true and predicted class, probability, and the decision."""
    judged, names = view.familiar, view.posterior.model.class_names
    certain = confidence(judged.prediction)
    predicted = np.asarray(judged.prediction.summary.mean).argmax(axis=1)
    wrong = np.flatnonzero(predicted != view.rows.y)
    if not len(wrong):
        return None
    shown = wrong[np.argsort(-certain[wrong], kind="stable")][:MISTAKES]
    rejected = int(judged.judgement.reject[wrong].sum())
    title = (
        f"{view.name}: the most confident of {len(wrong):,} mistakes in {len(predicted):,} rows; {rejected:,} of them rejected\n"
        "true → predicted, its probability; orange: accepted, teal: rejected"
    )
    captions = [f"{names[view.rows.y[row]]} → {names[predicted[row]]}\n{certain[row]:.3f}" for row in shown]
    lines = -(-len(shown) // ACROSS)
    figure, panels = _grid(title, lines, max(map(len, captions)))
    for axis, row, caption in zip(panels.flat, shown, captions, strict=False):
        _show(
            axis, judged.x[row], view.familiar.x, caption, color=REJECTED if judged.judgement.reject[row] else ACCEPTED
        )
    return figure


def draw_accepted(view: ReportView) -> Figure:
    """Draws the accepted test rows with the highest decision scores, and those of each OOD set with the highest and lowest."""
    lines: list[tuple[str, JudgedRows, Int[np.ndarray, " shown"]]] = [
        ("test rows\nhighest scores", view.familiar, _accepted(view.familiar)[::-1][:ACROSS])
    ]
    for name, judged in view.strange.items():
        chosen = _accepted(judged)
        short = name.replace("_same_intensity", "\nsame intensity")
        lines += [
            (f"{short}\nhighest scores", judged, chosen[::-1][:ACROSS]),
            (f"{short}\nlowest scores", judged, chosen[:ACROSS]),
        ]
    title = f"{view.name}: accepted inputs with the highest decision scores, and of OOD sets with the lowest\nbelow each: predicted class · percentile of the decision score ({view.familiar.decision_name.replace('_', ' ')})"
    figure, panels = _grid(title, len(lines), 10)
    for line, (label, judged, rows) in zip(panels, lines, strict=True):
        predicted = np.asarray(judged.prediction.summary.mean).argmax(axis=1)
        line[0].text(-0.15, 0.5, label, transform=line[0].transAxes, ha="right", va="center", fontsize=8.5, color=INK)
        for axis, row in zip(line, rows, strict=False):
            caption = f"{view.posterior.model.class_names[predicted[row]]} · {judged.decision.percentile[row]:.1f}"
            _show(axis, judged.x[row], view.familiar.x, caption, color=INK)
    return figure


def _accepted(judged: JudgedRows) -> Int[np.ndarray, " accepted"]:
    """Returns the accepted rows in ascending order of their decision scores."""
    rows = np.flatnonzero(~judged.judgement.reject)
    return rows[np.argsort(judged.decision.value[rows], kind="stable")]


def _grid(title: str, lines: int, longest: int) -> tuple[Figure, Any]:
    wide = 1.0 if longest < 16 else 1.5
    figure = Figure(figsize=(wide * ACROSS + 0.9, 1.32 * lines + 0.75), layout="constrained")
    figure.suptitle(title, fontsize=10.5, color=INK)
    panels = figure.subplots(lines, ACROSS, squeeze=False)
    for axis in panels.flat:
        axis.axis("off")
    return figure, panels


def _show(
    axis: Any, picture: Num[np.ndarray, "..."], familiar: Num[np.ndarray, "..."], caption: str, *, color: str
) -> None:
    """Draws one image; black and white are the smallest and the largest value of the test rows."""
    low, high = float(familiar.min()), float(familiar.max())
    scaled = np.clip((picture.astype(np.float64) - low) / ((high - low) or 1.0), 0, 1)
    if scaled.ndim == 3 and scaled.shape[2] != 3:
        scaled = scaled.mean(axis=2)
    axis.imshow(scaled, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axis.text(
        0.5,
        -0.06,
        caption,
        transform=axis.transAxes,
        ha="center",
        va="top",
        fontsize=8,
        color=color,
    )
