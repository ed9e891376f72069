"""Recording and reading issues, at three levels. (rules §7)"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..domain.debt import LifeKind
from ..domain.decision import require_live
from ..domain.issue_rules import IssueSeen, IssuesSeen
from ..domain.issues import (
    BacklogOrder,
    BacklogStatus,
    IssueReport,
    base_severity,
    is_expected_key,
    needs_cleanup,
    severity_in_run,
)
from ..domain.redaction import redacted
from ..domain.terms import Severity
from ..models import BacklogEntry, Phase
from ..store import issues, runs
from ..views.issues import (
    BacklogEntryAnswer,
    BacklogIssueAnswer,
    BacklogItem,
    CleanupAnswer,
    CleanupThresholds,
    IssueIndexAnswer,
    LifeAnswer,
    RecordIssueAnswer,
)
from .change import RunChange
from .context import AppContext
from .projection import project_backlog, run_index
from .replies import Answer, changing_once, key_scope, once
from .rulesets import read_ruleset
from .settling import settle

MAX_PLACES = 20
MAX_LIFE = 50


def record_issue(
    context: AppContext,
    run_id: str,
    phase_id: str,
    report: IssueReport,
    idempotency_key: str | None,
) -> Answer:
    """Count one report of an issue in its phase, its run and the project's backlog.

    Every report counts: only an Idempotency-Key makes two of them one.
    """
    request = {"phase_id": phase_id, "report": report.model_dump(mode="json")}
    identity = once("record_issue", request, [key_scope(idempotency_key)])
    report = redacted(report)
    with changing_once(context, run_id, identity) as turn:
        if turn.is_new:
            change = turn.change
            phase = change.phase(phase_id)
            require_live(change.state)
            ((seen, entry),) = weigh_issues(change, phase, [report])
            change.decide(IssuesSeen(phase_id=phase_id, issues=(seen,)))
            settle(change)
            index = phase.phase_index
            turn.answer(
                RecordIssueAnswer(
                    message=f"issue '{report.issue_key}' is recorded",
                    phase_file=context.mirror.phase_issue_file(run_id, index, phase_id),
                    run_index_entry=change.index().issues_by_key[report.issue_key],
                    project_backlog_entry=BacklogEntryAnswer.of(entry) if entry else None,
                )
            )
    return turn.result()


def weigh_issues(
    change: RunChange, phase: Phase, reports: Iterable[IssueReport]
) -> list[tuple[IssueSeen, BacklogEntry | None]]:
    """Count reports in the backlog, and say how grave each is in this run. The one way for all.

    An expected issue is not in the backlog. Keys are taken in their order, so that two runs that
    see the same ones never wait for each other crosswise. What is known of them in this run is read
    before: from then on, other runs that see them wait for the end of this change.
    """
    ordered = sorted(reports, key=lambda report: report.issue_key)
    if ordered:
        change.read_reported(phase, [report.issue_key for report in ordered])
    change.reports += [(phase.phase_id, report) for report in ordered]
    return [_weigh(change, phase, report) for report in ordered]


def seen_issues(
    change: RunChange, phase: Phase, reports: Iterable[IssueReport]
) -> tuple[IssueSeen, ...]:
    """Weigh the reports that come with a result."""
    return tuple(seen for seen, _ in weigh_issues(change, phase, reports))


def _weigh(
    change: RunChange, phase: Phase, report: IssueReport
) -> tuple[IssueSeen, BacklogEntry | None]:
    run = change.run
    severity = effective = base_severity(report.severity, report.category, run.major_categories)
    is_expected = report.expected_fail and is_expected_key(report.issue_key, phase.expected_issues)
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
            now=change.now,
        )
        effective = _age(change, entry, severity)
    seen = IssueSeen(
        issue_key=report.issue_key,
        category=report.category,
        reported_severity=report.severity,
        severity=severity,
        effective_severity=effective,
        source=report.source,
        is_expected=is_expected,
    )
    return seen, entry


def _age(change: RunChange, entry: BacklogEntry, severity: Severity) -> Severity:
    """Let an entry age, and return how grave the issue is in this run."""
    run = change.run
    aged_at = entry.needs_cleanup_at if entry.status is BacklogStatus.NEEDS_CLEANUP else None
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
    return severity_in_run(severity, aged_at=aged_at, began_at=run.created_at)


def issue_index(context: AppContext, run_id: str) -> IssueIndexAnswer:
    """Return the run's issues by key."""
    with context.reading() as session:
        return run_index(session, runs.get_run(session, run_id))


def backlog(
    context: AppContext,
    *,
    limit: int,
    after: int,
    status: BacklogStatus | None,
    category: str | None,
    severity: Severity | None,
    containing: str | None = None,
    order: BacklogOrder = BacklogOrder.FIRST_SEEN,
) -> tuple[list[BacklogItem], int | None]:
    """Return a page of the project's backlog, and where the next one begins."""
    with context.reading() as session:
        rows = issues.list_backlog(
            session,
            context.settings.project_id,
            limit=limit + 1,
            after=after,
            status=status,
            category=category,
            severity=severity,
            containing=containing,
            order=order,
        )
        page = rows[:limit]
        words = issues.list_latest_words(session, [row.id for row in page]) if page else {}
    more = page[-1].id if len(rows) > limit else None
    return [_item(row, *words[row.id]) for row in page], more


def _item(entry: BacklogEntry, description: str | None, evidence: list[str]) -> BacklogItem:
    return BacklogItem.of(entry, description=description, evidence_refs=evidence)


def cleanup_thresholds(context: AppContext) -> CleanupThresholds:
    """Return when minor issues of today's default safety profile need cleanup. (rules §7)"""
    ruleset = read_ruleset(context)
    rule = ruleset.safety_profiles[ruleset.default_safety_profile]
    return CleanupThresholds(
        after_runs=rule.cleanup_after_runs, after_tiers=rule.cleanup_after_tiers
    )


def backlog_issue(context: AppContext, issue_key: str) -> BacklogIssueAnswer:
    """Return an issue of the backlog, what was last said of it, and where it was last seen.

    Raises NotFoundError.
    """
    with context.reading() as session:
        entry = issues.get_backlog_entry(session, context.settings.project_id, issue_key)
        description, evidence = issues.list_latest_words(session, [entry.id])[entry.id]
        places = issues.list_places(session, entry, MAX_PLACES)
        history = issues.get_history(
            session, entry.project_id, issue_key, cleanups=MAX_PLACES, events=MAX_LIFE
        )
    return BacklogIssueAnswer.of(
        entry,
        description=description,
        evidence_refs=evidence,
        thresholds=cleanup_thresholds(context),
        places=places,
        red_checks=history.red_checks,
        cleanups=[CleanupAnswer.model_validate(each) for each in history.cleanups],
        life=_life(history.events),
    )


def _life(events: Sequence[Mapping[str, Any]]) -> list[LifeAnswer]:
    """Return what happened, newest first, with the sightings that reopened a closed issue."""
    found: list[LifeAnswer] = []
    for each in events:
        later = found[-1].at if found else None
        if each["again_at"] is not None:
            again = LifeAnswer.model_validate(
                {
                    "kind": LifeKind.REOPENED,
                    "at": each["again_at"],
                    "run_id": each["again_run_id"],
                    "phase_id": each["again_phase_id"],
                    "actor": None,
                    "checks": [],
                    "reason": "it was seen again",
                }
            )
            # Else an operator had reopened it before.
            if later is None or again.at <= later:
                found.append(again)
        found.append(LifeAnswer.model_validate(each))
    return found


def resolve_backlog_issue(context: AppContext, issue_key: str) -> BacklogEntryAnswer:
    """Close an issue of the backlog at the operator's word; a new sighting reopens it."""
    return _set_backlog_status(context, issue_key, BacklogStatus.RESOLVED)


def reopen_backlog_issue(context: AppContext, issue_key: str) -> BacklogEntryAnswer:
    """Open a resolved issue of the backlog again; its age stays."""
    return _set_backlog_status(context, issue_key, BacklogStatus.OPEN)


def _set_backlog_status(
    context: AppContext, issue_key: str, wanted: BacklogStatus
) -> BacklogEntryAnswer:
    with context.writing() as session:
        entry = issues.lock_backlog_entry(session, context.settings.project_id, issue_key)
        if wanted is BacklogStatus.RESOLVED:
            kind = None if entry.status is wanted else LifeKind.RESOLVED
            entry.status, entry.resolved_at = wanted, entry.resolved_at or context.now()
        elif entry.status is BacklogStatus.RESOLVED:
            kind = LifeKind.REOPENED
            entry.status, entry.resolved_at = wanted, None
        else:
            kind = None
        if kind is not None:
            place = (entry.project_id, issue_key)
            issues.note(session, *place, kind, context.now(), actor=context.caller.actor)
        session.commit()
    with context.reading() as session:
        project_backlog(context, session)
    return BacklogEntryAnswer.of(entry)
