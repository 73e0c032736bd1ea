"""The state of a rollout as its readers see it: `abstain rollout status`, `GET /models/M/rollout`, metrics and the console."""

from __future__ import annotations

import math
from contextlib import suppress
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from abstain.models.bundles.rollout_evidence import Status
from abstain.models.bundles.rollouts import Rollout, RolloutFacts, describe_outcome
from abstain.models.decisions.comparison import Evidence, Verdict


class Difference(BaseModel):
    """The difference of two versions in one respect.

    Attributes:
        mean: the mean of the observations; None without any.
        standard_error: of this mean, as of independent observations; None with fewer than two.
    """

    model_config = ConfigDict(frozen=True)
    mean: float | None
    standard_error: float | None


class RolloutState(BaseModel):
    """A rollout and what is known of it.

    Attributes:
        state: whether it runs, and how it ended; `not followed` if this server does not, or not any more.
        observations: one for each caller.
        rows: the rows of these observations.
        dropped: the requests that a shadow did not compute, because the server was busy.
        failed_baseline: the requests that the baseline could not answer.
        failed_candidate: the requests that the candidate could not answer; they count as rejected.
        servers: how many starts of servers have given evidence.
        reject_rate: the candidate's reject rate minus the baseline's.
        disagreement: the share of rows with another label, for a shadow of a classification.
        promote: the e-value against "a difference is at least the margin".
        abort: the e-value against "no difference is larger than the margin".
        needed: the e-value of a verdict, 1/alpha.
        verdict: what the evidence says.
        missing: about how many more observations a verdict needs.
        why: why this is the evidence of one server alone.
    """

    model_config = ConfigDict(frozen=True)
    rollout: RolloutFacts
    state: Literal["running", "promoted", "aborted", "not followed"]
    observations: int
    rows: int
    dropped: int
    failed_baseline: int
    failed_candidate: int
    servers: int
    reject_rate: Difference
    disagreement: Difference | None
    promote: float
    abort: float
    needed: float
    verdict: Verdict | None
    missing: int | None
    why: str | None = None


LARGE, MOST_SHOWN = 100, 1_000_000
"""From here on e-values are shown without decimals, and as more than this."""
REJECTS_ONLY = "a canary compares reject rates only: it cannot see wrong labels; a shadow compares labels too"


def state_of(status: Status, why: str | None = None) -> RolloutState:
    """Makes the state from the evidence."""
    comparison, outcome = status.comparison, status.rollout.outcome
    return RolloutState(
        rollout=status.rollout.facts,
        state="running" if outcome is None else "promoted" if outcome.verdict == "promote" else "aborted",
        observations=status.rejects.count if status.rejects else 0,
        rows=status.rows,
        dropped=status.dropped,
        failed_baseline=status.failed_baseline,
        failed_candidate=status.failed_candidate,
        servers=status.servers,
        reject_rate=_difference(status.rejects),
        disagreement=_difference(status.labels) if status.labels else None,
        promote=_e_value(comparison.promote) if comparison else 1.0,
        abort=_e_value(comparison.abort) if comparison else 1.0,
        needed=1 / status.rollout.alpha,
        verdict=comparison.verdict if comparison else None,
        missing=comparison.missing if comparison else None,
        why=why,
    )


def describe(name: str, state: RolloutState) -> list[tuple[str, str]]:
    """Describes a state in rows of two cells, for people."""
    rollout = state.rollout
    candidate, baseline = f"{name}:{rollout.candidate}", f"{name}:{rollout.baseline}"
    rows = [
        ("rollout", f"{candidate} as a {rollout.mode} of {baseline}, {describe_share(rollout)}"),
        ("started", rollout.started),
        ("state", _describe_state(state)),
        ("observations", f"{state.observations:,} callers, {state.rows:,} rows"),
        ("reject rate", f"{_in_points(state.reject_rate)} (candidate − baseline; margin ±{rollout.margin:.2%})"),
    ]
    if state.disagreement:
        rows.append(("other labels", f"{_in_points(state.disagreement, signed=False)} (margin {rollout.margin:.2%})"))
    if state.failed_baseline or state.failed_candidate:
        rows.append(
            (
                "failed",
                f"{state.failed_candidate:,} requests of the candidate, {state.failed_baseline:,} of the baseline",
            )
        )
    if state.dropped:
        rows.append(("not computed", f"{state.dropped:,} requests, because the servers were busy"))
    rows += [
        ("to promote", _describe_evidence(state.promote, state.needed, "every difference is below the margin")),
        ("to abort", _describe_evidence(state.abort, state.needed, "a difference is above the margin")),
        ("verdict", _describe_verdict(name, state)),
    ]
    notes = [state.why] if state.why else []
    if rollout.mode == "canary":
        notes.append(REJECTS_ONLY)
    return [*rows, *(("note", note) for note in notes)]


def describe_share(rollout: RolloutFacts) -> str:
    """Describes the share of a rollout: `5% of the callers`."""
    percent = f"{rollout.share:.4%}".rstrip("%").rstrip("0").rstrip(".")
    return f"{percent}% of the callers"


def _describe_state(state: RolloutState) -> str:
    rollout = state.rollout
    if rollout.outcome is not None:
        return describe_outcome(rollout)
    if state.state == "running" and not state.servers:
        return "running, but no server has observed anything yet (a new version is compiled first)"
    return f"{state.state}; a server ends it when there is a verdict" if rollout.auto else state.state


def _describe_evidence(value: float, needed: float, what: str) -> str:
    """Describes an e-value: `shown: every difference is below the margin (e-value 61.3; 20 is enough)`."""
    shown = f"over {MOST_SHOWN:,}" if value > MOST_SHOWN else f"{value:,.0f}" if value >= LARGE else f"{value:.3g}"
    return f"{'shown' if value >= needed else 'not shown'}: {what} (e-value {shown}; {needed:g} is enough)"


def _describe_verdict(name: str, state: RolloutState) -> str:
    if state.verdict:
        command = f"abstain rollout {state.verdict} {name}; " if state.rollout.outcome is None else ""
        about = "reject rates and labels" if state.disagreement else "reject rates"
        return (
            f"{state.verdict} ({command}of {about}; false with a probability of at most {state.rollout.alpha:g}, "
            "however often one looks)"
        )
    if state.missing is None:
        return "none yet; too few observations to say how many it will take"
    return f"none yet; about {state.missing:,} more callers at the present difference"


def _in_points(difference: Difference, *, signed: bool = True) -> str:
    if difference.mean is None:
        return "unknown"
    mean = f"{difference.mean:+.2%}" if signed else f"{difference.mean:.2%}"
    return mean if difference.standard_error is None else f"{mean} ± {difference.standard_error:.2%}"


def _difference(evidence: Evidence | None) -> Difference:
    if evidence is None:
        return Difference(mean=None, standard_error=None)
    return Difference(mean=evidence.mean, standard_error=evidence.standard_error)


def _e_value(log_e_value: float) -> float:
    """Returns the e-value, or the largest number that JSON can hold."""
    return math.exp(min(log_e_value, 700.0))


def evidence_path(folder: Path, rollout: Rollout, token: str) -> Path:
    """Returns where a worker leaves its evidence, in the folder of the run.

    Args:
        token: a random text, so that no file is written over by a worker that knows nothing of what is in it.
    """
    return folder / f"evidence-{rollout.id}-{token}.json"


def callers_path(folder: Path, rollout: Rollout) -> Path:
    """Returns where the callers of a rollout are, in the folder of the run."""
    return folder / f"callers-{rollout.id}"


def state_path(folder: Path, name: str) -> Path:
    """Returns where the main process leaves the state of a model's rollout, in the folder of the run."""
    return folder / f"rollout-{name}.json"


def read_state(folder: Path, name: str) -> RolloutState | None:
    """Reads the state that the main process has left; None if there is none."""
    with suppress(OSError, ValidationError):
        return RolloutState.model_validate_json(state_path(folder, name).read_bytes())
    return None
