"""What servers observe in a rollout, and what it says.

    STORE/NAME/.evidence/ID/SERVER.json  the evidence of one server, which replaces the file every few seconds

A server has a new file after each start; evidence adds up over all files.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import orjson
from pydantic import BaseModel, ConfigDict, Field, model_validator

from abstain.models.bundles import store as stores
from abstain.models.bundles.rollouts import EVIDENCE, FILE_BYTES, Rollout, read_rollout
from abstain.models.decisions.comparison import STAKES, TESTS, Comparison, Evidence, compare
from abstain.models.errors import StoreError, UnknownModel
from abstain.models.files.regular import read_bounded
from abstain.models.validation import parse_json

MOST_SERVERS = 1_000
"""The most files of evidence; each start of a server makes one."""
MOST_NATS, MOST_SUM = 50.0, 1e12
"""More than one observation can add to the logarithm of a capital, and to the sums."""
CALLERS = ".callers"
"""The end of the name of a file of callers: fingerprints of eight bytes each."""
CALLERS_BYTES = 2**21
"""The largest size of a file of callers."""
_FILE = re.compile(r"[0-9a-f]{32}\.json")
_CALLERS = re.compile(rf"[0-9a-f]{{32}}{re.escape(CALLERS)}")


class StoredEvidence(BaseModel):
    """The fields of `Evidence`."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    count: Annotated[int, Field(ge=0, lt=2**53)]
    total: float
    squares: Annotated[float, Field(ge=0)]
    capital: list[list[float]]

    @model_validator(mode="after")
    def _check_shape(self) -> StoredEvidence:
        if [len(row) for row in self.capital] != [len(STAKES)] * len(TESTS):
            raise ValueError(f"{len(TESTS)} lists of {len(STAKES)} numbers")
        # No observation can have more; what is left out of this is not what a server has written.
        most = MOST_NATS * self.count
        if (
            max(abs(value) for row in self.capital for value in row) > most
            or max(abs(self.total), self.squares) > MOST_SUM * self.count
        ):
            raise ValueError(f"sums that {self.count} observations can have")
        return self

    @classmethod
    def of(cls, evidence: Evidence) -> StoredEvidence:
        """Makes the record of evidence."""
        return cls(
            count=evidence.count,
            total=evidence.total,
            squares=evidence.squares,
            capital=evidence.capital.tolist(),
        )

    def read(self) -> Evidence:
        """Returns the evidence."""
        return Evidence(self.count, self.total, self.squares, np.array(self.capital))


class ServerEvidence(BaseModel):
    """What one server has observed in a rollout."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    rejects: StoredEvidence
    labels: StoredEvidence | None = None
    rows: Annotated[int, Field(ge=0)] = 0
    """The rows of all observations."""
    dropped: Annotated[int, Field(ge=0)] = 0
    """The requests that a shadow did not compute, because the server was busy."""
    failed_baseline: Annotated[int, Field(ge=0)] = 0
    """The requests that the baseline could not answer."""
    failed_candidate: Annotated[int, Field(ge=0)] = 0
    """The requests that the candidate could not answer."""
    updated: str
    """The time of the last change, as in `Rollout.started`."""


class Status(NamedTuple):
    """A rollout, what has been observed in it, and what that says; `servers` is the number of files of evidence."""

    rollout: Rollout
    rejects: Evidence | None
    labels: Evidence | None
    comparison: Comparison | None
    rows: int
    dropped: int
    failed_baseline: int
    failed_candidate: int
    servers: int


def read_status(store: Path, name: str) -> Status:
    """Reads the rollout of a model and the evidence of all servers.

    Raises:
        UnknownModel: there is no such model, or it never had a rollout.
        StoreError: a file is malformed.
    """
    stores.known_model(store, name)
    rollout = known_rollout(read_rollout(store, name), name)
    folder = store / name / EVIDENCE / rollout.id
    names = evidence_names(path.name for path in folder.iterdir()) if folder.is_dir() else []
    return status_of(rollout, [_read_evidence(folder / own) for own in names])


def known_rollout(rollout: Rollout | None, name: str) -> Rollout:
    """Returns the rollout of a model.

    Raises:
        UnknownModel: it never had one.
    """
    if rollout is None:
        raise UnknownModel(f"{name} never had a rollout", fix=f"abstain rollout start {name}:VERSION --share 5%")
    return rollout


def status_of(rollout: Rollout, found: list[ServerEvidence]) -> Status:
    """Joins the evidence on a rollout, and compares the versions by it."""
    if not found:
        return Status(rollout, None, None, None, 0, 0, 0, 0, 0)
    rejects, labels = join_evidence(found)
    return Status(
        rollout,
        rejects,
        labels,
        compare(rejects, labels, rollout.alpha),
        sum(each.rows for each in found),
        sum(each.dropped for each in found),
        sum(each.failed_baseline for each in found),
        sum(each.failed_candidate for each in found),
        len(found),
    )


def join_evidence(found: list[ServerEvidence]) -> tuple[Evidence, Evidence | None]:
    """Returns the joint evidence on the reject rates and, for a shadow, on the labels."""
    rejects = [each.rejects.read() for each in found]
    labels = [each.labels.read() for each in found if each.labels is not None]
    return sum(rejects[1:], start=rejects[0]), sum(labels[1:], start=labels[0]) if labels else None


def write_evidence(store: Path, name: str, rollout: Rollout, server: str, evidence: ServerEvidence) -> None:
    """Writes what a server has observed.

    Args:
        server: 32 hexadecimal digits that no other run of a server has.

    Raises:
        OSError: the store cannot be written.
    """
    folder = _make_folder(store / name, rollout)
    draft = folder / f".{server}.draft"
    draft.write_bytes(dump_evidence(evidence))
    draft.rename(folder / f"{server}.json")


def share_callers(
    store: Path, name: str, rollout: Rollout, server: str, own: bytes | None, seen: dict[str, str]
) -> list[bytes]:
    """Writes the callers that a server has observed, and returns those of other servers that are new.

    Args:
        own: fingerprints of eight bytes; None if they have not changed.
        seen: what was read before: the size and time of each file; is updated.

    Raises:
        OSError: the store cannot be read or written.
    """
    folder, found = _make_folder(store / name, rollout), list[bytes]()
    if own is not None:
        draft = folder / f".{server}.callers-draft"
        draft.write_bytes(own)
        draft.rename(folder / f"{server}{CALLERS}")
    for other in callers_names((path.name for path in folder.iterdir()), server):
        facts = (folder / other).stat()
        tag = f"{facts.st_size}.{facts.st_mtime_ns}.{facts.st_ino}"
        if seen.get(other) != tag:
            seen[other] = tag
            found.append(read_bounded(folder / other, CALLERS_BYTES, StoreError))
    return found


def callers_names(names: Iterable[str], server: str) -> list[str]:
    """Returns the names that are files of callers of other servers."""
    return sorted(name for name in names if _CALLERS.fullmatch(name) and name != f"{server}{CALLERS}")[:MOST_SERVERS]


def _make_folder(home: Path, rollout: Rollout) -> Path:
    """Makes the folder of the evidence on a rollout, but no folder of a model: that may have been removed."""
    folder = home / EVIDENCE / rollout.id
    folder.parent.mkdir(exist_ok=True)
    folder.mkdir(exist_ok=True)
    return folder


def _read_evidence(path: Path) -> ServerEvidence:
    try:
        written = read_bounded(path, FILE_BYTES, StoreError)
    except OSError as error:
        raise StoreError("cannot be read", where=str(path), found=error.strerror) from error
    return parse_evidence(written, str(path))


def parse_evidence(written: bytes, where: str) -> ServerEvidence:
    """Parses a file of evidence.

    Raises:
        StoreError: it is malformed.
    """
    fix = "end the rollout, and start it again: without this file the promise of the verdict is lost"
    return parse_json(written, ServerEvidence, StoreError, where=where, fix=fix)


def dump_evidence(evidence: ServerEvidence) -> bytes:
    """Returns the content of a file of evidence."""
    return orjson.dumps(evidence.model_dump(), option=orjson.OPT_APPEND_NEWLINE)


def evidence_names(names: Iterable[str]) -> list[str]:
    """Returns the names that are files of evidence.

    Raises:
        StoreError: there are too many.
    """
    found = sorted(name for name in names if _FILE.fullmatch(name))
    if len(found) > MOST_SERVERS:
        fix = "end the rollout, and start it again"
        raise StoreError("files of evidence", expected=f"at most {MOST_SERVERS:,}", found=f"{len(found):,}", fix=fix)
    return found
