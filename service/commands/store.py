"""The commands that read the store, move version labels and remove versions: `models`, `show`, `label`, `rollback`, `prune`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from abstain.command_line import (
    DEFAULT_STORE,
    AnyStoreOption,
    JsonOption,
    ModelArgument,
    StoreOption,
    print_json,
    print_table,
)
from abstain.models.bundles.shortfalls import texts

commands = typer.Typer()


@commands.command(epilog="Example: `abstain models --store artifacts`")
def models(store: AnyStoreOption = DEFAULT_STORE, as_json: JsonOption = False) -> None:
    """List all models of the store: their versions and labels."""
    from abstain.models.bundles.remote.copies import local_copy  # noqa: PLC0415

    with local_copy(store) as root:
        listed = _list_models(root)
    if as_json:
        print_json({"models": listed})
        return
    print_table(
        ["model", "labels", "method", "draws", "sound", "created"],
        [
            [
                f"{model['name']}:{entry['version']}",
                ", ".join(entry["labels"]),
                entry["why"] or entry["method"],
                entry["draws"],
                None if entry["sound"] is None else "yes" if entry["sound"] else "no",
                entry["created"],
            ]
            for model in listed
            for entry in model["versions"]
        ],
        empty=f"no models in {store}; publish one with abstain fit",
    )


def _list_models(store: Path) -> list[dict[str, Any]]:
    from abstain.models.bundles import store as stores  # noqa: PLC0415
    from abstain.models.bundles.bundle import read_published  # noqa: PLC0415
    from abstain.models.errors import AbstainError  # noqa: PLC0415

    listed: list[dict[str, Any]] = []
    for name in stores.model_names(store):
        labels, fault = dict[str, int](), None
        try:
            labels = stores.read_labels(store, name).labels
        except AbstainError as error:
            fault = str(error)
        versions: list[dict[str, Any]] = []
        for version in stores.versions(store, name):
            own_labels = sorted(label for label, target in labels.items() if target == version)
            entry: dict[str, Any] = {"version": version, "labels": own_labels}
            try:
                manifest = read_published(store, name, version)
                entry |= {
                    "method": manifest.method.kind,
                    "draws": manifest.draws,
                    "created": manifest.created,
                    "sound": not manifest.shortfalls,
                    "shortfalls": texts(manifest.shortfalls),
                    "why": fault,
                }
            except AbstainError as error:
                unknown = dict.fromkeys(("method", "draws", "created", "sound"))
                entry |= {**unknown, "shortfalls": [], "why": str(error)}
            versions.append(entry)
        listed.append({"name": name, "versions": versions})
    return listed


@commands.command(epilog="Example: `abstain show digits@stable`")
def show(model: ModelArgument, store: AnyStoreOption = DEFAULT_STORE, as_json: JsonOption = False) -> None:
    """Verify the files of one version, and show its manifest and diagnostics; all of it with --json."""
    from abstain.models.bundles import store as stores  # noqa: PLC0415
    from abstain.models.bundles.bundle import read_published  # noqa: PLC0415
    from abstain.models.bundles.manifest import verify_files  # noqa: PLC0415
    from abstain.models.bundles.remote.copies import local_copy  # noqa: PLC0415
    from abstain.service.commands.manifest_rows import manifest_rows  # noqa: PLC0415

    with local_copy(store, model) as root:
        name, version = stores.resolve(root, model)
        manifest = read_published(root, name, version)
        verify_files(root / name / str(version), manifest)
        labels = [label for label, target in stores.read_labels(root, name).labels.items() if target == version]
    if as_json:
        print_json(manifest.model_dump(mode="json"))
        return
    print_table(["", f"{name}:{version}"], manifest_rows(manifest, labels))


WAIT_SECONDS = 120.0
WaitOption = Annotated[
    list[str] | None,
    typer.Option("--wait", metavar="URL", help="Wait until this server follows; may be given more than once."),
]
WaitSecondsOption = Annotated[float, typer.Option(min=0, help="The longest time to wait for each server, in seconds.")]


@commands.command(epilog="Example: `abstain label digits:3 stable`")
def label(
    model: Annotated[str, typer.Argument(metavar="MODEL:VERSION")],
    label: Annotated[str, typer.Argument(metavar="LABEL", help="stable, canary, …")],
    force: Annotated[
        bool, typer.Option("--force", help="Even if the version is damaged or failed publication checks.")
    ] = False,
    store: AnyStoreOption = DEFAULT_STORE,
    wait: WaitOption = None,
    wait_seconds: WaitSecondsOption = WAIT_SECONDS,
    as_json: JsonOption = False,
) -> None:
    """Point a label at a version; one that is damaged or failed publication checks cannot be `stable`."""
    from abstain.models.bundles.remote.moves import move_label  # noqa: PLC0415
    from abstain.service.commands.waiting import check_urls  # noqa: PLC0415

    check_urls(wait)
    name, version, moved = move_label(store, model, label, force=force)
    if not moved:
        sys.stderr.write(f"note: {name}@{label} was {name}:{version} before; name another version to change it\n")
    _print_label(name, label, version, as_json)
    _wait(name, label, version, wait, wait_seconds)


@commands.command(epilog="Example: `abstain rollback digits`")
def rollback(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="The name of the model.")],
    store: AnyStoreOption = DEFAULT_STORE,
    wait: WaitOption = None,
    wait_seconds: WaitSecondsOption = WAIT_SECONDS,
    as_json: JsonOption = False,
) -> None:
    """Make the previous `stable` version stable again."""
    from abstain.models.bundles.references import STABLE, parse_reference  # noqa: PLC0415
    from abstain.models.bundles.remote.moves import move_back  # noqa: PLC0415
    from abstain.service.commands.waiting import check_urls  # noqa: PLC0415

    check_urls(wait)
    name = parse_reference(model).name
    version = move_back(store, name)
    _print_label(name, STABLE, version, as_json)
    _wait(name, STABLE, version, wait, wait_seconds)


@commands.command(epilog="Example: `abstain prune --keep 5 --dry-run`")
def prune(
    model: Annotated[
        str | None, typer.Argument(metavar="[MODEL]", help="The name of one model; all if not given.")
    ] = None,
    keep: Annotated[int, typer.Option(min=1, help="How many of the newest versions of a model stay.")] = 5,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be removed, and remove nothing.")
    ] = False,
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """Remove old versions, except those with a label, the one that `rollback` would go back to, and those in use."""
    from abstain.models.bundles import store as stores  # noqa: PLC0415
    from abstain.models.bundles.references import parse_reference  # noqa: PLC0415
    from abstain.models.bundles.retention import prune as prune_model  # noqa: PLC0415

    names = stores.model_names(store)
    if model is not None:
        names = [stores.known_model(store, parse_reference(model).name)]
    pruned = {name: prune_model(store, name, keep, dry_run=dry_run) for name in names}
    if as_json:
        removed, in_use = ({name: each[part] for name, each in pruned.items()} for part in (0, 1))
        print_json({"removed": removed, "in_use": in_use, "dry_run": dry_run})
        return
    for name, (versions, in_use) in pruned.items():
        listed = ", ".join(f"{name}:{version}" for version in versions) or f"nothing of {name}"
        typer.echo(f"{'would remove' if dry_run else 'removed'} {listed}")
        for version in in_use:
            typer.echo(f"kept {name}:{version}, which a running server uses")


def _print_label(name: str, label: str, version: int, as_json: bool) -> None:
    if as_json:
        print_json({"name": name, "label": label, "version": version})
    else:
        typer.echo(f"{name}@{label} is {name}:{version}")


def _wait(name: str, label: str, version: int, urls: list[str] | None, seconds: float) -> None:
    """Waits until each server serves a version by a label."""
    from abstain.service.commands.waiting import wait_until_served  # noqa: PLC0415

    if not urls:
        sys.stderr.write("note: running servers of this store follow within seconds; --wait URL waits for one\n")
    for url in urls or ():
        wait_until_served(url, name, label, version, seconds)
        sys.stderr.write(f"{url} serves {name}@{label} as {name}:{version}\n")
