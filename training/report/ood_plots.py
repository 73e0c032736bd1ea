"""Plots of the separation of OOD sets from the test rows by a version's scores: ROC, distributions, detection rates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter
from sklearn.metrics import roc_curve

from abstain.models.decisions.ranks import ordinal, threshold
from abstain.models.decisions.records import Calibration
from abstain.models.decisions.unseen import TOP, below_top
from abstain.training.data.ood_sets import SAME_INTENSITY, readable_name
from abstain.training.evaluation.metrics import auroc
from abstain.training.evaluation.quality import TWIN_SCORES, deciding_ranks, rates_of
from abstain.training.evaluation.records import JudgedRows, ReportView
from abstain.training.report.canvas import (
    ACCENT,
    INK,
    MUTED,
    SETS,
    VIOLET,
    WARM,
    remove_spines,
    thin_indices,
    titled_figure,
)

STRETCH = 3.0
"""An axis that far values make more than this many times wider is clipped."""


def draw_roc(view: ReportView, across: int = 3) -> Figure:
    """Draws one panel per OOD set: the decision with its threshold, the two best other scores, and the best of the twin.

    Args:
        view: the version, with at least one OOD set.
        across: the largest number of panels in a row.
    """
    columns = min(len(view.strange), across)
    lines = -(-len(view.strange) // columns)
    figure = titled_figure(
        f"{view.name}: share of OOD rows rejected (up) against share of test rows rejected (right); the dot is the threshold",
        3.6 * columns + 0.6,
        3.5 * lines + 0.6,
    )
    shown = _best_others(view)
    panels = figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=True)
    for axis, (name, strange) in zip(panels.flat, view.strange.items(), strict=False):
        _draw_roc_panel(axis, view, name, strange, shown)
    for axis in panels.flat[len(view.strange) :]:
        axis.set_visible(False)
    for axis in panels[:, 0]:
        axis.set_ylabel("OOD rows rejected")
    for axis in panels[-1]:
        axis.set_xlabel("test rows rejected (log scale)")
        axis.xaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{share:.4g}" if share < 1 else "1"))
    return figure


def _draw_roc_panel(axis: Any, view: ReportView, name: str, strange: JudgedRows, shown: dict[str, str]) -> None:
    familiar = view.familiar
    pairs = [
        (score, *deciding_ranks(familiar.judgement.scores[score], strange.judgement.scores[score]), color, "-", 1.2)
        for score, color in shown.items()
    ]
    if view.twin:
        own, foreign = view.twin.familiar.scores, view.twin.strange[name].scores
        _, score = max(
            (auroc(np.asarray(own[score]), np.asarray(foreign[score])), score) for score in TWIN_SCORES if score in own
        )
        values = np.asarray(own[score]), np.asarray(foreign[score])
        pairs.append((f"twin, {score}", *values, INK, "--", 1.2))
    decided = f"decision ({familiar.decision_name})"
    pairs.append((decided, *deciding_ranks(familiar.decision, strange.decision), ACCENT, "-", 2.2))
    least = 0.5 / len(familiar.x)
    for label, own, foreign, color, style, width in pairs:
        truth = np.repeat([0, 1], [len(own), len(foreign)])
        false, true, _ = roc_curve(truth, np.concatenate([own, foreign]))
        text = f"{label.replace('_', ' ')}  {auroc(own, foreign):.3f}"
        kept = thin_indices(len(false))
        axis.step(
            np.maximum(false[kept], least),
            true[kept],
            where="post",
            color=color,
            linestyle=style,
            linewidth=width,
            label=text,
        )
    operating_point = max(float(familiar.judgement.reject.mean()), least), float(strange.judgement.reject.mean())
    axis.plot(*operating_point, "o", color=ACCENT, markersize=7, markeredgecolor="white", zorder=5)
    axis.set(xscale="log", xlim=(least, 1), ylim=(0, 1.02))
    axis.set_title(readable_name(name), fontsize=10)
    handles, labels = axis.get_legend_handles_labels()
    axis.legend(
        handles[::-1],
        labels[::-1],
        loc="upper left",
        fontsize=7.5,
        frameon=False,
        title="AUROC",
        title_fontsize=7.5,
        alignment="left",
    )
    remove_spines(axis)


def _best_others(view: ReportView) -> dict[str, str]:
    """Returns the two scores, other than the deciding one, with the highest mean AUROC over the sets; and their colours."""
    familiar = view.familiar.judgement.scores
    means = {
        score: np.mean(
            [auroc(*deciding_ranks(values, judged.judgement.scores[score])) for judged in view.strange.values()]
        )
        for score, values in familiar.items()
        if score != view.familiar.decision_name
    }
    best = sorted(means, key=means.__getitem__, reverse=True)
    return dict(zip(best, (WARM, VIOLET), strict=False))


def draw_ecdf(view: ReportView) -> Figure:
    """Draws the decision score's distribution on the test rows and on every OOD set, and the threshold."""
    name, percentile = view.familiar.decision_name.replace("_", " "), view.familiar.judgement.percentile
    figure = titled_figure(f"{view.name}: the decision score ({name}); rows right of the line are rejected", 9, 4.6)
    axis = figure.subplots()
    looks = [("test rows", view.familiar, MUTED, "-", 3.0)]
    bases = [label for label in view.strange if not label.endswith(SAME_INTENSITY)]
    for label, judged in view.strange.items():
        base = label.removesuffix(SAME_INTENSITY)
        color = SETS[(bases.index(base) if base in bases else len(bases)) % len(SETS)]
        looks.append((readable_name(label), judged, color, "-" if label in bases else "--", 1.6))
    for label, judged, color, style, width in looks:
        values = np.sort(np.asarray(judged.decision.value, np.float64))
        shares = np.arange(1, len(values) + 1) / len(values) * 100
        # A few hundred points are enough for the curve; all of them need a large file.
        kept = thin_indices(len(values))
        text = f"{label}: {judged.judgement.reject.mean():.1%} rejected"
        axis.step(values[kept], shares[kept], where="post", color=color, linestyle=style, linewidth=width, label=text)
    limits: list[float] = np.unique(view.familiar.decision.threshold).tolist()
    if limits[-1] >= TOP:
        # Only rows with an unseen category are rejected: the line is at the end of the axis.
        limits = [max(float(judged.decision.value.max()) for _, judged, *_ in looks)]
    axis.axvline(limits[-1], color=INK, linewidth=1.2)
    if len(limits) > 1:
        axis.axvspan(limits[0], limits[-1], color=INK, alpha=0.08)
    axis.annotate(
        f"threshold {limits[-1]:.3g}\n{ordinal(percentile)} percentile",
        (limits[-1], 2),
        xytext=(5, 0),
        textcoords="offset points",
        fontsize=8.5,
        color=INK,
    )
    _spread_out(axis, [np.asarray(judged.decision.value, np.float64) for _, judged, *_ in looks], limits)
    axis.set(xlabel=name, ylabel="rows at or below (%)", ylim=(0, 102))
    axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8.5, frameon=False)
    remove_spines(axis)
    return figure


def _spread_out(axis: Any, groups: Sequence[Float[np.ndarray, " _"]], limits: Sequence[float]) -> None:
    """Makes the axis logarithmic if large values would move all others to the left edge; clips it if few are far."""
    values, limit = np.concatenate(groups), limits[-1]
    positive = values[values > 0]
    if limit > 0 and values.min() >= 0 and np.quantile(values, 0.99) > 20 * limit:
        axis.set_xscale("log")
        axis.set_xlim(np.quantile(positive, 0.01), values.max())
    else:
        clip_far_values(axis, groups, limits, "{} rows beyond", fontsize=8.5)


def clip_far_values(
    axis: Any, groups: Sequence[Float[np.ndarray, " _"]], limits: Sequence[float], text: str, **look: Any
) -> None:
    """Clips the x axis to the central 98 % of each group and to the limits, if farther values stretch it.

    The number of rows that are not shown is written at the end of the axis where they are.

    Args:
        axis: the axes, with the groups' curves.
        groups: the values of each group of rows.
        limits: values that are always shown.
        text: the note, with `{}` for the number of rows.
        look: the look of the note.
    """
    inner = [*np.concatenate([np.quantile(values, (0.01, 0.99)) for values in groups]), *limits]
    low, high = min(inner), max(inner)
    width, all_values = high - low, np.concatenate(groups)
    if not 0 < STRETCH * width < np.ptp([*all_values, *limits]):
        return
    low, high = max(low - width / 2, all_values.min()), min(high + width / 2, all_values.max())
    axis.set_xlim(low - 0.05 * width, high + 0.05 * width)
    for count, place, side in (((all_values < low).sum(), 0.02, "left"), ((all_values > high).sum(), 0.98, "right")):
        if count:
            note = text.format(count)
            note = f"← {note}" if side == "left" else f"{note} →"
            axis.text(place, 0.5, note, transform=axis.transAxes, ha=side, color=MUTED, **look)


def draw_detection(view: ReportView) -> Figure:
    """Draws the share of rows above each score's threshold, for the test rows and every OOD set."""
    sets = {"test rows": view.familiar, **view.strange}
    rates = {label: rates_of(judged.judgement) for label, judged in sets.items()}
    scores = ["reject", *(score for score in rates["test rows"] if score != "reject")]
    table = np.array([[rates[label][score] for label in sets] for score in scores]) * 100
    figure = titled_figure(
        f"{view.name}: rows above each score's threshold (%): few of the test rows, many of the OOD rows",
        2.6 + 1.25 * len(sets),
        1.4 + 0.42 * len(scores),
    )
    axis = figure.subplots()
    shades = LinearSegmentedColormap.from_list("teal", ["#ffffff", ACCENT])
    axis.imshow(table, cmap=shades, vmin=0, vmax=100, aspect="auto")
    for (line, column), rate in np.ndenumerate(table):
        color = "white" if rate > 55 else INK
        axis.text(
            column,
            line,
            f"{rate:.1f}",
            ha="center",
            va="center",
            color=color,
            fontsize=10,
            weight="bold" if line == 0 else "normal",
        )
    names = [f"decision ({view.familiar.decision_name})", *scores[1:]]
    axis.set_yticks(range(len(scores)), [name.replace("_", " ") for name in names])
    axis.set_xticks(range(len(sets)), [readable_name(label).replace(", same", ",\nsame") for label in sets])
    axis.xaxis.tick_top()
    axis.axhline(0.5, color=INK, linewidth=1)
    axis.axvline(0.5, color=INK, linewidth=1)
    axis.tick_params(length=0, labelsize=9)
    axis.spines[:].set_visible(False)
    return figure


def draw_scores(calibration: Calibration, judged: JudgedRows | None) -> Figure:
    """Draws every score's distribution on the calibration rows, with its threshold, and on the test rows; the decision first."""
    first = calibration.decision_name
    names = [first, *(name for name in calibration.ascending if name != first)]
    columns = min(4, len(names))
    lines = -(-len(names) // columns)
    figure = Figure(figsize=(1.75 * columns, 1.75 * lines), layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False, sharey=True)
    for axis, name in zip(panels.flat, names, strict=False):
        ascending = below_top(calibration.ascending[name])
        limit = min(threshold(calibration.ascending[name], calibration.percentile), float(ascending[-1]))
        groups = [ascending]
        if judged is not None:
            groups.append(np.sort(judged.judgement.scores[name].value))
            _draw_steps(axis, groups[1], color=MUTED, linewidth=3)
        _draw_steps(axis, ascending, color=ACCENT, linewidth=1.3)
        axis.axvline(limit, color=INK, linestyle="--", linewidth=1)
        clip_far_values(axis, groups, [limit], "{}", fontsize=7.5)
        left = limit > sum(axis.get_xlim()) / 2
        offset = {"xytext": (-3 if left else 3, 0), "textcoords": "offset points", "ha": "right" if left else "left"}
        axis.annotate(f"{limit:.3g}", (limit, 6), fontsize=8, **offset)
        axis.set_title(name.replace("_", " "), fontsize=8.5, fontweight="bold" if name == first else "normal")
        axis.locator_params(axis="x", nbins=2)
        remove_spines(axis)
        axis.tick_params(labelsize=7.5)
    for axis in panels.flat[len(names) :]:
        axis.set_visible(False)
    for axis in panels[:, 0]:
        axis.set_ylabel("rows below (%)", fontsize=8)
    return figure


def _draw_steps(axis: Any, ascending: Float[np.ndarray, " rows"], **look: Any) -> None:
    kept = thin_indices(len(ascending), 200)
    axis.plot(ascending[kept], (kept + 1) / len(ascending) * 100, **look)
