"""Phases: changes by an operator."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Body

from ..services import phases
from ..services.phases import StatusChange
from ..views.runs import StatusAnswer
from .bodies import StrictRoute
from .errors import problems
from .examples import STATUS, example
from .inputs import Context, PhaseId, RunId

router = APIRouter(tags=["phases"], route_class=StrictRoute)


@router.post(
    "/runs/{run_id}/phases/{phase_id}/update_status",
    responses=problems(404, 409, 413, 422, 503),
    summary="Set a phase's state by hand",
)
def update_status(
    context: Context,
    run_id: RunId,
    phase_id: PhaseId,
    wanted: Annotated[StatusChange, Body(openapi_examples=example(STATUS, "Start the phase"))],
) -> StatusAnswer:
    """Legal transitions only; an illegal one is refused with the legal ones in `allowed`.

    A phase that an operator sets to `COMPLETE` counts as unverified: its run cannot be promoted.
    """
    phase = phases.update_status(context, run_id, phase_id, wanted)
    return StatusAnswer(
        message=f"phase '{phase_id}' of run '{run_id}' is {phase.state}",
        phase=phase,
    )
