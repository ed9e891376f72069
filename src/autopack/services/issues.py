"""Recording and reading issues, at three levels. (rules §7)"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from pydantic_core import to_jsonable_python

from ..domain.issues import (
    MAX_EVIDENCE_REFS,
    BacklogStatus,
    IssueReport,
    IssueStatus,
    base_severity,
    needs_cleanup,
)
from ..domain.redaction import redacted
from ..domain.reports import BacklogReportEntry, IndexEntry, RunIndex, read_off
from ..domain.run_issues import RunIssue
from ..domain.sightings import Cause, Sighting, count_open, sight
from ..domain.values import Severity
from ..models import BacklogEntry, Issue, Phase
from ..store import issues, runs
from .change import RunChange, changing
from .house import House
from .projection import project_backlog, run_index
from .replies import Answer, key_scope, once


def record_issue(
    house: House, run_id: str, phase_id: str, report: IssueReport, idempotency_key: str | None
) -> Answer:
    """Count one report of an issue in its phase, its run and the project's backlog.

    Every report counts: only an Idempotency-Key makes two of them one.
    """
    request = {"phase_id": phase_id, "report": report.model_dump(mode="json")}
    identity = once("record_issue", request, [key_scope(idempotency_key)])
    report = redacted(report)
    with changing(house, run_id) as change, identity.keeping_refusals(change):
        given = identity.find(change)
        if given is not None:
            return given
        phase = change.phase(phase_id)
        change.course.require_live()
        (entry,) = note_issues(change, phase, [report])
        change.conclude()
        index = change.index().issues_by_key[report.issue_key]
        file = house.mirror.phase_issue_file(run_id, phase.phase_index, phase_id)
        body = {
            "message": f"issue '{report.issue_key}' is recorded",
            "phase_file": str(house.mirror.runs_dir / file),
            "run_index_entry": _document(index),
            "project_backlog_entry": entry and _document(read_off(BacklogReportEntry, entry)),
        }
        identity.keep(change, body)
    return Answer(body)


def note_issues(
    change: RunChange, phase: Phase, reports: Iterable[IssueReport]
) -> list[BacklogEntry | None]:
    """Record reports within a change: phase, backlog, counts, events. The one way for all issues.

    Returns the backlog's entry of each, in the order of their keys; an expected issue has none.

    Keys are taken in their order, so that two runs that see the same ones never wait for each
    other crosswise.
    """
    ordered = sorted(reports, key=lambda report: report.issue_key)
    entries = [_note_issue(change, phase, report) for report in ordered]
    if entries:
        change.touched.add(phase.phase_id)
        _recount(change)
    return entries


def resolve_issues(
    change: RunChange,
    chosen: Callable[[Sequence[RunIssue]], Sequence[RunIssue]],
    cause: Cause,
    reason: str,
) -> None:
    """Resolve the issues of the run that are chosen of all: one event for each phase and key."""
    resolved = chosen(change.issues())
    if not resolved:
        return
    issues.resolve(change.session, [each.id for each in resolved])
    for each in resolved:
        change.touched.add(each.phase_id)
        change.course.note(
            "IssueResolved",
            phase_id=each.phase_id,
            reason=reason,
            data={"issue_key": each.issue_key, "cause": cause},
        )
    _recount(change)


def _recount(change: RunChange) -> None:
    """Let the rules know the counts of open issues as they are now."""
    change.is_index_touched = True
    change.forget_issues()
    found = change.issues()
    tier_of = {each.phase_id: each.tier_id for each in found}
    change.course.set_issue_counts(count_open(found, tier_of))


def _note_issue(change: RunChange, phase: Phase, report: IssueReport) -> BacklogEntry | None:
    run, now = change.run, change.now
    severity = base_severity(report, run.major_categories)
    is_expected = report.expected_fail and report.issue_key in phase.expected_issues
    effective = severity
    entry: BacklogEntry | None = None
    if not is_expected:
        entry = issues.sight(
            change.session,
            project_id=run.project_id,
            issue_key=report.issue_key,
            category=report.category,
            severity=severity,
            run_pk=run.id,
            run_id=run.run_id,
            tier_id=phase.tier_id,
            now=now,
        )
        effective = _age(change, entry, severity)
        change.is_backlog_touched = True
    known = issues.find_issue(change.session, phase.id, report.issue_key)
    if known is None:
        known = Issue(
            run_pk=run.id,
            phase_pk=phase.id,
            issue_key=report.issue_key,
            category=report.category,
            severity=severity,
            effective_severity=effective,
            source=report.source,
            task_category=report.task_category or phase.task_category,
            complexity=report.complexity or phase.complexity,
            is_expected=is_expected,
            status=IssueStatus.OPEN,
            occurrence_count=1,
            first_seen_run=run.run_id,
            last_seen_run=run.run_id,
            first_seen_at=now,
            last_seen_at=now,
            evidence_refs=list(dict.fromkeys(report.evidence_refs)),
            description=report.description,
        )
        change.session.add(known)
    else:
        seen = sight(
            _sighting(phase.phase_id, known),
            Sighting(
                phase_id=phase.phase_id,
                issue_key=report.issue_key,
                source=report.source,
                severity=severity,
                effective_severity=effective,
                is_expected=is_expected,
            ),
        )
        known.source = seen.source
        known.severity, known.effective_severity = seen.severity, seen.effective_severity
        known.is_expected, known.status = seen.is_expected, IssueStatus.OPEN
        known.occurrence_count += 1
        known.last_seen_at = now
        merged = dict.fromkeys([*known.evidence_refs, *report.evidence_refs])
        known.evidence_refs = list(merged)[-MAX_EVIDENCE_REFS:]  # the newest say most
        known.description = report.description or known.description
    change.course.note(
        "IssueRecorded",
        phase_id=phase.phase_id,
        data={
            "issue_key": report.issue_key,
            "category": report.category,
            "reported_severity": report.severity,
            "severity": severity,
            "effective_severity": effective,
            "source": report.source,
            "is_expected": is_expected,
        },
    )
    return entry


def _sighting(phase_id: str, row: Issue) -> Sighting:
    return Sighting(
        phase_id=phase_id,
        issue_key=row.issue_key,
        source=row.source,
        severity=row.severity,
        effective_severity=row.effective_severity,
        is_expected=row.is_expected,
        is_open=row.status is IssueStatus.OPEN,
    )


def _age(change: RunChange, entry: BacklogEntry, severity: Severity) -> Severity:
    """Let an entry age, and return how grave the issue is in this run."""
    run = change.run
    was_aged_before = (
        entry.status is BacklogStatus.NEEDS_CLEANUP
        and entry.needs_cleanup_at is not None
        and entry.needs_cleanup_at <= run.created_at
    )
    if entry.status is BacklogStatus.OPEN and needs_cleanup(
        entry.base_severity,
        age_in_runs=entry.age_in_runs,
        age_in_tiers=entry.age_in_tiers,
        after_runs=run.cleanup_after_runs,
        after_tiers=run.cleanup_after_tiers,
    ):
        entry.status = BacklogStatus.NEEDS_CLEANUP
        entry.needs_cleanup_at = change.now
    return Severity.MAJOR if was_aged_before else severity


def issue_index(house: House, run_id: str) -> RunIndex:
    """Return the run's issues by key."""
    with house.reading() as session:
        return run_index(session, runs.get_run(session, run_id))


def backlog(
    house: House,
    *,
    limit: int,
    after: int,
    status: BacklogStatus | None,
    category: str | None,
    severity: Severity | None,
) -> tuple[list[BacklogReportEntry], int | None]:
    """Return a page of the project's backlog, and where the next one begins."""
    with house.reading() as session:
        rows = issues.list_backlog(
            session,
            house.settings.project_id,
            limit=limit + 1,
            after=after,
            status=status,
            category=category,
            severity=severity,
        )
    page = rows[:limit]
    more = page[-1].id if len(rows) > limit else None
    return [read_off(BacklogReportEntry, row) for row in page], more


def resolve_backlog_issue(house: House, issue_key: str) -> BacklogReportEntry:
    """Close an issue of the backlog at the operator's word; a new sighting reopens it."""
    return _set_backlog_status(house, issue_key, BacklogStatus.RESOLVED)


def reopen_backlog_issue(house: House, issue_key: str) -> BacklogReportEntry:
    """Open a resolved issue of the backlog again; its age stays."""
    return _set_backlog_status(house, issue_key, BacklogStatus.OPEN)


def _set_backlog_status(house: House, issue_key: str, wanted: BacklogStatus) -> BacklogReportEntry:
    with house.writing() as session:
        entry = issues.lock_backlog_entry(session, house.settings.project_id, issue_key)
        if wanted is BacklogStatus.RESOLVED:
            entry.status, entry.resolved_at = wanted, entry.resolved_at or house.now()
        elif entry.status is BacklogStatus.RESOLVED:
            entry.status, entry.resolved_at = wanted, None
        session.commit()
    project_backlog(house)
    return read_off(BacklogReportEntry, entry)


def _document(entry: IndexEntry | BacklogReportEntry) -> dict[str, Any]:
    """Write an entry as JSON values."""
    document: dict[str, Any] = to_jsonable_python(entry)
    return document
