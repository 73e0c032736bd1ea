"""Figures as SVG inside the page, in the page's colours and font, so that both are light or dark.

Colours become the page's CSS variables, text stays text. A drawing refers only to ids within itself.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from typing import Any
from xml.etree import ElementTree

from matplotlib import rc_context
from matplotlib.figure import Figure

from abstain.training.report.canvas import (
    ACCENT,
    INK,
    MUTED,
    SETS,
    VIOLET,
    WARM,
    plain_text_names,
    use_plain_log_labels,
)
from abstain.training.report.contents import Drawing

COLORS = {
    INK: "ink",
    ACCENT: "accent",
    MUTED: "muted",
    WARM: "warm",
    VIOLET: "violet",
    **{color: f"set-{index}" for index, color in enumerate(SETS) if color not in {WARM, VIOLET}},
    "#000000": "ink",
    "#ffffff": "page",
}
"""The CSS variable of each colour of a figure."""
PIXELS_AN_INCH = 112
"""Pixels of a wide page per inch of a figure: one value, so that the text of all pictures has the same size."""
_LOOK: dict[Any, str | int] = {
    "svg.fonttype": "none",
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.labelsize": 9,
}
_NUMERIC = {"d", "x", "y", "transform", "width", "height"}


def render_svg(name: str, draw: Callable[[], Figure]) -> Drawing:
    """Renders a figure as SVG for the page.

    Args:
        name: unique on the page; it begins every id that the drawing refers to.
        draw: a function that draws the figure.
    """
    with plain_text_names(), rc_context(_LOOK):
        figure = draw()
        use_plain_log_labels(figure)
        # The page has headings and captions.
        figure.suptitle("")
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", transparent=True)
    # Matplotlib wrote this XML; no foreign XML is parsed.
    root = ElementTree.fromstring(buffer.getvalue())  # noqa: S314
    _strip(root)
    _rename(root, name)
    for element in root.iter():
        for key, value in element.attrib.items():
            element.set(key, _shorten(key, value))
    width = round(figure.get_size_inches()[0] * PIXELS_AN_INCH)
    content = "".join(ElementTree.tostring(child, encoding="unicode") for child in root)
    return Drawing(width, root.attrib["viewBox"], content)


def _strip(root: ElementTree.Element) -> None:
    """Removes namespaces, metadata and style sheets; a style sheet in an SVG would apply to the whole page."""
    for element in list(root.iter()):
        for child in list(element):
            if child.tag.rpartition("}")[2] in {"metadata", "style"}:
                element.remove(child)
        element.tag = element.tag.rpartition("}")[2]
        for key in list(element.attrib):
            if "}" in key:
                element.set(key.rpartition("}")[2], element.attrib.pop(key))


def _rename(root: ElementTree.Element, name: str) -> None:
    """Adds the picture's name to ids that the picture uses, because ids must be unique on a page; removes other ids."""
    refers = re.compile(r"url\(#([^)]+)\)|^#(.+)$")
    used = {
        first or second
        for element in root.iter()
        for key, value in element.attrib.items()
        if key in {"href", "clip-path", "style"}
        for first, second in refers.findall(value)
    }
    for element in root.iter():
        own = element.attrib.pop("id", None)
        if own in used:
            element.set("id", f"{name}-{own}")
        for key in {"href", "clip-path", "style"} & element.attrib.keys():
            element.set(key, re.sub(r"(url\(|^)#", rf"\g<1>#{name}-", element.attrib[key]))


def _shorten(key: str, value: str) -> str:
    if key in _NUMERIC:
        return re.sub(r"-?\d+\.\d+", lambda match: f"{float(match[0]):.2f}".rstrip("0").rstrip("."), value)
    if key in {"style", "fill", "stroke"}:
        return re.sub(
            r"#[0-9a-f]{6}\b", lambda match: f"var(--{COLORS[match[0]]})" if match[0] in COLORS else match[0], value
        )
    return value
