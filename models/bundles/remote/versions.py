"""What a store elsewhere holds. Its layout is that of a folder; a version exists when its manifest does.

    NAME/3/claim.json     who has taken the number, written before anything else
    NAME/3/…              the files of the version
    NAME/3/manifest.json  written last
    NAME/labels.json      changed by compare-and-swap

All names may come from somebody else: what is no name of a model or no number of a version is not there.
"""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

from abstain.models.bundles.labels import LABELS, LABELS_BYTES, Labels, parse_labels
from abstain.models.bundles.listing import MANIFEST_BYTES
from abstain.models.bundles.references import NAME_PATTERN, STABLE, parse_reference, resolve_among
from abstain.models.bundles.remote.objects import Content, Objects
from abstain.models.bundles.store import MANIFEST
from abstain.models.errors import StoreError, UnknownModel, suggest

CLAIM = "claim.json"
CLAIM_BYTES = 4_096
MOST_MODELS = 1_000
MOST_VERSIONS = 10_000
"""Most numbers of one model."""
THREADS = 8
"""Versions that are asked for at a time."""
_NUMBER = re.compile("[1-9][0-9]{0,8}")


class Numbers(NamedTuple):
    """The numbers that a model has, whole or not, ascending; and the tags of the objects beside them."""

    numbers: list[int]
    tags: dict[str, str]


def model_names(objects: Objects) -> list[str]:
    """Returns the sorted names that may be models; a model with no whole version is among them.

    Raises:
        StoreError: the store cannot be read, or has too many.
    """
    names = [name for name in objects.entries().folders if re.fullmatch(NAME_PATTERN, name)]
    if len(names) > MOST_MODELS:
        raise StoreError(
            "has too many models", where=objects.url, expected=f"at most {MOST_MODELS:,}", found=f"{len(names):,}"
        )
    return names


def read_numbers(objects: Objects, name: str) -> Numbers:
    """Returns the numbers of a model, also those of uploads that have not ended.

    Raises:
        StoreError: the store cannot be read, or the model has too many.
    """
    entries = objects.entries(name)
    numbers = sorted(int(folder) for folder in entries.folders if _NUMBER.fullmatch(folder))
    if len(numbers) > MOST_VERSIONS:
        raise StoreError(
            "has too many versions",
            where=objects.place(name),
            expected=f"at most {MOST_VERSIONS:,}",
            found=f"{len(numbers):,}",
        )
    return Numbers(numbers, entries.objects)


def read_remote_labels(objects: Objects, name: str) -> tuple[Labels, Content | None]:
    """Reads the labels of a model, and the object that holds them; None if there is none.

    Raises:
        StoreError: they are malformed, or the store cannot be read.
    """
    path = f"{name}/{LABELS}"
    content = objects.get(path, LABELS_BYTES)
    return (Labels() if content is None else parse_labels(content.written, name, objects.place(path))), content


def read_manifest_bytes(objects: Objects, name: str, version: int) -> bytes | None:
    """Reads the manifest of a version; None if there is no such version.

    Raises:
        StoreError: the store cannot be read.
    """
    content = objects.get(f"{name}/{version}/{MANIFEST}", MANIFEST_BYTES)
    return None if content is None else content.written


def is_whole(objects: Objects, name: str, version: int) -> bool:
    """Whether a version has its manifest.

    Raises:
        StoreError: the store cannot be read.
    """
    return objects.exists(f"{name}/{version}/{MANIFEST}")


def newest_whole(objects: Objects, name: str, numbers: list[int]) -> int | None:
    """Returns the largest of these numbers that is a whole version; None if none is."""
    return next((version for version in reversed(numbers) if is_whole(objects, name, version)), None)


def whole_versions(objects: Objects, name: str) -> list[int]:
    """Returns the whole versions of a model, ascending; asks for each of them.

    Raises:
        StoreError: the store cannot be read.
    """
    numbers = read_numbers(objects, name).numbers
    with ThreadPoolExecutor(THREADS, thread_name_prefix="look") as pool:
        whole = [*pool.map(partial(is_whole, objects, name), numbers)]
    return [number for number, own in zip(numbers, whole, strict=True) if own]


def resolve_remote(objects: Objects, text: str) -> tuple[str, int]:
    """Returns the name and version that a reference means, as `store.resolve` does.

    Raises:
        UnknownModel: the model, version or label does not exist.
        StoreError: the store cannot be read.
    """
    reference = parse_reference(text)
    labels = read_remote_labels(objects, reference.name)[0].labels
    asked = reference.version or labels.get(reference.label or STABLE)
    if asked is not None and is_whole(objects, reference.name, asked):
        return reference.name, asked
    present = whole_versions(objects, reference.name)
    if not present:
        names = model_names(objects)
        raise UnknownModel(
            f"no model named {reference.name!r}",
            where=objects.url,
            expected=", ".join(names) or None,
            found=repr(text) if names else None,
            fix=suggest(reference.name, names) if names else "the store has no models; publish one with abstain push",
        )
    return reference.name, resolve_among(reference, present, labels)
