"""Results that agents post."""

from __future__ import annotations

from typing import Annotated, Final

from fastapi import APIRouter, Body, Path, Response

from ..domain.results import AuditorReport, AuditRequest, BuilderReport
from ..services import building, phase_reports, reviewing
from ..views.results import (
    AttemptsAnswer,
    AuditorResultAnswer,
    AuditRequestAnswer,
    BuilderResultAnswer,
)
from .bodies import StrictRoute
from .errors import problems
from .examples import AUDITOR_REQUEST, AUDITOR_RESULT, BUILDER_RESULT, example
from .inputs import Context, IdempotencyKey, PhaseId, RunId
from .replies import reply

router = APIRouter(tags=["results"], route_class=StrictRoute)


# A request for a review without a body: every field has a default.
DEFAULT_REVIEW: Final = AuditRequest()


@router.post(
    "/runs/{run_id}/phases/{phase_id}/builder_result",
    response_model=BuilderResultAnswer,
    responses=problems(404, 409, 410, 413, 422, 503),
    summary="Submit a Builder's result",
)
def builder_result(
    context: Context,
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
    answer = building.submit_builder_result(context, run_id, phase_id, report, idempotency_key)
    return reply(response, answer)


@router.post(
    "/runs/{run_id}/phases/{phase_id}/auditor_request",
    status_code=202,
    response_model=AuditRequestAnswer,
    responses=problems(404, 409, 410, 413, 422, 503),
    summary="Request a review",
)
def auditor_request(
    context: Context,
    response: Response,
    run_id: RunId,
    phase_id: PhaseId,
    request: Annotated[
        AuditRequest, Body(openapi_examples=example(AUDITOR_REQUEST, "A review of security"))
    ] = DEFAULT_REVIEW,
    idempotency_key: IdempotencyKey = None,
) -> object:
    """The phase does not pass its next gate without an Auditor's approval.

    For a phase that is final the request has no effect on the rules.
    """
    answer = reviewing.request_review(context, run_id, phase_id, request, idempotency_key)
    return reply(response, answer)


@router.post(
    "/runs/{run_id}/phases/{phase_id}/auditor_result",
    response_model=AuditorResultAnswer,
    responses=problems(404, 409, 410, 413, 422, 503),
    summary="Submit an Auditor's result",
)
def auditor_result(
    context: Context,
    response: Response,
    run_id: RunId,
    phase_id: PhaseId,
    report: Annotated[AuditorReport, Body(openapi_examples=example(AUDITOR_RESULT, "An approval"))],
    idempotency_key: IdempotencyKey = None,
) -> object:
    """`approve` applies a pending patch, then the Auditor's own; `revise` sends the phase back to
    the Builder; `escalate` fails it. Several patches are applied all or none.
    """
    answer = reviewing.submit_auditor_result(context, run_id, phase_id, report, idempotency_key)
    return reply(response, answer)


@router.get(
    "/runs/{run_id}/phases/{phase_id}/attempts",
    responses=problems(404, 422, 503),
    summary="Read what agents posted to a phase",
)
def attempts(context: Context, run_id: RunId, phase_id: PhaseId) -> AttemptsAnswer:
    """Each submission of a Builder or an Auditor and its result, oldest first.

    Attempts that lapsed have no submission: `GET /runs/{run_id}/timeline` shows them.
    """
    return phase_reports.list_attempts(context, run_id, phase_id)


@router.get(
    "/runs/{run_id}/patches/{patch_id}",
    response_class=Response,
    responses={
        200: {
            "description": "The patch as it was sent",
            "content": {"text/x-diff": {"schema": {"type": "string"}}},
        },
        **problems(404, 410, 422, 503),
    },
    summary="Read a patch that an agent sent",
)
def patch(
    context: Context,
    run_id: RunId,
    patch_id: Annotated[
        int,
        Path(
            ge=1,
            le=2**63 - 1,
            description="From an attempt's `patches`.",
            openapi_examples={"first": {"value": 1}},
        ),
    ],
) -> Response:
    """A patch: applied, pending, discarded or refused; secrets in a refused one are redacted."""
    content = phase_reports.read_patch(context, run_id, patch_id)
    return Response(content, media_type="text/x-diff; charset=utf-8")
