"""Issues of phases, the run's index over them, and the project's backlog."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from datetime import datetime

from sqlalchemy import ColumnElement, Select, and_, case, func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from ..domain.errors import NotFoundError
from ..domain.issues import MAX_EVIDENCE_REFS, BacklogStatus, IssueReport, IssueStatus
from ..domain.run_issues import RunIssue
from ..domain.sightings import Sighting as RunSighting
from ..domain.terms import Severity
from ..models import BacklogEntry, Issue, Phase, Run, Sighting
from ..views.issues import PlaceAnswer


def find_issue(session: Session, phase_pk: int, issue_key: str) -> Issue | None:
    """Return a key's entry in a phase; the caller holds the run's lock."""
    return session.scalars(
        select(Issue).where(Issue.phase_pk == phase_pk, Issue.issue_key == issue_key)
    ).one_or_none()


def list_issues(session: Session, phase_pks: Iterable[int]) -> list[Issue]:
    """Return the issues of phases, in the order in which they were first seen."""
    return list(
        session.scalars(select(Issue).where(Issue.phase_pk.in_(phase_pks)).order_by(Issue.id))
    )


def list_run_issues(session: Session, run_pk: int) -> list[RunIssue]:
    """Return a run's issues in the order in which they were first seen."""
    query = (
        select(
            *(Issue.id, Issue.issue_key, Issue.source, Issue.category, Issue.occurrence_count),
            *(Issue.severity, Issue.effective_severity, Issue.is_expected),
            (Issue.status == IssueStatus.OPEN).label("is_open"),
            *(Phase.phase_id, Phase.phase_index, Phase.tier_id, Phase.tier_index),
        )
        .join(Phase, Phase.id == Issue.phase_pk)
        .where(Issue.run_pk == run_pk)
        .order_by(Issue.id)
    )
    return [RunIssue(**row._mapping) for row in session.execute(query)]


def write_issue(
    session: Session,
    run: Run,
    phase: Phase,
    sighting: RunSighting,
    report: IssueReport,
    now: datetime,
    *,
    is_new: bool,
) -> None:
    """Write what a report made of a key's entry in a phase, and the texts that came with it."""
    row = None if is_new else find_issue(session, phase.id, report.issue_key)
    if row is None:
        row = Issue(
            run_pk=run.id,
            phase_pk=phase.id,
            issue_key=report.issue_key,
            category=report.category,
            task_category=report.task_category or phase.task_category,
            complexity=report.complexity or phase.complexity,
            first_seen_run=run.run_id,
            last_seen_run=run.run_id,
            first_seen_at=now,
            evidence_refs=[],
        )
        session.add(row)
    row.source = sighting.source
    row.severity, row.effective_severity = sighting.severity, sighting.effective_severity
    row.is_expected = sighting.is_expected
    row.status = IssueStatus.OPEN if sighting.is_open else IssueStatus.RESOLVED
    row.occurrence_count = sighting.occurrence_count
    row.last_seen_at = now
    merged = dict.fromkeys([*row.evidence_refs, *report.evidence_refs])
    row.evidence_refs = list(merged)[-MAX_EVIDENCE_REFS:]  # the newest say most
    row.description = report.description or row.description


def resolve(session: Session, run_pk: int, phase_pk: int, keys: Collection[str]) -> None:
    """Resolve keys in a phase."""
    session.execute(
        update(Issue)
        .where(Issue.run_pk == run_pk, Issue.phase_pk == phase_pk, Issue.issue_key.in_(keys))
        .values(status=IssueStatus.RESOLVED)
    )


def list_descriptions(session: Session, run_pk: int, keys: Collection[str]) -> dict[str, str]:
    """Return the latest description of each key that has one."""
    query = (
        select(Issue.issue_key, Issue.description)
        .where(Issue.run_pk == run_pk, Issue.issue_key.in_(keys), Issue.description.is_not(None))
        .order_by(Issue.last_seen_at, Issue.id)
    )
    return {key: description or "" for key, description in session.execute(query)}


def sight(
    session: Session,
    *,
    project_id: str,
    issue_key: str,
    category: str,
    severity: Severity,
    run_pk: int,
    run_id: str,
    tier_id: str,
    now: datetime,
) -> BacklogEntry:
    """Count one sighting in the backlog and bring the ages up to date.

    The upsert locks the entry until the transaction ends, so sightings of one key by several runs
    follow each other and none is lost.
    """
    statement = insert(BacklogEntry).values(
        project_id=project_id,
        issue_key=issue_key,
        category=category,
        base_severity=severity,
        status=BacklogStatus.OPEN,
        age_in_runs=0,
        age_in_tiers=0,
        total_occurrences=1,
        first_seen_run=run_id,
        last_seen_run=run_id,
        last_seen_at=now,
        tiers=[],
    )
    was_resolved = BacklogEntry.status == BacklogStatus.RESOLVED
    upsert = statement.on_conflict_do_update(
        index_elements=["project_id", "issue_key"],
        set_={
            "total_occurrences": BacklogEntry.total_occurrences + 1,
            "last_seen_run": run_id,
            "last_seen_at": func.greatest(BacklogEntry.last_seen_at, now),
            "status": case((was_resolved, BacklogStatus.OPEN), else_=BacklogEntry.status),
            "resolved_at": None,
            "base_severity": case(
                (BacklogEntry.base_severity == Severity.MAJOR, Severity.MAJOR), else_=severity
            ),
        },
    ).returning(BacklogEntry)
    entry = session.scalars(upsert, execution_options={"populate_existing": True}).one()
    sighting = (
        insert(Sighting)
        .values(backlog_pk=entry.id, run_pk=run_pk, tier_id=tier_id)
        .on_conflict_do_nothing()
        .returning(Sighting.tier_id)
    )
    if session.scalars(sighting).one_or_none() is not None:
        runs, tiers = session.execute(
            select(
                func.count(Sighting.run_pk.distinct()), func.array_agg(Sighting.tier_id.distinct())
            ).where(Sighting.backlog_pk == entry.id)
        ).one()
        entry.age_in_runs = runs
        entry.age_in_tiers = len(tiers)
        entry.tiers = sorted(tiers)
    return entry


def get_backlog_entry(session: Session, project_id: str, issue_key: str) -> BacklogEntry:
    """Return a key of the project's backlog. Raises NotFoundError."""
    return _backlog_entry(session, project_id, issue_key, select(BacklogEntry))


def lock_backlog_entry(session: Session, project_id: str, issue_key: str) -> BacklogEntry:
    """Return a key of the project's backlog, FOR UPDATE. Raises NotFoundError."""
    return _backlog_entry(session, project_id, issue_key, select(BacklogEntry).with_for_update())


def _backlog_entry(
    session: Session, project_id: str, issue_key: str, query: Select[BacklogEntry]
) -> BacklogEntry:
    entry = session.scalars(
        query.where(BacklogEntry.project_id == project_id, BacklogEntry.issue_key == issue_key)
    ).one_or_none()
    if entry is None:
        raise NotFoundError(f"the backlog of '{project_id}' has no issue {issue_key!r}")
    return entry


def list_places(session: Session, entry: BacklogEntry, limit: int) -> list[PlaceAnswer]:
    """Return the phases that saw a key of the backlog, those first that saw it last."""
    query = (
        select(
            *(Run.run_id, Run.state.label("run_state")),
            *(Phase.tier_id, Phase.phase_id, Phase.state.label("phase_state")),
            *(Issue.status, Issue.severity, Issue.effective_severity, Issue.source),
            *(Issue.occurrence_count, Issue.first_seen_at, Issue.last_seen_at),
        )
        .join(Phase, Phase.id == Issue.phase_pk)
        .join(Run, Run.id == Issue.run_pk)
        .where(*_of_entry(entry))
        .order_by(*_LAST_SEEN_FIRST)
        .limit(limit)
    )
    return [PlaceAnswer(**row._mapping) for row in session.execute(query)]


def last_words(session: Session, entry: BacklogEntry) -> tuple[str | None, list[str]]:
    """Return the latest description of a key of the backlog, and its latest evidence."""
    latest = select(Issue).where(*_of_entry(entry)).order_by(*_LAST_SEEN_FIRST).limit(1)
    description = latest.with_only_columns(Issue.description).where(Issue.description.is_not(None))
    evidence = latest.with_only_columns(Issue.evidence_refs).where(
        func.jsonb_array_length(Issue.evidence_refs) > 0
    )
    said, shown = session.execute(
        select(description.scalar_subquery(), evidence.scalar_subquery())
    ).one()
    return said, shown or []


_LAST_SEEN_FIRST = (Issue.last_seen_at.desc(), Issue.id.desc())


def _of_entry(entry: BacklogEntry) -> list[ColumnElement[bool]]:
    """Say which issues a backlog's entry counts: by its sightings, as issues are indexed by run."""
    runs = select(Sighting.run_pk).where(Sighting.backlog_pk == entry.id)
    return [
        Issue.run_pk.in_(runs),
        Issue.issue_key == entry.issue_key,
        Issue.is_expected.is_(False),
    ]


def resolve_cleaned(session: Session, project_id: str, keys: Sequence[str], now: datetime) -> None:
    """Resolve the keys that debt-cleanup phases have cleaned up."""
    session.execute(
        update(BacklogEntry)
        .where(BacklogEntry.project_id == project_id, BacklogEntry.issue_key.in_(keys))
        .values(status=BacklogStatus.RESOLVED, resolved_at=now)
    )


def list_needing_cleanup(
    session: Session, project_id: str, *, limit: int, category: str | None = None
) -> list[BacklogEntry]:
    """Return aged issues, of one category or all, those first that have waited longest."""
    wanted = [
        BacklogEntry.project_id == project_id,
        BacklogEntry.status == BacklogStatus.NEEDS_CLEANUP,
    ]
    if category is not None:
        wanted.append(BacklogEntry.category == category)
    query = (
        select(BacklogEntry)
        .where(*wanted)
        .order_by(BacklogEntry.needs_cleanup_at, BacklogEntry.id)
        .limit(limit)
    )
    return list(session.scalars(query))


def list_backlog(
    session: Session,
    project_id: str,
    *,
    limit: int | None = None,
    after: int = 0,
    status: BacklogStatus | None = None,
    category: str | None = None,
    severity: Severity | None = None,
) -> list[BacklogEntry]:
    """Return the backlog in the order in which its keys were first seen, after an id."""
    wanted = [BacklogEntry.project_id == project_id, BacklogEntry.id > after]
    if status is not None:
        wanted.append(BacklogEntry.status == status)
    if category is not None:
        wanted.append(BacklogEntry.category == category)
    if severity is not None:
        wanted.append(BacklogEntry.base_severity == severity)
    query = select(BacklogEntry).where(and_(*wanted)).order_by(BacklogEntry.id).limit(limit)
    return list(session.scalars(query))
