"""Issues: record them, read the run's index and the project's backlog."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Body, Query, Response

from ..domain.issues import BacklogOrder, BacklogStatus, IssueReport
from ..domain.terms import Severity
from ..domain.values import Text, Word
from ..services import issues
from ..views.issues import (
    BacklogAnswer,
    IssueIndexAnswer,
    RecordIssueAnswer,
)
from .bodies import StrictRoute
from .errors import problems
from .examples import ISSUE, example
from .inputs import (
    Context,
    Cursor,
    IdempotencyKey,
    PageLimit,
    PhaseId,
    RunId,
    decode_cursor,
    encode_cursor,
)
from .replies import reply

router = APIRouter(tags=["issues"], route_class=StrictRoute)


@router.post(
    "/runs/{run_id}/phases/{phase_id}/record_issue",
    status_code=201,
    response_model=RecordIssueAnswer,
    responses=problems(404, 409, 410, 413, 422, 503),
    summary="Record an issue",
)
def record_issue(
    context: Context,
    response: Response,
    run_id: RunId,
    phase_id: PhaseId,
    report: Annotated[IssueReport, Body(openapi_examples=example(ISSUE, "A failing test"))],
    idempotency_key: IdempotencyKey = None,
) -> object:
    """Count one report at all three levels: phase, run and project.

    Every report counts; counts of issues are of distinct keys.
    """
    answer = issues.record_issue(context, run_id, phase_id, report, idempotency_key)
    return reply(response, answer)


@router.get(
    "/runs/{run_id}/issues/index",
    responses=problems(404, 422, 503),
    summary="Read a run's issues by key",
)
def issue_index(context: Context, run_id: RunId) -> IssueIndexAnswer:
    """Each key once, merged over all phases of the run."""
    return issues.issue_index(context, run_id)


@router.get(
    "/project/issues/backlog", responses=problems(422, 503), summary="Read the project's backlog"
)
def backlog(
    context: Context,
    limit: PageLimit = 100,
    cursor: Cursor = None,
    status: Annotated[BacklogStatus | None, Query(description="Only these.")] = None,
    category: Annotated[Word | None, Query(description="Only of this category.")] = None,
    severity: Annotated[Severity | None, Query(description="Only of this severity.")] = None,
    text: Annotated[
        Text | None, Query(max_length=64, description="Only keys that hold this text.")
    ] = None,
    order: Annotated[
        BacklogOrder,
        Query(description="By the first sighting, by how pressing it is, or by the last sighting."),
    ] = BacklogOrder.FIRST_SEEN,
) -> BacklogAnswer:
    """Each key once, over all runs, with its age, and what was last said of it."""
    after = decode_cursor(cursor, int)[0] if cursor else 0
    page, more = issues.backlog(
        context,
        limit=limit,
        after=after,
        status=status,
        category=category,
        severity=severity,
        containing=text,
        order=order,
    )
    return BacklogAnswer(
        project_id=context.settings.project_id,
        thresholds=issues.cleanup_thresholds(context),
        issues_by_key={entry.issue_key: entry for entry in page},
        next_cursor=None if more is None else encode_cursor(more),
    )
