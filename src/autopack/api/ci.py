"""CI: verdicts from outside."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Body, Response

from ..domain.results import CiReport
from ..services import judging
from .bodies import StrictRoute
from .errors import problems
from .examples import CI_RESULT, example
from .inputs import IdempotencyKey, InHouse, PhaseId, RunId
from .replay import replayed
from .schemas.results import CiResultAnswer

router = APIRouter(tags=["ci"], route_class=StrictRoute)


@router.post(
    "/runs/{run_id}/phases/{phase_id}/ci_result",
    response_model=CiResultAnswer,
    responses=problems(404, 409, 413, 422, 503),
    summary="Submit CI's verdict",
)
def ci_result(
    house: InHouse,
    response: Response,
    run_id: RunId,
    phase_id: PhaseId,
    report: Annotated[CiReport, Body(openapi_examples=example(CI_RESULT, "All tests passed"))],
    idempotency_key: IdempotencyKey = None,
) -> object:
    """Taken only for the commit that the phase waits to have judged, else 409.

    `green` completes the phase, `red` costs it a try, `did_not_run` ends the run. A run of zero
    tests is red.
    """
    return replayed(
        response, judging.submit_ci_result(house, run_id, phase_id, report, idempotency_key)
    )
