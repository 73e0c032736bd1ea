"""`abstain predict`: predictions for the rows of a file."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from abstain.command_line import (
    DEFAULT_STORE,
    AnyStoreOption,
    JsonOption,
    ModelArgument,
    check_percentile,
    print_json,
    stderr_console,
)
from abstain.models.bundles.remote.url import parse_store
from abstain.service.commands.predict_options import RowErrors, check_paths, split_fields

commands = typer.Typer()


@commands.command(epilog="Example: `abstain predict digits --data new.csv --out answers.parquet`")
def predict(
    model: ModelArgument,
    data: Annotated[Path, typer.Option("--data", help="Rows: an .npz, or a table such as .csv, .parquet or .arrow.")],
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
    store: AnyStoreOption = DEFAULT_STORE,
    url: Annotated[
        str | None,
        typer.Option(
            metavar="URL", help="Predict by this server, with the key in ABSTAIN_API_KEY, instead of a store."
        ),
    ] = None,
    tls_ca: Annotated[
        Path | None, typer.Option("--tls-ca", help="With --url: the certificates that the server's one is checked by.")
    ] = None,
    timeout: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="With --url: for all rows; default: 600.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Predict the rows of a file, with the same numbers as over HTTP; with --url, by a server."""
    if percentile is not None:
        check_percentile(percentile)
    for option, share in {"--fdr": fdr, "--max-error": max_error}.items():
        _check_share(option, share)
    check_paths(data, out, errors)
    wanted = split_fields(fields)
    store_given = store not in {DEFAULT_STORE, parse_store(os.environ.get("ABSTAIN_STORE", DEFAULT_STORE))}
    _check_server_options(url, fdr, {"--tls-ca": tls_ca, "--timeout": timeout}, store_given)
    if url is not None:
        if errors is RowErrors.NULL:
            raise typer.BadParameter("null needs the model; leave out --url", param_hint="--errors")
        from abstain.service.commands.predict_url import predict_by_server  # noqa: PLC0415

        result, rejected = predict_by_server(
            url,
            model,
            data,
            out,
            percentile=percentile,
            max_error=max_error,
            keep=keep or (),
            fields=wanted,
            tls_ca=tls_ca,
            timeout=timeout,
        )
        sys.stderr.write(f"{rejected}\n")
        _report(result, as_json)
        return
    from rich.progress import Progress  # noqa: PLC0415

    from abstain.models.bundles import store as stores  # noqa: PLC0415
    from abstain.models.bundles.bundle import load_published, read_published  # noqa: PLC0415
    from abstain.models.bundles.remote.copies import local_copy  # noqa: PLC0415
    from abstain.models.bundles.signatures import read_trusted  # noqa: PLC0415
    from abstain.models.decisions.judging import check_limited  # noqa: PLC0415
    from abstain.service.commands.predict_file import describe_discoveries, predict_file  # noqa: PLC0415
    from abstain.service.commands.predict_rows import read_input  # noqa: PLC0415
    from abstain.service.compilation import keep_compiled  # noqa: PLC0415
    from abstain.service.settings import read_settings  # noqa: PLC0415

    settings = read_settings(os.environ)
    trusted = read_trusted(settings.trusted_keys)
    keep_compiled(settings.compiled)
    with local_copy(store, model) as root:
        name, version = stores.resolve(root, model)
        # The input is checked before the draws are loaded.
        manifest = read_published(root, name, version, trusted)
        given = read_input(data, manifest, keep or (), skip_errors=errors is RowErrors.NULL)
        bundle = load_published(root, name, version, trusted)
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
    sys.stderr.write(f"{written.rejected}\n")
    if fdr is not None:
        sys.stderr.write(f"{describe_discoveries(written, fdr, bundle.calibration.rows)}\n")
    result: dict[str, Any] = {"model": name, "version": version, "rows": written.rows, "out": str(out)}
    if given.errors is not None:
        result["errors"] = len(given.errors)
    if given.errors:
        sys.stderr.write(f"{len(given.errors)} of {given.size} rows have an error, see the column error\n")
    limit = check_limited(bundle.calibration, percentile, max_error)
    if limit is not None:
        result |= {"max_error": limit.max_error, "confidence": limit.confidence}
    _report(result, as_json)


def _report(result: dict[str, Any], as_json: bool) -> None:
    """Prints what was predicted, and on stderr the limit of the error if there is one."""
    if "max_error" in result:
        sys.stderr.write(f"max_error {result['max_error']!r} with confidence {result['confidence']!r}\n")
    if as_json:
        print_json(result)
    else:
        typer.echo(f"{result['model']}:{result['version']} predicted {result['rows']} rows into {result['out']}")


def _check_server_options(url: str | None, fdr: float | None, options: dict[str, object], store_given: bool) -> None:
    """Refuses options that would have no effect, with or without a server: wrong usage, exit code 2."""
    if url is None:
        for option, value in options.items():
            if value is not None:
                raise typer.BadParameter("has an effect only with --url", param_hint=option)
        return
    timeout = options["--timeout"]
    if isinstance(timeout, float) and not timeout > 0:
        raise typer.BadParameter(f"expected seconds above 0, found {timeout:g}", param_hint="--timeout")
    if fdr is not None:
        raise typer.BadParameter("needs the model's calibration; leave out --url", param_hint="--fdr")
    if store_given:
        raise typer.BadParameter("has no effect with --url", param_hint="--store")


def _check_share(option: str, share: float | None) -> None:
    """Refuses an invalid share, or a percentage such as 5: wrong usage, exit code 2. None: the option is not given."""
    if share is not None and not 0 < share < 1:
        raise typer.BadParameter(
            f"expected a share above 0 and below 1, such as 0.05, found {share:g}", param_hint=option
        )
