"""What all plots share: colours, a titled figure, plain axes.

The colours suit colour-blind readers (Okabe & Ito, 2008) and mean the same in all plots: teal is the model and its
decision, black the twin, grey the test rows, the others OOD sets or further scores.
"""

from __future__ import annotations

import warnings
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import numpy as np
from jaxtyping import Int
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter

INK, ACCENT, MUTED, WARM, VIOLET = "#1c2733", "#0b7285", "#adb5bd", "#d55e00", "#8250c4"
SETS = (WARM, "#cc79a7", "#e69f00", "#56b4e9", VIOLET, "#7a5c3e")


def titled_figure(title: str, width: float, height: float) -> Figure:
    """A figure of some inches, with a title that says what to see."""
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.suptitle(title, fontsize=11, color=INK, wrap=True)
    return figure


def plain(*axes: Any) -> None:
    """Removes the top and the right spine."""
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=9, colors=INK)


def places(count: int, most: int = 400) -> Int[np.ndarray, " kept"]:
    """The places of at most `most` of a curve's points, at even distances, with both ends."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(int))


@contextmanager
def names_as_written() -> Generator[None]:
    """A context to draw and save figures in: names of classes and sets may have any characters, also `$`."""
    with rc_context({"text.parse_math": False}), warnings.catch_warnings():
        # A letter that the font lacks becomes a box in a PNG; on a page the reader's own font has it.
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        yield


class PlainLog(LogFormatter):
    """Labels of a logarithmic axis as plain numbers, at the ticks that matplotlib labels: no formula is typeset."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        """The label of a tick; empty for most minor ones."""
        return f"{x:.6g}" if super().__call__(x, pos) else ""


def label_plainly(figure: Figure) -> None:
    """Gives logarithmic axes that have matplotlib's own labels plain ones."""
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            if axis.get_scale() == "log" and isinstance(axis.get_major_formatter(), LogFormatter):
                axis.set_major_formatter(PlainLog())
                axis.set_minor_formatter(PlainLog())
                axis.set_tick_params(which="both", labelsize=8.5)
