"""`abstain key new`, `list`, `revoke`: the API keys of a server."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from abstain.command_line import HELP, JsonOption, print_json, print_table

commands = typer.Typer()
keys = typer.Typer(
    help="Make, list and revoke the keys that requests need.", context_settings=HELP, no_args_is_help=True
)
commands.add_typer(keys, name="key")
KeysOption = Annotated[Path, typer.Option("--keys", envvar="ABSTAIN_KEYS", help="The file of keys.", show_default=True)]
DEFAULT_KEYS = Path("abstain-keys.json")


@keys.command("new", epilog="Example: `abstain key new prometheus --scope metrics`")
def new_key(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Who has the key.")],
    scopes: Annotated[
        list[str],
        typer.Option("--scope", help="predict, read, metrics, feedback, or admin for all of them; may be repeated."),
    ],
    rate: Annotated[float | None, typer.Option("--rate", help="Requests per second, over all workers.")] = None,
    path: KeysOption = DEFAULT_KEYS,
    as_json: JsonOption = False,
) -> None:
    """Make a key and print it: the file keeps only its hash. A running server accepts it within a second."""
    from abstain.service.access.api_keys import MAX_RATE, MIN_RATE, SCOPES, add_key  # noqa: PLC0415

    unknown = [scope for scope in scopes if scope not in SCOPES]
    if unknown:
        raise typer.BadParameter(
            f"expected one of {', '.join(SCOPES)}, found {unknown[0]!r}; for several: --scope predict --scope read",
            param_hint="--scope",
        )
    if rate is not None and not MIN_RATE <= rate <= MAX_RATE:
        raise typer.BadParameter(
            f"expected a number from {MIN_RATE:g} to {MAX_RATE:g}, found {rate:g}", param_hint="--rate"
        )
    key = add_key(path, name, tuple(scope for scope in SCOPES if scope in scopes), rate)
    if as_json:
        print_json({"name": name, "key": key, "keys": str(path)})
    else:
        typer.echo(key)
        if "ABSTAIN_KEYS" not in os.environ:
            sys.stderr.write(f"abstain: a server needs this key if it is started with ABSTAIN_KEYS={path}\n")


@keys.command("list")
def list_keys(path: KeysOption = DEFAULT_KEYS, as_json: JsonOption = False) -> None:
    """List the names of all keys, and their scopes."""
    from abstain.service.access.api_keys import read_keys  # noqa: PLC0415

    listed = read_keys(path).keys
    if as_json:
        print_json(
            {
                "keys": [
                    {"name": key.name, "scopes": key.scopes, "rate": key.rate, "created": key.created} for key in listed
                ]
            }
        )
        return
    print_table(
        ["name", "scopes", "rate", "created"],
        [[key.name, ", ".join(key.scopes), key.rate and f"{key.rate:g}/s", key.created] for key in listed],
        empty=f"no keys in {path}",
    )


@keys.command("revoke", epilog="Example: `abstain key revoke prometheus`")
def revoke(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The name of the key.")],
    path: KeysOption = DEFAULT_KEYS,
    as_json: JsonOption = False,
) -> None:
    """Revoke a key. A running server refuses it within a second."""
    from abstain.service.access.api_keys import revoke_key  # noqa: PLC0415

    revoke_key(path, name)
    if as_json:
        print_json({"revoked": name, "keys": str(path)})
    else:
        typer.echo(f"{name} is revoked")
