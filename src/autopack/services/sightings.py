"""Reports of issues within a change: how grave they are in its run, and their count in the backlog.

All runs of a project share the backlog's entries. A change only reads them to decide, and locks
them when all else is done, right before its commit: else runs that see the same keys would wait for
each other's rules, and for each other's git. (docs/decisions/backlog.md, rules §7)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime

from ..domain.debt import LifeKind
from ..domain.issue_rules import IssueSeen
from ..domain.issues import (
    BacklogStatus,
    IssueReport,
    base_severity,
    is_expected_key,
    needs_cleanup,
    severity_in_run,
)
from ..models import BacklogEntry, Phase
from ..store import issues
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


def write_backlog(change: RunChange) -> Mapping[str, BacklogEntry]:
    """Count and close what a settled change says of the project's backlog, once.

    Returns the entries by key. Other runs that see these keys wait from here until the commit, so
    nothing but the answer may come between.
    """
    if change.backlog_entries is None:
        reports = [(change.phase(each.phase_id).tier_id, each) for each in change.sightings]
        entries = []
        if reports or change.cleaned:
            entries = issues.count_in_backlog(
                change.session, change.run, reports, change.cleaned.keys(), change.now
            )
        # The entries are locked, so it is after all that others have done to them, or have seen.
        now = change.context.now_in(change.run)
        for entry in entries:
            if entry.issue_key in change.cleaned:
                _close(change, entry, now)
            else:
                _age(change, entry, now)
        change.backlog_entries = {entry.issue_key: entry for entry in entries}
    return change.backlog_entries


def _close(change: RunChange, entry: BacklogEntry, now: datetime) -> None:
    """Close an entry that a phase has cleaned up. (rules §7.1)"""
    phase_id, closing = change.cleaned[entry.issue_key]
    entry.status, entry.resolved_at = BacklogStatus.RESOLVED, now
    issues.note(
        *(change.session, entry.project_id, entry.issue_key, LifeKind.CLOSED, now),
        run_id=change.run.run_id,
        phase_id=phase_id,
        checks=closing.checks,
        reason=closing.reason,
    )


def _age(change: RunChange, entry: BacklogEntry, now: datetime) -> None:
    """Let an entry age. In the run that makes it age, its issue stays as grave as it was."""
    run = change.run
    if entry.status is BacklogStatus.OPEN and needs_cleanup(
        entry.base_severity,
        age_in_runs=entry.age_in_runs,
        age_in_tiers=entry.age_in_tiers,
        after_runs=run.cleanup_after_runs,
        after_tiers=run.cleanup_after_tiers,
    ):
        entry.status = BacklogStatus.NEEDS_CLEANUP
        entry.needs_cleanup_at = now
        issues.note(
            *(change.session, run.project_id, entry.issue_key, LifeKind.AGED, now),
            run_id=run.run_id,
            reason=f"seen in {entry.age_in_runs} runs and {entry.age_in_tiers} tiers",
        )
