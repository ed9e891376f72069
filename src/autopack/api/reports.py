"""Reports for people who decide: what aged, what ran out, what a run came to."""

from __future__ import annotations

from fastapi import APIRouter

from ..domain.issues import BacklogStatus
from ..domain.metrics import AuditorHelp, BudgetFailure
from ..domain.terms import Severity
from ..services import reports
from ..views.metrics import BudgetAnswer, PhaseMetricsAnswer, TierMetricsAnswer
from ..views.reports import (
    AgingIssueAnswer,
    AttemptCountsAnswer,
    AuditorHelpAnswer,
    BacklogCountsAnswer,
    BacklogSummaryAnswer,
    BudgetAnalysisAnswer,
    BudgetFailureAnswer,
    CiCountsAnswer,
    IssueSummaryAnswer,
    MoveAnswer,
    PromotionAnswer,
    PromotionVerdictAnswer,
    RunReportAnswer,
    SliceSpenderAnswer,
    TierSpenderAnswer,
)
from ..views.runs import RunSummaryAnswer
from .bodies import StrictRoute
from .errors import problems
from .inputs import Context, Cursor, PageLimit, RunId, decode_moment, encode_moment

router = APIRouter(tags=["reports"], route_class=StrictRoute)


@router.get(
    "/reports/issue_backlog_summary",
    responses=problems(422, 503),
    summary="Summarise the project's backlog",
)
def issue_backlog_summary(
    context: Context, limit: PageLimit = 100, cursor: Cursor = None
) -> BacklogSummaryAnswer:
    """Totals by status, severity and category, the ten issues that most runs have seen, and those
    that need cleanup, longest waiting first.

    `limit` and `cursor` page through `needs_cleanup`; the totals are of the whole backlog.
    """
    after = None if cursor is None else decode_moment(cursor)
    summary, more = reports.issue_backlog_summary(context, limit=limit, after=after)
    totals = summary.totals
    return BacklogSummaryAnswer(
        project_id=summary.project_id,
        total_issues=totals.total,
        totals_by_status={
            BacklogStatus.OPEN: totals.open,
            BacklogStatus.NEEDS_CLEANUP: totals.needs_cleanup,
            BacklogStatus.RESOLVED: totals.resolved,
        },
        unresolved_by_severity={Severity.MINOR: totals.minor, Severity.MAJOR: totals.major},
        by_category={
            category: BacklogCountsAnswer.model_validate(counts)
            for category, counts in summary.by_category.items()
        },
        top_aging_issues=[
            AgingIssueAnswer.model_validate(issue) for issue in summary.top_aging_issues
        ],
        needs_cleanup=[AgingIssueAnswer.model_validate(issue) for issue in summary.needs_cleanup],
        next_cursor=encode_moment(*more) if more else None,
    )


@router.get(
    "/reports/budget_analysis",
    responses=problems(422, 503),
    summary="Analyse the runs that a budget ended",
)
def budget_analysis(
    context: Context, limit: PageLimit = 100, cursor: Cursor = None
) -> BudgetAnalysisAnswer:
    """Which budget ended each run, where its tokens went, and whether the Auditor helped.

    The Auditor helped a run when a phase that used an Auditor try was completed in the end. Tiers
    and slices (`task_category:complexity`) are the three that spent most. The totals are over all
    such runs, and `average_token_utilization` is the mean of theirs.
    """
    before = None if cursor is None else decode_moment(cursor)
    totals, page, more = reports.budget_analysis(context, limit=limit, before=before)
    return BudgetAnalysisAnswer(
        total_budget_failures=totals.total_budget_failures,
        average_token_utilization=totals.average_token_utilization,
        failures_by_budget=dict(totals.failures_by_budget),
        failures=[_budget_failure(failure) for failure in page],
        next_cursor=encode_moment(*more) if more else None,
    )


@router.get(
    "/reports/run_summary/{run_id}",
    responses=problems(404, 422, 503),
    summary="Report on a run as a whole",
)
def run_summary(context: Context, run_id: RunId) -> RunReportAnswer:
    """The run, its budgets, issues, tiers, phases, attempts and CI, the changes of state that led
    here, and whether the branch may go to the base branch.

    Everything is as of one moment. A live run's verdict is what stands against it now.
    """
    summary = reports.run_summary(context, run_id)
    return RunReportAnswer(
        run_id=summary.run.run_id,
        run=RunSummaryAnswer.model_validate(summary.run),
        duration_minutes=summary.duration_minutes,
        budgets=[BudgetAnswer.model_validate(budget) for budget in summary.budgets],
        issues=IssueSummaryAnswer.model_validate(summary.issues),
        tiers=[TierMetricsAnswer.model_validate(tier) for tier in summary.tiers],
        phases=[PhaseMetricsAnswer.model_validate(phase) for phase in summary.phases],
        attempts={
            role: AttemptCountsAnswer.model_validate(counts)
            for role, counts in summary.attempts.items()
        },
        ci=CiCountsAnswer.model_validate(summary.ci),
        event_count=summary.event_count,
        timeline=[MoveAnswer.model_validate(event) for event in summary.timeline],
        promotion=PromotionVerdictAnswer.model_validate(summary.promotion),
    )


@router.get(
    "/runs/{run_id}/promotion",
    responses=problems(404, 422, 503),
    summary="Ask whether a run's branch may be merged",
)
def promotion(context: Context, run_id: RunId) -> PromotionAnswer:
    """The verdict with every reason against it, what to look at, and the pull request's text.

    The text is there for an ineligible run too, and then says at its top not to merge. Nothing is
    sent anywhere.
    """
    return PromotionAnswer.model_validate(reports.promotion(context, run_id))


def _budget_failure(failure: BudgetFailure) -> BudgetFailureAnswer:
    return BudgetFailureAnswer(
        run_id=failure.run_id,
        project_id=failure.project_id,
        failure_code=failure.failure_code,
        failure_reason=failure.failure_reason,
        broken_budget=BudgetAnswer.model_validate(failure.budget) if failure.budget else None,
        token_cap=failure.token_cap,
        tokens_used=failure.tokens_used,
        cost_cap_usd=failure.cost_cap_usd,
        cost_usd=failure.cost_usd,
        token_utilization=failure.token_utilization,
        phase_count=failure.phase_count,
        phases_complete=failure.phases_complete,
        top_tiers=[
            TierSpenderAnswer(tier_id=tier.name, tokens_used=tier.tokens_used, share=tier.share)
            for tier in failure.top_tiers
        ],
        top_slices=[
            SliceSpenderAnswer(slice=part.name, tokens_used=part.tokens_used, share=part.share)
            for part in failure.top_slices
        ],
        auditor=_auditor_help(failure.auditor),
        created_at=failure.created_at,
        ended_at=failure.ended_at,
    )


def _auditor_help(auditor: AuditorHelp) -> AuditorHelpAnswer:
    return AuditorHelpAnswer(
        helped=auditor.has_helped,
        phases_reviewed=auditor.phases_reviewed,
        phases_completed=auditor.phases_completed,
        attempts_used=auditor.attempts_used,
        tokens_used=auditor.tokens_used,
    )
