"""The record of a model's labels, and its changes. Pure functions: a store on disk and one elsewhere change labels alike."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Annotated

import orjson
from pydantic import BaseModel, ConfigDict, Field

from abstain.models.bundles.references import LABEL_PATTERN, STABLE
from abstain.models.errors import StoreError, clip_repr
from abstain.models.validation import parse_json

LABELS = "labels.json"
LABELS_BYTES = 2**20
"""Largest size of the file; each change of a label adds about ten bytes."""
MOST_LABELS = 256
"""Most labels of one model: a server reads all of them whenever it lists its models."""

_Version = Annotated[int, Field(gt=0, lt=10**9)]
_Label = Annotated[str, Field(pattern=f"^{LABEL_PATTERN}$")]


class Labels(BaseModel):
    """The versions that a model's labels point at, and those that they pointed at before (oldest first)."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    labels: Annotated[dict[_Label, _Version], Field(max_length=MOST_LABELS)] = {}
    previous: dict[_Label, list[_Version]] = {}

    @property
    def pointed(self) -> set[int]:
        """All versions that a label points at, or has pointed at."""
        return {*self.labels.values(), *(version for past in self.previous.values() for version in past)}


def parse_labels(content: bytes, name: str, where: str) -> Labels:
    """Parses the labels of a model.

    Raises:
        StoreError: they are malformed.
    """
    fix = f"correct the file, or remove it and set the labels again with abstain label {name}:VERSION LABEL"
    return parse_json(content, Labels, StoreError, where=where, fix=fix)


def dump_labels(labels: Labels) -> bytes:
    """Returns the bytes of the file."""
    return orjson.dumps(labels.model_dump(), option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)


def check_label(label: str) -> None:
    """Checks the name of a label.

    Raises:
        StoreError: it is invalid.
    """
    if not re.fullmatch(LABEL_PATTERN, label):
        raise StoreError(
            "label",
            expected="1 to 32 letters, digits, dashes or underscores, the first a letter",
            found=clip_repr(label),
        )


def moved_label(old: Labels, label: str, version: int, where: str) -> Labels:
    """Returns the labels after one has been pointed at a version; the same record if it does already.

    Raises:
        StoreError: the model has too many labels.
    """
    if old.labels.get(label) == version:
        return old
    if label not in old.labels and len(old.labels) == MOST_LABELS:
        raise StoreError(
            "labels",
            where=where,
            expected=f"at most {MOST_LABELS}",
            found=f"{MOST_LABELS + 1}",
            fix="move an existing label",
        )
    before = old.previous.get(label, [])
    if label in old.labels:
        before = [*before, old.labels[label]]
    return Labels(labels={**old.labels, label: version}, previous={**old.previous, label: before})


def rolled_back(old: Labels, present: Collection[int], name: str, where: str) -> Labels:
    """Returns the labels after `stable` has been pointed at its previous version that is still present.

    Raises:
        StoreError: there is none.
    """
    others = {*present} - {old.labels.get(STABLE)}
    earlier = list(old.previous.get(STABLE, []))
    while earlier and earlier[-1] not in others:
        earlier.pop()
    if not earlier:
        raise StoreError(
            f"{name} has no previous stable version",
            where=where,
            fix=f"set the label yourself: abstain label {name}:VERSION stable",
        )
    version = earlier.pop()
    return Labels(labels={**old.labels, STABLE: version}, previous={**old.previous, STABLE: earlier})
