"""Work: agents claim it, and say that they are at it."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Body, Query, Response
from pydantic import Field

from ..domain.values import Closed, Count, Role, Word
from ..services import claiming
from .bodies import StrictRoute
from .errors import problems
from .examples import CLAIM, HEARTBEAT, example
from .inputs import InHouse, PhaseId, RunId
from .schemas.work import HeartbeatAnswer, WorkItemAnswer

router = APIRouter(tags=["work"], route_class=StrictRoute)

NOTHING: dict[int | str, dict[str, Any]] = {204: {"description": "Nothing to do just now"}}


class Claim(Closed):
    role: Role
    agent: Word
    lease_seconds: Annotated[int, Field(strict=True, ge=1, le=86_400)] = 900


class Heartbeat(Closed):
    lease_token: Word
    tokens_used: Count = 0


ClaimBody = Annotated[Claim, Body(openapi_examples=example(CLAIM, "A Builder asks for work"))]


@router.post(
    "/runs/{run_id}/claim",
    response_model=WorkItemAnswer,
    responses={**NOTHING, **problems(404, 409, 413, 422, 503)},
    summary="Claim the next work item of a run",
)
def claim(house: InHouse, run_id: RunId, wanted: ClaimBody) -> object:
    """200 with a work item and a lease on it, 204 when there is none just now.

    409 `run_over` when there never will be.
    """
    item = claiming.claim(house, run_id, wanted.role, wanted.agent, wanted.lease_seconds)
    return item if item is not None else Response(status_code=204)


@router.post(
    "/claim",
    response_model=WorkItemAnswer,
    responses={**NOTHING, **problems(413, 422, 503)},
    summary="Claim the next work item of any run",
)
def claim_any(house: InHouse, wanted: ClaimBody) -> object:
    """Over all live runs, the oldest first; any number of agents may ask at once."""
    item = claiming.claim_any(house, wanted.role, wanted.agent, wanted.lease_seconds)
    return item if item is not None else Response(status_code=204)


@router.get(
    "/runs/{run_id}/next_phase",
    response_model=WorkItemAnswer,
    responses={**NOTHING, **problems(404, 409, 422, 503)},
    summary="See what a claim would give",
)
def next_phase(
    house: InHouse,
    run_id: RunId,
    role: Annotated[Role, Query(description="Who would claim.")] = Role.BUILDER,
) -> object:
    """The same work item without a lease; nothing changes."""
    item = claiming.peek(house, run_id, role)
    return item if item is not None else Response(status_code=204)


@router.post(
    "/runs/{run_id}/phases/{phase_id}/heartbeat",
    response_model=HeartbeatAnswer,
    responses=problems(404, 409, 413, 422, 503),
    summary="Keep a lease",
)
def heartbeat(
    house: InHouse,
    run_id: RunId,
    phase_id: PhaseId,
    beat: Annotated[Heartbeat, Body(openapi_examples=example(HEARTBEAT, "Still at it"))],
) -> object:
    """`stop` when the run ended, the budget is gone or the lease was lost.

    The token in the example is nobody's, so it is answered `stop`.
    """
    return claiming.heartbeat(house, run_id, phase_id, beat.lease_token, beat.tokens_used)
