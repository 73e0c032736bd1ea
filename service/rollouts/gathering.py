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
from pathlib import Path

from pydantic import ValidationError

from abstain.models.bundles.remote.rollouts import end_in, status_in, write_evidence_in
from abstain.models.bundles.remote.url import RemoteURL
from abstain.models.bundles.rollout_evidence import (
    ServerEvidence,
    Status,
    StoredEvidence,
    join_evidence,
    status_of,
)
from abstain.models.bundles.rollouts import Rollout, describe_outcome
from abstain.models.errors import AbstainError, StoreError
from abstain.models.files.records import write_record
from abstain.service.plans import Plan
from abstain.service.rollouts.state import state_of, state_path

log = logging.getLogger("abstain.rollouts")

SECONDS = 2.0
"""The time between two looks at the evidence."""


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
        self._written: dict[str, ServerEvidence] = {}
        self.ended = threading.Event()
        """Is set when the store is to be looked at, because a rollout has ended."""

    def start(self, plan: Callable[[], Plan]) -> None:
        """Starts a thread, as a store elsewhere may take long to answer; `plan` returns what is served."""

        def follow() -> None:
            while True:
                time.sleep(SECONDS)
                try:
                    if self.step(plan()):
                        self.ended.set()
                except Exception:
                    log.exception("the evidence on a rollout cannot be gathered; it is tried again")

        threading.Thread(target=follow, name="rollouts", daemon=True).start()

    def step(self, plan: Plan) -> bool:
        """Gathers the evidence on the rollouts of a plan; returns whether one has ended."""
        rollouts = {name: model.rollout for name, model in plan.models.items() if model.rollout}
        ended = [self._gather(name, rollout) for name, rollout in rollouts.items()]
        return any(ended)

    def _gather(self, name: str, rollout: Rollout) -> bool:
        own = self._own_evidence(rollout)
        why = self._write(name, rollout, own) if own else None
        try:
            status = status_in(self._store, name)
            if status.rollout.id != rollout.id or status.rollout.outcome:
                # A command or another server was faster: the store is to be looked at.
                write_record(state_path(self._folder, name), state_of(status))
                return True
        except (AbstainError, OSError) as error:
            status, why = status_of(rollout, [own] if own else []), str(error)
        if why:
            status = status_of(rollout, [own] if own else [])
        write_record(state_path(self._folder, name), state_of(status, why))
        return self._act(name, status) if rollout.auto and not why else False

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
            updated=max(each.updated for each in found),
        )

    def _write(self, name: str, rollout: Rollout, own: ServerEvidence) -> str | None:
        """Writes the evidence of this server into the store, if it has changed; returns why it cannot be written."""
        if self._written.get(rollout.id) == own:
            return None
        try:
            write_evidence_in(self._store, name, rollout, self._server, own)
        except (StoreError, OSError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            return f"the store cannot be written ({reason}); this is the evidence of one server alone"
        self._written = {rollout.id: own, **{key: each for key, each in self._written.items() if key != rollout.id}}
        return None

    def _act(self, name: str, status: Status) -> bool:
        """Ends a rollout that has a verdict; returns whether it did."""
        if status.comparison is None or status.comparison.verdict is None:
            return False
        try:
            ended = end_in(self._store, name, status.comparison.verdict, by="server", own_id=status.rollout.id)
        except (AbstainError, OSError) as error:
            log.error("%s: the rollout cannot be ended: %s", name, error)
            return False
        text = f"{name}: the rollout of {name}:{ended.candidate} was {describe_outcome(ended)}"
        log.warning("%s", text)
        self._announce(text)
        write_record(state_path(self._folder, name), state_of(status._replace(rollout=ended)))
        return True
