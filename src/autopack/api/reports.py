"""Reports for operators: aged issues, exhausted budgets, results of runs."""

from __future__ import annotations

from fastapi import APIRouter, Response

from ..services import reports
from ..services.promotion import ask_promotion
from ..views.incident import IncidentPack
from ..views.promotion import PromotionAnswer
from ..views.reports import (
    BacklogSummaryAnswer,
    BudgetAnalysisAnswer,
    RunReportAnswer,
)
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
    """Totals by status, severity and category, the ten issues that most runs have reported, and
    those that need cleanup, oldest first.

    `limit` and `cursor` page through `needs_cleanup`; the totals are of the whole backlog.
    """
    after = None if cursor is None else decode_moment(cursor)
    summary, more = reports.issue_backlog_summary(context, limit=limit, after=after)
    summary.next_cursor = encode_moment(*more) if more else None
    return summary


@router.get(
    "/reports/budget_analysis",
    responses=problems(422, 503),
    summary="Analyse the runs that a budget ended",
)
def budget_analysis(
    context: Context, limit: PageLimit = 100, cursor: Cursor = None
) -> BudgetAnalysisAnswer:
    """Which budget ended each run, where its tokens went, and whether the Auditor helped.

    The Auditor helped a run if a phase that used an Auditor try was completed. Tiers and slices
    (`task_category:complexity`) are the three that spent most. The totals are over all such runs,
    and `average_token_utilization` is the mean of theirs.
    """
    before = None if cursor is None else decode_moment(cursor)
    analysis, more = reports.budget_analysis(context, limit=limit, before=before)
    analysis.next_cursor = encode_moment(*more) if more else None
    return analysis


@router.get(
    "/reports/run_summary/{run_id}",
    responses=problems(404, 422, 503),
    summary="Report on a run as a whole",
)
def run_summary(context: Context, run_id: RunId) -> RunReportAnswer:
    """The run, its budgets, issues, tiers, phases, attempts and CI, the changes of state that led
    here, and whether the branch may go to the base branch.

    All values are of one moment. For a live run, the reasons are those against it now.
    """
    return reports.run_summary(context, run_id)


@router.get(
    "/runs/{run_id}/promotion",
    responses=problems(404, 422, 503),
    summary="Ask whether a run's branch may be merged",
)
def promotion(context: Context, run_id: RunId) -> PromotionAnswer:
    """The eligibility with every reason against it, warnings, and the pull request's text.

    An ineligible run has the text too, which then starts with the advice not to merge. Nothing is
    sent anywhere.
    """
    return ask_promotion(context, run_id)


@router.get(
    "/runs/{run_id}/incident",
    responses=problems(404, 422, 503),
    summary="Read why a run failed",
)
def incident(context: Context, run_id: RunId) -> IncidentPack:
    """The incident pack of a failed run: phases in trouble with their last attempts, budgets, open
    issues, and what to do next. A run that did not fail has none.
    """
    return reports.run_incident(context, run_id)


@router.get(
    "/runs/{run_id}/incident.md",
    response_class=Response,
    responses={
        200: {
            "description": "The incident pack as a page",
            "content": {"text/markdown": {"schema": {"type": "string"}}},
        },
        **problems(404, 422, 503),
    },
    summary="Read why a run failed, as a page",
)
def incident_page(context: Context, run_id: RunId) -> Response:
    """The incident pack as Markdown, as in the run's files."""
    page = reports.run_incident_page(context, run_id)
    return Response(page, media_type="text/markdown; charset=utf-8")
