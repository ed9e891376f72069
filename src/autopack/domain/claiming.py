"""Agents take work: leases, fences, reservations. (06)"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from enum import StrEnum

from .capacity import must_wait
from .course import Course
from .errors import ConflictError
from .money import ZERO_USD, usd, usd_text
from .run import FailureCode, PhaseState, RunState
from .states import PhaseStatus
from .values import Role


class LeaseLostError(ConflictError):
    code = "lease_lost"


class LeaseHeldError(ConflictError):
    code = "lease_held"


class Directive(StrEnum):
    CONTINUE = "continue"
    STOP = "stop"


@dataclass(frozen=True, slots=True)
class Claimable:
    """A phase that waits for an agent, and what a claim of it would reserve."""

    phase: PhaseState
    tokens: int
    cost: Decimal


def find_claimable(course: Course, role: Role, account: str | None = None) -> Claimable | None:
    """Return what an agent of this role and account could take now; None when there is nothing.

    Nothing left of the run's tokens or money ends the run.
    """
    phase = course.next_phase()
    if course.is_over or phase is None or not _waits_for(phase, role):
        return None
    if must_wait(phase, account, course.now):
        return None
    run = course.run
    left = run.token_cap - run.tokens_used - run.tokens_reserved
    if left > 0:
        tokens = min(phase.incident_token_cap, left)
        cost = _cost_to_reserve(run, tokens)
        if cost is not None:
            return Claimable(phase, tokens, cost)
        if run.cost_cap_usd is not None and not run.cost_reserved_usd:
            course.end_failed(
                FailureCode.COST_CAP,
                f"run cost_cap_usd {usd_text(run.cost_cap_usd)} is used up: "
                f"{usd_text(run.cost_usd)} USD spent, none left for phase '{phase.phase_id}'",
            )
        return None
    if not run.tokens_reserved:
        course.end_failed(
            FailureCode.TOKEN_CAP,
            f"run token_cap {run.token_cap} is used up: {run.tokens_used} tokens used, "
            f"none left for phase '{phase.phase_id}'",
        )
    return None


def lease_end(course: Course, seconds: int) -> datetime:
    """Return until when a lease holds that begins now, or is kept now: no run outlasts its time."""
    return min(course.in_seconds(seconds), course.run.deadline_at)


def take_claim(
    course: Course,
    claimable: Claimable,
    role: Role,
    agent: str,
    lease_id: int,
    deadline: datetime | None,
    account: str | None = None,
) -> PhaseState:
    """Give a phase to an agent; a higher fence shuts out whoever held it before.

    The lease lapses at the deadline; a replay has none, the record says when it lapsed.
    """
    phase_id = claimable.phase.phase_id
    fence = claimable.phase.fence + 1
    if role is Role.BUILDER:
        course.move_phase(
            phase_id,
            PhaseStatus.EXECUTING,
            f"claimed by {agent}",
            deadline_at=deadline,
            fence=fence,
        )
    else:
        course.end_wait(phase_id)
        course.change_phase(phase_id, deadline_at=deadline, fence=fence)
    run = course.run
    course.change_run(
        tokens_reserved=run.tokens_reserved + claimable.tokens,
        cost_reserved_usd=run.cost_reserved_usd + claimable.cost,
    )
    course.note(
        "LeaseGranted",
        phase_id=phase_id,
        data={
            "lease_id": lease_id,
            "role": role,
            "agent": agent,
            "fence": fence,
            "tokens_reserved": claimable.tokens,
            **({"account": account} if account else {}),
        },
    )
    return course.change_phase(
        phase_id,
        lease_id=lease_id,
        lease_role=role,
        tokens_reserved=claimable.tokens,
        tokens_reported=0,
        cost_reserved_usd=claimable.cost,
        cost_reported_usd=ZERO_USD,
    )


def require_lease(phase: PhaseState, role: Role, lease_id: int | None, *, has_token: bool) -> None:
    """Refuse a result whose lease is not the phase's, or that has none while another holds one.

    `lease_id` is that of the token which came with the result, None when it is unknown.
    """
    if has_token and (lease_id is None or lease_id != phase.lease_id or phase.lease_role != role):
        raise LeaseLostError(
            f"the lease on phase '{phase.phase_id}' is not yours any more: it lapsed, was used, or "
            "the phase went on; claim again"
        )
    if not has_token and phase.lease_id is not None and phase.lease_role == role:
        raise LeaseHeldError(
            f"phase '{phase.phase_id}' is held by another agent's lease; claim it, or wait until "
            f"{phase.deadline_at:%Y-%m-%dT%H:%M:%SZ}"
        )


def beat(
    run: RunState, phase: PhaseState, tokens_reported: int, cost_reported: Decimal = ZERO_USD
) -> tuple[Directive, str]:
    """Say whether an agent that is at work may go on, and why not.

    Both figures are of this attempt so far. What others have reserved is not its to spend.
    """
    others = run.tokens_reserved - phase.tokens_reserved
    if run.tokens_used + others + tokens_reported > run.token_cap:
        return Directive.STOP, f"run token_cap {run.token_cap} would be passed"
    if phase.tokens_used + tokens_reported > phase.incident_token_cap:
        return Directive.STOP, (
            f"incident_token_cap {phase.incident_token_cap} of the phase would be passed"
        )
    others_cost = run.cost_reserved_usd - phase.cost_reserved_usd
    spent = run.cost_usd + others_cost + cost_reported
    if run.cost_cap_usd is not None and spent > run.cost_cap_usd:
        return Directive.STOP, f"run cost_cap_usd {usd_text(run.cost_cap_usd)} would be passed"
    return Directive.CONTINUE, "the lease is extended"


def _cost_to_reserve(run: RunState, tokens: int) -> Decimal | None:
    """Return what a claim reserves of the run's money, None when nothing is left of it.

    No phase has a cap of money, so a claim reserves the share of the run's that its tokens are of
    the run's tokens.
    """
    if run.cost_cap_usd is None:
        return ZERO_USD
    left = run.cost_cap_usd - run.cost_usd - run.cost_reserved_usd
    if left <= 0:
        return None
    return min(left, usd(run.cost_cap_usd * tokens / run.token_cap))


def _waits_for(phase: PhaseState, role: Role) -> bool:
    if role is Role.BUILDER:
        return phase.state is PhaseStatus.QUEUED
    return (
        phase.state is PhaseStatus.GATE and phase.lease_id is None and phase.auditor_tries_left > 0
    )
