"""What all plots share: colours, a titled figure, plain axes.

Colours are told apart by the colour-blind too (Okabe & Ito, 2008), and mean the same in all plots: teal is the model
and its decision, black the twin, grey the familiar rows, the others OOD sets or further scores.
"""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure

from training.report import ACCENT, INK, MUTED
from training.strange import SAME_INTENSITY

__all__ = ["ACCENT", "INK", "MUTED", "SETS", "VIOLET", "WARM", "plain", "readable", "titled_figure"]
WARM, VIOLET = "#d55e00", "#8250c4"
SETS = (WARM, "#cc79a7", "#e69f00", "#56b4e9", VIOLET, "#7a5c3e")


def titled_figure(title: str, width: float, height: float) -> Figure:
    """A figure of some inches, with a title that says what to see."""
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.suptitle(title, fontsize=11, color=INK, wrap=True)
    return figure


def plain(*axes: Any) -> None:
    """Two spines are enough."""
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=9, colors=INK)


def readable(name: str) -> str:
    """The name of a set or score, as a person would write it."""
    if name.endswith(SAME_INTENSITY):
        return f"{name.removesuffix(SAME_INTENSITY)}, same intensity"
    return name.replace("_", " ")
