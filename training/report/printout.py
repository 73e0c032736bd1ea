"""The text that `abstain evaluate` prints: the results of `evaluate_version` as tables."""

from __future__ import annotations

from collections.abc import Iterable
from io import StringIO

from rich.console import Console
from rich.table import Table

from abstain.models.decisions.decision import COMBINED
from abstain.models.decisions.ranks import ordinal
from abstain.training.data.ood_sets import SAME_INTENSITY
from abstain.training.evaluation.reliability import CalibrationErrors
from abstain.training.evaluation.results import (
    BaselineQuality,
    ClassQuality,
    ConformalQuality,
    CoverageByDecision,
    Evaluation,
    Interval,
    SetDetection,
    TwinQuality,
)

HEADLINES = ("accuracy", "rmse", "nll", "brier", "ece", "aurc", "crps", "coverage_95", "interval_width")
WIDTH = 120


def format_evaluation(result: Evaluation) -> str:
    """Formats an evaluation as text, at most 120 characters wide."""
    console = Console(file=StringIO(), width=WIDTH, no_color=True, highlight=False)
    rows, decision = f"{result.rows:,} test rows", readable_name(result.decision)
    console.print(
        f"{result.model} on {rows}; {decision} decides at the {ordinal(result.percentile)} percentile"
        f"{', and a limit of the error' if result.limits_error else ''}\n",
        markup=False,
    )
    tables = [_quality_table(result), _risk_table(result), _parts_table(result)]
    if result.classes is not None:
        tables.append(_class_table(result.classes))
    label = "rejected" if result.limits_error else f"decision ({decision})"
    tables.append(_reject_table(result.reject_rates, label))
    for index, table in enumerate(tables):
        console.print(table)
        if not index and result.calibration_errors:
            console.print(_reference_line(result.calibration_errors), markup=False)
        if not index and result.baseline:
            console.print(_baseline_line(result.baseline), markup=False)
        console.print()
    console.print(_conformal_line(result.conformal, result.requested_of), markup=False)
    for line in _coverage_lines(result.coverage, result.requested_of):
        console.print(line, markup=False)
    for name, detection in result.ood.items():
        console.print()
        console.print(_ood_table(name, detection, decision))
        for line in _twin_lines(result.twin, name):
            console.print(line, markup=False)
    written: StringIO = console.file  # type: ignore[assignment]
    return "\n".join(line.rstrip() for line in written.getvalue().splitlines())


def readable_name(name: str) -> str:
    """Replaces underscores by spaces."""
    return name.replace("_", " ")


def _quality_table(result: Evaluation) -> Table:
    twin, errors, baseline = result.twin, result.calibration_errors, result.baseline
    further_columns = [*(["baseline"] if baseline else []), *([f"twin: {twin.model}"] if twin else [])]
    table = _table("", "model", "95 % interval", *further_columns)
    further = {"ace": errors.ace, "classwise_ece": errors.classwise_ece} if errors else {}
    figures = {name: result.metrics[name] for name in HEADLINES if name in result.metrics} | further
    for name, value in figures.items():
        others = [_figure(other.metrics[name]) if name in other.metrics else "" for other in (baseline, twin) if other]
        table.add_row(readable_name(name), _figure(value), _interval(result.intervals.get(name)), *others)
    return table


def _baseline_line(baseline: BaselineQuality) -> str:
    if isinstance(baseline.guess, str):
        return f"  baseline: always {baseline.guess!r}; nll and brier of the class frequencies of the training part"
    return (
        f"  baseline: always the mean of the training part, {_figure(baseline.guess)}; nll with its standard deviation"
    )


def _reference_line(errors: CalibrationErrors) -> str:
    return (
        f"  a perfectly calibrated model of as many rows shows an ece of {_figure(errors.ece_if_calibrated)} on average, and in "
        f"95 % of cases less than {_figure(errors.ece_if_calibrated_95)}"
    )


def _risk_table(result: Evaluation) -> Table:
    what = "RMSE" if "rmse" in result.metrics else "error"
    table = _table(f"{what} of the most confident", *(f"{float(coverage):.0%}" for coverage in result.risk_at_coverage))
    table.add_row("", *(_figure(risk) for risk in result.risk_at_coverage.values()))
    return table


def _parts_table(result: Evaluation) -> Table:
    parts = {"accepted": result.accepted, "rejected": result.rejected}
    names = [name for name in HEADLINES if any(name in part.metrics for part in parts.values())]
    table = _table("", "rows", *map(readable_name, names))
    for label, part in parts.items():
        table.add_row(
            label, f"{part.rows:,}", *(_figure(part.metrics[name]) if name in part.metrics else "" for name in names)
        )
    return table


def _class_table(classes: dict[str, ClassQuality]) -> Table:
    table = _table("class", "rows", "predicted", "accuracy", "precision", "reject rate", "set coverage")
    for name, own in classes.items():
        shares = (own.accuracy, own.precision, own.reject_rate, own.set_coverage)
        figures = (_figure(part.share) if part else "" for part in shares)
        table.add_row(_plain(name), f"{own.rows:,}", f"{own.predicted:,}", *figures)
    return table


def _reject_table(rates: dict[str, float], label: str) -> Table:
    table = _table("test rows above the threshold of", "share")
    table.add_row(label, f"{rates['reject']:.2%}")
    for name, rate in rates.items():
        # The combined score is the decision, which has the first row.
        if name not in {"reject", COMBINED}:
            table.add_row(readable_name(name), f"{rate:.2%}")
    return table


def _ood_table(name: str, detection: SetDetection, decision: str) -> Table:
    if name.endswith(SAME_INTENSITY):
        name = f"{name.removesuffix(SAME_INTENSITY)} at the test rows' intensity"
    table = _table(_plain(f"{name}, {detection.rows:,} rows"), "AUROC", "AUPR", "FPR95", "detection", "95 % interval")
    of_scores = {readable_name(score): found for score, found in detection.scores.items()}
    for label, found in ({f"decision ({decision})": detection.decision} | of_scores).items():
        separation, detected = found.separation, found.detected
        shown = (separation.auroc, separation.aupr, separation.fpr95, detected.share)
        table.add_row(label, *map(_figure, shown), _interval(detected.interval))
    return table


def _twin_lines(twin: TwinQuality | None, name: str) -> Iterable[str]:
    scores = twin.ood.get(name, {}) if twin else {}
    for score, found in scores.items():
        yield (
            f"  twin, {readable_name(score)}: AUROC {_figure(found.auroc)}  AUPR {_figure(found.aupr)}  "
            f"FPR95 {_figure(found.fpr95)}"
        )


def _conformal_line(conformal: ConformalQuality, requested_of: str) -> str:
    if conformal.mean_size is not None:
        size, what = f"{conformal.mean_size:.2f} classes", "sets contain the true class"
    else:
        size, what = _figure(conformal.mean_width or 0.0), "intervals contain the target"
    return (
        f"  {what} for {conformal.coverage.share:.1%} of the rows {_interval(conformal.coverage.interval)}, "
        f"{conformal.stated:.1%} requested{f' {requested_of}' if requested_of else ''}; {size} on average"
    )


def _coverage_lines(coverage: CoverageByDecision, requested_of: str) -> Iterable[str]:
    """Yields the coverage of accepted and of rejected rows, and of the class with the lowest one."""
    worst = coverage.worst_class
    for label, part in (("accepted rows", coverage.accepted), ("rejected rows", coverage.rejected)):
        if part is not None:
            share = part.coverage
            yield f"    of the {label}: {share.share:.1%} {_interval(share.interval)}, {part.rows:,} rows"
    if worst is not None:
        share = worst.coverage
        kind = "accepted rows of true class" if "accepted" in requested_of else "true class"
        yield f"    lowest for {kind} {worst.name}: {share.share:.1%} {_interval(share.interval)}, {worst.rows:,} rows"


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=True, padding=(0, 2, 0, 1), header_style="")
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index else "left", no_wrap=not index)
    return table


def _figure(value: float) -> str:
    return f"{value:.4f}" if value == 0 or 0.001 <= abs(value) < 1000 else f"{value:.6g}"


def _interval(ends: Interval | None) -> str:
    return f"{_figure(ends[0])} … {_figure(ends[1])}" if ends else ""


def _plain(text: str) -> str:
    """Escapes rich's markup, because a class may have the name `[b]`."""
    return text.replace("[", r"\[")
