"""How agents claim work: leases, fences, reservations. (rules §4)"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from enum import StrEnum

from .capacity import must_wait
from .consequences import end_failed
from .decision import Decision
from .errors import ConflictError
from .events import SUPERVISOR, LeaseGranted, PhaseStarted
from .independence import has_approved, identity_of, why_not_reviewer
from .money import MAX_USD, ZERO_USD, usd, usd_text
from .order import in_order, is_alone, may_start
from .run import FailureCode, PhaseState, RunState
from .states import PhaseStatus
from .terms import Role


class LeaseLostError(ConflictError):
    code = "lease_lost"


class LeaseHeldError(ConflictError):
    code = "lease_held"


class Directive(StrEnum):
    CONTINUE = "continue"
    STOP = "stop"


@dataclass(frozen=True, slots=True)
class Claimable:
    """A phase that waits for an agent, and the tokens and cost that a claim would reserve."""

    phase: PhaseState
    tokens: int
    cost: Decimal


@dataclass(frozen=True, slots=True)
class WorkAsked:
    """An agent asks for work. `account` owns the limits that it shares with other agents."""

    role: Role
    account: str | None = None
    model: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseClaim:
    """An agent takes a phase. The lease lapses at the deadline.

    A backtest gives no deadline: the record contains when the lease lapsed.
    """

    phase_id: str
    role: Role
    agent: str
    lease_id: int
    account: str | None = None
    model: str | None = None
    deadline_at: datetime | None


def find_claimable(
    run: RunState, asked: WorkAsked, now: datetime, actor: str = SUPERVISOR
) -> Claimable | None:
    """Return what an agent of this role, account and model can claim now; None: nothing."""
    phase = _waiting_phase(run, asked, now, actor)
    tokens_left = _tokens_left(run)
    if phase is None or tokens_left <= 0:
        return None
    tokens = min(phase.incident_token_cap, tokens_left)
    cost = _cost_to_reserve(run, phase, tokens)
    return None if cost is None else Claimable(phase, tokens, cost)


def ask_for_work(decision: Decision, asked: WorkAsked) -> None:
    """End a run that has a phase for the agent, but no tokens or no money left for it.

    What other agents have reserved may be released again, so the run waits for it and does not end.
    Raises RunOverError.
    """
    decision.require_live()
    run = decision.state
    phase = _waiting_phase(run, asked, decision.now, decision.actor)
    if phase is None:
        return
    if _tokens_left(run) <= 0 and not run.tokens_reserved:
        end_failed(
            decision,
            FailureCode.TOKEN_CAP,
            f"run token_cap {run.token_cap} is used up: {run.tokens_used} tokens used, "
            f"none left for phase '{phase.phase_id}'",
        )
    elif cost_left(run) <= 0 and run.cost_cap_usd is not None and not run.cost_reserved_usd:
        end_failed(
            decision,
            FailureCode.COST_CAP,
            f"run cost_cap_usd {usd_text(run.cost_cap_usd)} is used up: "
            f"{usd_text(run.cost_usd)} USD spent, none left for phase '{phase.phase_id}'",
        )


def lease_end(run: RunState, now: datetime, seconds: int) -> datetime:
    """Return when a lease ends that starts or is extended now: never after the run's deadline."""
    return min(now + timedelta(seconds=seconds), run.deadline_at)


def accept_claim(decision: Decision, claim: PhaseClaim) -> None:
    """Give a phase to an agent. The higher fence makes every earlier lease on it invalid.

    Raises RunOverError, LeaseLostError when the phase cannot be claimed now.
    """
    decision.require_live()
    asked = WorkAsked(claim.role, claim.account, claim.model)
    found = find_claimable(decision.state, asked, decision.now, decision.actor)
    if found is None or found.phase.phase_id != claim.phase_id:
        raise LeaseLostError(f"phase '{claim.phase_id}' cannot be claimed now")
    fence = found.phase.fence + 1
    if claim.role is Role.BUILDER:
        decision.record(
            PhaseStarted(
                phase_id=claim.phase_id,
                reason=f"claimed by {claim.agent}",
                deadline_at=claim.deadline_at,
            )
        )
    decision.record(
        LeaseGranted(
            phase_id=claim.phase_id,
            lease_id=claim.lease_id,
            role=claim.role,
            agent=claim.agent,
            fence=fence,
            tokens_reserved=found.tokens,
            cost_reserved_usd=found.cost,
            account=claim.account,
            model=claim.model,
            deadline_at=claim.deadline_at,
        )
    )


def why_not_offered(run: RunState, asked: WorkAsked, actor: str) -> str | None:
    """Say which review waits for another Auditor than this one, and why; None: none does."""
    if run.is_over or asked.role is not Role.AUDITOR:
        return None
    return next(
        (why for each in _waiting(run, asked.role) if (why := _why(each, asked, actor))), None
    )


def _why(phase: PhaseState, asked: WorkAsked, actor: str) -> str | None:
    """Say why a review is not for this Auditor; None: it is, or it is no review."""
    if asked.role is not Role.AUDITOR:
        return None
    why = why_not_reviewer(phase, actor, asked.model)
    if why is None and has_approved(phase, actor):
        why = f"{identity_of(actor) or 'an Auditor without a name'} has approved it"
    return None if why is None else f"{phase.phase_id} waits for another Auditor: {why}"


def _waiting_phase(run: RunState, asked: WorkAsked, now: datetime, actor: str) -> PhaseState | None:
    """Return the first phase that this agent can take now. (rules §2.7)"""
    if run.is_over:
        return None
    for phase in _waiting(run, asked.role):
        if _why(phase, asked, actor) is None and not must_wait(phase, asked.account, now):
            return phase
    return None


def _tokens_left(run: RunState) -> int:
    return run.token_cap - run.tokens_used - run.tokens_reserved


def cost_left(run: RunState, holder: str | None = None) -> Decimal:
    """Return the money that is left of a run's cap; a run without a cap always has some left.

    What agents have reserved is not left, nor what they report beyond that. `holder`: the phase
    whose own agent asks.
    """
    if run.cost_cap_usd is None:
        return MAX_USD
    held = (
        max(phase.cost_reserved_usd, phase.cost_reported_usd)
        for phase in run.phases
        if phase.lease_id is not None and phase.phase_id != holder
    )
    return run.cost_cap_usd - run.cost_usd - sum(held, ZERO_USD)


def _cost_to_reserve(run: RunState, phase: PhaseState, tokens: int) -> Decimal | None:
    """Return the money that a claim reserves, in USD; None when nothing of the run's cap is left.

    A phase has no cap of money. So a claim beside others reserves the same share of the run's
    money as it reserves of the run's tokens. One that no other may be beside reserves what is left.
    """
    if run.cost_cap_usd is None:
        return ZERO_USD
    left = cost_left(run)
    if left <= 0:
        return None
    if is_alone(run, phase.phase_id):
        return left
    return min(left, usd(run.cost_cap_usd * tokens / run.token_cap))


def require_lease(phase: PhaseState, role: Role, lease_id: int | None, *, has_token: bool) -> None:
    """Refuse a result with a lost lease, or without one while another agent holds the phase.

    `lease_id` belongs to the lease token of the result; None when the token is unknown.
    """
    if has_token and (lease_id is None or lease_id != phase.lease_id or phase.lease_role != role):
        raise LeaseLostError(
            f"the lease on phase '{phase.phase_id}' is not valid any more: it lapsed, was used, or "
            "the phase moved on; claim again"
        )
    if not has_token and phase.lease_id is not None and phase.lease_role == role:
        raise LeaseHeldError(
            f"phase '{phase.phase_id}' is held by another agent's lease; claim it, or wait until "
            f"{phase.deadline_at:%Y-%m-%dT%H:%M:%SZ}"
        )


def directive_for(
    run: RunState, phase: PhaseState, tokens_reported: int, cost_reported: Decimal = ZERO_USD
) -> tuple[Directive, str]:
    """Return whether an agent that holds a lease may continue, and why not.

    Both figures are of this attempt so far. It may not spend what other agents have reserved, or
    report as spent.
    """
    others = run.tokens_reserved - phase.tokens_reserved
    if run.tokens_used + others + tokens_reported > run.token_cap:
        return Directive.STOP, f"run token_cap {run.token_cap} would be passed"
    if phase.tokens_used + tokens_reported > phase.incident_token_cap:
        return Directive.STOP, (
            f"incident_token_cap {phase.incident_token_cap} of the phase would be passed"
        )
    if run.cost_cap_usd is not None and cost_reported > cost_left(run, phase.phase_id):
        return Directive.STOP, f"run cost_cap_usd {usd_text(run.cost_cap_usd)} would be passed"
    return Directive.CONTINUE, "the lease is extended"


def _waiting(run: RunState, role: Role) -> list[PhaseState]:
    """Return the phases that wait for an agent of a role, in order."""
    if role is Role.BUILDER:
        return may_start(run)
    return [
        phase
        for phase in in_order(run.phases)
        if phase.state is PhaseStatus.GATE
        and phase.lease_id is None
        and phase.auditor_tries_left > 0
    ]
