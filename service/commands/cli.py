"""The `abstain` command: parses, calls one function, prints.

The training commands are added by an entry point (`abstain.commands` in pyproject.toml), so that this module does not
import training. Progress and logs go to stderr, results to stdout. Exit code 0: success; 1: failure; 2: wrong usage.
"""

from __future__ import annotations

import os
import sys
from importlib.metadata import entry_points
from typing import Annotated

import typer

from abstain.command_line import HELP
from abstain.service.commands import archives, keys, predict, rollout, serve, signing, store, transfers

app = typer.Typer(
    name="abstain",
    context_settings=HELP,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode="markdown",
)


def print_version(wanted: bool | None) -> None:
    """Prints the version of abstain, and ends."""
    if wanted:
        import abstain  # noqa: PLC0415

        typer.echo(f"abstain {abstain.__version__}")
        raise typer.Exit


@app.callback()
def options(
    _version: Annotated[
        bool | None, typer.Option("--version", callback=print_version, is_eager=True, help="Print the version and end.")
    ] = None,
) -> None:
    """A model server that can say: I don't know."""


for module in (store, rollout, archives, transfers, signing, predict, serve, keys):
    app.add_typer(module.commands)


def main() -> None:
    """Runs `app`, and turns errors into messages and exit codes."""
    from abstain.models.accelerators import check_platforms  # noqa: PLC0415
    from abstain.models.errors import AbstainError  # noqa: PLC0415

    try:
        check_platforms(os.environ)
        for point in entry_points(group="abstain.commands"):
            point.load()(app)
        app()
    except AbstainError as error:
        _fail(str(error))
    except OSError as error:
        _fail(f"{error.filename or 'a file'}: {error.strerror or error}")
    except KeyboardInterrupt:
        sys.stderr.write("abstain: stopped\n")
        sys.exit(130)


def _fail(text: str) -> None:
    sys.stderr.write(f"abstain: {text}\n")
    sys.exit(1)
