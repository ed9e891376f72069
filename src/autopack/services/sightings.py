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
    """Count a settled change in the project's backlog, once; return the reported entries by key.

    Other runs that see these keys wait from here until the commit, so nothing but the answer may
    come between.
    """
    if change.backlog_entries is None:
        reports = [(change.phase(each.phase_id).tier_id, each) for each in change.sightings]
        entries = []
        if reports or change.cleaned_keys:
            entries = issues.write_backlog(
                change.session, change.run, reports, change.cleaned_keys, change.now
            )
        for entry in entries:
            _age(change, entry)
        change.backlog_entries = {entry.issue_key: entry for entry in entries}
    return change.backlog_entries


def _age(change: RunChange, entry: BacklogEntry) -> None:
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
        entry.needs_cleanup_at = change.now
        issues.note(
            *(change.session, run.project_id, entry.issue_key, LifeKind.AGED, change.now),
            run_id=run.run_id,
            reason=f"seen in {entry.age_in_runs} runs and {entry.age_in_tiers} tiers",
        )
