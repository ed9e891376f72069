"""Agents that could not work: capacity is not failure. (docs/rules.md §3.2)

A rate limit, an exhausted quota or a missing program says nothing about the task. The lease ends
without a try, its clock stops, and the phase waits for the agent's capacity or for another agent.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Final

from .building import requeue
from .course import Course
from .events import wire_time
from .money import ZERO_USD, usd_text
from .reviewing import await_review
from .run import PhaseState
from .states import PhaseStatus
from .values import Role

_WAITING: Final = {Role.BUILDER: PhaseStatus.QUEUED, Role.AUDITOR: PhaseStatus.GATE}


@dataclass(frozen=True, slots=True, kw_only=True)
class Unavailable:
    """Why an agent could not work. `account` owns the limit that ends at `retry_at`."""

    reason: str
    retry_at: datetime | None = None
    account: str | None = None


def take_unavailable(
    course: Course,
    phase_id: str,
    role: Role,
    why: Unavailable,
    *,
    tokens: int = 0,
    cost: Decimal = ZERO_USD,
) -> None:
    """Take a phase back from an agent that could not work: no try is used, the phase waits.

    What the agent spent before it gave up is counted. A review gets its whole time anew, from
    when it can be made again; the run's own deadline bounds how often.
    """
    phase = course.phase(phase_id)
    data = {
        "role": role,
        "lease_id": phase.lease_id,
        "retry_at": wire_time(why.retry_at) if why.retry_at else None,
        "account": why.account,
        "tokens": tokens,
        "cost_usd": usd_text(cost),
    }
    course.release(phase_id)
    course.note("AgentUnavailable", phase_id=phase_id, reason=why.reason, data=data)
    course.count_tokens(phase_id, tokens, cost)
    if course.is_over:
        return
    said = f"the {role.capitalize()} was unavailable: {why.reason}"
    if role is Role.BUILDER:
        requeue(course, phase_id, said)
    else:
        await_review(course, phase_id, said, not_before=why.retry_at)
    if course.phase(phase_id).state is _WAITING[role]:  # its tokens may have spent all tries
        course.change_phase(
            phase_id,
            unavailable_reason=why.reason,
            retry_at=why.retry_at,
            retry_account=why.account,
        )


def must_wait(phase: PhaseState, account: str | None, now: datetime) -> bool:
    """Say whether a phase waits for capacity that an agent of this account lacks too.

    An agent that names another account than the one whose limit it is need not wait.
    """
    if phase.retry_at is None or phase.retry_at <= now:
        return False
    return phase.retry_account is None or account in (None, phase.retry_account)
