"""Draws the figure of README: requests per second over HTTP, from `benchmarks/results/http.json`.

    python benchmarks/figure.py [--out docs/images/benchmark.svg]

Bars are medians over the rounds; lines reach from the smallest to the largest value.
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
CASES = {
    "ours, binary": ("abstain, binary tensors", "#0b7285"),
    "ours, JSON": ("abstain, JSON", "#22a2b8"),
    "empty BentoML": ("BentoML, computes nothing", "#adb5bd"),
    "BentoML, batchable": ("BentoML, vmap, batchable", "#868e96"),
    "BentoML, vmap": ("BentoML, vmap", "#495057"),
}


def main() -> int:
    """Draws the figure and prints its path."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS / "http.json")
    parser.add_argument("--out", type=Path, default=PROJECT / "docs" / "images" / "benchmark.svg", help="svg or png")
    options = parser.parse_args()
    if not options.results.exists():
        sys.exit(f"{options.results}: no such file; run benchmarks/throughput.py first")
    results = orjson.loads(options.results.read_bytes())
    options.out.parent.mkdir(parents=True, exist_ok=True)
    # Letters stay text, so that the browser uses its own font; the same numbers give the same bytes.
    settings = {"svg.fonttype": "none", "svg.hashsalt": "abstain", "font.size": 11}
    metadata = {"Date": None} if options.out.suffix == ".svg" else None
    with mpl.rc_context(settings):
        draw(results).savefig(options.out, dpi=150, metadata=metadata)
    if options.out.suffix == ".svg":
        use_system_font(options.out)
    sys.stderr.write(f"· {options.out} ({options.out.stat().st_size / 1e3:.0f} kB)\n")
    return 0


def use_system_font(path: Path) -> None:
    """Prefers the system's font to that of matplotlib, which few readers have."""
    text = path.read_text("utf-8")
    path.write_text(text.replace("'DejaVu Sans'", "system-ui, 'Segoe UI', Helvetica, Arial, 'DejaVu Sans'"), "utf-8")


def draw(results: dict[str, Any]) -> Figure:
    """Draws one panel for each number of connections, with a bar for each measured case."""
    rounds = results["rounds"]
    cases = [case for case in CASES if case in rounds[0]]
    connections = list(rounds[0][cases[0]])
    figure = Figure(figsize=(9, 1.5 + 0.36 * len(cases)), facecolor="white")
    panels = figure.subplots(1, len(connections), sharey=True, sharex=True, squeeze=False)[0]
    height = figure.get_figheight()
    figure.subplots_adjust(left=0.255, right=0.985, top=1 - 0.72 / height, bottom=0.45 / height, wspace=0.1)
    largest = max(load["per_second"] for loads in rounds for case in cases for load in loads[case].values())
    for panel, count in zip(panels, connections, strict=True):
        for position, case in enumerate(cases):
            draw_bar(panel, position, case, [loads[case][count]["per_second"] for loads in rounds], largest)
        panel.set_title(f"{count} connection{'s' if int(count) > 1 else ''}", loc="left", fontsize=11, color=INK)
        panel.set_xlim(0, 1.32 * largest)
        panel.set_xticks([])
        panel.tick_params(length=0, colors=INK)
        panel.spines[["top", "right", "bottom"]].set_visible(False)
        panel.spines["left"].set_color(LINE)
    panels[0].set_yticks(range(len(cases)), [CASES[case][0] for case in cases])
    for label, case in zip(panels[0].get_yticklabels(), cases, strict=True):
        label.set_fontweight(font_weight(case))
    panels[0].invert_yaxis()
    cores = f"{results['cores']} core{'s' if results['cores'] > 1 else ''}"
    note = (
        f"One row of 784 numbers per request, 100 draws of 784-64-64-10. One worker and the load generator on {cores}."
    )
    figure.text(0.012, 1 - 0.26 / height, "Requests per second", fontsize=13, fontweight="bold", color=INK)
    figure.text(0.012, 0.14 / height, note, fontsize=9.5, color=FAINT)
    return figure


def draw_bar(panel: Any, position: int, case: str, rates: list[float], largest: float) -> None:
    """Draws a bar for the median, a line for the range, and the median in digits."""
    middle = median(rates)
    panel.barh(position, middle, height=0.72, color=CASES[case][1])
    panel.plot([min(rates), max(rates)], [position, position], color=INK, linewidth=1.2, solid_capstyle="butt")
    text_start = max(rates) + 0.03 * largest
    panel.text(
        text_start, position, f"{middle:,.0f}", va="center", color=INK, fontsize=10, fontweight=font_weight(case)
    )


def font_weight(case: str) -> str:
    """Returns the font weight of a case; bold for abstain."""
    return "bold" if case.startswith("ours") else "normal"


if __name__ == "__main__":
    sys.exit(main())
