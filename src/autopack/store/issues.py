"""Issues of phases, the run's index over them, and the project's backlog."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Integer, and_, case, cast, func, select, tuple_, update
from sqlalchemy.dialects.postgresql import aggregate_order_by, insert
from sqlalchemy.orm import Session

from ..domain.errors import NotFoundError
from ..domain.issues import BacklogStatus, IssueStatus
from ..domain.reports import IndexEntry
from ..domain.values import Severity
from ..models import BacklogEntry, Issue, Phase, Sighting

Counts = tuple[int, int]


@dataclass(frozen=True, slots=True)
class OpenIssueCounts:
    """Open issues by (minor, major): of distinct keys, at each of three levels."""

    run: Counts
    tiers: dict[str, Counts]
    phases: dict[str, Counts]


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


def resolve_in_run(session: Session, run_pk: int, keys: Sequence[str]) -> dict[str, list[str]]:
    """Resolve keys in all phases of a run; return the phases in which each was seen."""
    resolve = (
        update(Issue)
        .where(Issue.run_pk == run_pk, Issue.issue_key.in_(keys), Phase.id == Issue.phase_pk)
        .values(status=IssueStatus.RESOLVED)
        .returning(Issue.issue_key, Phase.phase_id)
    )
    phases: dict[str, list[str]] = {}
    for key, phase_id in session.execute(resolve):
        phases.setdefault(key, []).append(phase_id)
    return phases


def resolve_of_source(session: Session, phase_pk: int, source: str) -> list[str]:
    """Resolve a phase's open issues that came from one source; return their keys."""
    resolve = (
        update(Issue)
        .where(Issue.phase_pk == phase_pk, Issue.source == source, Issue.status == IssueStatus.OPEN)
        .values(status=IssueStatus.RESOLVED)
        .returning(Issue.issue_key)
    )
    return sorted(session.scalars(resolve))


def count_open(session: Session, run_pk: int) -> OpenIssueCounts:
    """Count a run's open issues by distinct key: a key that is major anywhere is major."""
    key = Issue.issue_key
    majors = func.count(key.distinct()).filter(Issue.effective_severity == Severity.MAJOR)
    level = func.grouping(Phase.tier_id, Phase.phase_id)
    query = (
        select(level, Phase.tier_id, Phase.phase_id, func.count(key.distinct()) - majors, majors)
        .join(Phase, Phase.id == Issue.phase_pk)
        .where(
            Issue.run_pk == run_pk,
            Issue.status == IssueStatus.OPEN,
            Issue.is_expected.is_(False),
        )
        .group_by(func.grouping_sets(tuple_(), tuple_(Phase.tier_id), tuple_(Phase.phase_id)))
    )
    run: Counts = (0, 0)
    tiers: dict[str, Counts] = {}
    phases: dict[str, Counts] = {}
    for grouped, tier_id, phase_id, minor, major in session.execute(query):
        if grouped == 3:  # neither column: the run
            run = (minor, major)
        elif grouped == 1:
            tiers[tier_id] = (minor, major)
        else:
            phases[phase_id] = (minor, major)
    return OpenIssueCounts(run, tiers, phases)


def run_index(session: Session, run_pk: int) -> dict[str, IndexEntry]:
    """Return the run's issues by key, over all its phases."""
    is_major = Issue.effective_severity == Severity.MAJOR
    query = (
        select(
            Issue.issue_key,
            func.array_agg(aggregate_order_by(Issue.category, Issue.id)),
            func.bool_or(Issue.severity == Severity.MAJOR),
            func.bool_or(is_major),
            func.bool_or(Issue.status == IssueStatus.OPEN),
            func.min(Phase.phase_index),
            func.max(Phase.phase_index),
            cast(func.sum(Issue.occurrence_count), Integer),
            func.array_agg(aggregate_order_by(Phase.tier_id, Phase.tier_index)),
            func.array_agg(aggregate_order_by(Phase.phase_id, Phase.tier_index, Phase.phase_index)),
        )
        .join(Phase, Phase.id == Issue.phase_pk)
        .where(Issue.run_pk == run_pk)
        .group_by(Issue.issue_key)
        .order_by(func.min(Issue.id))
    )
    return {
        row[0]: IndexEntry(
            category=row[1][0],
            severity=_severity(row[2]),
            effective_severity=_severity(row[3]),
            status=IssueStatus.OPEN if row[4] else IssueStatus.RESOLVED,
            first_phase_index=row[5],
            last_phase_index=row[6],
            occurrence_count=row[7],
            tiers=tuple(dict.fromkeys(row[8])),
            phases=tuple(dict.fromkeys(row[9])),
        )
        for row in session.execute(query)
    }


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


def lock_backlog_entry(session: Session, project_id: str, issue_key: str) -> BacklogEntry:
    """Return a key of the project's backlog, FOR UPDATE. Raises NotFoundError."""
    entry = session.scalars(
        select(BacklogEntry)
        .where(BacklogEntry.project_id == project_id, BacklogEntry.issue_key == issue_key)
        .with_for_update()
    ).one_or_none()
    if entry is None:
        raise NotFoundError(f"the backlog of '{project_id}' has no issue {issue_key!r}")
    return entry


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


def _severity(is_major: bool) -> Severity:
    return Severity.MAJOR if is_major else Severity.MINOR
