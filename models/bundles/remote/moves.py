"""Moves labels and starts rollouts in a store, wherever it is, as `abstain label`, `rollback` and `rollout start` do."""

from __future__ import annotations

from pathlib import Path

from abstain.models.bundles import store as stores
from abstain.models.bundles.bundle import check_stable, read_published
from abstain.models.bundles.manifest import Manifest
from abstain.models.bundles.references import STABLE
from abstain.models.bundles.remote.copies import local_copy, resolve_in
from abstain.models.bundles.remote.labels import rollback_remote, set_remote_label
from abstain.models.bundles.remote.objects import open_objects
from abstain.models.bundles.remote.rollouts import put_rollout
from abstain.models.bundles.remote.url import RemoteURL
from abstain.models.bundles.remote.versions import read_remote_labels, resolve_remote
from abstain.models.bundles.rollouts import Options, Rollout


def move_label(store: Path | RemoteURL, model: str, label: str, *, force: bool) -> tuple[str, int, bool]:
    """Points a label at the version that a reference means; returns name, version, and whether it pointed elsewhere before.

    Args:
        force: whether `stable` may point at a version that is damaged or failed publication checks. Else all its files
            are read; those of a store elsewhere are downloaded for that.

    Raises:
        UnknownModel: the model, version or label does not exist.
        StoreError: the version failed publication checks, or the store cannot be read or written.
        BundleError: the version is damaged.
    """
    if isinstance(store, Path):
        name, version = stores.resolve(store, model)
        if label == STABLE and not force:
            check_stable(store, name, version)
        moved = stores.read_labels(store, name).labels.get(label) != version
        stores.set_label(store, name, version, label)
        return name, version, moved
    objects = open_objects(store)
    name, version = resolve_remote(objects, model)
    if label == STABLE and not force:
        with local_copy(store, f"{name}:{version}") as root:
            check_stable(root, name, version)
    moved = read_remote_labels(objects, name)[0].labels.get(label) != version
    set_remote_label(objects, name, version, label)
    return name, version, moved


def move_back(store: Path | RemoteURL, name: str) -> int:
    """Points `stable` at its previous version again; returns this version.

    Raises:
        UnknownModel: the model does not exist.
        StoreError: there is no previous `stable`, or the store cannot be read or written.
    """
    return stores.rollback(store, name) if isinstance(store, Path) else rollback_remote(open_objects(store), name)


def start_rollout(store: Path | RemoteURL, model: str, options: Options, *, force: bool = False) -> tuple[str, Rollout]:
    """Starts a rollout of the version that a reference means, against the one that requests for the model get.

    Args:
        force: whether the candidate may be damaged or have failed publication checks.

    Returns:
        The name of the model, and the rollout.

    Raises:
        UnknownModel: the model, version or label does not exist.
        StoreError: another rollout runs, the versions cannot be compared, or the store cannot be read or written.
        BundleError: the candidate is damaged.
    """
    name, version = resolve_in(store, model)
    _, baseline = resolve_in(store, name)
    manifests = _read_manifest(store, name, baseline), _read_manifest(store, name, version, check=not force)
    return name, put_rollout(store, manifests, options)


def check_candidate(store: Path | RemoteURL, name: str, version: int) -> None:
    """Checks that a version may be promoted, as `check_stable` does.

    Raises:
        StoreError: it failed publication checks, or the store cannot be read.
        BundleError: it is damaged.
    """
    _read_manifest(store, name, version, check=True)


def _read_manifest(store: Path | RemoteURL, name: str, version: int, *, check: bool = False) -> Manifest:
    """Reads the manifest of a version; with `check`, all its files. A version of a store elsewhere is downloaded."""
    with local_copy(store, f"{name}:{version}") as root:
        if check:
            check_stable(root, name, version)
        return read_published(root, name, version)
