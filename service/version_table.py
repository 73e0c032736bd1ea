"""The table of a worker: which version a request gets, and the state of every version. Pure functions over records."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any, Literal

from abstain.models.bundles.references import STABLE, Reference, parse_reference, resolve_among
from abstain.models.errors import InputError, UnknownModel, suggest
from abstain.service.live import Live
from abstain.service.plans import Key, Plan, PlannedModel, planned_keys

_NOT_SERVED = {"loading", "failed", "refused"}
MOST_LISTED = 20
"""The largest number of models that an error lists."""
State = Literal["idle", "loading", "ready", "failed", "refused"]


@dataclass(frozen=True)
class Entry:
    """A version in the store, and its state."""

    version: int
    labels: tuple[str, ...]
    """The labels of the store."""
    state: State
    why: str | None = None
    live: Live | None = None
    served_as: tuple[str, ...] = ()
    """The labels that requests get it by."""


@dataclass(frozen=True)
class Table:
    """What a worker answers by one plan: every known version by model, the labels, and the defaults."""

    number: int = 0
    entries: dict[str, dict[int, Entry]] = field(default_factory=dict[str, dict[int, Entry]])
    models: dict[str, PlannedModel] = field(default_factory=dict[str, PlannedModel])
    why: str | None = None
    """Why the store could not be read."""

    @property
    def keys(self) -> set[Key]:
        """All versions that the plan has loaded."""
        return planned_keys(self.models)

    def shortcomings(self, name: str) -> list[str]:
        """Returns what is not served of a model although the store asks for it."""
        model = self.models[name]
        entries = [entry for entry in self.entries.get(name, {}).values() if entry.state in _NOT_SERVED]
        found = [f"{name}: {model.why}"] if model.why and not entries else []
        if model.why_no_rollout:
            found.append(f"{name}: the rollout is not followed: {model.why_no_rollout}")
        return [*found, *(describe_state(name, entry) for entry in entries)]

    def describe_rollout(self, name: str) -> dict[str, Any] | None:
        """Returns the rollout of a model in `GET /models`; None if it has none."""
        rollout = self.models[name].rollout if name in self.models else None
        if rollout is None:
            return None
        return {
            key: getattr(rollout, key) for key in ("id", "mode", "candidate", "baseline", "share", "auto", "started")
        }

    def live(self) -> list[Live]:
        """Returns the versions that serve requests, by model and ascending."""
        return [entry.live for versions in self.entries.values() for entry in versions.values() if entry.live]


@dataclass(frozen=True)
class VersionState:
    """What clients may know about a version; the fields of `to_json` in their order."""

    name: str
    version: int
    labels: tuple[str, ...]
    served_as: tuple[str, ...]
    digest: str | None
    """None if the manifest cannot be read."""
    method: str | None
    state: State
    why: str | None
    sound: bool
    shortfalls: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Returns the entry of the version in `GET /models`, which lists it under the name of its model."""
        fields = {key: value for key, value in vars(self).items() if key != "name"}
        return fields | {name: list(fields[name]) for name in ("labels", "served_as", "shortfalls")}


def describe_state(name: str, entry: Entry) -> str:
    """Describes why a version is not ready."""
    return f"{name}:{entry.version} is loading" if entry.state == "loading" else f"{name}:{entry.version}: {entry.why}"


def entries_of(plan: Plan) -> dict[str, dict[int, Entry]]:
    """Returns the entries of a plan whose versions are not loaded yet."""
    entries = {name: _entries_of_model(model) for name, model in plan.models.items()}
    return {name: own for name, own in entries.items() if own}


def _entries_of_model(model: PlannedModel) -> dict[int, Entry]:
    entries: dict[int, Entry] = {}
    for version in sorted({*model.present, *model.served, *model.failures}):
        labels, served_as = (
            tuple(sorted(label for label, target in targets.items() if target == version))
            for targets in (model.labels, model.served_labels)
        )
        failure = model.failures.get(version)
        if version in model.served:
            # A served version may have a failure too: its files were replaced, and the new ones cannot be served.
            entries[version] = Entry(version, labels, "loading", None, None, served_as)
        elif failure:
            entries[version] = Entry(version, labels, failure.state, failure.why or None, None, served_as)
        else:
            entries[version] = Entry(version, labels, "idle", None, None, served_as)
    return entries


def find_entry(table: Table, reference: Reference, text: str | None) -> Entry:
    """Returns the entry that a reference means.

    Raises:
        UnknownModel: no such model, version or label is served.
    """
    entries = table.entries.get(reference.name, {})
    served = {version: entry for version, entry in entries.items() if entry.state != "idle"}
    if not served:
        raise UnknownModel(
            where="model",
            expected=f"one of {_listed(table.entries)}",
            found=repr(text),
            fix=suggest(reference.name, table.entries),
        )
    model = table.models[reference.name]
    if reference.version is None and reference.label is None and model.default in served:
        return served[model.default]
    idle = entries.get(reference.version or 0)
    if idle and idle.state == "idle":
        raise UnknownModel(
            f"{reference.name}:{idle.version} is not served",
            expected=f"one of {', '.join(map(str, served))}",
            found=repr(text),
            fix=f"give it a label: abstain label {reference.name}:{idle.version} LABEL",
        )
    return served[resolve_among(reference, sorted(served), model.served_labels)]


def asks_for_stable(text: str | None) -> bool:
    """Whether a request names a model without a version, or its stable version."""
    if text is None:
        return True
    reference = parse_reference(text)
    return reference.version is None and reference.label in {None, STABLE}


def only_name(table: Table) -> str:
    """Returns the name of the only model.

    Raises:
        InputError: there is none, or more than one.
    """
    if len(table.entries) != 1:
        expected = f"one of {_listed(table.entries)}"
        raise InputError(where="model", expected=expected, found="no key 'model'")
    return next(iter(table.entries))


def _listed(names: Collection[str]) -> str:
    """Returns the names of some models, and how many more there are."""
    more = [f"{len(names) - MOST_LISTED} more (GET /models)"] if len(names) > MOST_LISTED else []
    return ", ".join([*list(names)[:MOST_LISTED], *more]) or "none"
