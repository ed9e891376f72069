"""Results that agents post."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Body, Response

from ..domain.results import BuilderReport
from ..services import building
from .bodies import StrictRoute
from .errors import problems
from .examples import BUILDER_RESULT, example
from .inputs import IdempotencyKey, InHouse, PhaseId, RunId
from .replay import replayed
from .schemas.results import BuilderResultAnswer

router = APIRouter(tags=["results"], route_class=StrictRoute)


@router.post(
    "/runs/{run_id}/phases/{phase_id}/builder_result",
    response_model=BuilderResultAnswer,
    responses=problems(404, 409, 413, 422, 503),
    summary="Submit a Builder's result",
)
def builder_result(
    house: InHouse,
    response: Response,
    run_id: RunId,
    phase_id: PhaseId,
    report: Annotated[
        BuilderReport, Body(openapi_examples=example(BUILDER_RESULT, "A patch that adds a file"))
    ],
    idempotency_key: IdempotencyKey = None,
) -> object:
    """One attempt at a phase: its patch becomes one commit on the run's branch.

    A patch that conflicts (409), is malformed or against policy (422) uses up one try; nothing
    else changes. The same body sent again gets the first answer.
    """
    answer = building.submit_builder_result(house, run_id, phase_id, report, idempotency_key)
    return replayed(response, answer)
