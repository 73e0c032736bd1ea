"""What `abstain evaluate` prints for people: the figures of `evaluate_version` as a few tables."""

from __future__ import annotations

from collections.abc import Iterable
from io import StringIO
from typing import TypeVar

from rich.console import Console
from rich.table import Table

from abstain.models.decisions.decision import COMBINED
from abstain.models.decisions.ranks import ordinal
from abstain.training.data.ood_sets import SAME_INTENSITY
from abstain.training.evaluation.quality import Figures

HEADLINES = ("accuracy", "rmse", "nll", "brier", "ece", "aurc", "crps", "coverage_95", "interval_width")
FURTHER = ("ace", "classwise_ece")
SEPARATION = ("auroc", "aupr", "fpr95", "detection")
WIDTH = 120
Row = TypeVar("Row")


def printout(found: Figures) -> str:
    """The figures as text, at most 120 characters wide."""
    console = Console(file=StringIO(), width=WIDTH, no_color=True, highlight=False)
    rows, decision = f"{found['rows']:,} test rows", readable(found["decision"])
    console.print(
        f"{found['model']} on {rows}; {decision} decides at the {ordinal(found['percentile'])} percentile\n",
        markup=False,
    )
    tables = [_quality_table(found), _risk_table(found), _parts_table(found)]
    if "per_class" in found:
        tables.append(_class_table(found["per_class"]))
    tables.append(_reject_table(found["reject_rate"], decision))
    for place, table in enumerate(tables):
        console.print(table)
        if not place and "ece_if_calibrated" in found:
            console.print(_reference_line(found["ece_if_calibrated"]), markup=False)
        console.print()
    console.print(_conformal_line(found["conformal"]), markup=False)
    for line in _coverage_lines(found):
        console.print(line, markup=False)
    for name, scores in found["ood"].items():
        console.print()
        console.print(_ood_table(name, found["ood_rows"][name], scores, decision))
        for twin in _twin_lines(found, name):
            console.print(twin, markup=False)
    written: StringIO = console.file  # type: ignore[assignment]
    return "\n".join(line.rstrip() for line in written.getvalue().splitlines())


def readable(name: str) -> str:
    """`mutual_information` → "mutual information"."""
    return name.replace("_", " ")


def _quality_table(found: Figures) -> Table:
    twin = found.get("twin")
    table = _table("", "model", "95 % interval", *(["twin: " + twin["model"]] if twin else []))
    for name in (name for name in (*HEADLINES, *FURTHER) if name in found):
        beside = [_figure(twin[name]) if name in twin else ""] if twin else []
        table.add_row(readable(name), _figure(found[name]), _interval(found["intervals"].get(name)), *beside)
    return table


def _reference_line(reference: dict[str, float]) -> str:
    return (
        f"  a perfectly calibrated model of as many rows shows an ece of {_figure(reference['mean'])} on average, and in "
        f"95 % of cases less than {_figure(reference['quantile_95'])}"
    )


def _risk_table(found: Figures) -> Table:
    what = "RMSE" if "rmse" in found else "error"
    risks = found["risk_at_coverage"]
    table = _table(f"{what} of the surest", *(f"{float(coverage):.0%}" for coverage in risks))
    table.add_row("", *(_figure(risk) for risk in risks.values()))
    return table


def _parts_table(found: Figures) -> Table:
    names = [name for name in HEADLINES if name in found["accepted"] or name in found["rejected"]]
    table = _table("", "rows", *map(readable, names))
    for part in ("accepted", "rejected"):
        figures = found[part]
        table.add_row(part, f"{figures['rows']:,}", *(_figure(figures[n]) if n in figures else "" for n in names))
    return table


def _class_table(classes: dict[str, Figures]) -> Table:
    columns = ("rows", "accuracy", "reject_rate", "set_coverage")
    table = _table("class", *map(readable, columns))
    for name, figures in classes.items():
        table.add_row(_plain(name), f"{figures['rows']:,}", *(_figure(figures[column]) for column in columns[1:]))
    return table


def _reject_table(rates: dict[str, float], decision: str) -> Table:
    table = _table("test rows above the threshold of", "share")
    # The combination is the decision, whose row is the first.
    for name, rate in _decision_first({name: rate for name, rate in rates.items() if name != COMBINED}):
        table.add_row(_score(name, decision), f"{rate:.2%}")
    return table


def _ood_table(name: str, rows: int, scores: dict[str, Figures], decision: str) -> Table:
    if name.endswith(SAME_INTENSITY):
        name = f"{name.removesuffix(SAME_INTENSITY)} at the test rows' intensity"
    table = _table(_plain(f"{name}, {rows:,} rows"), "AUROC", "AUPR", "FPR95", "detection", "95 % interval")
    for score, figures in _decision_first(scores):
        shown = (_figure(figures[column]) for column in SEPARATION)
        table.add_row(_score(score, decision), *shown, _interval(figures["detection_interval"]))
    return table


def _twin_lines(found: Figures, name: str) -> Iterable[str]:
    for score, figures in found.get("twin", {}).get("ood", {}).get(name, {}).items():
        shown = "  ".join(f"{key.upper()} {_figure(figures[key])}" for key in SEPARATION[:3])
        yield f"  twin, {readable(score)}: {shown}"


def _conformal_line(conformal: Figures) -> str:
    size = f"{conformal['mean_size']:.2f} classes" if "mean_size" in conformal else _figure(conformal["mean_width"])
    what = "sets hold the true class" if "mean_size" in conformal else "intervals hold the target"
    return (
        f"  {what} for {conformal['coverage']:.1%} of the rows {_interval(conformal['coverage_interval'])}, "
        f"{conformal['asked']:.1%} asked for; {size} on average"
    )


def _coverage_lines(found: Figures) -> Iterable[str]:
    """Coverage among the accepted and the rejected rows; it is guaranteed over both together, not of either."""
    for part in ("accepted", "rejected"):
        key = f"coverage_{part}"
        if key in found:
            yield f"    of the {part} rows: {found[key]:.1%} {_interval(found[f'{key}_interval'])}"


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=True, padding=(0, 2, 0, 1), header_style="")
    for place, column in enumerate(columns):
        table.add_column(column, justify="right" if place else "left", no_wrap=not place)
    return table


def _decision_first(figures: dict[str, Row]) -> Iterable[tuple[str, Row]]:
    return sorted(figures.items(), key=lambda item: item[0] != "reject")


def _score(name: str, decision: str) -> str:
    return f"decision ({decision})" if name == "reject" else readable(name)


def _figure(value: float) -> str:
    return f"{value:.4f}" if value == 0 or 0.001 <= abs(value) < 1000 else f"{value:.6g}"


def _interval(ends: list[float] | None) -> str:
    return f"{_figure(ends[0])} … {_figure(ends[1])}" if ends else ""


def _plain(text: str) -> str:
    """Text in which rich sees no markup: a class may be called `[b]`."""
    return text.replace("[", r"\[")
