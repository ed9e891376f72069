"""What operators do on the pages: forms over the same services as the API, with the same checks."""

from __future__ import annotations

from typing import TypeVar

from fastapi import APIRouter, Response
from pydantic import TypeAdapter, ValidationError
from starlette.exceptions import HTTPException

from ..api.attention import Item
from ..api.branches import Rollback
from ..api.inputs import Context, PhaseId, RunId
from ..api.nodes import NodeId
from ..api.runs import Cancellation
from ..domain.continuing import Continuation
from ..domain.rebasing import RebaseWish
from ..domain.values import Closed
from ..services import attention, branches, nodes, phases, rebasing, runs, starting
from ..services.phases import StatusChange
from .rendering import HOME
from .routes import InPage, PageRoute, back_to
from .sign_in import Form

Wanted = TypeVar("Wanted", bound=Closed)
router = APIRouter(include_in_schema=False, route_class=PageRoute)


@router.post(f"{HOME}/runs/{{run_id}}/cancel", name="POST /runs/{run_id}/cancel")
def cancel(context: Context, page: InPage, run_id: RunId, form: Form) -> Response:
    """End a live run."""
    wanted = _read(Cancellation, form)
    _require_reason(form)
    runs.cancel_run(context, run_id, wanted.reason)
    return back_to(page, f"{HOME}/runs/{run_id}")


@router.post(f"{HOME}/runs/{{run_id}}/continue", name="POST /runs/{run_id}/continue")
def continue_run(context: Context, page: InPage, run_id: RunId, form: Form) -> Response:
    """Start a new run with what a failed run has left, and show it."""
    wanted = _read(Continuation, {name: value for name, value in form.items() if value})
    run, _ = starting.continue_run(context, run_id, wanted)
    return back_to(page, f"{HOME}/runs/{run.run_id}")


@router.post(f"{HOME}/runs/{{run_id}}/rebase", name="POST /runs/{run_id}/rebase")
def rebase(context: Context, page: InPage, run_id: RunId, form: Form) -> Response:
    """Make a run's branch again on today's base as a new run, and show it."""
    wanted = _read(RebaseWish, {name: value for name, value in form.items() if value})
    run, _ = rebasing.rebase_run(context, run_id, wanted)
    return back_to(page, f"{HOME}/runs/{run.run_id}")


@router.post(f"{HOME}/runs/{{run_id}}/rollback", name="POST /runs/{run_id}/rollback")
def rollback(context: Context, page: InPage, run_id: RunId, form: Form) -> Response:
    """Put the branch of a run that is over back to the end of a phase."""
    wanted = _read(Rollback, form)
    _require_reason(form)
    branches.rollback(context, run_id, wanted.to_phase, wanted.reason, None)
    return back_to(page, f"{HOME}/runs/{run_id}")


@router.post(
    f"{HOME}/runs/{{run_id}}/phases/{{phase_id}}/update_status",
    name="POST /runs/{run_id}/phases/{phase_id}/update_status",
)
def update_status(
    context: Context, page: InPage, run_id: RunId, phase_id: PhaseId, form: Form
) -> Response:
    """Set a phase by hand."""
    phases.update_status(context, run_id, phase_id, _read(StatusChange, form))
    return back_to(page, f"{HOME}/runs/{run_id}?phase={phase_id}#phase")


@router.post(f"{HOME}/attention/{{item}}/dismiss", name="POST /attention/{item}/dismiss")
def dismiss(context: Context, page: InPage, item: Item) -> Response:
    """Take a run that is over off the list of what needs a person."""
    attention.dismiss(context, item)
    return back_to(page, HOME)


@router.post(f"{HOME}/nodes/{{node_id}}/remove", name="DELETE /nodes/{node_id}")
def remove_node(context: Context, page: InPage, node_id: NodeId) -> Response:
    """Take a node that is gone off the list."""
    nodes.remove_node(context, node_id)
    return back_to(page, f"{HOME}#h-nodes")


def _require_reason(form: dict[str, str]) -> None:
    """Expect that a person who ends something says why. Raises HTTPException."""
    if not form.get("reason", "").strip():
        raise HTTPException(422, "reason: say why; the run's events contain it")


def _read(kind: type[Wanted], form: dict[str, str]) -> Wanted:
    """Read a form as the body of the API's operation. Raises HTTPException."""
    try:
        return TypeAdapter(kind).validate_python(form)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the form"
        raise HTTPException(422, f"{where}: {first['msg']}") from None
