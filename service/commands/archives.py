"""`abstain export` and `abstain unpack`: one version as a tar file, to copy it into another store."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from abstain.command_line import DEFAULT_STORE, JsonOption, ModelArgument, StoreOption, print_json

commands = typer.Typer()


@commands.command(epilog="Example: `abstain export digits:3 digits-3.tar`")
def export(
    model: ModelArgument,
    file: Annotated[Path, typer.Argument(metavar="FILE.tar", help="The file to write.")],
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it exists.")] = False,
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """Verify the files of a version and write them into one plain tar file, for `abstain unpack`."""
    from abstain.models.bundles import store as stores  # noqa: PLC0415
    from abstain.models.bundles.archive import export_version  # noqa: PLC0415

    name, version = stores.resolve(store, model)
    manifest = export_version(store, name, version, file, force=force)
    size = file.stat().st_size
    if as_json:
        print_json({"name": name, "version": version, "digest": manifest.digest, "file": str(file), "bytes": size})
    else:
        typer.echo(f"{name}:{version} is in {file} ({size:,} bytes, {manifest.digest})")


@commands.command(epilog="Example: `abstain unpack digits-3.tar --store artifacts`")
def unpack(
    file: Annotated[Path, typer.Argument(metavar="FILE.tar", help="What `abstain export` wrote.")],
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """Verify the version in a tar file and publish it in the store, under its own name and number."""
    from abstain.models.bundles.archive import unpack_version  # noqa: PLC0415
    from abstain.models.bundles.signatures import read_trusted  # noqa: PLC0415
    from abstain.service.settings import read_settings  # noqa: PLC0415

    trusted = read_trusted(read_settings(os.environ).trusted_keys)
    manifest, new = unpack_version(store, file, trusted)
    reference = f"{manifest.name}:{manifest.version}"
    if as_json:
        facts = {"name": manifest.name, "version": manifest.version, "digest": manifest.digest}
        print_json({**facts, "store": str(store), "new": new})
    elif new:
        typer.echo(f"{reference} is in {store} ({manifest.digest})")
    else:
        typer.echo(f"{reference} was in {store} before ({manifest.digest}); nothing has changed")
