"""`report.html`: the quality of one version, for people, in one file with its pictures and without scripts.

The sections are in the order of a decision about a deployment: verdict, quality, rejection, fit, settings. The report
names each missing part, with the reason. This module builds the record of `contents.py` and renders it with `templates/`.
Jinja escapes every name and number of the record; `safe` marks only its own output and the XML of `svg.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from abstain.models.bundles.import_record import ImportRecord
from abstain.models.bundles.manifest import Manifest
from abstain.models.bundles.shortfalls import texts
from abstain.models.decisions.records import Calibration
from abstain.training.data.ood_sets import readable_name
from abstain.training.evaluation.records import ReportData
from abstain.training.report.contents import (
    DecisionPart,
    Draw,
    Facts,
    Guess,
    Heading,
    Page,
    Picture,
    Quality,
    RenderedSection,
    Settings,
    Verdict,
)
from abstain.training.report.facts import flatten
from abstain.training.report.fit_contents import Fit
from abstain.training.runs.failures import Failure, attempt

TEMPLATES = Path(__file__).parent / "templates"
TITLES = {
    "verdict": "Verdict",
    "quality": "Quality",
    "decision": "I don't know",
    "fit": "The fit",
    "settings": "Settings",
}
"""The sections' titles in the table of contents, in the order of the page."""


def write_report(
    path: Path,
    manifest: Manifest,
    calibration: Calibration,
    report_data: ReportData = ReportData(),  # noqa: B008
) -> tuple[str, ...]:
    """Writes the report of a version.

    Args:
        path: the file to write.
        manifest: the version's manifest, without the notes that this report adds.
        calibration: the scores of the calibration rows.
        report_data: test part, OOD sets, curve and chains; the report gives the reason for each missing part.

    Returns:
        A sentence for each section and picture that could not be made: notes for the manifest.
    """
    missing: list[str] = []
    page = build_page(manifest, calibration, report_data, missing)
    path.write_text(environment().get_template("page.html").render(page=page, titles=TITLES) + "\n", "utf-8")
    return tuple(missing)


def build_page(manifest: Manifest, calibration: Calibration, report_data: ReportData, missing: list[str]) -> Page:
    """Builds the record of the page, with rendered sections.

    Args:
        manifest, calibration, report_data: as in `write_report`.
        missing: a list to which a sentence is added for each section and picture that cannot be made.
    """
    draw = partial(draw_picture, missing=missing)
    builders: dict[str, Callable[[], object]] = {
        "quality": lambda: _build_quality(manifest, report_data, draw),
        "decision": lambda: _build_decision(manifest, calibration, report_data, draw),
        "fit": lambda: _build_fit(manifest, report_data, draw),
        "settings": lambda: build_settings(manifest),
        # The last one, because it lists the failures of the others.
        "verdict": lambda: _build_verdict(manifest, report_data, missing),
    }
    sections = {key: render_section(key, build, missing) for key, build in builders.items()}
    return Page(
        heading=build_heading(manifest),
        sections=tuple(sections[key] for key in TITLES),
        packages=tuple(manifest.packages.items()),
        git_commit=manifest.git_commit or "unknown",
    )


# ---- rendering -------------------------------------------------------------------------------------------------------


@cache
def environment() -> Environment:
    """Returns Jinja's environment, with escaping in every template; a name that is not in the record is an error."""
    jinja = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    jinja.filters["form"] = format
    jinja.filters["readable"] = readable_name
    return jinja


def render_section(key: str, build: Callable[[], object], missing: list[str]) -> RenderedSection:
    """Renders a section from its template and the record that `build` returns; if one of them fails, gives the reason.

    Each section is rendered alone, so that a number that cannot be formatted costs one section, not the report.
    """
    template = environment().get_template(f"{key}.html")
    html = attempt(f"the report's section “{TITLES[key]}”", lambda: template.render(section=build()), missing)
    return RenderedSection(key, "", html.sentence) if isinstance(html, Failure) else RenderedSection(key, html)


def draw_picture(name: str, draw: Callable[[], Any], missing: list[str]) -> Picture:
    """Draws a figure; if that fails, gives the reason."""
    from abstain.training.report.svg import render_svg  # noqa: PLC0415 - a second to import

    drawing = attempt(f"the picture “{readable_name(name)}”", lambda: render_svg(name, draw), missing)
    return Picture(None, drawing.sentence) if isinstance(drawing, Failure) else Picture(drawing)


# ---- the record of the page ------------------------------------------------------------------------------------------


def build_heading(manifest: Manifest) -> Heading:
    """Returns the version's name, and how it was fitted."""
    model = manifest.model
    return Heading(
        name=f"{manifest.name}:{manifest.version}",
        created=manifest.created,
        method=manifest.method.kind,
        network=model.network.kind,
        likelihood=model.likelihood,
        draws=manifest.draws,
        feature_shape=model.feature_shape,
    )


def _build_verdict(manifest: Manifest, report_data: ReportData, missing: list[str]) -> Verdict:
    from abstain.training.evaluation.coverage import describe_rows  # noqa: PLC0415 - a second to import
    from abstain.training.report.decision_section import build_ood_sets  # noqa: PLC0415
    from abstain.training.report.quality_section import build_conformal, guess_text  # noqa: PLC0415

    metrics: Any = manifest.metrics
    baseline = metrics.get("baseline", {})
    headline = finite_or_none(baseline.get("accuracy", baseline.get("rmse")))
    coverage = manifest.calibration.conditional_coverage
    return Verdict(
        shortfalls=tuple(texts(manifest.shortfalls)),
        notes=(*manifest.notes, *missing),
        test_rows=manifest.data.test_rows,
        accuracy=finite_or_none(metrics.get("accuracy")),
        rmse=finite_or_none(metrics.get("rmse")),
        baseline=None if headline is None else Guess(guess_text(baseline), headline),
        ece=finite_or_none(metrics.get("ece")),
        reject_rate=metrics["reject_rate"]["reject"] if "reject_rate" in metrics else None,
        percentile=None if manifest.calibration.risk else manifest.calibration.percentile,
        conformal=build_conformal(report_data.view, coverage.among if coverage else "all")
        if report_data.view
        else None,
        requested_of=describe_rows(coverage),
        ood=build_ood_sets(manifest),
    )


def _build_quality(manifest: Manifest, report_data: ReportData, draw: Draw) -> Quality:
    from abstain.training.report.quality_section import build_quality  # noqa: PLC0415 - a second to import

    return build_quality(manifest, report_data, draw)


def _build_decision(manifest: Manifest, calibration: Calibration, report_data: ReportData, draw: Draw) -> DecisionPart:
    from abstain.training.report.decision_section import build_decision  # noqa: PLC0415 - a second to import

    return build_decision(manifest, calibration, report_data, draw)


def _build_fit(manifest: Manifest, report_data: ReportData, draw: Draw) -> Fit:
    from abstain.training.report.fit_section import build_fit  # noqa: PLC0415 - a second to import

    return build_fit(manifest, report_data, draw)


def build_settings(manifest: Manifest) -> Settings:
    """Returns the data, and every setting of the fit."""
    data = manifest.data
    return Settings(
        data=(
            ("source", data.source),
            ("training rows", f"{data.train_rows:,}"),
            ("calibration rows", f"{data.calibration_rows:,}"),
            ("test rows", f"{data.test_rows:,}"),
            ("fingerprint", data.fingerprint),
            *(() if manifest.imported is None else _imported_facts(manifest.imported)),
            *flatten({key: value for key, value in data.settings.items() if key != "source"}),
        ),
        method=manifest.method.kind,
        method_settings=(*flatten(manifest.method.settings), ("seed", str(manifest.seed))),
        network=flatten(manifest.model.network.model_dump(mode="json")),
        calibration=flatten(manifest.calibration.settings),
    )


def _imported_facts(record: ImportRecord) -> Facts:
    """Returns where imported draws came from."""
    files = ", ".join(source.name for source in record.sources)
    return (
        ("draws imported from", f"{files} ({record.kind})" if files else record.kind),
        ("draws in the source", f"{record.found:,}"),
        ("digest of the draws", record.digest),
    )


def finite_or_none(value: Any) -> float | None:
    """Returns a value of a manifest, or None if it is not a finite number."""
    return value if isinstance(value, (int, float)) and math.isfinite(value) else None
