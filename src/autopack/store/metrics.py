"""Figures over runs. Each page is one statement, whose cost does not depend on how many runs
there are.

A page is selected first, by an index. The figures of each of its runs are a LATERAL subquery over
that run's own rows, so no plan reads a whole table.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, Float, cast, func, select, text, true
from sqlalchemy.orm import Session
from sqlalchemy.sql import ColumnElement, Select

from ..domain.metrics import utilization
from ..domain.states import Cleanliness, PhaseStatus, RunStatus
from ..models import Phase, Run, Tier, run_counts
from ..views.metrics import RunMetricsAnswer


def count_runs(session: Session, status: RunStatus | None) -> int:
    """Return the exact number of runs, by the counts in the database."""
    query = select(total(run_counts.c.runs))
    if status is not None:
        query = query.where(run_counts.c.state == status)
    return session.scalars(query).one()


def list_run_metrics(
    session: Session,
    *,
    limit: int,
    before: tuple[datetime, int] | None,
    status: RunStatus | None,
    now: datetime,
) -> list[tuple[int, RunMetricsAnswer]]:
    """Return runs with their figures, newest first, each with its key.

    `before` is the (created_at, id) to continue from; `now` ends the duration of live runs.
    """
    page = page_of_runs(limit, before, status).subquery("page")
    phases = (
        select(
            func.count().label("phase_count"),
            _in_state(PhaseStatus.COMPLETE).label("phases_complete"),
            _in_state(PhaseStatus.FAILED).label("phases_failed"),
            _in_state(PhaseStatus.SKIPPED).label("phases_skipped"),
            total(Phase.builder_attempts_used).label("builder_attempts_used"),
            total(Phase.auditor_attempts_used).label("auditor_attempts_used"),
        )
        .where(Phase.run_pk == page.c.id)
        .lateral("of_phases")
    )
    tiers = (
        select(
            func.count().label("tier_count"),
            func.count().filter(Tier.cleanliness == Cleanliness.NOT_CLEAN).label("tiers_not_clean"),
            total(Tier.ci_runs_count).label("ci_runs_count"),
        )
        .where(Tier.run_pk == page.c.id)
        .lateral("of_tiers")
    )
    lasted = func.extract("epoch", func.coalesce(page.c.ended_at, now) - page.c.created_at) / 60
    lasted = func.greatest(lasted, 0)  # for a run from before the clock was set back
    query = (
        select(page, phases, tiers, cast(func.round(lasted, 2), Float).label("duration_minutes"))
        .join_from(page, phases, true())
        .join(tiers, true())
        .order_by(page.c.created_at.desc(), page.c.id.desc())
    )
    return [_run_metrics(dict(row)) for row in session.execute(query).mappings()]


def page_of_runs(
    limit: int, before: tuple[datetime, int] | None, status: RunStatus | None
) -> Select[*tuple[Any, ...]]:
    """Select the columns that reports on runs need, newest first, from a position on."""
    query: Select[*tuple[Any, ...]] = (
        select(
            Run.id,
            Run.run_id,
            Run.project_id,
            Run.state,
            Run.safety_profile,
            Run.run_scope,
            Run.created_at,
            Run.updated_at,
            Run.deadline_at,
            Run.ended_at,
            Run.max_duration_minutes,
            Run.token_cap,
            Run.tokens_used,
            Run.tokens_measured,
            Run.cost_cap_usd,
            Run.cost_usd,
            Run.max_minor_issues_total,
            Run.minor_issues_count,
            Run.major_issues_count,
            Run.debt_status,
            Run.promotion_eligible_to_main,
            Run.failure_code,
            Run.failure_reason,
        )
        .order_by(Run.created_at.desc(), Run.id.desc())
        .limit(limit)
    )
    if status is not None:
        query = query.where(Run.state == status)
    if before is not None:
        query = query.where(text("(created_at, id) < (:at, :id)")).params(
            at=before[0], id=before[1]
        )
    return query


def total(column: ColumnElement[int] | Any) -> ColumnElement[int]:
    """Sum a column of counts; 0 without rows."""
    return cast(func.coalesce(func.sum(column), 0), BigInteger)


def _in_state(state: PhaseStatus) -> ColumnElement[int]:
    return func.count().filter(Phase.state == state)


def _run_metrics(row: dict[str, Any]) -> tuple[int, RunMetricsAnswer]:
    key = row.pop("id")
    figures = {
        "token_utilization": utilization(row["tokens_used"], row["token_cap"]),
        "duration_utilization": utilization(row["duration_minutes"], row["max_duration_minutes"]),
        "minor_issue_utilization": utilization(
            row["minor_issues_count"], row["max_minor_issues_total"]
        ),
    }
    return key, RunMetricsAnswer.model_validate(row | figures)
