"""What the store holds, and the plan of what a server serves from it. Pure functions over records, except `read_stored`.

A label in use moves only to a version that was loaded. If its new target failed, requests still get the old one, as long as
the store has it.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict

from abstain.models.bundles import store
from abstain.models.bundles.references import NAME_PATTERN, STABLE, default_version, served_among
from abstain.models.bundles.rollouts import Rollout, read_rollout
from abstain.models.bundles.signatures import SIGNATURE
from abstain.models.errors import AbstainError

log = logging.getLogger("abstain.following")


class StoredModel(BaseModel):
    """One model as the store has it."""

    model_config = ConfigDict(frozen=True)
    present: tuple[int, ...]
    """All versions, ascending."""
    labels: dict[str, int] = {}
    stamps: dict[int, str] = {}
    """The versions that labels, their absence, or a rollout ask to be served; a stamp changes if the version's files do."""
    why: str | None = None
    """Why the labels cannot be read."""
    rollout: Rollout | None = None
    """The rollout that runs."""
    why_no_rollout: str | None = None
    """Why the rollout cannot be read."""
    missing: dict[int, str] = {}
    """Why versions of a store elsewhere could not be copied."""


Stored = dict[str, StoredModel]
"""The models of a store, by name."""


class Key(NamedTuple):
    """A version as it was when it was read: the same number may be published again after its folder was removed."""

    name: str
    version: int
    stamp: str


class Failure(BaseModel):
    """Why a version is not served; `loading`: it is being tried."""

    model_config = ConfigDict(frozen=True)
    state: Literal["loading", "failed", "refused"]
    why: str
    unsound: bool = False
    """Whether it is refused because it failed publication checks."""


LOADING = Failure(state="loading", why="")


class PlannedModel(BaseModel):
    """What a server serves of one model."""

    model_config = ConfigDict(frozen=True)
    present: tuple[int, ...]
    labels: dict[str, int]
    """The labels of the store."""
    served: dict[int, str]
    """The versions to be loaded, with their stamps."""
    served_labels: dict[str, int]
    """The versions that requests get by a label."""
    default: int
    """The version that requests get by the bare name."""
    failures: dict[int, Failure] = {}
    why: str | None = None
    """Why the labels of the store cannot be read."""
    rollout: Rollout | None = None
    """The rollout that runs, if its candidate is served, and its baseline is the default."""
    why_no_rollout: str | None = None
    """Why a rollout of the store is not followed."""


class Plan(BaseModel):
    """What a server serves; the next plan has the next number."""

    model_config = ConfigDict(frozen=True)
    number: int
    models: dict[str, PlannedModel]
    why: str | None = None
    """Why the store could not be read; the models are then those of the plan before."""

    @property
    def keys(self) -> set[Key]:
        """All versions to be loaded."""
        return planned_keys(self.models)


def planned_keys(models: Mapping[str, PlannedModel]) -> set[Key]:
    """Returns the versions of planned models that are to be loaded."""
    return {Key(name, version, stamp) for name, model in models.items() for version, stamp in model.served.items()}


def keys_of(stored: Stored) -> set[Key]:
    """Returns the versions that a store asks to be served."""
    return {Key(name, version, stamp) for name, model in stored.items() for version, stamp in model.stamps.items()}


def log_changes(plan: Plan, before: Plan | None) -> None:
    """Logs why labels, versions without files and the store cannot be read, if it was not so in the plan before."""
    if plan.why and plan.why != (before and before.why):
        log.error("%s", plan.why)
    for name, model in plan.models.items():
        old = before.models.get(name) if before else None
        if model.why is not None and model.why != (old and old.why):
            log.error("%s: the labels cannot be read: %s", name, model.why)
        elif model.why is None:
            for version in model.failures.keys() - {*model.present}:
                if old is None or version not in old.failures:
                    log.error("%s:%d cannot be served: %s", name, version, model.failures[version].why)
        if model.why_no_rollout and model.why_no_rollout != (old and old.why_no_rollout):
            log.error("%s: the rollout is not followed: %s", name, model.why_no_rollout)


def describe_changes(plan: Plan, before: Plan) -> list[str]:
    """Describes which models get other versions by a plan than by the one before, a line each."""
    lines: list[str] = []
    for name, model in plan.models.items():
        old = before.models.get(name)
        served = {f"@{label}": version for label, version in sorted(model.served_labels.items())} | {"": model.default}
        known = (
            {f"@{label}": version for label, version in old.served_labels.items()} | {"": old.default} if old else {}
        )
        lines += [
            f"{name}{label} is {name}:{version} from now on"
            for label, version in served.items()
            if version in model.served and (known.get(label) != version or (old and version not in old.served))
        ]
        if model.rollout != (old.rollout if old else None):
            lines.append(f"{name}: {_describe_rollout(name, model.rollout)}")
    return [*lines, *(f"{name} is not served any more" for name in before.models.keys() - plan.models.keys())]


def _describe_rollout(name: str, rollout: Rollout | None) -> str:
    if rollout is None:
        return "the rollout has ended"
    return f"{name}:{rollout.candidate} is a {rollout.mode} of {name}:{rollout.baseline} from now on"


def read_stored(root: Path) -> Stored:
    """Reads what a store holds, without the content of its versions.

    It lists folders and opens files instead of comparing modification times, because NFS answers these from a cache.

    Raises:
        OSError: the store cannot be read, or does not exist.
    """
    names = sorted(entry.name for entry in root.iterdir() if re.fullmatch(NAME_PATTERN, entry.name))
    models = {name: _read_model(root, name) for name in names}
    return {name: model for name, model in models.items() if model.present or model.why}


def with_faults(stored: Stored, faults: Mapping[tuple[str, int], str]) -> Stored:
    """Adds the reasons why versions of a store elsewhere could not be copied, by name and number."""
    models = dict(stored)
    for (name, version), why in sorted(faults.items()):
        model = models.get(name, StoredModel(present=()))
        models[name] = model.model_copy(update={"missing": model.missing | {version: why}})
    return models


def _read_model(root: Path, name: str) -> StoredModel:
    """Reads one model; what cannot be read concerns no other model."""
    present: tuple[int, ...] = ()
    try:
        present = tuple(store.versions(root, name))
        if not present:
            return StoredModel(present=())
        labels = store.read_labels(root, name).labels
    except AbstainError as error:
        return StoredModel(present=present, why=str(error))
    except OSError as error:
        return StoredModel(present=present, why=f"{root / name}: {error.strerror or error}")
    rollout, why_no_rollout = _read_rollout(root, name)
    wanted = {*served_among(present, labels), *([rollout.candidate] if rollout else [])} & {*present}
    return StoredModel(
        present=present,
        labels=labels,
        stamps={version: stamp_of(root / name / str(version)) for version in sorted(wanted)},
        rollout=rollout,
        why_no_rollout=why_no_rollout,
    )


def _read_rollout(root: Path, name: str) -> tuple[Rollout | None, str | None]:
    """Reads the rollout that runs, or why it cannot be read, which concerns nothing else of the model."""
    try:
        rollout = read_rollout(root, name)
    except AbstainError as error:
        return None, str(error)
    return (rollout if rollout and rollout.outcome is None else None), None


def stamp_of(folder: Path) -> str:
    """Identifies the files of a version by what describes and signs them; both are written once, and then renamed."""
    return " ".join(_file_stamp(folder / name) for name in (store.MANIFEST, SIGNATURE))


def _file_stamp(path: Path) -> str:
    try:
        facts = path.stat(follow_symlinks=False)
    except OSError:
        return "-"
    return f"{facts.st_ino}.{facts.st_mtime_ns}.{facts.st_size}"


def make_plan(
    stored: Stored,
    failures: Mapping[Key, Failure] | None = None,
    before: Plan | None = None,
    unloaded: frozenset[str] = frozenset(),
) -> Plan:
    """Plans what to serve.

    Args:
        stored: what the store holds.
        failures: the versions that cannot be served.
        before: the plan that is served now; None at the start of a server.
        unloaded: the models that an operator has unloaded.
    """
    known, served = failures or {}, before.models if before else {}
    models = {
        name: _plan_model(name, model, known, served.get(name))
        for name, model in stored.items()
        if name not in unloaded
    }
    return Plan(number=before.number + 1 if before else 1, models=models)


def _plan_model(
    name: str, stored: StoredModel, known: Mapping[Key, Failure], before: PlannedModel | None
) -> PlannedModel:
    if stored.why is not None:
        return _plan_without_labels(stored, stored.why, before)
    failures = {
        version: known[key] for version, stamp in stored.stamps.items() if (key := Key(name, version, stamp)) in known
    }
    served = {version: stamp for version, stamp in stored.stamps.items() if version not in failures}
    for version in sorted(set(stored.labels.values()) - set(stored.present)):
        labels = ", ".join(sorted(label for label, target in stored.labels.items() if target == version))
        failures[version] = Failure(state="failed", why=f"{labels}: no such version of {name} in the store")
    for version in stored.missing.keys() - {*stored.present}:
        failures[version] = Failure(state="failed", why=stored.missing[version])

    def choose(wanted: int, old: int | None) -> int:
        """Returns the wanted version; the old one if the wanted one failed and the old one is still there."""
        if wanted in served or before is None or old not in before.served or old not in stored.present:
            return wanted
        stamp = before.served[old]
        if Key(name, old, stamp) in known:
            return wanted
        served[old] = stamp
        return old

    served_labels = {
        label: choose(version, before.served_labels.get(label) if before else None)
        for label, version in stored.labels.items()
    }
    if STABLE in served_labels:
        default = served_labels[STABLE]
    else:
        default = choose(default_version(stored.present, {}), before.default if before else None)
    rollout, why_no_rollout = _plan_rollout(name, stored, default, served, failures)
    return PlannedModel(
        present=stored.present,
        labels=stored.labels,
        served=dict(sorted(served.items())),
        served_labels=served_labels,
        default=default,
        failures=failures,
        rollout=rollout,
        why_no_rollout=stored.why_no_rollout or why_no_rollout,
    )


def _plan_rollout(
    name: str, stored: StoredModel, default: int, served: Mapping[int, str], failures: Mapping[int, Failure]
) -> tuple[Rollout | None, str | None]:
    """Returns the rollout that is followed, or why the one of the store is not."""
    rollout = stored.rollout
    # `stable` is moved before the rollout is ended, and a new version is tried before it is served: neither is a fault.
    if rollout is None or default == rollout.candidate or failures.get(rollout.candidate) == LOADING:
        return None, None
    if rollout.candidate not in stored.present:
        return None, f"the store has no {name}:{rollout.candidate}"
    if default != rollout.baseline:
        return None, f"it compares with {name}:{rollout.baseline}, and {name} is {name}:{default} now"
    if rollout.candidate not in served:
        return None, f"{name}:{rollout.candidate} is not served"
    return rollout, None


def _plan_without_labels(stored: StoredModel, why: str, before: PlannedModel | None) -> PlannedModel:
    """Plans a model whose labels cannot be read: what it served before; nothing at the start of a server."""
    if before is None:
        failures = {version: Failure(state="failed", why=why) for version in stored.present}
        default = default_version(stored.present, {})
        return PlannedModel(
            present=stored.present, labels={}, served={}, served_labels={}, default=default, failures=failures, why=why
        )
    return before.model_copy(update={"present": stored.present, "why": why})
