"""Colours, a titled figure and plain axes for all plots.

The colours suit colour-blind readers (Okabe & Ito, 2008) and have one meaning in all plots: teal is the model and its
decision, black the twin, grey the test rows; other colours are OOD sets or other scores.
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
    """Returns a figure with a title; width and height in inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.suptitle(title, fontsize=11, color=INK, wrap=True)
    return figure


def remove_spines(*axes: Any) -> None:
    """Removes the top and the right spine."""
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=9, colors=INK)


def thin_indices(count: int, most: int = 400) -> Int[np.ndarray, " kept"]:
    """Returns evenly spaced indices of at most `most` of `count` points, including both ends."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(int))


@contextmanager
def plain_text_names() -> Generator[None]:
    """Switches math text off while figures are drawn and saved, because names of classes and sets may contain `$`."""
    with rc_context({"text.parse_math": False}), warnings.catch_warnings():
        # A letter that is missing in the font becomes a box in a PNG; on a page the reader's font has it.
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        yield


class PlainLog(LogFormatter):
    """Labels the ticks of a logarithmic axis with plain numbers instead of formulas."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        """Returns the label of a tick; most minor ticks have an empty one."""
        return f"{x:.6g}" if super().__call__(x, pos) else ""


def use_plain_log_labels(figure: Figure) -> None:
    """Replaces matplotlib's default labels of logarithmic axes by plain numbers."""
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            if axis.get_scale() == "log" and isinstance(axis.get_major_formatter(), LogFormatter):
                axis.set_major_formatter(PlainLog())
                axis.set_minor_formatter(PlainLog())
                axis.set_tick_params(which="both", labelsize=8.5)
