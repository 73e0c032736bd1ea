"""`abstain push` and `abstain pull`: copies of versions in other stores."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from abstain.command_line import DEFAULT_STORE, JsonOption, ModelArgument, StoreOption, print_json, stderr_console
from abstain.models.bundles.remote.url import parse_store

commands = typer.Typer()
Address = Annotated[
    Any,
    typer.Argument(
        metavar="STORE",
        help="s3://BUCKET/PREFIX, gs://…, abfss://…, or a folder.",
        parser=parse_store,
        show_default=False,
    ),
]


@commands.command(epilog="Example: `abstain push digits:3 s3://our-bucket/models`")
def push(
    model: ModelArgument, target: Address, store: StoreOption = DEFAULT_STORE, as_json: JsonOption = False
) -> None:
    """Verify a version and copy it into another store, under its number; labels are not copied."""
    _copy(store, target, model, as_json, target)


@commands.command(epilog="Example: `abstain pull digits@stable s3://our-bucket/models`")
def pull(
    model: ModelArgument, source: Address, store: StoreOption = DEFAULT_STORE, as_json: JsonOption = False
) -> None:
    """Copy a version of another store into --store, under its number, and verify it; labels are not copied."""
    _copy(source, store, model, as_json, source)


def _copy(source: Any, target: Any, model: str, as_json: bool, other: Any) -> None:
    """Copies a version from one store into another, with a bar of progress; prints what was missing there."""
    from rich.progress import Progress  # noqa: PLC0415

    from abstain.models.bundles.manifest import read_manifest, verify_files  # noqa: PLC0415
    from abstain.models.bundles.remote.copies import copy_version, resolve_in  # noqa: PLC0415
    from abstain.models.bundles.signatures import read_trusted  # noqa: PLC0415
    from abstain.service.settings import read_settings  # noqa: PLC0415

    trusted = read_trusted(read_settings(os.environ).trusted_keys)

    def check(folder: Path) -> None:
        verify_files(folder, read_manifest(folder, trusted))

    name, version = resolve_in(source, model)
    console = stderr_console()
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(f"{name}:{version}", total=None)
        state = copy_version(
            source, target, name, version, check, lambda done, of: bar.update(task, completed=done, total=of)
        )
    if as_json:
        print_json({"model": name, "version": version, "store": str(other), "state": state})
        return
    words = {
        "copied": f"is in {target} now",
        "signed": f"was in {target}; its signature is there now",
        "unchanged": f"is in {target} already",
    }
    typer.echo(f"{name}:{version} {words[state]}")
