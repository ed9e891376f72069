"""Agents take work: leases, fences, reservations. (06)"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from .course import Course
from .errors import ConflictError
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
    """A phase that waits for an agent, and the tokens that a claim of it would reserve."""

    phase: PhaseState
    tokens: int


def find_claimable(course: Course, role: Role) -> Claimable | None:
    """Return what an agent of this role could take now; None when there is nothing.

    Nothing left of the run's tokens ends the run.
    """
    phase = course.next_phase()
    if course.is_over or phase is None or not _waits_for(phase, role):
        return None
    run = course.run
    left = run.token_cap - run.tokens_used - run.tokens_reserved
    if left > 0:
        return Claimable(phase, min(phase.incident_token_cap, left))
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
        course.change_phase(phase_id, deadline_at=deadline, fence=fence)
    run = course.run
    course.change_run(tokens_reserved=run.tokens_reserved + claimable.tokens)
    course.note(
        "LeaseGranted",
        phase_id=phase_id,
        data={
            "lease_id": lease_id,
            "role": role,
            "agent": agent,
            "fence": fence,
            "tokens_reserved": claimable.tokens,
        },
    )
    return course.change_phase(
        phase_id,
        lease_id=lease_id,
        lease_role=role,
        tokens_reserved=claimable.tokens,
        tokens_reported=0,
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


def beat(run: RunState, phase: PhaseState, tokens_reported: int) -> tuple[Directive, str]:
    """Say whether an agent that is at work may go on, and why not.

    What others have reserved is not its to spend.
    """
    others = run.tokens_reserved - phase.tokens_reserved
    if run.tokens_used + others + tokens_reported > run.token_cap:
        return Directive.STOP, f"run token_cap {run.token_cap} would be passed"
    if phase.tokens_used + tokens_reported > phase.incident_token_cap:
        return Directive.STOP, (
            f"incident_token_cap {phase.incident_token_cap} of the phase would be passed"
        )
    return Directive.CONTINUE, "the lease is extended"


def _waits_for(phase: PhaseState, role: Role) -> bool:
    if role is Role.BUILDER:
        return phase.state is PhaseStatus.QUEUED
    return (
        phase.state is PhaseStatus.GATE and phase.lease_id is None and phase.auditor_tries_left > 0
    )
