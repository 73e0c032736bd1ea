"""Removes old versions from a store, and never one that is needed."""

from __future__ import annotations

import shutil
import uuid
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from abstain.models.bundles.in_use import claim_unused
from abstain.models.bundles.references import STABLE
from abstain.models.bundles.rollouts import Rollout, read_rollout
from abstain.models.bundles.store import REMOVED, Labels, lock_model, read_labels, version_folder, versions
from abstain.models.errors import StoreError
from abstain.models.files.locks import disk_errors


class Pruned(NamedTuple):
    """The versions that were removed, and those that stay because a running server uses them, ascending."""

    removed: list[int]
    in_use: list[int]


def removable_versions(present: list[int], labels: Labels, keep: int, rollout: Rollout | None = None) -> list[int]:
    """Returns the versions that are not needed, ascending.

    Needed are the newest ones, every version with a label, the one that `abstain rollback` would go back to, and both versions of
    a rollout that runs.

    Args:
        present: all versions of a model, ascending.
        keep: how many of the newest are needed, at least 1.
        rollout: the rollout of the model, running or ended.
    """
    earlier = [version for version in labels.previous.get(STABLE, []) if version in present]
    back = {version for version in earlier if version != labels.labels.get(STABLE)}
    target = next((version for version in reversed(earlier) if version in back), None)
    compared = {rollout.baseline, rollout.candidate} if rollout and rollout.outcome is None else set[int]()
    needed = {*present[-keep:], *labels.labels.values(), *compared, target}
    return [version for version in present if version not in needed]


def prune(store: Path, name: str, keep: int, *, dry_run: bool = False) -> Pruned:
    """Removes the versions of a model that are not needed, except those that a running server uses.

    A version is renamed before its files are removed, so it exists whole or not at all.

    Args:
        keep: as in `removable_versions`.
        dry_run: whether to only return what would be removed.

    Raises:
        StoreError: `keep` is below 1, the labels or the rollout cannot be read, or a version cannot be locked or removed.
    """
    if keep < 1:
        raise StoreError("keep", expected="at least 1", found=keep)
    home = store / name
    with lock_model(home):
        result, hidden_folders = Pruned([], []), list[Path]()
        labels, rollout = read_labels(store, name), read_rollout(store, name)
        for version in removable_versions(versions(store, name), labels, keep, rollout):
            folder, hidden = version_folder(store, name, version), home / f"{REMOVED}{version}-{uuid.uuid4().hex}"
            with claim_unused(folder) as unused:
                (result.removed if unused else result.in_use).append(version)
                if unused and not dry_run:
                    with disk_errors(folder, what="cannot be removed"):
                        folder.rename(hidden)
                    hidden_folders.append(hidden)
    for hidden in hidden_folders:
        with disk_errors(hidden, what="cannot be removed"), suppress(FileNotFoundError):  # Another writer removed it.
            shutil.rmtree(hidden)
    return result
