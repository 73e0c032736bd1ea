"""Labels of a store elsewhere: read, changed by the functions that a folder's labels are changed by, and written if unchanged."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

from abstain.models.bundles.labels import LABELS, Labels, check_label, dump_labels, moved_label, rolled_back
from abstain.models.bundles.references import STABLE
from abstain.models.bundles.remote.objects import Objects
from abstain.models.bundles.remote.versions import is_whole, read_remote_labels, whole_versions
from abstain.models.errors import StoreError, UnknownModel

TRIES = 20
"""How often a change is tried, while others change the same labels."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.02, 1.0
"""Seconds between two tries, at most; the pause is random, so that writers do not meet again."""


def set_remote_label(objects: Objects, name: str, version: int, label: str) -> None:
    """Points a label at a version, as `store.set_label` does.

    Raises:
        StoreError: the label is invalid, the model has too many labels, or the store cannot be written.
        UnknownModel: the version does not exist.
    """
    check_label(label)
    if not is_whole(objects, name, version):
        raise UnknownModel(f"{name} has no version {version}", where=objects.url)
    where = objects.place(f"{name}/{LABELS}")
    _change(objects, name, lambda old: moved_label(old, label, version, where))


def rollback_remote(objects: Objects, name: str) -> int:
    """Points `stable` at its previous version again, as `store.rollback` does; returns this version.

    Raises:
        StoreError: there is no previous `stable`, or the store cannot be written.
        UnknownModel: the model does not exist.
    """
    present = whole_versions(objects, name)
    if not present:
        raise UnknownModel(f"no model named {name!r}", where=objects.url)
    where = objects.place(f"{name}/{LABELS}")
    return _change(objects, name, lambda old: rolled_back(old, present, name, where)).labels[STABLE]


def _change(objects: Objects, name: str, change: Callable[[Labels], Labels]) -> Labels:
    """Writes the changed labels if nobody has changed them since they were read; else reads and changes them again."""
    path = f"{name}/{LABELS}"
    for number in range(TRIES):
        old, content = read_remote_labels(objects, name)
        new = change(old)
        if new is old:
            return new
        written = dump_labels(new)
        if content is None:
            done = objects.put_if_absent(path, written)
        else:
            done = objects.put_if_unchanged(path, written, content.tag)
        if done:
            return new
        time.sleep(random.uniform(0, min(_LONGEST_PAUSE, _FIRST_PAUSE * 2**number)))  # noqa: S311 - no secret
    raise StoreError(
        "others change them all the time",
        where=objects.place(path),
        expected=f"one of {TRIES} tries to succeed",
        found="none",
        fix="run the command again",
    )
