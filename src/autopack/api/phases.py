"""Phases: what happened in them, and changes by an operator."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Body

from ..services import phase_reports, phases
from ..services.phases import StatusChange
from ..views.results import TimelineAnswer
from ..views.runs import PhaseReport, StatusAnswer
from .bodies import StrictRoute
from .errors import problems
from .examples import STATUS, example
from .inputs import Context, PhaseId, RunId

router = APIRouter(tags=["phases"], route_class=StrictRoute)


@router.get(
    "/runs/{run_id}/phases/{phase_id}",
    responses=problems(404, 422, 503),
    summary="Read what happened in a phase",
)
def get_phase(context: Context, run_id: RunId, phase_id: PhaseId) -> PhaseReport:
    """A phase with its lease, attempts, CI runs and issues, and how its time was spent."""
    return phase_reports.phase_report(context, run_id, phase_id)


@router.get(
    "/runs/{run_id}/timeline",
    responses=problems(404, 422, 503),
    summary="Read how the time of a run's phases was spent",
)
def timeline(context: Context, run_id: RunId) -> TimelineAnswer:
    """For each phase the times in which it waited, was built, was reviewed, and was in CI."""
    return phase_reports.timeline(context, run_id)


@router.post(
    "/runs/{run_id}/phases/{phase_id}/update_status",
    responses=problems(404, 409, 410, 413, 422, 503),
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
