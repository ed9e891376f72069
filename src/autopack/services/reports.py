"""Reports: the backlog, budgets that broke, one run as a whole, and whether it may go on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import partial

from ..domain.metrics import (
    AgingIssue,
    AttemptCounts,
    BacklogCounts,
    Budget,
    BudgetFailure,
    BudgetTotals,
    CiCounts,
    IssueCounts,
    OpenIssue,
    PhaseMetrics,
    TierMetrics,
)
from ..domain.promotion import PromotionVerdict, judge_promotion
from ..domain.rehearsal import Rehearsal
from ..domain.run_issues import issue_figures
from ..domain.terms import Role
from ..mirror import PullRequest, pull_request
from ..models import EventRow, Run
from ..store import issues, reports, runs
from .context import AppContext
from .metrics import Position, phases_of, tiers_of
from .projection import open_issues, run_report
from .reading import one_moment, reading_run
from .rehearsal import rehearse

TOP_AGING_ISSUES = 10
TOP_CATEGORIES = 100
TIMELINE_EVENTS = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class BacklogSummary:
    """The backlog in figures; `needs_cleanup` is a page."""

    project_id: str
    totals: BacklogCounts
    by_category: Mapping[str, BacklogCounts]
    top_aging_issues: list[AgingIssue]
    needs_cleanup: list[AgingIssue]


@dataclass(frozen=True, slots=True, kw_only=True)
class IssueSummary:
    totals: IssueCounts
    by_category: Mapping[str, IssueCounts]
    open_issues: list[OpenIssue]


@dataclass(frozen=True, slots=True, kw_only=True)
class Promotion:
    """What stands against a merge; `rehearsal` is None where it could not be made."""

    run_id: str
    eligible: bool
    reasons: tuple[str, ...]
    warnings: tuple[str, ...]
    rehearsal: Rehearsal | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PromotionPlan(Promotion):
    """The verdict, and the pull request that would bring the branch to its base branch."""

    pull_request: PullRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSummary:
    """Everything worth knowing of a run, as of one moment."""

    run: Run
    duration_minutes: float
    budgets: list[Budget]
    issues: IssueSummary
    tiers: list[TierMetrics]
    phases: list[PhaseMetrics]
    attempts: Mapping[Role, AttemptCounts]
    ci: CiCounts
    event_count: int
    timeline: list[EventRow]
    promotion: Promotion


def issue_backlog_summary(
    context: AppContext, *, limit: int, after: Position | None
) -> tuple[BacklogSummary, Position | None]:
    """Return the project's backlog in figures, and where the next page of aged issues begins."""
    project_id = context.settings.project_id
    with one_moment(context) as session:
        totals, by_category = reports.count_backlog(session, project_id, limit=TOP_CATEGORIES)
        oldest = reports.list_oldest_issues(session, project_id, limit=TOP_AGING_ISSUES)
        rows = reports.list_issues_to_clean(session, project_id, limit=limit + 1, after=after)
    page = rows[:limit]
    more = None
    if len(rows) > limit and page[-1][1].needs_cleanup_at is not None:
        more = (page[-1][1].needs_cleanup_at, page[-1][0])
    summary = BacklogSummary(
        project_id=project_id,
        totals=totals,
        by_category=by_category,
        top_aging_issues=oldest,
        needs_cleanup=[issue for _, issue in page],
    )
    return summary, more


def budget_analysis(
    context: AppContext, *, limit: int, before: Position | None
) -> tuple[BudgetTotals, list[BudgetFailure], Position | None]:
    """Return figures over all runs that a budget ended, a page of them, and where the next begins.

    Newest runs come first.
    """
    with one_moment(context) as session:
        totals = reports.total_budget_failures(session)
        rows = reports.list_budget_failures(session, limit=limit + 1, before=before)
    page = rows[:limit]
    more = (page[-1][1].created_at, page[-1][0]) if len(rows) > limit else None
    return totals, [failure for _, failure in page], more


def run_summary(context: AppContext, run_id: str) -> RunSummary:
    """Return a run as a whole. Raises NotFoundError."""
    now = context.now()
    with reading_run(context, run_id) as (session, run):
        found = issues.list_run_issues(session, run.id)
        totals, by_category = issue_figures(found, limit=TOP_CATEGORIES)
        summary = partial(
            RunSummary,
            run=run,
            duration_minutes=_minutes(run, now),
            budgets=_budgets(run, now),
            issues=IssueSummary(
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
    return summary(promotion=_promotion(context, run))  # git is asked while no transaction waits


def promotion(context: AppContext, run_id: str) -> PromotionPlan:
    """Say whether a run's branch may go to the base branch, and write its pull request.

    Raises NotFoundError.
    """
    with reading_run(context, run_id) as (session, run):
        found = open_issues(session, run)
        report = run_report(session, run, detailed=())
    verdict = _promotion(context, run)
    return PromotionPlan(
        run_id=verdict.run_id,
        eligible=verdict.eligible,
        reasons=verdict.reasons,
        warnings=verdict.warnings,
        rehearsal=verdict.rehearsal,
        pull_request=pull_request(
            report, reasons=verdict.reasons, warnings=verdict.warnings, open_issues=found
        ),
    )


def _promotion(context: AppContext, run: Run) -> Promotion:
    """Return the recorded verdict of a run that is over, today's of a live one. (rules §8)

    A rehearsal with today's base branch is added, and may only be stricter.
    """
    if run.ended_at is None:
        verdict = judge_promotion(runs.read_state(run))
    else:
        verdict = PromotionVerdict(tuple(run.promotion_reasons), tuple(run.promotion_warnings))
    rehearsal, today = rehearse(context, run)
    return Promotion(
        run_id=run.run_id,
        eligible=run.promotion_eligible_to_main and not today,
        reasons=(*verdict.reasons, *today),
        warnings=verdict.warnings,
        rehearsal=rehearsal,
    )


def _budgets(run: Run, now: datetime) -> list[Budget]:
    cost = (
        [] if run.cost_cap_usd is None else [Budget("cost_cap_usd", run.cost_cap_usd, run.cost_usd)]
    )
    return [
        Budget("token_cap", run.token_cap, run.tokens_used),
        *cost,
        Budget("max_duration_minutes", run.max_duration_minutes, _minutes(run, now)),
        Budget("max_phases", run.max_phases, sum(len(tier.phases) for tier in run.tiers)),
        Budget("max_minor_issues_total", run.max_minor_issues_total, run.minor_issues_count),
    ]


def _minutes(run: Run, now: datetime) -> float:
    return round(max(0.0, ((run.ended_at or now) - run.created_at).total_seconds()) / 60, 2)
