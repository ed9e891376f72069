"""Runs: start, read, list."""

from __future__ import annotations

from typing import Annotated, Final

from fastapi import APIRouter, Body, Query, Response
from pydantic import AwareDatetime

from ..domain.continuing import Continuation
from ..domain.plan import Plan
from ..domain.promotion import PromotionState
from ..domain.rebasing import RebaseWish
from ..domain.run import FailureCode
from ..domain.run_filter import RunFilter
from ..domain.states import RunStatus
from ..domain.values import Closed, Identifier, Text
from ..services import rebasing, runs, starting
from ..views.runs import RunAnswer, RunPage
from .bodies import StrictRoute
from .errors import problems
from .examples import CANCEL, CONTINUATION, PLAN, REBASE, example
from .inputs import (
    Context,
    Cursor,
    PageLimit,
    RunId,
    decode_moment,
    encode_moment,
)

router = APIRouter(tags=["runs"], route_class=StrictRoute)


class Cancellation(Closed):
    reason: Text = ""


# What a request without a body means: every field of these has a default.
DEFAULT_CONTINUATION: Final = Continuation()
DEFAULT_REBASE: Final = RebaseWish()
DEFAULT_CANCELLATION: Final = Cancellation()


@router.post(
    "/runs/start",
    status_code=201,
    responses={
        200: {"model": RunAnswer, "description": "The same plan was posted before"},
        **problems(409, 413, 422, 503),
    },
    summary="Start a run",
)
def start_run(
    context: Context,
    response: Response,
    plan: Annotated[Plan, Body(openapi_examples=example(PLAN, "One tier with one phase"))],
) -> RunAnswer:
    """Check a plan as a whole, compile its strategy and make the branch `autonomous/{run_id}`.

    The same plan posted again answers 200 with the run; another plan of that `run_id` 409.
    """
    run, is_new = starting.start_run(context, plan)
    if not is_new:
        response.status_code = 200
    return run


@router.get("/runs", responses=problems(422, 503), summary="List runs")
def list_runs(
    context: Context,
    limit: PageLimit = 100,
    cursor: Cursor = None,
    status: Annotated[RunStatus | None, Query(description="Only runs in this state.")] = None,
    failure_code: Annotated[
        FailureCode | None, Query(description="Only runs that failed for this reason.")
    ] = None,
    promotion: Annotated[
        PromotionState | None, Query(description="Only runs with this verdict on promotion.")
    ] = None,
    project_id: Annotated[Identifier | None, Query(description="Only runs of a project.")] = None,
    live: Annotated[
        bool | None, Query(description="Only runs that are not over (true), or are (false).")
    ] = None,
    ended_since: Annotated[
        AwareDatetime | None, Query(description="Only runs that ended at this time or later.")
    ] = None,
    text: Annotated[
        Text | None,
        Query(
            max_length=64,
            description="Only runs that hold this text in their id, in the id or name of a phase, "
            "or in the key of an issue.",
        ),
    ] = None,
) -> RunPage:
    """Runs, newest first: the progress of each, without the details of its phases.

    Each page searches `text` in 5,000 runs, so it may be short or empty while there are more pages.
    """
    page, more = runs.list_runs(
        context,
        RunFilter(
            status=status,
            failure_code=failure_code,
            promotion=promotion,
            project_id=project_id,
            is_live=live,
            ended_since=ended_since,
            containing=text,
        ),
        limit=limit,
        before=None if cursor is None else decode_moment(cursor),
    )
    return RunPage(
        runs=page,
        next_cursor=None if more is None else encode_moment(*more),
    )


@router.get(
    "/runs/{run_id}",
    responses=problems(404, 422, 503),
    summary="Read a run",
)
def get_run(context: Context, run_id: RunId) -> RunAnswer:
    """A run with its tiers and their phases."""
    return runs.get_run(context, run_id)


@router.post(
    "/runs/{run_id}/continue",
    status_code=201,
    responses={
        200: {"model": RunAnswer, "description": "The same continuation was started before"},
        **problems(404, 409, 410, 413, 422, 503),
    },
    summary="Continue a failed run as a new one",
)
def continue_run(
    context: Context,
    response: Response,
    run_id: RunId,
    wanted: Annotated[
        Continuation, Body(openapi_examples=example(CONTINUATION, "One phase, with its own cap"))
    ] = DEFAULT_CONTINUATION,
) -> RunAnswer:
    """Start a run with the phases that are left, from the last verified commit of a failed run.

    Its budgets are new; its work items have the earlier attempts; its record names the failed run.
    """
    run, is_new = starting.continue_run(context, run_id, wanted)
    if not is_new:
        response.status_code = 200
    return run


@router.post(
    "/runs/{run_id}/rebase",
    status_code=201,
    responses={
        200: {"model": RunAnswer, "description": "The same rebase was started before"},
        **problems(404, 409, 410, 413, 422, 503),
    },
    summary="Make a run's branch again on today's base, as a new run",
)
def rebase_run(
    context: Context,
    response: Response,
    run_id: RunId,
    wanted: Annotated[
        RebaseWish, Body(openapi_examples=example(REBASE, "Its own id"))
    ] = DEFAULT_REBASE,
) -> RunAnswer:
    """Start a run that has the patches of a run that may be promoted, merged onto today's base.

    CI, where it is configured, judges the result. A patch that does not merge is 409
    `rebase_conflict` with `phase_id` and `paths`, one that today's rules about paths refuse is 409
    `rebase_refused` with `phase_id` and `violations`, a base that moved is 409 `base_moved`; then
    nothing is changed. The earlier run and its branch stay as they are.
    """
    run, is_new = rebasing.rebase_run(context, run_id, wanted)
    if not is_new:
        response.status_code = 200
    return run


@router.post(
    "/runs/{run_id}/cancel",
    responses=problems(404, 409, 410, 413, 422, 503),
    summary="Cancel a run",
)
def cancel_run(
    context: Context,
    run_id: RunId,
    wanted: Annotated[
        Cancellation, Body(openapi_examples=example(CANCEL, "A reason"))
    ] = DEFAULT_CANCELLATION,
) -> RunAnswer:
    """End a live run as `DONE_FAILED_REQUIRES_HUMAN_REVIEW`; unfinished phases are skipped."""
    return runs.cancel_run(context, run_id, wanted.reason)
