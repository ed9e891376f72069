"""CI: verdicts of an external CI, and the results of CI runs."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Body, Path, Query, Response

from ..domain.results import CiReport
from ..services import ci, judging
from ..views.results import CiResultAnswer, CiRunsAnswer
from .bodies import StrictRoute
from .errors import problems
from .examples import CI_RESULT, example
from .inputs import Context, IdempotencyKey, PhaseId, RunId
from .replies import reply

router = APIRouter(tags=["ci"], route_class=StrictRoute)


@router.post(
    "/runs/{run_id}/phases/{phase_id}/ci_result",
    response_model=CiResultAnswer,
    responses=problems(404, 409, 410, 413, 422, 503),
    summary="Submit CI's verdict",
)
def ci_result(
    context: Context,
    response: Response,
    run_id: RunId,
    phase_id: PhaseId,
    report: Annotated[CiReport, Body(openapi_examples=example(CI_RESULT, "All tests passed"))],
    idempotency_key: IdempotencyKey = None,
) -> object:
    """Accepted only for the commit that the phase waits for, else 409.

    `green` completes the phase, `red` uses a try, `did_not_run` ends the run. A CI run of zero
    tests is red.
    """
    return reply(
        response, judging.submit_ci_result(context, run_id, phase_id, report, idempotency_key)
    )


@router.get(
    "/runs/{run_id}/ci",
    responses=problems(404, 422, 503),
    summary="List a run's CI runs",
)
def ci_runs(context: Context, run_id: RunId) -> CiRunsAnswer:
    """Every CI run of every phase, in order, each attempt separately."""
    return ci.list_ci_runs(context, run_id)


@router.get(
    "/runs/{run_id}/ci/{ci_run_id}/log",
    response_class=Response,
    responses={
        200: {
            "description": "The output of the command",
            "content": {"text/plain": {"schema": {"type": "string"}}},
        },
        **problems(404, 410, 422, 503),
    },
    summary="Read a CI run's log",
)
def ci_log(
    context: Context,
    run_id: RunId,
    ci_run_id: Annotated[
        int,
        Path(
            ge=1,
            le=2**63 - 1,
            description="From the list of CI runs.",
            openapi_examples={"first": {"value": 1}},
        ),
    ],
    tail: Annotated[
        int | None, Query(ge=1, le=100_000, description="Only this many last lines.")
    ] = None,
) -> Response:
    """The whole log of a run of the service's own CI; above the limit its beginning and its end."""
    log = ci.read_log(context, run_id, ci_run_id)
    if tail is not None:
        log = b"".join(log.splitlines(keepends=True)[-tail:])
    return Response(log, media_type="text/plain; charset=utf-8")
