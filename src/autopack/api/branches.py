"""Branches: their state, their difference, a patch check, and the rollback."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Body, Query, Response

from ..domain.results import PatchCheck
from ..domain.values import Closed, Identifier, Text
from ..services import branches
from ..views.branches import IntegrationStatusAnswer, PatchCheckAnswer, RollbackAnswer
from .bodies import StrictRoute
from .errors import problem_document, problems
from .examples import PATCH_CHECK, ROLLBACK, example
from .inputs import Context, IdempotencyKey, RunId
from .replies import reply

router = APIRouter(tags=["branches"], route_class=StrictRoute)


class Rollback(Closed):
    to_phase: Identifier
    reason: Text = ""


@router.get(
    "/runs/{run_id}/integration_status",
    responses=problems(404, 422, 503),
    summary="Compare a run's branch with the base branch",
)
def integration_status(context: Context, run_id: RunId) -> IntegrationStatusAnswer:
    """`mergeable` is the result of a merge in memory; `conflicts` lists the paths in conflict."""
    return branches.integration_status(context, run_id)


@router.get(
    "/runs/{run_id}/diff",
    response_class=Response,
    responses={
        200: {
            "description": "A git patch",
            "content": {"text/x-diff": {"schema": {"type": "string"}}},
        },
        **problems(404, 422, 503),
    },
    summary="Read the difference of a run's branch",
)
def diff(
    context: Context,
    run_id: RunId,
    phase_id: Annotated[Identifier | None, Query(description="Only this phase's changes.")] = None,
) -> Response:
    """The difference from the run's base commit to its head, as a patch that git applies."""
    return Response(
        branches.diff(context, run_id, phase_id), media_type="text/x-diff; charset=utf-8"
    )


@router.post(
    "/runs/{run_id}/patch_check",
    response_model_exclude_none=True,
    responses=problems(404, 413, 422, 503),
    summary="Check a patch without submitting it",
)
def patch_check(
    context: Context,
    run_id: RunId,
    check: Annotated[PatchCheck, Body(openapi_examples=example(PATCH_CHECK, "A new file"))],
) -> PatchCheckAnswer:
    """Checks the policy and applies the patch to the branch's head without storing the result.

    Nothing is recorded and no try is used.
    """
    answer, refusal = branches.check_patch(context, run_id, check)
    if refusal is not None:
        answer.problem = problem_document(refusal)
    return answer


@router.post(
    "/runs/{run_id}/rollback",
    response_model=RollbackAnswer,
    responses=problems(404, 409, 410, 413, 422, 503),
    summary="Reset a finished run's branch to a snapshot",
)
def rollback(
    context: Context,
    response: Response,
    run_id: RunId,
    wanted: Annotated[Rollback, Body(openapi_examples=example(ROLLBACK, "Back to a phase"))],
    idempotency_key: IdempotencyKey = None,
) -> object:
    """Adds a commit with the snapshot's tree; the run becomes ineligible for promotion."""
    answer = branches.rollback(context, run_id, wanted.to_phase, wanted.reason, idempotency_key)
    return reply(response, answer)
