"""Figures as a part of a page: SVG within the HTML, in the page's own colours and letters, so that both are light or dark.

Colours become the page's variables, text stays text. Nothing is referred to but what stands within the same picture.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from xml.etree import ElementTree

from matplotlib import rc_context
from matplotlib.figure import Figure

from abstain.training.report.canvas import ACCENT, INK, MUTED, SETS, VIOLET, WARM, label_plainly, names_as_written

COLORS = {
    INK: "ink",
    ACCENT: "accent",
    MUTED: "muted",
    WARM: "warm",
    VIOLET: "violet",
    **{color: f"set-{place}" for place, color in enumerate(SETS) if color not in {WARM, VIOLET}},
    "#000000": "ink",
    "#ffffff": "page",
}
"""What each colour of a figure is called on the page."""
PIXELS_AN_INCH = 112
"""On a wide page: so the letters of every picture are of one size."""
_LOOK = {
    "svg.fonttype": "none",
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.labelsize": 9,
}
_NUMERIC = {"d", "x", "y", "transform", "width", "height"}


def picture(name: str, draw: Callable[[], Figure], description: str) -> str:
    """The `<svg>` of a figure.

    Args:
        name: of the picture on its page, once there; what it refers to within itself is called after it.
        description: what is seen, for those who do not see it.
    """
    with names_as_written(), rc_context(_LOOK):
        figure = draw()
        label_plainly(figure)
        # The page has headings and captions.
        figure.suptitle("")
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", transparent=True)
    # What matplotlib has just written: no foreign XML comes here.
    root = ElementTree.fromstring(buffer.getvalue())  # noqa: S314
    _strip(root)
    _rename(root, name)
    for element in root.iter():
        for key, value in element.attrib.items():
            element.set(key, _shortened(key, value))
    width = figure.get_size_inches()[0] * PIXELS_AN_INCH
    view = root.attrib["viewBox"]
    root.attrib.clear()
    look = f"--wide:{width:.0f}px"
    root.attrib.update({"role": "img", "aria-label": description, "viewBox": view, "style": look})
    return ElementTree.tostring(root, encoding="unicode")


def _strip(root: ElementTree.Element) -> None:
    """Drops namespaces, metadata and style sheets: a style within a page's SVG is of the whole page."""
    for element in list(root.iter()):
        for child in list(element):
            if child.tag.rpartition("}")[2] in {"metadata", "style"}:
                element.remove(child)
        element.tag = element.tag.rpartition("}")[2]
        for key in list(element.attrib):
            if "}" in key:
                element.set(key.rpartition("}")[2], element.attrib.pop(key))


def _rename(root: ElementTree.Element, name: str) -> None:
    """Ids that are referred to are called after the picture, for ids are of the whole page; others go."""
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


def _shortened(key: str, value: str) -> str:
    if key in _NUMERIC:
        return re.sub(r"-?\d+\.\d+", lambda found: f"{float(found[0]):.2f}".rstrip("0").rstrip("."), value)
    if key in {"style", "fill", "stroke"}:
        return re.sub(
            r"#[0-9a-f]{6}\b", lambda found: f"var(--{COLORS[found[0]]})" if found[0] in COLORS else found[0], value
        )
    return value
