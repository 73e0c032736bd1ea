"""The schemas of rollouts."""

from __future__ import annotations

from abstain.service.openapi.forms import BOOLEAN, INTEGER, NUMBER, STRING, described, nullable, record

ROLLOUT = {
    "id": STRING,
    "mode": {"type": "string", "enum": ["canary", "shadow"]},
    "candidate": INTEGER,
    "baseline": INTEGER,
    "share": described(NUMBER, "of the callers"),
    "auto": described(BOOLEAN, "whether a server ends the rollout when there is a verdict"),
    "started": STRING,
}
_VERDICT = {"type": "string", "enum": ["promote", "abort"]}
_DIFFERENCE = {"mean": nullable(NUMBER), "standard_error": nullable(NUMBER)}
ROLLOUT_STATE = record(
    {
        "rollout": record(
            {
                **ROLLOUT,
                "margin": NUMBER,
                "alpha": NUMBER,
                "outcome": nullable(
                    record({"verdict": _VERDICT, "by": {"type": "string", "enum": ["command", "server"]}, "at": STRING})
                ),
            }
        ),
        "state": {"type": "string", "enum": ["running", "promoted", "aborted", "not followed"]},
        "observations": described(INTEGER, "one for each caller"),
        "rows": INTEGER,
        "dropped": described(INTEGER, "requests that a shadow did not compute, because the server was busy"),
        "failed_baseline": described(INTEGER, "requests that the baseline could not answer"),
        "failed_candidate": described(INTEGER, "requests that the candidate could not answer; they count as rejected"),
        "servers": described(INTEGER, "how many starts of servers have given evidence"),
        "reject_rate": described(record(_DIFFERENCE), "the candidate's minus the baseline's"),
        "disagreement": described(nullable(record(_DIFFERENCE)), "the share of rows with another label"),
        "promote": described(NUMBER, "the e-value against a difference of at least the margin"),
        "abort": described(NUMBER, "the e-value against differences of at most the margin"),
        "needed": described(NUMBER, "the e-value of a verdict"),
        "verdict": nullable(_VERDICT),
        "missing": described(nullable(INTEGER), "about how many more observations a verdict needs"),
        "why": described(nullable(STRING), "why this is the evidence of one server alone"),
    }
)
