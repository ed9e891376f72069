"""Reports: the backlog, exhausted budgets, one run as a whole, why it failed."""

from __future__ import annotations

from datetime import datetime
from functools import partial

from ..domain.errors import NotFoundError
from ..domain.issues import BacklogStatus
from ..domain.run_issues import issue_figures
from ..domain.terms import Severity
from ..domain.times import minutes_used
from ..mirror import incident_pack, incident_page
from ..models import Run
from ..store import issues, reports
from ..views.incident import IncidentPack
from ..views.metrics import BudgetAnswer, budget
from ..views.reports import (
    BacklogSummaryAnswer,
    BudgetAnalysisAnswer,
    IssueSummaryAnswer,
    RunReportAnswer,
)
from ..views.runs import RunSummaryAnswer
from .context import AppContext
from .metrics import Position, phases_of, tiers_of
from .projection import open_issues, run_detail
from .promotion import promotion_verdict
from .reading import one_moment, reading_run

TOP_AGING_ISSUES = 10
TOP_CATEGORIES = 100
TIMELINE_EVENTS = 500


def issue_backlog_summary(
    context: AppContext, *, limit: int, after: Position | None
) -> tuple[BacklogSummaryAnswer, Position | None]:
    """Return the backlog's figures, and where the next page of aged issues begins."""
    project_id = context.settings.project_id
    with one_moment(context) as session:
        totals, by_category = reports.count_backlog(session, project_id, limit=TOP_CATEGORIES)
        oldest = reports.list_oldest_issues(session, project_id, limit=TOP_AGING_ISSUES)
        rows = reports.list_issues_to_clean(session, project_id, limit=limit + 1, after=after)
    page = rows[:limit]
    more = None
    if len(rows) > limit and page[-1][1].needs_cleanup_at is not None:
        more = (page[-1][1].needs_cleanup_at, page[-1][0])
    summary = BacklogSummaryAnswer(
        project_id=project_id,
        total_issues=totals.total,
        totals_by_status={
            BacklogStatus.OPEN: totals.open,
            BacklogStatus.NEEDS_CLEANUP: totals.needs_cleanup,
            BacklogStatus.RESOLVED: totals.resolved,
        },
        unresolved_by_severity={Severity.MINOR: totals.minor, Severity.MAJOR: totals.major},
        by_category=by_category,
        top_aging_issues=oldest,
        needs_cleanup=[issue for _, issue in page],
    )
    return summary, more


def budget_analysis(
    context: AppContext, *, limit: int, before: Position | None
) -> tuple[BudgetAnalysisAnswer, Position | None]:
    """Return figures of all runs that a budget ended, a page of them, and where the next begins.

    Newest runs come first.
    """
    with one_moment(context) as session:
        totals = reports.total_budget_failures(session)
        rows = reports.list_budget_failures(session, limit=limit + 1, before=before)
    page = rows[:limit]
    more = (page[-1][1].created_at, page[-1][0]) if len(rows) > limit else None
    return (
        BudgetAnalysisAnswer.of(totals, failures=[row for _, row in page], next_cursor=None),
        more,
    )


def run_summary(context: AppContext, run_id: str) -> RunReportAnswer:
    """Return a run as a whole. Raises NotFoundError."""
    now = context.now()
    with reading_run(context, run_id) as (session, run):
        found = issues.list_run_issues(session, run.id)
        totals, by_category = issue_figures(found, limit=TOP_CATEGORIES)
        summary = partial(
            RunReportAnswer,
            run_id=run.run_id,
            run=RunSummaryAnswer.of(run),
            duration_minutes=round(minutes_used(run.created_at, run.ended_at or now), 2),
            budgets=_budgets(run, now),
            issues=IssueSummaryAnswer(
                totals=totals,
                by_category=by_category,
                open_issues=open_issues(session, run, found),
            ),
            tiers=tiers_of(run),
            phases=phases_of(run),
            attempts=reports.count_attempts(session, run.id),
            ci=reports.count_ci_runs(session, run.id),
            event_count=run.event_sequence,
            timeline=reports.list_latest_moves(session, run.id, limit=TIMELINE_EVENTS),
        )
    return summary(promotion=promotion_verdict(context, run))  # git runs outside of any transaction


def run_incident(context: AppContext, run_id: str) -> IncidentPack:
    """Return the incident pack of a failed run. Raises NotFoundError for any other run."""
    with reading_run(context, run_id) as (session, run):
        pack = incident_pack(run_detail(session, run, detailed=None))
    if pack is None:
        raise NotFoundError(f"run '{run_id}' has no incident: it is {run.state}")
    return pack


def run_incident_page(context: AppContext, run_id: str) -> bytes:
    """Return the incident pack as Markdown. Raises NotFoundError."""
    return incident_page(run_incident(context, run_id))


def _budgets(run: Run, now: datetime) -> list[BudgetAnswer]:
    cost = (
        [] if run.cost_cap_usd is None else [budget("cost_cap_usd", run.cost_cap_usd, run.cost_usd)]
    )
    minutes = minutes_used(run.created_at, run.ended_at or now)
    return [
        budget("token_cap", run.token_cap, run.tokens_used),
        *cost,
        budget("max_duration_minutes", run.max_duration_minutes, round(minutes, 2)),
        budget("max_phases", run.max_phases, sum(len(tier.phases) for tier in run.tiers)),
        budget("max_minor_issues_total", run.max_minor_issues_total, run.minor_issues_count),
    ]
