"""Reports: the backlog, exhausted budgets, one run as a whole, and promotion."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from functools import partial

from ..domain.errors import NotFoundError, UnavailableError
from ..domain.issues import BacklogStatus
from ..domain.promotion import PASSED, PromotionCheck, PromotionVerdict, judge_promotion
from ..domain.run_issues import issue_figures
from ..domain.terms import Severity
from ..domain.times import minutes_used
from ..mirror import incident_pack, incident_page, pull_request
from ..models import Run
from ..store import issues, reports, runs
from ..views.incident import IncidentPack
from ..views.metrics import BudgetAnswer, budget
from ..views.reports import (
    BacklogSummaryAnswer,
    BudgetAnalysisAnswer,
    IssueSummaryAnswer,
    PromotionAnswer,
    PromotionCheckAnswer,
    PromotionVerdictAnswer,
    RunReportAnswer,
)
from ..views.runs import RunSummaryAnswer
from .context import AppContext
from .metrics import Position, phases_of, tiers_of
from .projection import open_issues, run_detail
from .reading import one_moment, reading_run
from .records import recorded_verdict
from .rehearsal import rehearse

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


def promotion(context: AppContext, run_id: str) -> PromotionAnswer:
    """Return whether a run's branch may be merged, and its pull request. (rules §8)

    Raises NotFoundError.
    """
    with reading_run(context, run_id, needs_branch=True) as (session, run):
        found = open_issues(session, run)
        report = run_detail(session, run, detailed=())
    verdict = promotion_verdict(context, run)
    return PromotionAnswer.of(
        verdict,
        run_id=run.run_id,
        pull_request=pull_request(
            report, reasons=verdict.reasons, warnings=verdict.warnings, open_issues=found
        ),
    )


def promotion_verdict(context: AppContext, run: Run) -> PromotionVerdictAnswer:
    """Return the eligibility by a run's record, or by the rules for a run without one. (rules §8)

    A rehearsal with today's base branch is added, and may only be stricter.
    """
    if run.ended_at is None:
        verdict = judge_promotion(runs.read_state(run))
    elif run.head_commit == run.work_commit:  # no record: the rehearsal says so
        verdict = PromotionVerdict(tuple(run.promotion_reasons), tuple(run.promotion_warnings))
    else:
        verdict = recorded_verdict(context.repository, run)
    rehearsal, today = rehearse(context, run)
    if run.imported_at is not None:
        today = (*run.promotion_reasons, *today)
    has_record = run.ended_at is not None and run.head_commit != run.work_commit
    # Three judges, and each may only refuse: the rules at the run's end, the record as it stands on
    # the branch, and today's merge. Who signed is for the offline check: it reads the base branch.
    return PromotionVerdictAnswer(
        eligible=run.promotion_eligible_to_main and verdict.is_eligible and not today,
        reasons=[*verdict.reasons, *today],
        warnings=list(verdict.warnings),
        rehearsal=rehearsal,
        checks=_checks(run, verdict, today, has_record=has_record),
        is_signed=_is_signed(context, run) if has_record else None,
    )


def _checks(
    run: Run, verdict: PromotionVerdict, today: Sequence[str], *, has_record: bool
) -> list[PromotionCheckAnswer]:
    """Return what was checked: the rules' conditions, the record, and today's merge.

    Before the run's end only the merge is decided: a tier may become clean again.
    """
    rules = judge_promotion(runs.read_state(run))
    against: dict[PromotionCheck, list[str]] = {
        PromotionCheck.RECORD: [
            reason for reason in verdict.reasons if has_record and reason not in rules.reasons
        ],
        PromotionCheck.MERGE: [*today],
    }
    for check, reason in rules.checked:
        if check is PromotionCheck.SUCCESS and run.ended_at is None:
            continue  # its state is no reason yet
        against.setdefault(check, []).append(reason)
    is_over = run.ended_at is not None
    found = []
    for check, passed in PASSED.items():
        reasons = against.get(check, [])
        is_decided = check is PromotionCheck.MERGE or (
            has_record if check is PromotionCheck.RECORD else is_over
        )
        found.append(
            PromotionCheckAnswer(
                name=check,
                passed=not reasons if is_decided else None,
                detail="; ".join(reasons) or (passed if is_decided else "decided at the run's end"),
            )
        )
    return found


def _is_signed(context: AppContext, run: Run) -> bool | None:
    try:
        return context.repository.is_signed(run.head_commit)
    except UnavailableError:  # the record cannot be read, which is among the reasons
        return None


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
