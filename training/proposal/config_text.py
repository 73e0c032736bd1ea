"""Writes a proposal as the text of a config, with the reason for each choice next to it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping

from abstain.models.errors import printable
from abstain.training.proposal.proposal import Proposal

WIDTH = 100
"""The column at which comments are broken."""
MOST_DOTS = 8
"""Names with more dots are written without them: the reader of configs refuses texts that look like a key of many parts."""


def quote(text: str) -> str:
    """Writes a text as a TOML basic string."""
    # JSON's escapes are TOML's. TOML also wants DEL to be escaped.
    quoted = json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007F")
    return quoted.replace(".", "\\u002E") if quoted.count(".") > MOST_DOTS else quoted


def comment(text: str) -> str:
    """Writes a text as one line of a comment: names of columns may hold line breaks and other control characters."""
    return f"# {printable(text)}"


def write_config(proposal: Proposal) -> str:
    """Returns the text of the config."""
    features = proposal.features
    sections = [
        _head(proposal),
        [
            f"name = {quote(proposal.name)}",
            *_explained(f'likelihood = "{proposal.task.likelihood}"', proposal.task.why),
        ],
        [
            "[data]",
            f"source = {quote(proposal.source)}",
            f"target = {quote(proposal.target)}",
            *_missing_target_lines(proposal),
            *_feature_lines(proposal),
            *_names("categorical", features.categorical, "text and other categories; each becomes columns of 0 and 1"),
            *_names("drop", features.drop, "left out"),
            *_split_lines(proposal),
            *_part_lines(proposal),
        ],
        _fit_lines(proposal),
        ["[calibration]", *_percentile_lines(proposal)],
    ]
    return "\n\n".join("\n".join(lines) for lines in sections) + "\n"


def _head(proposal: Proposal) -> list[str]:
    lines = [
        f"A config for {proposal.source}: {proposal.rows:,} rows, {proposal.columns:,} columns. `abstain init` wrote it; change "
        "what you know better.",
        f"Fitting takes about {proposal.fitting.duration} on 2 cores:  abstain fit {proposal.out}",
    ]
    notes = [f"- {note}" for note in proposal.notes]
    return [*map(comment, lines), *(["#", "# Noticed:", *map(comment, notes)] if notes else [])]


def _explained(line: str, why: str, column: int = 30) -> list[str]:
    """Returns a line with its reason behind it, or above it if both are too long."""
    if not why:
        return [line]
    if max(len(line), column) + len(why) <= WIDTH:
        return [f"{line:<{column}}{comment(why)}"]
    return [comment(why), line]


def _feature_lines(proposal: Proposal) -> list[str]:
    """Returns comments on the columns that need no key."""
    features = proposal.features
    lines = list[str]()
    if features.numbers:
        lines.append(comment(f"numbers: {_listed(features.numbers)}"))
    gaps = {name: proposal.gaps[name] for name in (*features.numbers, *features.dates) if proposal.gaps.get(name)}
    if gaps:
        listed = _listed([f"{name} ({count:,})" for name, count in gaps.items()])
        lines.append(comment(f"gaps, filled with the median: {listed}"))
    if features.dates:
        lines.append(comment(f"dates, as seconds since 1970: {_listed(features.dates)}"))
    return lines


def _listed(names: Iterable[str], most: int = 20) -> str:
    names = [name if len(name) <= 60 else f"{name[:59]}…" for name in names]
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _names(key: str, names: Mapping[str, str], meaning: str) -> list[str]:
    if not names:
        return []
    width = min(max(len(quote(name)) for name in names) + 7, 40)
    lines = [f"{'    ' + quote(name) + ',':<{width}} {comment(why)}" for name, why in names.items()]
    return [*_explained(f"{key} = [", meaning), *lines, "]"]


def _split_lines(proposal: Proposal) -> list[str]:
    features = proposal.features
    lines = list[str]()
    if features.split:
        line = f"{features.split.key} = {quote(features.split.column)}"
        lines += _explained(line, f"{features.split.why}; without it, rows are split at random")
    for other in features.alternatives:
        instead = f" instead of {features.split.key}" if features.split else ""
        lines += [comment(f"{other.key} = {quote(other.column)}{instead}: {other.why}")]
    return lines


def _missing_target_lines(proposal: Proposal) -> list[str]:
    gaps = proposal.gaps[proposal.target]
    return _explained("drop_missing_target = true", f"rows without a target: {gaps:,}") if gaps else []


def _part_lines(proposal: Proposal) -> list[str]:
    parts = proposal.parts
    lines = _explained(f"test_size = {parts.test_size}", "the test part: a share of all rows, or a number of rows")
    lines += _explained(f"calibration_size = {parts.calibration_size}", "the calibration part: of the rows that remain")
    if proposal.stratify:
        lines += _explained("stratify = true", "every part has the same share of each class")
    return lines


def _fit_lines(proposal: Proposal) -> list[str]:
    fitting = proposal.fitting
    lines = ["[network]", 'kind = "mlp"', *_explained(f"hidden = {list(fitting.hidden)}", "units of the hidden layers")]
    lines += ["", "[prior]"]
    for key, (value, why) in fitting.prior.items():
        lines += _explained(f"{key} = {_value(value)}", why)
    lines += ["", "[method]"]
    for key, (value, why) in fitting.method.items():
        lines += _explained(f"{key} = {_value(value)}", why)
    return lines


def _value(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return quote(value) if isinstance(value, str) else str(value)


def _percentile_lines(proposal: Proposal) -> list[str]:
    parts = proposal.parts
    about = f"reject about {100 - parts.percentile:g} % of the rows that are like these"
    return _explained(f"percentile = {parts.percentile}", f"{about}{'; ' + parts.why if parts.why else ''}")
