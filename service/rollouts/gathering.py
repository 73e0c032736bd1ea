"""Gathers the evidence of all workers of a server, and acts on it, in the main process.

    every few seconds   add up the evidence of this server's workers → write it into the store → add that of all servers
                        → leave the comparison for the workers → if the rollout says `auto` and there is a verdict, end it

If the store cannot be written, this server has only its own evidence, and `GET /models/M/rollout` shows it.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import ValidationError

from abstain.models.bundles.remote.rollouts import end_in, share_callers_in, status_in, write_evidence_in
from abstain.models.bundles.remote.url import RemoteURL
from abstain.models.bundles.rollout_evidence import (
    ServerEvidence,
    Status,
    StoredEvidence,
    join_evidence,
    status_of,
)
from abstain.models.bundles.rollouts import Rollout, describe_outcome
from abstain.models.errors import AbstainError
from abstain.models.files.records import write_record
from abstain.service.plans import Plan
from abstain.service.rollouts.callers import Callers
from abstain.service.rollouts.state import callers_path, state_of, state_path

log = logging.getLogger("abstain.rollouts")

SECONDS = 2.0
"""The time between two looks at the evidence."""


@dataclass
class _Shared:
    """What this server has written into the store on one rollout, and has read of others."""

    id: str
    callers: Callers
    written: ServerEvidence | None = None
    written_bytes: int = 0
    seen: dict[str, str] = field(default_factory=dict[str, str])


class Gatherer:
    """The rollouts of a server, as its main process sees them.

    Args:
        store: the store; that elsewhere, not its copy.
        folder: the folder of the run.
        announce: is called with a line of text when this server ends a rollout.
    """

    def __init__(self, store: Path | RemoteURL, folder: Path, announce: Callable[[str], None]) -> None:
        self._store = store
        self._folder = folder
        self._announce = announce
        self._server = secrets.token_hex(16)
        self._shared: dict[str, _Shared] = {}
        self._followed: dict[str, Rollout] = {}
        self._why: dict[str, str] = {}
        self.ended = threading.Event()
        """Is set when the store is to be looked at, because a rollout has ended."""

    def start(self, plan: Callable[[], Plan]) -> None:
        """Starts a thread, as a store elsewhere may take long to answer; `plan` returns what is served."""

        def follow() -> None:
            while True:  # At once, so that a server that was started again knows the callers of its earlier start.
                try:
                    if self.step(plan()):
                        self.ended.set()
                except Exception:
                    log.exception("the evidence on rollouts cannot be gathered; it is tried again")
                time.sleep(SECONDS)

        threading.Thread(target=follow, name="rollouts", daemon=True).start()

    def step(self, plan: Plan) -> bool:
        """Gathers the evidence on the rollouts of a plan; returns whether one has ended."""
        rollouts = {name: model.rollout for name, model in plan.models.items() if model.rollout}
        ended = False
        for name, rollout in [*rollouts.items(), *self._not_followed(rollouts)]:
            try:
                ended |= self._gather(name, rollout, followed=rollouts.get(name) == rollout)
            except Exception:
                log.exception("%s: the evidence on the rollout cannot be gathered; it is tried again", name)
        return ended

    def _not_followed(self, rollouts: dict[str, Rollout]) -> list[tuple[str, Rollout]]:
        """Returns the rollouts that were followed and are not any more, by name; each once."""
        gone = [(name, rollout) for name, rollout in self._followed.items() if rollouts.get(name) != rollout]
        self._followed = {**rollouts}
        return [(name, rollout) for name, rollout in gone if name not in rollouts]

    def _gather(self, name: str, rollout: Rollout, *, followed: bool) -> bool:
        """Adds up the evidence on a rollout and leaves its state for the workers; returns whether it has ended."""
        own, why = self._own_evidence(rollout), None
        if followed:
            why = self._share(name, rollout, own)
        try:
            status = status_in(self._store, name)
        except (AbstainError, OSError) as error:
            if str(error) != self._why.get(name):
                log.error("%s: the evidence on the rollout cannot be read: %s", name, error)
            self._why[name] = str(error)
            why = (
                "the evidence cannot be read, the log of the server says why; this is the evidence of one server alone"
            )
            status = None
        else:
            self._why.pop(name, None)
        if status is None or why or status.rollout.id != rollout.id:
            known = rollout if status is None or status.rollout.id != rollout.id else status.rollout
            status = status_of(known, [own] if own else [])
        state = state_of(status, why)
        if not followed and state.state == "running":
            state = state.model_copy(update={"state": "not followed"})
        write_record(state_path(self._folder, name), state)
        if status.rollout.outcome:
            return followed
        return self._act(name, status) if followed and rollout.auto and not why else False

    def _own_evidence(self, rollout: Rollout) -> ServerEvidence | None:
        """Returns the evidence of all workers that this server has had."""
        found: list[ServerEvidence] = []
        for path in self._folder.glob(f"evidence-{rollout.id}-*.json"):
            with suppress(OSError, ValidationError):
                found.append(ServerEvidence.model_validate_json(path.read_bytes()))
        if not found:
            return None
        rejects, labels = join_evidence(found)
        return ServerEvidence(
            rejects=StoredEvidence.of(rejects),
            labels=StoredEvidence.of(labels) if labels is not None else None,
            rows=sum(each.rows for each in found),
            dropped=sum(each.dropped for each in found),
            failed_baseline=sum(each.failed_baseline for each in found),
            failed_candidate=sum(each.failed_candidate for each in found),
            updated=max(each.updated for each in found),
        )

    def _share(self, name: str, rollout: Rollout, own: ServerEvidence | None) -> str | None:
        """Writes the evidence of this server into the store, if it has changed, and exchanges callers with other servers.

        Returns:
            Why that cannot be done; None if it was.
        """
        shared = self._shared.get(name)
        if shared is None or shared.id != rollout.id:
            shared = self._shared[name] = _Shared(rollout.id, Callers(callers_path(self._folder, rollout)))
        try:
            callers = shared.callers.all()
            new = callers if len(callers) != shared.written_bytes else None
            for others in share_callers_in(self._store, name, rollout, self._server, new, shared.seen):
                shared.callers.add_all(others)
            shared.written_bytes = len(callers)
            if own and own != shared.written:
                write_evidence_in(self._store, name, rollout, self._server, own)
                shared.written = own
        except (AbstainError, OSError) as error:
            if str(error) != self._why.get(f"{name}, written"):
                log.warning("%s: the evidence on the rollout cannot be written into the store: %s", name, error)
            self._why[f"{name}, written"] = str(error)
            return "the store cannot be written; this is the evidence of one server alone"
        return None

    def _act(self, name: str, status: Status) -> bool:
        """Ends a rollout that has a verdict; returns whether it did."""
        if status.comparison is None or status.comparison.verdict is None:
            return False
        try:
            ended = end_in(self._store, name, status.comparison.verdict, by="server", own_id=status.rollout.id)
        except (AbstainError, OSError) as error:
            # Another server may have been faster; the next look shows it.
            if str(error) != self._why.get(f"{name}, ended"):
                log.warning("%s: the rollout is not ended by this server: %s", name, error)
            self._why[f"{name}, ended"] = str(error)
            return False
        text = f"{name}: the rollout of {name}:{ended.candidate} was {describe_outcome(ended)}"
        log.warning("%s", text)
        self._announce(text)
        write_record(state_path(self._folder, name), state_of(status._replace(rollout=ended)))
        return True
