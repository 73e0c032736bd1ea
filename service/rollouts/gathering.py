"""Gathers the evidence of all workers of a server, and acts on it, in the main process.

    every few seconds   add up the evidence of this server's workers → write it into the store → add that of all servers
                        → leave the comparison for the workers → if the rollout says `auto` and there is a verdict, end it

If the store cannot be written, this server has only its own evidence, and `GET /models/M/rollout` shows it.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from pydantic import ValidationError

from abstain.models.bundles.rollout_evidence import (
    ServerEvidence,
    Status,
    StoredEvidence,
    join_evidence,
    read_status,
    status_of,
    write_evidence,
)
from abstain.models.bundles.rollouts import Rollout, describe_outcome, end_rollout
from abstain.models.errors import AbstainError
from abstain.models.files.records import write_record
from abstain.service.plans import Plan
from abstain.service.rollouts.state import state_of, state_path

log = logging.getLogger("abstain.rollouts")

SECONDS = 2.0
"""The time between two looks at the evidence."""


class Gatherer:
    """The rollouts of a server, as its main process sees them.

    Args:
        root: the store.
        folder: the folder of the run.
        announce: is called with a line of text when this server ends a rollout.
    """

    def __init__(self, root: Path, folder: Path, announce: Callable[[str], None]) -> None:
        self._root = root
        self._folder = folder
        self._announce = announce
        self._server = secrets.token_hex(16)
        self._written: dict[str, ServerEvidence] = {}
        self._last = 0.0

    def step(self, plan: Plan) -> bool:
        """Gathers the evidence on the rollouts of a plan, every few seconds; returns whether it has ended one."""
        if time.monotonic() < self._last + SECONDS:
            return False
        self._last = time.monotonic()
        rollouts = {name: model.rollout for name, model in plan.models.items() if model.rollout}
        ended = [self._gather(name, rollout) for name, rollout in rollouts.items()]
        return any(ended)

    def _gather(self, name: str, rollout: Rollout) -> bool:
        own = self._own_evidence(rollout)
        why = self._write(name, rollout, own) if own else None
        try:
            status = read_status(self._root, name)
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
            write_evidence(self._root, name, rollout, self._server, own)
        except OSError as error:
            return f"the store cannot be written ({error.strerror}); this is the evidence of one server alone"
        self._written = {rollout.id: own, **{key: each for key, each in self._written.items() if key != rollout.id}}
        return None

    def _act(self, name: str, status: Status) -> bool:
        """Ends a rollout that has a verdict; returns whether it did."""
        if status.comparison is None or status.comparison.verdict is None:
            return False
        try:
            ended = end_rollout(self._root, name, status.comparison.verdict, by="server", own_id=status.rollout.id)
        except (AbstainError, OSError) as error:
            log.error("%s: the rollout cannot be ended: %s", name, error)
            return False
        text = f"{name}: the rollout of {name}:{ended.candidate} was {describe_outcome(ended)}"
        log.warning("%s", text)
        self._announce(text)
        write_record(state_path(self._folder, name), state_of(status._replace(rollout=ended)))
        return True
