"""Training's commands, `abstain fit`, `abstain calibrate` and `abstain evaluate`: parse, call one function, print.

Importing this module imports nothing heavy: `abstain -h` and serving's commands pass through it.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer

from abstain.models.decisions.decision import COMBINED
from abstain.training.extra import check_extra

DEFAULT_STORE = Path("artifacts")
StoreOption = Annotated[Path, typer.Option("--store", envvar="ABSTAIN_STORE", help="The folder of models.")]


def add_commands(app: typer.Typer) -> None:
    """Adds training's commands to the `abstain` command."""
    app.command(epilog="Example: `abstain fit training/configs/digits-vi.toml --set steps=500`")(fit)
    app.command(epilog="Example: `abstain calibrate mnist --data mnist.npz --percentile 95`")(calibrate)
    app.command(epilog="Example: `abstain evaluate mnist --data mnist.npz --ood letters=letters.npz --json`")(evaluate)


def fit(
    config: Annotated[Path, typer.Argument(metavar="CONFIG.toml")],
    data: Annotated[str | None, typer.Option(help="A path, or an embedded set; the config's if left out.")] = None,
    store: StoreOption = DEFAULT_STORE,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Replace a key of the config.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with a fit that was cut off, or lengthen a finished one.")
    ] = False,
    netcdf: Annotated[Path | None, typer.Option(help="Write all samples there, as ArviZ InferenceData.")] = None,
    tensorboard: Annotated[Path | None, typer.Option(help="Write traces into that folder, for TensorBoard.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
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
        netcdf=netcdf,
        tensorboard=tensorboard,
    )
    for said in published.shortfalls:
        sys.stderr.write(f"falls short: {said}\n")
    for said in published.notes:
        sys.stderr.write(f"note: {said}\n")
    if as_json:
        keys = ("name", "version", "metrics", "shortfalls", "notes")
        print_json({key: getattr(published, key) for key in keys})
        return
    for line in described(headlines(published.metrics)):
        sys.stderr.write(f"{line}\n")
    typer.echo(f"{published.name}:{published.version}")


def calibrate(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="name, name:version or name@label")],
    data: Annotated[str, typer.Option(help="What it was fitted with, or new labelled rows (x and y).")],
    percentile: Annotated[float | None, typer.Option(help="Of the decision; the model's own if left out.")] = None,
    coverage: Annotated[float | None, typer.Option(help="Of sets and intervals; the model's own if left out.")] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Replace a key of the config's [calibration]."),
    ] = None,
    ood: Annotated[
        list[str] | None, typer.Option("--ood", metavar="NAME=PATH", help="A set of strange inputs, for the report.")
    ] = None,
    store: StoreOption = DEFAULT_STORE,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Give existing draws a new calibration, published as a new version; the old one stays."""
    check_extra("this command")
    from abstain.training.calibrate import calibrate_version  # noqa: PLC0415

    _check_percentile(percentile)
    given = {"percentile": percentile, "coverage": coverage}
    asked = [f"{key}={value!r}" for key, value in given.items() if value is not None]
    published = calibrate_version(store, model, data, (*(overrides or ()), *asked), named_paths(ood))
    for lack in published.shortfalls:
        sys.stderr.write(f"falls short: {lack.text}\n")
    for said in published.notes:
        sys.stderr.write(f"note: {said}\n")
    if as_json:
        print_json(published.to_json())
        return
    sys.stderr.write(f"{published.basis}\n")
    typer.echo(f"{published.name}:{published.version}")


def evaluate(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="name, name:version or name@label")],
    data: Annotated[str, typer.Option(help="A path, or an embedded set.")],
    percentile: Annotated[float | None, typer.Option(help="Of the decision; the model's own if left out.")] = None,
    ood: Annotated[
        list[str] | None, typer.Option("--ood", metavar="NAME=PATH", help="A set of strange inputs.")
    ] = None,
    twin: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="A version to stand beside; one network of the posterior if left out."),
    ] = None,
    plots: Annotated[Path | None, typer.Option(metavar="DIR", help="Write pictures into that folder.")] = None,
    store: StoreOption = DEFAULT_STORE,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Report the quality of a version on the data's test part, and on OOD sets."""
    check_extra("this command")
    from abstain.training.evaluate import evaluate_version  # noqa: PLC0415
    from abstain.training.report.printout import printout  # noqa: PLC0415
    from abstain.training.runs.progress import progress_bar  # noqa: PLC0415

    _check_percentile(percentile)
    strange = named_paths(ood)
    with progress_bar(model) as progress:
        result = evaluate_version(store, model, data, percentile, strange, beside=twin, plots=plots, progress=progress)
    for said in result.notes:
        sys.stderr.write(f"note: {said}\n")
    if as_json:
        print_json(result.to_json())
        return
    typer.echo(printout(result))


def named_paths(texts: list[str] | None) -> dict[str, str]:
    """Paths by name, of each `NAME=PATH`."""
    found = dict(map(named_path, texts or ()))
    if len(found) < len(texts or ()):
        raise typer.BadParameter("expected each NAME once", param_hint="--ood")
    return found


def named_path(text: str) -> tuple[str, str]:
    """`NAME=PATH` in two."""
    name, equals, path = text.partition("=")
    if not (name and equals and path):
        raise typer.BadParameter(f"expected NAME=PATH, found {text!r}", param_hint="--ood")
    return name, path


def headlines(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """The metrics without what is a table of its own; of OOD sets, what the decision makes of them."""
    found: dict[str, Any] = {
        key: value for key, value in metrics.items() if key not in {"reliability", "ood", "ood_rows"}
    }
    # The combination is the decision, which is there by its own name.
    found["reject_rate"] = {name: rate for name, rate in metrics["reject_rate"].items() if name != COMBINED}
    sets = {
        name: {figure: scores["reject"][figure] for figure in ("auroc", "detection")}
        for name, scores in metrics.get("ood", {}).items()
    }
    return found | ({"ood": sets} if sets else {})


def described(tree: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Figures as lines, a table's rows under its name."""
    lines: list[str] = []
    for key, value in tree.items():
        if isinstance(value, dict):
            lines += described(value, f"{prefix}{key.replace('_', ' ')} ")
        else:
            shown = figure(value) if isinstance(value, float) else value
            lines.append(f"{prefix + key.replace('_', ' '):<40} {shown}")
    return lines


def figure(value: float) -> str:
    """Four decimals, or four digits where these would show less."""
    return f"{value:.4f}" if value == 0 or 0.1 <= abs(value) < 1000 else f"{value:.4g}"


def print_json(content: Any) -> None:
    """One JSON document on stdout."""
    sys.stdout.write(orjson.dumps(content, option=orjson.OPT_INDENT_2).decode() + "\n")


def _check_percentile(percentile: float | None) -> None:
    """Refuses a percentile that is none, or that means a share, as .99 does: wrong usage, exit code 2."""
    if percentile is not None and not 1 < percentile < 100:
        raise typer.BadParameter(
            f"expected a percentile above 1 and below 100, such as 99, found {percentile:g}", param_hint="--percentile"
        )
