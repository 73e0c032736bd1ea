"""Which version a caller gets while a rollout runs. Pure functions."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal, NamedTuple

from abstain.models.bundles.rollouts import Rollout
from abstain.service.live import Live

Side = Literal["baseline", "candidate"]


class Caller(NamedTuple):
    """Who sends a request.

    Attributes:
        key: the value of the header that names callers, or else the id of the request.
        may_repeat: whether other requests may have the same key.
    """

    key: bytes
    may_repeat: bool


@dataclass(frozen=True)
class Part:
    """The part of one request in a rollout.

    Attributes:
        side: the version that responds to it.
        baseline: the version that is compared with.
        candidate: the version that is rolled out; a shadow computes the rows with it too.
        fingerprint: identifies the caller within the rollout; None if no other request can have the same caller.
    """

    name: str
    rollout: Rollout
    side: Side
    baseline: Live
    candidate: Live
    fingerprint: int | None


class Choice(NamedTuple):
    """The version that responds to a request, and the request's part in a rollout, if it has one."""

    live: Live
    part: Part | None = None


def choose(name: str, rollout: Rollout, baseline: Live, candidate: Live, caller: Caller) -> Choice:
    """Chooses the version for a caller; the same one for all its requests, in every worker and server.

    The choice is the caller's hash with the secret of the rollout as its key: the callers of one rollout say nothing about those of
    the next, and nobody who does not know the secret can choose a side.
    """
    digest = hashlib.blake2b(caller.key, digest_size=16, key=rollout.key.encode()).digest()
    within = int.from_bytes(digest[:8]) < rollout.share * 2**64
    fingerprint = int.from_bytes(digest[8:]) if caller.may_repeat else None
    if rollout.mode == "shadow":
        part = Part(name, rollout, "baseline", baseline, candidate, fingerprint)
        return Choice(baseline, part if within else None)
    side: Side = "candidate" if within else "baseline"
    return Choice(candidate if within else baseline, Part(name, rollout, side, baseline, candidate, fingerprint))
