"""Rollouts: a candidate version of a model is compared with the stable one before it takes its place.

    STORE/NAME/rollout.json  the rollout that runs, or the last one with its outcome

A *canary* answers a share of the requests for the stable version; a *shadow* computes the same rows as the stable version, and
nobody gets its answers. `rollout_evidence.py` has what servers observe.
"""

from __future__ import annotations

import secrets
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import orjson
from pydantic import BaseModel, ConfigDict, Field, model_validator

from abstain.models.bundles import store as stores
from abstain.models.bundles.references import STABLE, Reference, default_version, resolve_among
from abstain.models.decisions.comparison import Verdict
from abstain.models.errors import StoreError, clip_repr
from abstain.models.files.regular import read_bounded
from abstain.models.validation import parse_json

if TYPE_CHECKING:
    from abstain.models.bundles.manifest import Manifest
    from abstain.models.prediction.posterior import Model

ROLLOUT = "rollout.json"
EVIDENCE = ".evidence"
"""The folder of what servers have observed."""
FILE_BYTES = 2**16
"""The largest size of the file, and of each file of evidence."""
Mode = Literal["canary", "shadow"]
_Version = Annotated[int, Field(gt=0, lt=10**9)]
_Hex = Annotated[str, Field(pattern="^[0-9a-f]{32}$")]
_Time = Annotated[str, Field(max_length=40, pattern=r"^[0-9T:.+Z-]+$")]
"""A time in UTC, ISO 8601."""


class Outcome(BaseModel):
    """How a rollout ended."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    verdict: Verdict
    by: Literal["command", "server"]
    at: _Time


class RolloutFacts(BaseModel):
    """What everybody may know of a rollout: a candidate and the version that requests for the model get otherwise, the baseline."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    id: _Hex
    candidate: _Version
    baseline: _Version
    mode: Mode
    share: Annotated[float, Field(gt=0, le=1)]
    """The share of the callers that get the candidate, or whose requests a shadow computes too."""
    margin: Annotated[float, Field(gt=0, lt=1)]
    """The largest difference of the reject rates, and for a shadow of the labels, that is harmless."""
    alpha: Annotated[float, Field(gt=0, lt=1)]
    """The largest probability of a false verdict of each kind."""
    auto: bool
    """Whether servers promote or abort when there is a verdict."""
    started: _Time
    outcome: Outcome | None = None
    """None while it runs."""

    @model_validator(mode="after")
    def _check_canary(self) -> RolloutFacts:
        if self.mode == "canary" and self.share >= 1:
            raise ValueError("a canary with a share below 1")
        return self


class Rollout(RolloutFacts):
    """A comparison of a candidate with the version that requests for the model get otherwise, the baseline."""

    key: _Hex
    """A secret that decides, with the caller, which version a caller gets: who knew it could choose."""

    @property
    def facts(self) -> RolloutFacts:
        """The rollout without its secret."""
        return RolloutFacts.model_validate(self.model_dump(exclude={"key"}))


class Options(NamedTuple):
    """The options of a rollout, as in `Rollout`."""

    mode: Mode
    share: float
    margin: float = 0.05
    alpha: float = 0.05
    auto: bool = False


def read_rollout(store: Path, name: str) -> Rollout | None:
    """Reads the rollout of a model, running or ended; None if there never was one.

    Raises:
        StoreError: `rollout.json` is malformed or cannot be read.
    """
    path = store / name / ROLLOUT
    try:
        written = read_bounded(path, FILE_BYTES, StoreError)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StoreError("cannot be read", where=str(path), found=error.strerror) from error
    return parse_rollout(written, name, str(path))


def parse_rollout(written: bytes, name: str, where: str) -> Rollout:
    """Parses the content of `rollout.json`.

    Raises:
        StoreError: it is malformed.
    """
    fix = f"remove it, and start the rollout again with abstain rollout start {name}:VERSION"
    return parse_json(written, Rollout, StoreError, where=where, fix=fix)


def dump_rollout(rollout: Rollout) -> bytes:
    """Returns the content of `rollout.json`."""
    return orjson.dumps(rollout.model_dump(), option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)


def running_rollout(store: Path, name: str) -> Rollout:
    """Reads the rollout of a model that runs.

    Raises:
        UnknownModel: there is no such model.
        StoreError: none runs, or the file is malformed.
    """
    stores.known_model(store, name)
    return check_running(read_rollout(store, name), name, str(store / name / ROLLOUT))


def check_running(rollout: Rollout | None, name: str, where: str, own_id: str | None = None) -> Rollout:
    """Returns a rollout that runs.

    Args:
        own_id: that of the rollout which is meant; None for any.

    Raises:
        StoreError: it does not run, or another one does.
    """
    if rollout is None or rollout.outcome:
        raise StoreError(
            f"no rollout of {name} is running",
            where=where,
            found=f"the last one: {describe_outcome(rollout)}" if rollout and rollout.outcome else None,
            fix=f"abstain rollout start {name}:VERSION --share 5%",
        )
    if own_id is not None and rollout.id != own_id:
        raise StoreError(f"another rollout of {name} was started", where=where)
    return rollout


def check_none_runs(rollout: Rollout | None, name: str, where: str) -> None:
    """Refuses to start a rollout while another one runs.

    Raises:
        StoreError: it runs.
    """
    if rollout and rollout.outcome is None:
        raise StoreError(
            f"a rollout of {name}:{rollout.candidate} is running",
            where=where,
            fix=f"end it first: abstain rollout abort {name}, or promote",
        )


def describe_outcome(rollout: RolloutFacts) -> str:
    """Describes how a rollout ended."""
    outcome = rollout.outcome
    if outcome is None:
        return "running"
    return f"{'promoted' if outcome.verdict == 'promote' else 'aborted'} by a {outcome.by} at {outcome.at}"


def propose_rollout(manifests: tuple[Manifest, Manifest], options: Options) -> Rollout:
    """Makes the record of a rollout that starts now.

    Args:
        manifests: those of the baseline and the candidate.

    Raises:
        StoreError: the versions cannot be compared.
    """
    baseline, candidate = manifests
    _check_comparable(candidate.name, baseline, candidate, options.mode)
    return Rollout(
        id=secrets.token_hex(16),
        key=secrets.token_hex(16),
        candidate=candidate.version,
        baseline=baseline.version,
        started=now(),
        **options._asdict(),
    )


def start_rollout(store: Path, manifests: tuple[Manifest, Manifest], options: Options) -> Rollout:
    """Starts the rollout of a candidate; servers that follow the store begin with it within seconds.

    Args:
        manifests: those of the baseline and the candidate.

    Raises:
        StoreError: another rollout runs, the versions cannot be compared, or the store cannot be written.
    """
    rollout = propose_rollout(manifests, options)
    home = store / manifests[1].name
    with stores.lock_model(home):
        check_none_runs(read_rollout(store, home.name), home.name, str(home / ROLLOUT))
        # Another command may have changed the store since the manifests were read.
        present = stores.versions(store, home.name)
        resolve_among(Reference(home.name, rollout.candidate, None), present, {})
        current = default_version(present, stores.read_labels(store, home.name).labels)
        if current != rollout.baseline:
            raise StoreError(
                f"{home.name} is another version now",
                where=str(home),
                expected=f"{home.name}:{rollout.baseline}",
                found=f"{home.name}:{current}",
                fix="run the command again",
            )
        shutil.rmtree(home / EVIDENCE, ignore_errors=True)
        _write(home, rollout)
    return rollout


def _check_comparable(name: str, baseline: Manifest, candidate: Manifest, mode: Mode) -> None:
    if baseline.version == candidate.version:
        raise StoreError(
            f"{name}:{candidate.version} is what requests for {name} get already",
            expected="another version",
            fix=f"name the version to try, such as {name}:{baseline.version + 1}; if that is the newest, first label the one that "
            f"requests are to get meanwhile: abstain label {name}:VERSION {STABLE}",
        )
    if candidate.model.likelihood_functions.task != baseline.model.likelihood_functions.task:
        raise StoreError(
            "the versions have different tasks",
            expected=baseline.model.likelihood_functions.task,
            found=candidate.model.likelihood_functions.task,
        )
    if mode == "canary":
        return
    for what, known, found in _descriptions(baseline.model, candidate.model):
        if known != found:
            raise StoreError(
                f"a shadow computes the rows of {name}:{baseline.version}, and the candidate differs in its {what}",
                where=f"{name}:{candidate.version}",
                expected=clip_repr(known),
                found=clip_repr(found),
                fix="start a canary, which reads its own requests: --share 5% without --shadow",
            )


def _descriptions(one: Model, other: Model) -> list[tuple[str, Any, Any]]:
    """Returns what the rows and labels of two models must have in common, by name."""

    def columns(model: Model) -> list[tuple[str, str, tuple[str, ...]]]:
        return [(column.name, column.kind, column.categories) for column in model.preprocessing.columns]

    return [
        ("shape of a row", one.feature_shape, other.feature_shape),
        ("features", one.feature_names, other.feature_names),
        ("columns", columns(one), columns(other)),
        ("classes", one.class_names, other.class_names),
    ]


def end_rollout(store: Path, name: str, verdict: Verdict, *, by: Literal["command", "server"], own_id: str) -> Rollout:
    """Ends the running rollout; `promote` also points `stable` at the candidate.

    Args:
        own_id: that of the rollout which is meant: another one may have been started meanwhile.

    Raises:
        StoreError: it does not run any more, the baseline is not served any more, or the store cannot be written.
    """
    where = str(store / name / ROLLOUT)
    with stores.lock_model(store / name):
        rollout = check_running(read_rollout(store, name), name, where, own_id)
        if verdict == "promote":
            labels = stores.read_labels(store, name).labels
            present = stores.versions(store, name)
            resolve_among(Reference(name, rollout.candidate, None), present, {})
            check_promotable(rollout, name, default_version(present, labels), where)
            if STABLE not in labels:  # So that there is a version to roll back to.
                stores.move_label(store, name, rollout.baseline, STABLE)
            stores.move_label(store, name, rollout.candidate, STABLE)
        ended = with_outcome(rollout, verdict, by)
        _write(store / name, ended)
    return ended


def check_promotable(rollout: Rollout, name: str, current: int, where: str) -> None:
    """Refuses to promote a candidate that was compared with another version than the one that is served now.

    Raises:
        StoreError: it was.
    """
    if current not in {rollout.baseline, rollout.candidate}:
        raise StoreError(
            f"{name} is not the version any more that {name}:{rollout.candidate} was compared with",
            where=where,
            expected=f"{name}:{rollout.baseline}",
            found=f"{name}:{current}",
            fix=f"abstain rollout abort {name}, and start it again",
        )


def with_outcome(rollout: Rollout, verdict: Verdict, by: Literal["command", "server"]) -> Rollout:
    """Returns a rollout that has ended now."""
    return rollout.model_copy(update={"outcome": Outcome(verdict=verdict, by=by, at=now())})


def _write(home: Path, rollout: Rollout) -> None:
    stores.put_file(home, ".rollout-", home / ROLLOUT, dump_rollout(rollout))


def now() -> str:
    """Returns the time in UTC, ISO 8601, without fractions of seconds."""
    return datetime.now(UTC).isoformat(timespec="seconds")
