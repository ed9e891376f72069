"""Recording and reading issues, at three levels. (rules §7)"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

from ..domain.debt import LifeKind
from ..domain.decision import require_live
from ..domain.issue_rules import IssuesSeen
from ..domain.issues import BacklogOrder, BacklogStatus, IssueReport
from ..domain.redaction import redacted
from ..domain.terms import Severity
from ..models import BacklogEntry
from ..store import issues, runs
from ..store.session import RowSession
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
from .sightings import seen_issues

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
            change.decide(
                IssuesSeen(phase_id=phase_id, issues=seen_issues(change, phase, [report]))
            )
            settle(change)
            index = phase.phase_index
            turn.answer(
                RecordIssueAnswer(
                    message=f"issue '{report.issue_key}' is recorded",
                    phase_file=context.mirror.phase_issue_file(run_id, index, phase_id),
                    run_index_entry=change.index().issues_by_key[report.issue_key],
                    project_backlog_entry=None,  # if it is not counted
                ),
                late="project_backlog_entry" if change.sightings else None,
            )
        turn.complete("project_backlog_entry", lambda session: _entry(session, turn.change, report))
    return turn.result()


def _entry(session: RowSession, change: RunChange, report: IssueReport) -> BacklogEntryAnswer:
    """Return a reported key's entry as the change left it, else as it is."""
    key = report.issue_key
    known = change.backlog_entries or issues.list_entries(session, change.run.project_id, [key])
    return BacklogEntryAnswer.of(known[key])


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
        # By a clock that is behind, the last sighting would pass for a later one.
        now = max(context.now(), entry.last_seen_at + timedelta(microseconds=1))
        if wanted is BacklogStatus.RESOLVED:
            kind = None if entry.status is wanted else LifeKind.RESOLVED
            entry.status, entry.resolved_at = wanted, entry.resolved_at or now
        elif entry.status is BacklogStatus.RESOLVED:
            kind = LifeKind.REOPENED
            entry.status, entry.resolved_at = wanted, None
        else:
            kind = None
        if kind is not None:
            place = (entry.project_id, issue_key)
            issues.note(session, *place, kind, now, actor=context.caller.actor)
        session.commit()
    with context.reading() as session:
        project_backlog(context, session)
    return BacklogEntryAnswer.of(entry)
