"""Reports a change of the table of a worker in the log and in the metrics."""

from __future__ import annotations

import logging

from abstain.service.loading import report_gone, report_not_served, report_ready
from abstain.service.version_table import Table

log = logging.getLogger("abstain.serving")


def report_swap(before: Table, after: Table) -> None:
    """Sets the metrics of versions that are served from now on, not served any more, or newly failed."""
    old, new = before.live(), after.live()
    for live in old:
        if not any(live is other for other in new):
            report_gone(live)
            log.info("%s is not served any more", live.described)
    for live in new:
        if not any(live is other for other in old):
            report_ready(live)
            log.info("%s is served from now on", live.described)
    report_failures(after, before)


def report_failures(after: Table, before: Table) -> None:
    """Sets the metrics of versions that cannot be served, if that is new."""
    for name, model in after.models.items():
        for version, failure in model.failures.items():
            known = before.entries.get(name, {}).get(version)
            if failure.state != "loading" and (known is None or known.state != failure.state):
                report_not_served(name, version, failure)
