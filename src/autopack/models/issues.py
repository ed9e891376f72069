"""Issues of phases, the project's backlog, and the runs and tiers that reported each key."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import CheckConstraint, ForeignKey, Index, UniqueConstraint, text
from sqlalchemy.orm import Mapped, mapped_column

from ..domain.debt import LifeKind
from ..domain.issues import BacklogStatus, IssueStatus, counts_as
from ..domain.terms import Complexity, Severity
from .base import Base, Id, Json, one_of


class Issue(Base):
    """One key in one phase; reports of it are counted."""

    __tablename__ = "issues"

    id: Mapped[Id]
    run_pk: Mapped[int] = mapped_column(ForeignKey("runs.id", ondelete="CASCADE"))
    phase_pk: Mapped[int] = mapped_column(ForeignKey("phases.id", ondelete="CASCADE"))
    issue_key: Mapped[str]
    category: Mapped[str]
    severity: Mapped[Severity]
    effective_severity: Mapped[Severity]
    source: Mapped[str]
    task_category: Mapped[str]
    complexity: Mapped[Complexity]
    is_expected: Mapped[bool]
    status: Mapped[IssueStatus] = mapped_column(default=IssueStatus.OPEN)
    occurrence_count: Mapped[int] = mapped_column(default=1)
    first_seen_run: Mapped[str]
    last_seen_run: Mapped[str]
    first_seen_at: Mapped[datetime]
    last_seen_at: Mapped[datetime]
    evidence_refs: Mapped[Json]
    description: Mapped[str | None]

    __table_args__ = (
        UniqueConstraint("phase_pk", "issue_key"),
        Index("ix_issues_run_pk_issue_key", "run_pk", "issue_key"),
        one_of("severity", Severity),
        one_of("effective_severity", Severity),
        one_of("status", IssueStatus),
        one_of("complexity", Complexity),
        CheckConstraint("occurrence_count > 0", name="occurrence_count_positive"),
    )


class BacklogEntry(Base):
    """One key of the project, over all runs."""

    __tablename__ = "backlog"

    id: Mapped[Id]
    project_id: Mapped[str]
    issue_key: Mapped[str]
    category: Mapped[str]
    base_severity: Mapped[Severity]
    status: Mapped[BacklogStatus] = mapped_column(default=BacklogStatus.OPEN)
    age_in_runs: Mapped[int] = mapped_column(default=0)
    age_in_tiers: Mapped[int] = mapped_column(default=0)
    total_occurrences: Mapped[int] = mapped_column(default=0)
    first_seen_run: Mapped[str]
    last_seen_run: Mapped[str]
    last_seen_at: Mapped[datetime]
    tiers: Mapped[Json] = mapped_column(default=list)
    needs_cleanup_at: Mapped[datetime | None]
    resolved_at: Mapped[datetime | None]

    @property
    def effective_severity(self) -> Severity:
        return counts_as(self.base_severity, self.status)

    __table_args__ = (
        UniqueConstraint("project_id", "issue_key"),
        Index("ix_backlog_project_id_status", "project_id", "status", "id"),
        Index(
            "ix_backlog_unresolved_age",
            "project_id",
            "age_in_runs",
            "age_in_tiers",
            "id",
            postgresql_where=text(f"status <> '{BacklogStatus.RESOLVED}'"),
        ),
        Index(
            "ix_backlog_needs_cleanup_at",
            "project_id",
            "needs_cleanup_at",
            "id",
            postgresql_where=text(f"status = '{BacklogStatus.NEEDS_CLEANUP}'"),
        ),
        one_of("status", BacklogStatus),
        one_of("base_severity", Severity),
    )


class IssueEvent(Base):
    """What happened to an issue of the backlog besides its sightings, oldest first by `id`."""

    __tablename__ = "issue_events"

    id: Mapped[Id]
    backlog_pk: Mapped[int] = mapped_column(ForeignKey("backlog.id", ondelete="CASCADE"))
    kind: Mapped[LifeKind]
    at: Mapped[datetime]
    run_id: Mapped[str | None]
    phase_id: Mapped[str | None]
    actor: Mapped[str | None]
    checks: Mapped[Json] = mapped_column(default=list)
    reason: Mapped[str | None]

    __table_args__ = (
        Index("ix_issue_events_backlog_pk_id", "backlog_pk", "id"),
        one_of("kind", LifeKind),
    )


class Sighting(Base):
    """A run and tier that reported a key of the backlog; the age is counted from these rows."""

    __tablename__ = "sightings"

    backlog_pk: Mapped[int] = mapped_column(
        ForeignKey("backlog.id", ondelete="CASCADE"), primary_key=True
    )
    run_pk: Mapped[int] = mapped_column(
        ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True, index=True
    )
    tier_id: Mapped[str] = mapped_column(primary_key=True)
