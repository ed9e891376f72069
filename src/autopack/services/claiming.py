"""Claims, heartbeats and releases of work by agents. (rules §4)"""

from __future__ import annotations

import secrets
from contextlib import AbstractContextManager
from dataclasses import dataclass
from decimal import Decimal
from typing import Annotated, Final

import structlog
from pydantic import AwareDatetime, Field
from sqlalchemy.exc import DBAPIError

from ..domain import claiming
from ..domain.capacity import Unavailable
from ..domain.claiming import Directive, LeaseLostError
from ..domain.deadlines import Tick
from ..domain.deciding import decide
from ..domain.decision import RunOverError, require_live
from ..domain.errors import AutopackError
from ..domain.evolve import fold
from ..domain.limits import TooManyClaimsError
from ..domain.money import ZERO_USD
from ..domain.redaction import redacted
from ..domain.results import ACCOUNT_MEANING, MODEL_MEANING
from ..domain.run import PhaseState
from ..domain.terms import Role
from ..domain.values import Closed, Text, Word
from ..models import Lease, Phase
from ..store import leases, replies, runs
from ..store.session import RowSession
from ..views.work import HeartbeatAnswer, LeaseAnswer, ReleaseAnswer, WorkItemAnswer
from .after_commit import ProjectionLaggingError
from .change import RunChange
from .context import AppContext
from .opening import changing, changing_locked, session_for_locks
from .replies import (
    Answer,
    Once,
    changing_once,
    key_scope,
    key_scope_of_all_runs,
    lease_scope,
    once,
)
from .settling import settle
from .work_items import work_item

# Leases last minutes: a key at its limit need not ask more often.
CLAIM_RETRY_SECONDS: Final = 5

logger = structlog.get_logger(__name__)


class Claim(Closed):
    """A request for work."""

    role: Role
    agent: Word
    lease_seconds: Annotated[int, Field(strict=True, ge=1, le=86_400)] = 900
    account: Annotated[Word | None, Field(description=ACCOUNT_MEANING)] = None
    model: Annotated[Word | None, Field(description=MODEL_MEANING)] = None


class Release(Closed):
    """A release: the agent cannot do the work, and no try is used."""

    lease_token: Word
    reason: Text | None = None
    retry_at: Annotated[
        AwareDatetime | None, Field(description="When the agent can work again.")
    ] = None
    account: Annotated[Word | None, Field(description=ACCOUNT_MEANING)] = None


@dataclass(frozen=True, slots=True)
class Claimed:
    """The work item of a claim, None when there is none now.

    `waits`: which review waits for another Auditor than this one, and why. `is_repeat`: the same
    claim got the lease before.
    """

    item: WorkItemAnswer | None
    waits: str | None = None
    is_repeat: bool = False


def claim(
    context: AppContext, run_id: str, wanted: Claim, idempotency_key: str | None = None
) -> Claimed:
    """Give an agent the run's next work item, if there is one now. (rules §4)

    Raises RunOverError when the run is over, also when this claim ended it because no budget is
    left; MissingRoleError for a key without the claimed role; LeaseLostError when the claim with
    this key had a lease that has ended.
    """
    context = context.for_caller(context.caller.claiming(wanted.role))
    identity = _identify(context, wanted, key_scope(idempotency_key))
    claimed, change = _claim(changing(context, run_id), wanted, identity)
    if claimed.item is None:
        require_live(change.state)
    return claimed


def claim_any(context: AppContext, wanted: Claim, idempotency_key: str | None = None) -> Claimed:
    """Give an agent the next work item of the oldest run that has one.

    Runs that another process has locked are skipped, and so are runs with an error: a claim of that
    run itself gets the error. Raises MissingRoleError and LeaseLostError as `claim` does.
    """
    context = context.for_caller(context.caller.claiming(wanted.role))
    scope = key_scope_of_all_runs(idempotency_key)
    identity = _identify(context, wanted, scope)
    with session_for_locks(context) as session:
        if scope is None:
            return _claim_next(context, session, wanted, identity)
        with runs.claim_key_lock(session, scope):
            run_id = replies.find_run_of(session, scope)
            if run_id is None:
                return _claim_next(context, session, wanted, identity)
            with runs.run_lock(session, run_id):
                opened = changing_locked(context, session, run_id)
                claimed, _ = _claim(opened, wanted, identity)
                return claimed


def _claim_next(context: AppContext, session: RowSession, wanted: Claim, identity: Once) -> Claimed:
    """Claim work of one run after another, until one has some."""
    passed: list[str] = []
    waits: str | None = None
    while run_id := runs.lock_with_work(
        session, wanted.role, account=wanted.account, now=context.now(), passed=passed
    ):
        passed.append(run_id)
        try:
            with runs.unlocking(session, run_id):
                claimed, _ = _claim(changing_locked(context, session, run_id), wanted, identity)
        except RunOverError:
            continue
        except TooManyClaimsError:
            raise
        except AutopackError as error:
            logger.warning("run_passed_by", run_id=run_id, why=error.detail)
            continue
        except DBAPIError as error:
            if error.connection_invalidated:
                raise  # the database is away, for all runs
            logger.warning("run_passed_by", run_id=run_id, why=type(error.orig).__name__)
            continue
        if claimed.item is not None:
            return claimed
        waits = waits or claimed.waits
    return Claimed(None, waits)


def peek(
    context: AppContext, run_id: str, role: Role, account: str | None = None
) -> WorkItemAnswer | None:
    """Return the work item that a claim would return, without a lease; nothing changes.

    Also None while a deadline has passed and has not had its effect yet.
    """
    with context.reading() as session:
        run = runs.get_run(session, run_id)
        state, now = runs.read_state(run), context.now_in(run)
        ticked = decide(state, Tick(), now)
        require_live(ticked.state)
        asked = claiming.WorkAsked(role, account)
        found = claiming.find_claimable(state, asked, now, context.caller.actor)
        if found is None or ticked.events:
            require_live(fold(ticked.state, decide(state, asked, now).events))
            return None
        return work_item(context, session, run, state, found.phase, role)


def heartbeat(
    context: AppContext,
    run_id: str,
    phase_id: str,
    token: str,
    tokens_used: int,
    cost_usd: Decimal = ZERO_USD,
) -> HeartbeatAnswer:
    """Extend a lease, unless its agent must stop; return which of the two.

    An agent that must stop because of a budget keeps its lease's remaining time, to submit its
    result.
    """
    # Not `changing`: a heartbeat is no event and touches no branch or file, so the lock of the
    # run's row is enough. A change that holds the run's own lock locks the row too.
    with context.autocommitting() as session:
        run = runs.lock_run(session, run_id)
        phase = runs.get_phase(run, phase_id)
        lease = leases.find_lease(session, phase.id, token)
        now = context.now_in(run)
        if lease is not None and lease.id == phase.lease_id and now < lease.expires_at:
            state = runs.read_state(run)
            directive, reason = claiming.directive_for(
                state, state.phase(phase_id), tokens_used, cost_usd
            )
            expires_at = lease.expires_at
            if directive is Directive.CONTINUE:
                expires_at = max(expires_at, claiming.lease_end(state, now, lease.seconds))
            # Both are the same always: rules read the phase's, a lease's holder is told the other.
            lease.expires_at = phase.deadline_at = expires_at
            lease.heartbeat_at = now
            phase.tokens_reported, phase.cost_reported_usd = tokens_used, cost_usd
            session.commit()
            return HeartbeatAnswer(directive=directive, reason=reason, expires_at=expires_at)
    with changing(context, run_id) as change:  # may let the lease lapse
        reason = (
            f"the run is {change.run.state}"
            if change.state.is_over
            else "the lease was lost: it lapsed, was used, or the phase moved on"
        )
    return HeartbeatAnswer(directive=Directive.STOP, reason=reason, expires_at=None)


def release(
    context: AppContext,
    run_id: str,
    phase_id: str,
    given_back: Release,
    idempotency_key: str | None = None,
) -> Answer:
    """Release the lease of an agent that cannot do the work; no try is used. (rules §3.2)

    The tokens and cost of the last heartbeat are counted. Raises LeaseLostError, RunOverError.
    """
    identity = once(
        "release",
        {"phase_id": phase_id, "release": given_back.model_dump(mode="json")},
        [key_scope(idempotency_key), lease_scope(given_back.lease_token)],
    )
    given_back = redacted(given_back)
    with changing_once(context, run_id, identity) as turn:
        if turn.is_new:
            change = turn.change
            phase, state = change.phase(phase_id), change.phase_state(phase_id)
            role = state.lease_role or Role.BUILDER
            lease = check_lease(change, phase, role, given_back.lease_token)
            change.name_agent(lease.agent if lease else None)
            change.decide(
                Unavailable(
                    phase_id=phase_id,
                    role=role,
                    reason=given_back.reason or "the lease was released",
                    retry_at=given_back.retry_at,
                    account=given_back.account or (lease.account if lease else None),
                    tokens=state.tokens_reported,
                    cost=state.cost_reported_usd,
                )
            )
            settle(change)
            turn.answer(
                ReleaseAnswer(
                    message=f"the lease was released, no try is used; phase '{phase_id}' is "
                    f"{phase.state}",
                    phase_state=phase.state,
                    retry_at=phase.retry_at,
                )
            )
    return turn.result()


def check_lease(change: RunChange, phase: Phase, role: Role, token: str | None) -> Lease | None:
    """Return the lease a result comes with. Raises RunOverError, LeaseLostError, LeaseHeldError."""
    require_live(change.state)  # the run's end ended all leases, and is the better reason
    lease = leases.find_lease(change.session, phase.id, token) if token else None
    claiming.require_lease(
        change.phase_state(phase.phase_id),
        role,
        lease.id if lease is not None else None,
        has_token=token is not None,
    )
    return lease


def _identify(context: AppContext, wanted: Claim, scope: str | None) -> Once:
    """Identify a claim by its key; one without a key is new always.

    A lease is for the agent that got it, so no other one gets it by the same words and key.
    """
    request = {"claim": wanted.model_dump(mode="json"), "holder": context.caller.holder}
    return once("claim", request, [scope])


def _claim(
    opened: AbstractContextManager[RunChange], wanted: Claim, identity: Once
) -> tuple[Claimed, RunChange]:
    """Claim a run's work for an agent, and return the change.

    Only a lease uses the claim's key: an agent that found nothing, or was refused, asks again. A
    recorded lease is returned even if branch or files lag: the work waits for this agent.
    """
    item: WorkItemAnswer | None = None
    wanted = redacted(wanted)
    try:
        with opened as change:
            given = identity.find(change)
            if given is not None:
                return Claimed(_take_again(change, **given.body), is_repeat=True), change
            item = _take(change, wanted, identity)
            settle(change)
    except ProjectionLaggingError:
        if item is None:
            raise
    return Claimed(item, None if item else _why_not_offered(change, wanted)), change


def _why_not_offered(change: RunChange, wanted: Claim) -> str | None:
    asked = claiming.WorkAsked(wanted.role, wanted.account, wanted.model)
    why = claiming.why_not_offered(change.state, asked, change.actor)
    return None if why is None else f"run {change.run.run_id}: {why}"


def _require_free_claim(change: RunChange) -> None:
    """Refuse a claim by a key that holds as many leases as it may. Raises TooManyClaimsError."""
    caller = change.context.caller
    if caller.holder is None or caller.limits is None:
        return
    held = leases.count_open_of(change.session, f"{caller.holder}:")
    if held >= caller.limits.claims:
        raise TooManyClaimsError(
            f"{caller.holder} holds {held} leases already; submit or release one first",
            retry_after=CLAIM_RETRY_SECONDS,
        )


def _take(change: RunChange, wanted: Claim, identity: Once) -> WorkItemAnswer | None:
    role, now = wanted.role, change.now
    change.name_agent(wanted.agent)
    asked = claiming.WorkAsked(role, wanted.account, wanted.model)
    change.decide(asked)
    found = claiming.find_claimable(change.state, asked, now, change.actor)
    if found is None:
        return None
    _require_free_claim(change)
    token = secrets.token_urlsafe(32)
    phase = change.phase(found.phase.phase_id)
    lease = leases.add_lease(
        change.session,
        leases.LEASES.new(
            run_pk=change.run.id,
            phase_pk=phase.id,
            role=role,
            agent=wanted.agent,
            actor=change.actor,
            account=wanted.account,
            model=wanted.model,
            fence=found.phase.fence + 1,
            token_sha256=leases.hash_token(token),
            seconds=wanted.lease_seconds,
            expires_at=claiming.lease_end(change.state, now, wanted.lease_seconds),
        ),
    )
    change.decide(
        claiming.PhaseClaim(
            phase_id=phase.phase_id,
            role=role,
            agent=wanted.agent,
            lease_id=lease.id,
            account=wanted.account,
            model=wanted.model,
            deadline_at=lease.expires_at,
        )
    )
    identity.keep(change, {"phase_id": phase.phase_id, "lease_id": lease.id})
    return _leased(change, change.phase_state(phase.phase_id), lease, token)


def _take_again(change: RunChange, phase_id: str, lease_id: int) -> WorkItemAnswer:
    """Return the work item of a lease again, with a further token, as no token is stored.

    Raises LeaseLostError when the lease has ended.
    """
    state = change.phase_state(phase_id)
    if state.lease_id != lease_id:
        raise LeaseLostError(
            f"this claim got a lease on phase '{phase_id}' before, which has ended: it lapsed, was "
            "used, or the phase moved on; claim again with a new Idempotency-Key"
        )
    token = secrets.token_urlsafe(32)
    return _leased(change, state, leases.add_token(change.session, lease_id, token), token)


def _leased(change: RunChange, state: PhaseState, lease: Lease, token: str) -> WorkItemAnswer:
    item = work_item(change.context, change.session, change.run, change.state, state, lease.role)
    item.lease = LeaseAnswer(
        token=token,
        fence=lease.fence,
        expires_at=lease.expires_at,
        tokens_reserved=state.tokens_reserved,
        cost_reserved_usd=state.cost_reserved_usd,
    )
    return item
