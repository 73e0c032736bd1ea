"""README's figure: requests a second over HTTP, from `benchmarks/results/http.json`.

    python benchmarks/figure.py [--out docs/images/benchmark.svg]

Bars are medians over the rounds, whiskers the least and the greatest.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib as mpl
import orjson
from matplotlib.figure import Figure

PROJECT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).resolve().parent / "results"
INK, FAINT, LINE = "#1c2733", "#66727f", "#ced4da"
SHOWN = {
    "ours, binary": ("abstain, binary tensors", "#0b7285"),
    "ours, JSON": ("abstain, JSON", "#22a2b8"),
    "empty BentoML": ("BentoML, computes nothing", "#adb5bd"),
    "BentoML, batchable": ("BentoML, vmap, batchable", "#868e96"),
    "BentoML, vmap": ("BentoML, vmap", "#495057"),
}


def main() -> int:
    """Draws, and says where."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS / "http.json")
    parser.add_argument("--out", type=Path, default=PROJECT / "docs" / "images" / "benchmark.svg", help="svg or png")
    options = parser.parse_args()
    if not options.results.exists():
        sys.exit(f"{options.results}: no such file; run benchmarks/throughput.py first")
    found = orjson.loads(options.results.read_bytes())
    options.out.parent.mkdir(parents=True, exist_ok=True)
    # Letters as text, drawn by the reader's own font; and the same bytes for the same numbers.
    terms = {"svg.fonttype": "none", "svg.hashsalt": "abstain", "font.size": 11}
    metadata = {"Date": None} if options.out.suffix == ".svg" else None
    with mpl.rc_context(terms):
        draw(found).savefig(options.out, dpi=150, metadata=metadata)
    if options.out.suffix == ".svg":
        in_readers_font(options.out)
    sys.stderr.write(f"· {options.out} ({options.out.stat().st_size / 1e3:.0f} kB)\n")
    return 0


def in_readers_font(path: Path) -> None:
    """Asks for a system's own font before matplotlib's, which few readers have."""
    text = path.read_text("utf-8")
    path.write_text(text.replace("'DejaVu Sans'", "system-ui, 'Segoe UI', Helvetica, Arial, 'DejaVu Sans'"), "utf-8")


def draw(found: dict[str, Any]) -> Figure:
    """One panel for each number of connections, a bar for each way that was measured."""
    rounds = found["rounds"]
    ways = [way for way in SHOWN if way in rounds[0]]
    connections = list(rounds[0][ways[0]])
    figure = Figure(figsize=(9, 1.5 + 0.36 * len(ways)), facecolor="white")
    panels = figure.subplots(1, len(connections), sharey=True, sharex=True, squeeze=False)[0]
    height = figure.get_figheight()
    figure.subplots_adjust(left=0.255, right=0.985, top=1 - 0.72 / height, bottom=0.45 / height, wspace=0.1)
    most = max(cell["per_second"] for one in rounds for way in ways for cell in one[way].values())
    for panel, count in zip(panels, connections, strict=True):
        for place, way in enumerate(ways):
            draw_bar(panel, place, way, [one[way][count]["per_second"] for one in rounds], most)
        panel.set_title(f"{count} connection{'s' if int(count) > 1 else ''}", loc="left", fontsize=11, color=INK)
        panel.set_xlim(0, 1.32 * most)
        panel.set_xticks([])
        panel.tick_params(length=0, colors=INK)
        panel.spines[["top", "right", "bottom"]].set_visible(False)
        panel.spines["left"].set_color(LINE)
    panels[0].set_yticks(range(len(ways)), [SHOWN[way][0] for way in ways])
    for label, way in zip(panels[0].get_yticklabels(), ways, strict=True):
        label.set_fontweight(weight_of(way))
    panels[0].invert_yaxis()
    cores = f"{found['cores']} core{'s' if found['cores'] > 1 else ''}"
    note = f"One row of 784 numbers a request, 100 draws of 784-64-64-10. One worker and the load generator on {cores}."
    figure.text(0.012, 1 - 0.26 / height, "Requests a second", fontsize=13, fontweight="bold", color=INK)
    figure.text(0.012, 0.14 / height, note, fontsize=9.5, color=FAINT)
    return figure


def draw_bar(panel: Any, place: int, way: str, rates: list[float], most: float) -> None:
    """The median, the spread, and the median in digits."""
    middle = median(rates)
    panel.barh(place, middle, height=0.72, color=SHOWN[way][1])
    panel.plot([min(rates), max(rates)], [place, place], color=INK, linewidth=1.2, solid_capstyle="butt")
    at = max(rates) + 0.03 * most
    panel.text(at, place, f"{middle:,.0f}", va="center", color=INK, fontsize=10, fontweight=weight_of(way))


def weight_of(way: str) -> str:
    """Ours stands out."""
    return "bold" if way.startswith("ours") else "normal"


if __name__ == "__main__":
    sys.exit(main())
