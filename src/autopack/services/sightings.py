"""Reports of issues within a change: how grave they are in its run, and their count in the backlog.

All runs of a project share the backlog's entries. A change only reads them to decide, and counts in
the round trip of its commit: else runs that see the same keys would wait for each other's rules,
and for each other's git. Whether the counts make an entry age is decided after it (aging.py).
(docs/decisions/backlog.md, rules §7)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime

from ..domain.issue_rules import IssueSeen
from ..domain.issues import IssueReport, base_severity, is_expected_key, severity_in_run
from ..models import Phase
from ..store import issues
from .aging import let_age
from .change import RunChange


def seen_issues(
    change: RunChange, phase: Phase, reports: Iterable[IssueReport]
) -> tuple[IssueSeen, ...]:
    """Say how grave reported issues are in this run. The one way for all reports.

    Whether a key had aged when the run began can only change by a hand or a cleanup that closes it.
    If it is closed between here and the commit, the report came before: it opens the key again.
    """
    ordered = sorted(reports, key=lambda report: report.issue_key)
    if not ordered:
        return ()
    aged = change.read_reported(phase, [report.issue_key for report in ordered])
    change.reports += [(phase.phase_id, report) for report in ordered]
    return tuple(_seen(change, phase, report, aged) for report in ordered)


def _seen(
    change: RunChange, phase: Phase, report: IssueReport, aged: Mapping[str, datetime]
) -> IssueSeen:
    run = change.run
    severity = effective = base_severity(report.severity, report.category, run.major_categories)
    is_expected = report.expected_fail and is_expected_key(report.issue_key, phase.expected_issues)
    if not is_expected:
        aged_at = aged.get(report.issue_key)
        effective = severity_in_run(severity, aged_at=aged_at, began_at=run.created_at)
    return IssueSeen(
        issue_key=report.issue_key,
        category=report.category,
        reported_severity=report.severity,
        severity=severity,
        effective_severity=effective,
        source=report.source,
        is_expected=is_expected,
    )


def write_backlog(change: RunChange) -> None:
    """Count and close what a settled change says of the project's backlog, with its commit.

    Other runs that see these keys wait from then until the commit has ended: it must be sent next.
    """
    if change.sightings or change.cleaned:
        change.session.gather_rows()  # these rows are written before the entries are locked
        issues.count_in_backlog(
            change.session,
            change.run,
            [(change.phase(each.phase_id).tier_id, each) for each in change.sightings],
            change.cleaned,
            change.context.now_in(change.run),
        )


def follow_backlog(change: RunChange) -> None:
    """Let the entries age that a committed change has reported, and keep how they are then."""
    if change.sightings:
        keys = {each.issue_key for each in change.sightings}
        entries = issues.list_entries(change.session, change.run.project_id, keys)
        change.backlog_entries = let_age(change.context, change.session, change.run, entries)
