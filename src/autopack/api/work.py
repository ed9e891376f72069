"""Work: claims, heartbeats and releases by agents."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Body, Query, Response
from pydantic import Field

from ..domain.money import ZERO_USD
from ..domain.results import ACCOUNT_MEANING, TOKENS_MEANING
from ..domain.terms import Role
from ..domain.values import Closed, Count, Usd, Word
from ..services import claiming
from ..services.claiming import Claim, Claimed, Release
from ..views.work import WAITS_HEADER, HeartbeatAnswer, ReleaseAnswer, WorkItemAnswer
from .bodies import StrictRoute
from .errors import problems
from .examples import CLAIM, HEARTBEAT, RELEASE, example
from .inputs import ClaimKey, Context, IdempotencyKey, PhaseId, RunId
from .replies import mark_repeat, reply

router = APIRouter(tags=["work"], route_class=StrictRoute)

NOTHING: dict[int | str, dict[str, Any]] = {204: {"description": "No work now"}}
NOT_OFFERED: dict[int | str, dict[str, Any]] = {
    204: {
        "description": "No work now",
        "headers": {
            WAITS_HEADER: {
                "description": "Why a review was not given: it waits for another Auditor.",
                "schema": {"type": "string"},
            }
        },
    }
}


class Heartbeat(Closed):
    lease_token: Word
    tokens_used: Annotated[Count, Field(description=TOKENS_MEANING)] = 0
    cost_usd: Annotated[Usd, Field(description="Cost of this attempt so far.")] = ZERO_USD


ClaimBody = Annotated[Claim, Body(openapi_examples=example(CLAIM, "A Builder claims work"))]


@router.post(
    "/runs/{run_id}/claim",
    response_model=WorkItemAnswer,
    responses={**NOT_OFFERED, **problems(404, 409, 413, 422, 503)},
    summary="Claim the next work item of a run",
)
def claim(
    context: Context,
    response: Response,
    run_id: RunId,
    wanted: ClaimBody,
    idempotency_key: ClaimKey = None,
) -> object:
    """200 with a work item and a lease on it, 204 when there is no work now.

    409 `run_over` when there will be none. With a key, the same claim gets its lease again, as long
    as it lasts; then 409 `lease_lost`. That does not extend the lease, so send a heartbeat at once.
    After 204 the same key may ask again.
    """
    return _answer(response, claiming.claim(context, run_id, wanted, idempotency_key))


@router.post(
    "/claim",
    response_model=WorkItemAnswer,
    responses={**NOT_OFFERED, **problems(409, 413, 422, 503)},
    summary="Claim the next work item of any run",
)
def claim_any(
    context: Context,
    response: Response,
    wanted: ClaimBody,
    idempotency_key: ClaimKey = None,
) -> object:
    """Over all live runs, the oldest first; any number of agents may claim at the same time.

    A key works as in a claim of one run. It counts over all runs, apart from the keys of each run.
    """
    return _answer(response, claiming.claim_any(context, wanted, idempotency_key))


def _answer(response: Response, claimed: Claimed) -> object:
    """Return the item, or 204 with the review that waits for another Auditor in a header."""
    if claimed.item is not None:
        mark_repeat(response, is_repeat=claimed.is_repeat)
        return claimed.item
    waits = claimed.waits and claimed.waits.encode("ascii", "backslashreplace").decode()
    return Response(status_code=204, headers={WAITS_HEADER: waits} if waits else None)


@router.get(
    "/runs/{run_id}/next_phase",
    response_model=WorkItemAnswer,
    responses={**NOTHING, **problems(404, 409, 422, 503)},
    summary="Show the next work item",
)
def next_phase(
    context: Context,
    run_id: RunId,
    role: Annotated[Role, Query(description="Name of the agent that would claim.")] = Role.BUILDER,
    account: Annotated[Word | None, Query(description=ACCOUNT_MEANING)] = None,
) -> object:
    """The work item that a claim would return, without a lease; nothing changes."""
    item = claiming.peek(context, run_id, role, account)
    return item if item is not None else Response(status_code=204)


@router.post(
    "/runs/{run_id}/phases/{phase_id}/heartbeat",
    response_model=HeartbeatAnswer,
    responses=problems(404, 409, 413, 422, 503),
    summary="Keep a lease",
)
def heartbeat(
    context: Context,
    run_id: RunId,
    phase_id: PhaseId,
    given: Annotated[Heartbeat, Body(openapi_examples=example(HEARTBEAT, "Still working"))],
) -> object:
    """`stop` when the run ended, the budget is used up or the lease was lost.

    The token in the example is not valid, so the answer is `stop`.
    """
    return claiming.heartbeat(
        context, run_id, phase_id, given.lease_token, given.tokens_used, given.cost_usd
    )


@router.post(
    "/runs/{run_id}/phases/{phase_id}/release",
    response_model=ReleaseAnswer,
    responses=problems(404, 409, 413, 422, 503),
    summary="Give a lease back",
)
def release(
    context: Context,
    response: Response,
    run_id: RunId,
    phase_id: PhaseId,
    given_back: Annotated[
        Release, Body(openapi_examples=example(RELEASE, "The account's quota is used up"))
    ],
    idempotency_key: IdempotencyKey = None,
) -> object:
    """For an agent that cannot work now: no try is used, and the phase waits until `retry_at`.

    Agents that claim with another `account` need not wait. The token in the example is not valid,
    so it is refused.
    """
    answer = claiming.release(context, run_id, phase_id, given_back, idempotency_key)
    return reply(response, answer)
