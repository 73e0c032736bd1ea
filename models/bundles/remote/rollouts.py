"""Rollouts in a store, wherever it is. In a store elsewhere `rollout.json` is changed by compare-and-swap, as labels are."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from abstain.models.bundles import rollout_evidence, rollouts
from abstain.models.bundles.references import STABLE
from abstain.models.bundles.remote.labels import set_remote_label
from abstain.models.bundles.remote.objects import Content, Objects, open_objects
from abstain.models.bundles.remote.url import RemoteURL
from abstain.models.bundles.remote.versions import read_remote_labels, resolve_remote
from abstain.models.bundles.rollout_evidence import ServerEvidence, Status
from abstain.models.bundles.rollouts import EVIDENCE, FILE_BYTES, ROLLOUT, Options, Rollout
from abstain.models.decisions.comparison import Verdict
from abstain.models.errors import StoreError

if TYPE_CHECKING:
    from abstain.models.bundles.manifest import Manifest


def put_rollout(store: Path | RemoteURL, manifests: tuple[Manifest, Manifest], options: Options) -> Rollout:
    """Starts a rollout, as `rollouts.start_rollout` does."""
    if isinstance(store, Path):
        return rollouts.start_rollout(store, manifests, options)
    objects, name = open_objects(store), manifests[1].name
    running, content = _read(objects, name)
    rollouts.check_none_runs(running, name, objects.place(f"{name}/{ROLLOUT}"))
    rollout = rollouts.propose_rollout(manifests, options)
    _write(objects, name, rollout, content)
    return rollout


def running_in(store: Path | RemoteURL, name: str) -> Rollout:
    """Reads the rollout of a model that runs, as `rollouts.running_rollout` does."""
    if isinstance(store, Path):
        return rollouts.running_rollout(store, name)
    objects = open_objects(store)
    resolve_remote(objects, name)
    return rollouts.check_running(_read(objects, name)[0], name, objects.place(f"{name}/{ROLLOUT}"))


def end_in(
    store: Path | RemoteURL, name: str, verdict: Verdict, *, by: Literal["command", "server"], own_id: str
) -> Rollout:
    """Ends the running rollout, as `rollouts.end_rollout` does."""
    if isinstance(store, Path):
        return rollouts.end_rollout(store, name, verdict, by=by, own_id=own_id)
    objects = open_objects(store)
    where = objects.place(f"{name}/{ROLLOUT}")
    found, content = _read(objects, name)
    rollout = rollouts.check_running(found, name, where, own_id)
    if verdict == "promote":
        rollouts.check_promotable(rollout, name, resolve_remote(objects, name)[1], where)
        if STABLE not in read_remote_labels(objects, name)[0].labels:  # So that there is a version to roll back to.
            set_remote_label(objects, name, rollout.baseline, STABLE)
        set_remote_label(objects, name, rollout.candidate, STABLE)
    ended = rollouts.with_outcome(rollout, verdict, by)
    _write(objects, name, ended, content)
    return ended


def status_in(store: Path | RemoteURL, name: str) -> Status:
    """Reads the rollout of a model and the evidence of all servers, as `rollout_evidence.read_status` does."""
    if isinstance(store, Path):
        return rollout_evidence.read_status(store, name)
    objects = open_objects(store)
    resolve_remote(objects, name)
    rollout = rollout_evidence.known_rollout(_read(objects, name)[0], name)
    folder = f"{name}/{EVIDENCE}/{rollout.id}"
    found: list[ServerEvidence] = []
    for own in rollout_evidence.evidence_names(objects.entries(folder).objects):
        content = objects.get(f"{folder}/{own}", FILE_BYTES)
        if content is not None:
            found.append(rollout_evidence.parse_evidence(content.written, objects.place(f"{folder}/{own}")))
    return rollout_evidence.status_of(rollout, found)


def write_evidence_in(
    store: Path | RemoteURL, name: str, rollout: Rollout, server: str, evidence: ServerEvidence
) -> None:
    """Writes what a server has observed, as `rollout_evidence.write_evidence` does.

    Raises:
        OSError: the folder cannot be written.
        StoreError: the store elsewhere cannot be written.
    """
    if isinstance(store, Path):
        rollout_evidence.write_evidence(store, name, rollout, server, evidence)
    else:
        path = f"{name}/{EVIDENCE}/{rollout.id}/{server}.json"
        open_objects(store).put(path, rollout_evidence.dump_evidence(evidence))


def share_callers_in(
    store: Path | RemoteURL, name: str, rollout: Rollout, server: str, own: bytes | None, seen: dict[str, str]
) -> list[bytes]:
    """Writes the callers that a server has observed, and returns those of other servers that are new.

    Args:
        own: fingerprints of eight bytes; None if they have not changed.
        seen: what was read before: the tag of each file; is updated.

    Raises:
        OSError: the folder cannot be read or written.
        StoreError: the store elsewhere cannot be read or written.
    """
    if isinstance(store, Path):
        return rollout_evidence.share_callers(store, name, rollout, server, own, seen)
    objects, folder = open_objects(store), f"{name}/{EVIDENCE}/{rollout.id}"
    if own is not None:
        objects.put(f"{folder}/{server}{rollout_evidence.CALLERS}", own)
    tags, found = objects.entries(folder).objects, list[bytes]()
    for other in rollout_evidence.callers_names(tags, server):
        if seen.get(other) != tags[other]:
            content = objects.get(f"{folder}/{other}", rollout_evidence.CALLERS_BYTES)
            seen[other] = tags[other]
            found += [content.written] if content else []
    return found


def _read(objects: Objects, name: str) -> tuple[Rollout | None, Content | None]:
    path = f"{name}/{ROLLOUT}"
    content = objects.get(path, FILE_BYTES)
    return (content and rollouts.parse_rollout(content.written, name, objects.place(path))), content


def _write(objects: Objects, name: str, rollout: Rollout, before: Content | None) -> None:
    """Writes the rollout, if nobody has changed it since it was read.

    Raises:
        StoreError: somebody has, or the store cannot be written.
    """
    path, written = f"{name}/{ROLLOUT}", rollouts.dump_rollout(rollout)
    if not (
        objects.put_if_absent(path, written) if before is None else objects.put_if_unchanged(path, written, before.tag)
    ):
        raise StoreError(
            f"somebody else changed the rollout of {name} meanwhile",
            where=objects.place(path),
            fix=f"look at abstain rollout status {name}, and run the command again",
        )
