"""Reads the figures of a `report.html`."""

import re

MARKED = re.compile(r'<path d="([^"]*)"[^>]*id="(reliability-[^"]+)"')
"""Matches the shape of a marker and its id."""


def diagram_points(page: str) -> list[tuple[float, float]]:
    """The points of the reliability diagram, (confidence, accuracy), from the SVG: its diagonal runs from (0, 0) to (1, 1)."""
    diagram = page[page.index('<svg role="img" aria-label="Reliability diagram') :]
    diagram = diagram[: diagram.index("</svg>")]
    diagonal = re.search(r'<path d="M (\S+) (\S+)\s+L (\S+) (\S+)\s+"[^>]*var\(--muted\)', diagram)
    assert diagonal is not None
    left, bottom, right, top = map(float, diagonal.groups())
    # The round marker has curves; the caps of the error bars are lines. The gaps have the same markers, further right.
    (dot,) = (name for shape, name in MARKED.findall(diagram) if "C" in shape)
    marks = re.findall(rf'<use x="(\S+)" y="(\S+)"[^>]*href="#{dot}"', diagram)
    points = [((float(x) - left) / (right - left), (bottom - float(y)) / (bottom - top)) for x, y in marks]
    return points[: len(points) // 2]
