"""`abstain evaluate --plots DIR`: one PNG for each plot."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from matplotlib.figure import Figure

from abstain.models.prediction.summaries import ClassificationSummary
from abstain.training.evaluation.records import ReportView
from abstain.training.report.canvas import plain_text_names, use_plain_log_labels
from abstain.training.report.confidence_plots import draw_reliability, draw_risk_coverage
from abstain.training.report.galleries import draw_accepted, draw_mistakes
from abstain.training.report.ood_plots import draw_detection, draw_ecdf, draw_roc
from abstain.training.report.regression_plots import draw_pit, draw_predicted, draw_width_error

DPIS, MOST_BYTES = (110, 80, 60, 40), 400_000


def write_plots(folder: Path, view: ReportView) -> list[str]:
    """Writes the plots for the model's task, its inputs and the OOD sets; returns the files' names."""
    folder.mkdir(parents=True, exist_ok=True)
    with plain_text_names():
        figures = {name: draw(view) for name, draw in plots_for(view).items()}
        written = {f"{name}.png": figure for name, figure in figures.items() if figure is not None}
        for name, figure in written.items():
            use_plain_log_labels(figure)
            save_small(figure, folder / name)
    return list(written)


def save_small(figure: Figure, path: Path) -> None:
    """Writes a PNG at the finest of `DPIS` that keeps it below `MOST_BYTES`; plots of many sets can be large."""
    for dpi in DPIS:
        figure.savefig(path, dpi=dpi)
        if path.stat().st_size < MOST_BYTES:
            return


def plots_for(view: ReportView) -> dict[str, Callable[[ReportView], Figure | None]]:
    """Returns the plots for the model's task and inputs, by name, in the order of reading."""
    drawn: dict[str, Callable[[ReportView], Figure | None]] = {}
    if isinstance(view.familiar.prediction.summary, ClassificationSummary):
        drawn |= {"reliability": draw_reliability, "risk_coverage": draw_risk_coverage}
        if view.posterior.model.is_image:
            drawn |= {"mistakes": draw_mistakes}
    else:
        drawn |= {"predicted": draw_predicted, "width_error": draw_width_error, "pit": draw_pit}
        drawn |= {"risk_coverage": draw_risk_coverage}
    drawn |= {"ecdf": draw_ecdf}
    if view.strange:
        drawn |= {"roc": draw_roc, "detection": draw_detection}
    if view.posterior.model.is_image:
        drawn |= {"accepted": draw_accepted}
    return drawn
