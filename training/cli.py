"""The commands `abstain fit`, `abstain import`, `abstain calibrate` and `abstain evaluate`: parse, call one function, print.

This module imports nothing heavy, because `abstain -h` and the serving commands import it too.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from abstain.command_line import (
    DEFAULT_STORE,
    JsonOption,
    ModelArgument,
    StoreOption,
    check_percentile,
    print_json,
    print_table,
)
from abstain.training.extra import check_extra
from abstain.training.notes import is_diagnostic

ReportOption = Annotated[bool, typer.Option("--report/--no-report", help="Draw and write report.html.")]
if TYPE_CHECKING:
    from abstain.fitting import FitResult


def add_commands(app: typer.Typer) -> None:
    """Adds the training commands to the `abstain` command."""
    app.command("init", epilog="Example: `abstain init penguins.csv --target species`")(init)
    app.command(epilog="Example: `abstain fit digits-vi --set steps=500`")(fit)
    app.command(epilog="Example: `abstain configs digits-vi > own.toml`")(configs)
    app.command(epilog="Example: `abstain settings | less`")(settings)
    example = "Example: `abstain import draws.npz --config own.toml --data held_out.npz --train training.npz`"
    app.command("import", epilog=example)(import_draws)
    app.command(epilog="Example: `abstain calibrate mnist --data mnist.npz --percentile 95`")(calibrate)
    app.command(epilog="Example: `abstain evaluate mnist --data mnist.npz --ood letters=letters.npz --json`")(evaluate)


def init(
    data: Annotated[Path, typer.Argument(metavar="DATA", help="A table, such as .csv or .parquet.")],
    target: Annotated[str | None, typer.Option(help="The column to predict.")] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="CONFIG.toml", help="The config to write. Default: the name of DATA, in this folder."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the config if it exists.")] = False,
) -> None:
    """Look at a table and write a commented config for it, which fits as it is."""
    check_extra("this command")
    from abstain.training.initialize import initialize, summary_lines  # noqa: PLC0415

    written = initialize(data, target, out, force=force)
    for line in summary_lines(written):
        sys.stderr.write(f"{line}\n")
    typer.echo(written.path)


def fit(
    config: Annotated[
        Path, typer.Argument(metavar="CONFIG.toml", help="A file, or the name of an example: see abstain configs.")
    ],
    data: Annotated[
        str | None, typer.Option(help="A path or an embedded set. Default: data.source of the config.")
    ] = None,
    store: StoreOption = DEFAULT_STORE,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Replace a key of the config.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue an interrupted fit, or lengthen a finished one.")
    ] = False,
    report: ReportOption = True,
    netcdf: Annotated[
        Path | None, typer.Option(help="Write all samples into this file, as ArviZ InferenceData.")
    ] = None,
    tensorboard: Annotated[Path | None, typer.Option(help="Write traces into this folder, for TensorBoard.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Fit a posterior, calibrate, evaluate, and publish a new version of the model that the config names."""
    check_extra("this command")
    from abstain.fitting import fit as fit_model  # noqa: PLC0415

    published = fit_model(
        config,
        overrides=overrides or (),
        data=data,
        store=store,
        progress=True,
        resume=resume,
        report=report,
        netcdf=netcdf,
        tensorboard=tensorboard,
    )
    _print_published(published, as_json=as_json)


def import_draws(
    sources: Annotated[
        list[Path],
        typer.Argument(
            metavar="SOURCE...",
            help="One .npz or netCDF file of draws; or the .safetensors files or Orbax checkpoints of an ensemble.",
        ),
    ],
    config: Annotated[Path, typer.Option(metavar="CONFIG.toml", help="The config of the import.")],
    data: Annotated[
        str | None,
        typer.Option(help="Labelled rows that the network was not trained on. Default: data.source of the config."),
    ] = None,
    train: Annotated[
        str | None, typer.Option(help="Rows that it was trained on, or rows like them: for feature scores.")
    ] = None,
    noise: Annotated[
        str | None, typer.Option(metavar="NAME", help="The array of the noise's standard deviation: posterior.noise.")
    ] = None,
    store: StoreOption = DEFAULT_STORE,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Replace a key of the config.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Import draws that were made elsewhere, calibrate, evaluate, and publish a new version, without fitting."""
    check_extra("this command")
    from abstain.importing import import_posterior  # noqa: PLC0415

    named = [] if noise is None else [f"posterior.noise={noise}"]
    published = import_posterior(
        sources, config, overrides=(*(overrides or ()), *named), data=data, train=train, store=store, progress=True
    )
    _print_published(published, as_json=as_json)


def _print_published(published: FitResult, *, as_json: bool) -> None:
    """Prints what a reader needs of a new version on stderr, and its name or one JSON document on stdout."""
    for shortfall in published.shortfalls:
        sys.stderr.write(f"falls short: {shortfall}\n")
    notes = [note for note in published.notes if not is_diagnostic(note)]
    for note in notes:
        sys.stderr.write(f"note: {note}\n")
    if as_json:
        keys = ("name", "version", "metrics", "shortfalls", "notes")
        print_json({key: getattr(published, key) for key in keys})
        return
    baseline = published.metrics.get("baseline", {})
    for line in metric_lines(headline_metrics(published.metrics), baseline):
        sys.stderr.write(f"{line}\n")
    sys.stderr.write(f"{describe_fit(published, len(notes))}\n")
    typer.echo(f"{published.name}:{published.version}")


def describe_fit(published: FitResult, notes: int) -> str:
    """Says in one line whether a version is good, and where its other figures are.

    Args:
        notes: the number of notes that are printed above.
    """
    count = len(published.shortfalls)
    report = published.path / "report.html"
    more = f"all figures: abstain show {published.reference}" + (f", or {report}" if report.exists() else "")
    if count:
        checks = "a publication check" if count == 1 else f"{count} publication checks"
        return f'look at "falls short" above: {published.reference} failed {checks} and cannot become stable; {more}'
    read = {0: "", 1: "; read the note above"}.get(notes, f"; read the {notes} notes above")
    return f"OK: {published.reference} passed all publication checks{read}; {more}"


def configs(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Print this example.", show_default=False)] = None,
    as_json: JsonOption = False,
) -> None:
    """List the example configs that `abstain fit NAME` takes, or print one of them."""
    from abstain.models.errors import ConfigError, suggest  # noqa: PLC0415
    from abstain.training.config.reading import examples  # noqa: PLC0415

    found = {example: path.read_text("utf-8") for example, path in examples().items()}
    if name is not None:
        if name not in found:
            raise ConfigError(
                f"no example {name!r}", expected=f"one of {', '.join(found)}", found=name, fix=suggest(name, found)
            )
        typer.echo(found[name], nl=False)
        return
    # A config begins with a sentence about its data and its method.
    subjects = {
        example: re.split(r"\.\s", text.removeprefix("# "), maxsplit=1)[0].replace("\n# ", " ")
        for example, text in found.items()
    }
    if as_json:
        print_json({"configs": [{"name": example, "about": about} for example, about in subjects.items()]})
        return
    print_table(["config", ""], [[example, about] for example, about in subjects.items()])


def settings() -> None:
    """Print every key of a config, with its type, default and meaning."""
    from abstain.training.config.reference import format_settings  # noqa: PLC0415

    typer.echo(format_settings(), nl=False)


def calibrate(
    model: ModelArgument,
    data: Annotated[str, typer.Option(help="The data of the fit, or new labelled rows (x and y).")],
    percentile: Annotated[
        float | None, typer.Option(help="Percentile of the decision. Default: that of the version.")
    ] = None,
    coverage: Annotated[
        float | None, typer.Option(help="Coverage of sets and intervals. Default: that of the version.")
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Replace a key of [calibration]."),
    ] = None,
    ood: Annotated[
        list[str] | None, typer.Option("--ood", metavar="NAME=PATH", help="An OOD set, for the report.")
    ] = None,
    report: ReportOption = True,
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """Calibrate the draws of a version again, and publish a new version; the old one stays."""
    check_extra("this command")
    from abstain.training.calibrate import calibrate_version  # noqa: PLC0415

    check_percentile(percentile)
    options = {"percentile": percentile, "coverage": coverage}
    requested = [f"{key}={value!r}" for key, value in options.items() if value is not None]
    changes, sets = (*(overrides or ()), *requested), parse_named_paths(ood)
    published = calibrate_version(store, model, data, changes, sets, report=report)
    for shortfall in published.shortfalls:
        sys.stderr.write(f"falls short: {shortfall.text}\n")
    for note in published.notes:
        sys.stderr.write(f"note: {note}\n")
    if as_json:
        print_json(published.to_json())
        return
    sys.stderr.write(f"{published.basis}\n")
    typer.echo(f"{published.name}:{published.version}")


def evaluate(
    model: ModelArgument,
    data: Annotated[str, typer.Option(help="A path or an embedded set.")],
    percentile: Annotated[
        float | None, typer.Option(help="Percentile of the decision. Default: that of the version.")
    ] = None,
    ood: Annotated[list[str] | None, typer.Option("--ood", metavar="NAME=PATH", help="An OOD set.")] = None,
    twin: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="A version to compare with. Default: one network of the posterior."),
    ] = None,
    plots: Annotated[Path | None, typer.Option(metavar="DIR", help="Write plots into this folder.")] = None,
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """Report the quality of a version on the data's test part, and on OOD sets."""
    check_extra("this command")
    from abstain.training.evaluate import evaluate_version  # noqa: PLC0415
    from abstain.training.report.printout import format_evaluation  # noqa: PLC0415
    from abstain.training.runs.progress import progress_bar  # noqa: PLC0415

    check_percentile(percentile)
    strange = parse_named_paths(ood)
    with progress_bar(model) as progress:
        result = evaluate_version(
            store, model, data, percentile, strange, twin_model=twin, plots=plots, progress=progress
        )
    for note in result.notes:
        sys.stderr.write(f"note: {note}\n")
    if as_json:
        print_json(result.to_json())
        return
    typer.echo(format_evaluation(result))


def parse_named_paths(texts: list[str] | None) -> dict[str, str]:
    """Parses each `NAME=PATH`; returns the paths by name."""
    paths = dict(map(parse_named_path, texts or ()))
    if len(paths) < len(texts or ()):
        raise typer.BadParameter("expected each NAME once", param_hint="--ood")
    return paths


def parse_named_path(text: str) -> tuple[str, str]:
    """Parses `NAME=PATH`; returns name and path."""
    name, equals, path = text.partition("=")
    if not (name and equals and path):
        raise typer.BadParameter(f"expected NAME=PATH, found {text!r}", param_hint="--ood")
    return name, path


def headline_metrics(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the metrics that are single numbers, and the decision's AUROC and detection rate for each OOD set.

    The rates of the single scores are in `abstain show`, the report and `--json`.
    """
    figures: dict[str, Any] = {
        key: value
        for key, value in metrics.items()
        if key not in {"reliability", "ood", "ood_rows", "baseline", "classes"}
    }
    figures["reject_rate"] = figures.pop("reject_rate")["reject"]
    sets = {
        name: {figure: scores["reject"][figure] for figure in ("auroc", "detection")}
        for name, scores in metrics.get("ood", {}).items()
    }
    return figures | ({"ood": sets} if sets else {})


def metric_lines(tree: Mapping[str, Any], baseline: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Returns one line for each metric, with that of the baseline; a line begins with the names of the metric's tables."""
    lines: list[str] = []
    for key, value in tree.items():
        if isinstance(value, dict):
            lines += metric_lines(value, {}, f"{prefix}{key.replace('_', ' ')} ")
        else:
            shown = format_figure(value) if isinstance(value, float) else value
            beside = f"   baseline {format_figure(baseline[key])}" if key in baseline else ""
            lines.append(f"{prefix + key.replace('_', ' '):<40} {shown}{beside}")
    return lines


def format_figure(value: float) -> str:
    """Formats a number with four decimals; with four significant digits below 0.1, and from 1,000 on."""
    return f"{value:.4f}" if value == 0 or 0.1 <= abs(value) < 1000 else f"{value:.4g}"
