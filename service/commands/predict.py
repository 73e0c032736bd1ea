"""`abstain predict`: predictions for the rows of a file."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from abstain.command_line import (
    DEFAULT_STORE,
    JsonOption,
    ModelArgument,
    StoreOption,
    check_percentile,
    print_json,
    stderr_console,
)
from abstain.service.commands.predict_options import RowErrors, check_paths, split_fields

commands = typer.Typer()


@commands.command(epilog="Example: `abstain predict digits --data new.csv --out answers.parquet`")
def predict(
    model: ModelArgument,
    data: Annotated[Path, typer.Option("--data", help="Rows: .npz, .csv or .parquet.")],
    out: Annotated[Path, typer.Option("--out", help="Predictions: .csv, .parquet, .npz or .jsonl.")],
    percentile: Annotated[
        float | None, typer.Option(help="The percentile of the decision; default: the model's own.")
    ] = None,
    max_error: Annotated[
        float | None,
        typer.Option(
            metavar="E",
            help="The largest share of wrong answers among accepted rows, for a model calibrated with max_error; "
            "default: the model's own.",
        ),
    ] = None,
    fdr: Annotated[
        float | None,
        typer.Option(
            metavar="Q",
            help="Add fdr_reject: on average at most the share Q of the rows flagged in this file are like the "
            "calibration rows.",
        ),
    ] = None,
    keep: Annotated[
        list[str] | None,
        typer.Option("--keep", metavar="COLUMN", help="Copy a column of the input, such as an id; repeatable."),
    ] = None,
    fields: Annotated[
        str | None, typer.Option(metavar="NAMES", help="The fields to write, joined by commas; default: all.")
    ] = None,
    errors: Annotated[
        RowErrors,
        typer.Option(help="What a row with an error does: refuse the file, or leave its cells empty (null)."),
    ] = RowErrors.REFUSE,
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """Predict the rows of a file, with the same numbers as over HTTP."""
    if percentile is not None:
        check_percentile(percentile)
    for option, share in {"--fdr": fdr, "--max-error": max_error}.items():
        _check_share(option, share)
    check_paths(data, out, errors)
    wanted = split_fields(fields)
    from rich.progress import Progress  # noqa: PLC0415

    from abstain.models.bundles import store as stores  # noqa: PLC0415
    from abstain.models.bundles.bundle import load_published, read_published  # noqa: PLC0415
    from abstain.models.bundles.signatures import read_trusted  # noqa: PLC0415
    from abstain.models.decisions.judging import check_limited  # noqa: PLC0415
    from abstain.service.commands.predict_file import describe_discoveries, predict_file  # noqa: PLC0415
    from abstain.service.commands.predict_rows import read_input  # noqa: PLC0415
    from abstain.service.compilation import keep_compiled  # noqa: PLC0415
    from abstain.service.settings import read_settings  # noqa: PLC0415

    settings = read_settings(os.environ)
    trusted = read_trusted(settings.trusted_keys)
    keep_compiled(settings.compiled)
    name, version = stores.resolve(store, model)
    # The input is checked before the draws are loaded.
    manifest = read_published(store, name, version, trusted)
    given = read_input(data, manifest, keep or (), skip_errors=errors is RowErrors.NULL)
    bundle = load_published(store, name, version, trusted)
    console = stderr_console()
    # Without a terminal, the end of the invisible bar would print an empty line before an error.
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("predicting", total=None)
        written = predict_file(
            bundle,
            data,
            out,
            percentile,
            lambda done, total: bar.update(task, completed=done, total=total),
            fdr,
            max_error,
            fields=wanted,
            given=given,
        )
    if fdr is not None:
        sys.stderr.write(f"{describe_discoveries(written, fdr, bundle.calibration.rows)}\n")
    result: dict[str, Any] = {"model": name, "version": version, "rows": written.rows, "out": str(out)}
    if given.errors is not None:
        result["errors"] = len(given.errors)
        sys.stderr.write(f"{len(given.errors)} of {given.size} rows have an error, see the column error\n")
    limit = check_limited(bundle.calibration, percentile, max_error)
    if limit is not None:
        result |= {"max_error": limit.max_error, "confidence": limit.confidence}
        sys.stderr.write(f"max_error {limit.max_error!r} with confidence {limit.confidence!r}\n")
    if as_json:
        print_json(result)
    else:
        typer.echo(f"{name}:{version} predicted {written.rows} rows into {out}")


def _check_share(option: str, share: float | None) -> None:
    """Refuses an invalid share, or a percentage such as 5: wrong usage, exit code 2. None: the option is not given."""
    if share is not None and not 0 < share < 1:
        raise typer.BadParameter(
            f"expected a share above 0 and below 1, such as 0.05, found {share:g}", param_hint=option
        )
