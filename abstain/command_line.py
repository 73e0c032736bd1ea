"""Options, arguments and output that the commands of training and of serving share."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from abstain.models.bundles.remote.url import local_store, parse_store

HELP = {"help_option_names": ["-h", "--help"]}
StoreOption = Annotated[
    Path,
    typer.Option(
        "--store",
        envvar="ABSTAIN_STORE",
        help="The folder of models.",
        show_default=True,
        parser=local_store,
        metavar="PATH",
    ),
]
AnyStoreOption = Annotated[
    Any,
    typer.Option(
        "--store",
        envvar="ABSTAIN_STORE",
        help="The folder of models, or a store elsewhere: s3://, gs:// or abfss://.",
        show_default=True,
        parser=parse_store,
        metavar="PATH|URL",
    ),
]
"""A `Path` or a `RemoteURL`."""
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
ModelArgument = Annotated[str, typer.Argument(metavar="MODEL", help="name, name:version or name@label")]
DEFAULT_STORE = Path("artifacts")


def check_percentile(percentile: float | None) -> None:
    """Refuses an invalid percentile, or a share such as .99: wrong usage, exit code 2. None is the version's own."""
    if percentile is not None and not 1 < percentile < 100:
        raise typer.BadParameter(
            f"expected a percentile above 1 and below 100, such as 99, found {percentile:g}", param_hint="--percentile"
        )


def print_json(content: Any) -> None:
    """Prints one indented JSON document."""
    import orjson  # noqa: PLC0415

    sys.stdout.write(orjson.dumps(content, option=orjson.OPT_INDENT_2).decode() + "\n")


def stderr_console() -> Any:
    """Makes a console on stderr for progress; results go to stdout."""
    from rich.console import Console  # noqa: PLC0415

    return Console(stderr=True)


def print_table(heads: list[str], rows: list[list[Any]], empty: str = "") -> None:
    """Prints a table; if it has no rows, prints the line `empty` on stderr."""
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    from abstain.models.errors import printable  # noqa: PLC0415

    if not rows:
        sys.stderr.write(f"{empty}\n")
        return
    table = Table(*heads, box=None, pad_edge=False, header_style="bold")
    for row in rows:
        # Text of a manifest must not contain commands for the terminal.
        table.add_row(*(Text("" if cell is None else printable(str(cell)), overflow="fold") for cell in row))
    Console().print(table)
