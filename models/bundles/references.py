"""References to a version: `name`, `name:version` or `name@label`."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import NamedTuple

from abstain.models.errors import UnknownModel, clip_repr, suggest

STABLE = "stable"

NAME_PATTERN = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"


LABEL_PATTERN = r"[A-Za-z][A-Za-z0-9_-]{0,31}"


_REFERENCE = re.compile(rf"({NAME_PATTERN})(?::([1-9][0-9]{{0,8}})|@({LABEL_PATTERN}))?")


class Reference(NamedTuple):
    """A parsed reference: `name`, `name:version` or `name@label`."""

    name: str
    version: int | None
    label: str | None


def parse_reference(text: str) -> Reference:
    """Parses a reference in one of its three forms.

    Raises:
        UnknownModel: the text has none of these forms.
    """
    match = _REFERENCE.fullmatch(text)
    if not match:
        raise UnknownModel("no such model", expected="name, name:version or name@label", found=clip_repr(text))
    name, version, label = match.groups()
    return Reference(name, int(version) if version else None, label)


def default_version(present: Collection[int], labels: Mapping[str, int]) -> int:
    """Returns the version that a bare name means: the label `stable` if it exists, else the newest; 0 if there is none."""
    return labels.get(STABLE, max(present, default=0))


def served_among(present: Collection[int], labels: Mapping[str, int]) -> list[int]:
    """Returns the versions that are to be served, ascending: `stable` (else the newest), and every labelled one that exists."""
    return sorted({default_version(present, labels), *labels.values()} & {*present})


def resolve_among(reference: Reference, present: list[int], labels: dict[str, int]) -> int:
    """Returns the version that a reference means, given the existing versions and labels.

    Raises:
        UnknownModel: the version or label does not exist.
    """
    name = reference.name
    if reference.label:
        version = labels.get(reference.label)
        if version is None:
            raise UnknownModel(
                f"{name} has no label {reference.label!r}",
                expected=", ".join(sorted(labels)) or None,
                found=reference.label if labels else None,
                fix=suggest(reference.label, labels) if labels else f"abstain label {name}:VERSION LABEL sets one",
            )
    else:
        version = default_version(present, labels) if reference.version is None else reference.version
    if version not in present:
        raise UnknownModel(
            f"{name} has no version {version}",
            expected=", ".join(map(str, present)) or None,
            found=version if present else None,
            fix=None if present else f"{name} has no versions; publish one with abstain fit",
        )
    return version
