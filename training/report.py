"""`report.html`: what a fit came to, for people to look at. One file, its pictures inside it, no script."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from models.bundle import Manifest
from models.calibration import Calibration
from models.ranks import ordinal

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 52rem; margin: 2rem auto; padding: 0 1rem; color: #1c2733 }
h1 { font-size: 1.6rem } h2 { font-size: 1.15rem; margin-top: 2rem }
table { border-collapse: collapse; margin: .5rem 0 } td, th { padding: .2rem .9rem .2rem 0; text-align: left; vertical-align: top }
td:last-child { font-variant-numeric: tabular-nums } img { max-width: 100%; height: auto }
aside { border-left: .3rem solid #c92a2a; background: #fff5f5; padding: .1rem 1rem; margin: 1rem 0 }
aside.note { border-color: #adb5bd; background: #f8f9fa }
code { background: #f1f4f7; padding: 0 .25rem } footer { margin-top: 3rem; color: #66727f; font-size: .85rem }
"""
INK, ACCENT, MUTED = "#1c2733", "#0b7285", "#adb5bd"


def write_report(path: Path, manifest: Manifest, calibration: Calibration) -> None:
    """Writes the report of a version."""
    data, terms = manifest.data, manifest.calibration
    sections = [
        _heading(manifest),
        _said("Not fit to be relied on", manifest.shortfalls, "shortfall"),
        _said("Worth knowing", manifest.notes, "note"),
        "<h2>On the test part</h2>" + _table(_flat(manifest.metrics)),
        f"<h2>Where strangeness begins</h2><p>Each score of the {terms.rows:,} calibration rows, ascending; the "
        f"threshold at the {ordinal(terms.percentile)} percentile. <code>{html.escape(terms.decision)}</code> decides.</p>",
        _picture("calibration scores and thresholds", lambda figure: _draw_scores(figure, calibration, manifest)),
    ]
    if "loss" in manifest.diagnostics:
        sections += [
            "<h2>The fit</h2>",
            _picture("loss and held-out quality", lambda figure: _draw_fit(figure, manifest)),
        ]
    if "trace" in manifest.diagnostics:
        sections += [
            f"<h2>The chains</h2><p>{html.escape(_agreement(manifest.diagnostics))}</p>",
            _picture("log posterior density by chain", lambda figure: _draw_chains(figure, manifest)),
        ]
    pictured = {"loss", "loss_unit", "reports", "trace"}
    facts = {key: value for key, value in manifest.diagnostics.items() if key not in pictured}
    reports: Any = manifest.diagnostics.get("reports", [{}])
    facts |= reports[-1]
    sections += [
        "<h2>Diagnostics</h2>" + _table(_flat(facts)),
        "<h2>Settings</h2>" + _table([*_flat(manifest.method.settings), ("seed", str(manifest.seed))]),
        "<h2>Data</h2>"
        + _table(
            [
                ("source", data.source),
                ("rows to train on", f"{data.train_rows:,}"),
                ("rows to calibrate on", f"{data.calibration_rows:,}"),
                ("rows to test on", f"{data.test_rows:,}"),
                ("fingerprint", data.fingerprint),
            ]
        ),
        f"<footer>{_packages(manifest)}</footer>",
    ]
    title = html.escape(f"{manifest.name}:{manifest.version}")
    path.write_text(
        f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{title}</title><style>{STYLE}</style><body>{''.join(sections)}</body></html>\n",
        "utf-8",
    )


def _heading(manifest: Manifest) -> str:
    name = html.escape(f"{manifest.name}:{manifest.version}")
    shape = "×".join(map(str, manifest.model.feature_shape))
    return (
        f"<h1>{name}</h1><p>{manifest.draws} draws by <code>{html.escape(manifest.method.kind)}</code> of the network "
        f"<code>{html.escape(manifest.model.network.kind)}</code> on inputs {shape}, with the likelihood "
        f"<code>{html.escape(manifest.model.likelihood)}</code>; {html.escape(manifest.created)}.</p>"
    )


def _said(title: str, sentences: tuple[str, ...], kind: str) -> str:
    """A box of sentences; nothing where there are none."""
    if not sentences:
        return ""
    items = "".join(f"<li>{html.escape(sentence)}</li>" for sentence in sentences)
    return f'<aside class="{kind}"><p><strong>{html.escape(title)}</strong></p><ul>{items}</ul></aside>'


def _agreement(facts: Any) -> str:
    """What the chains' predictions came to, in plain words."""
    function = facts["function"]
    if function["rhat"] is None:
        return "The chains' predictions at held-out inputs are the same in every sample."
    return (
        f"Over {function['values']} predictions at held-out inputs the worst R-hat is {function['rhat']:.3f} and the "
        f"least effective sample size {function['ess_bulk']:.0f} in the bulk, {function['ess_tail']:.0f} in the tails, "
        f"of {facts['samples']:,} samples in {facts['chains']} chains. Chains that agree have an R-hat of at most "
        "1.01, and lie over one another below."
    )


def _packages(manifest: Manifest) -> str:
    listed = ", ".join(f"{html.escape(name)} {html.escape(version)}" for name, version in manifest.packages.items())
    return f"{listed}; commit {html.escape(manifest.git_commit or 'unknown')}"


def _flat(tree: Any, prefix: str = "") -> list[tuple[str, str]]:
    if isinstance(tree, dict):
        return [row for key, value in tree.items() for row in _flat(value, f"{prefix}{key} ")]
    values = tree if isinstance(tree, (list, tuple)) else [tree]
    text = ", ".join(f"{value:.4g}" if isinstance(value, float) else str(value) for value in values)
    return [(prefix.strip().replace("_", " "), text)]


def _table(rows: list[tuple[str, str]]) -> str:
    body = "".join(f"<tr><td>{html.escape(key)}</td><td>{html.escape(value)}</td></tr>" for key, value in rows)
    return f"<table>{body}</table>"


def _picture(description: str, draw: Callable[[Any], None]) -> str:
    from matplotlib.figure import Figure  # noqa: PLC0415 - a second to import

    figure = Figure(figsize=(9, 3.2), layout="constrained")
    draw(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    encoded = base64.b64encode(buffer.getvalue()).decode()
    return f'<img alt="{html.escape(description)}" src="data:image/png;base64,{encoded}">'


def _draw_scores(figure: Any, calibration: Calibration, manifest: Manifest) -> None:
    """The decision score first."""
    first = calibration.decision.name
    names = [first, *(name for name in calibration.ascending if name != first)]
    columns = min(5, len(names))
    rows = -(-len(names) // columns)
    figure.set_size_inches(9, 2.4 * rows)
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis, name in zip(axes.flat, names, strict=False):
        values, limit = calibration.ascending[name], manifest.calibration.thresholds[name]
        axis.plot(values, np.arange(1, len(values) + 1) / len(values) * 100, color=ACCENT)
        axis.axvline(limit, color=INK, linestyle="--", linewidth=1)
        axis.annotate(f"{limit:.3g}", (limit, 8), xytext=(-4, 0), textcoords="offset points", ha="right", fontsize=8)
        axis.set_title(name.replace("_", " "), fontsize=9, fontweight="bold" if name == first else "normal")
        axis.tick_params(labelsize=7)
        axis.locator_params(axis="x", nbins=3)
        axis.spines[["top", "right"]].set_visible(False)
    for axis in axes.flat[len(names) :]:
        axis.set_axis_off()
    for axis in axes[:, 0]:
        axis.set_ylabel("rows below (%)", fontsize=8)


def _draw_chains(figure: Any, manifest: Manifest) -> None:
    """Each chain's log density over its samples, and how often each value comes."""
    facts: Any = manifest.diagnostics
    # JSON has no NaN: what was none when it was written is None when it is read.
    trace = np.array(facts["trace"], np.float64)
    places = np.linspace(1, facts["samples"] / facts["chains"], trace.shape[1])
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(4, 1))
    bins = np.histogram_bin_edges(trace[np.isfinite(trace)], 30)
    for chain, (values, color) in enumerate(zip(trace, _shades(len(trace)), strict=True)):
        left.plot(places, values, color=color, linewidth=0.8, alpha=0.8, label=f"chain {chain}")
        right.hist(values[np.isfinite(values)], bins, orientation="horizontal", histtype="step", color=color)
    left.set(title="log posterior density (nats)", xlabel="sample of each chain")
    right.set(title="how often", xticks=[])
    if len(trace) <= 8:
        figure.legend(*left.get_legend_handles_labels(), frameon=False, fontsize=8, ncols=8, loc="outside lower center")
    for axis in (left, right):
        axis.title.set_fontsize(10)
        axis.spines[["top", "right"]].set_visible(False)


def _shades(count: int) -> list[Any]:
    from matplotlib import colormaps  # noqa: PLC0415 - a second to import

    return list(colormaps["viridis"](np.linspace(0, 0.85, count)))


def _draw_fit(figure: Any, manifest: Manifest) -> None:
    left, right = figure.subplots(1, 2)
    loss: Any = manifest.diagnostics["loss"]
    reports: Any = manifest.diagnostics["reports"]
    steps = np.linspace(0, reports[-1]["step"], len(loss) + 1)[1:]
    left.plot(steps, loss, color=ACCENT)
    left.set(
        title=f"loss: {manifest.diagnostics.get('loss_unit', 'nats')}",
        xlabel="step",
        yscale="log" if min(loss) > 0 else "linear",
    )
    kind = "accuracy" if "test_accuracy" in reports[-1] else "rmse"
    for part, color in (("train", MUTED), ("test", INK)):
        right.plot(
            [row["step"] for row in reports], [row[f"{part}_{kind}"] for row in reports], color=color, label=part
        )
    right.set(title=kind, xlabel="step")
    right.legend(frameon=False)
    for axis in (left, right):
        axis.title.set_fontsize(10)
        axis.spines[["top", "right"]].set_visible(False)
