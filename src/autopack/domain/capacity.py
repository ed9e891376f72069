"""Agents that could not work: capacity is not failure. (rules §3)

A rate limit, an exhausted quota or a missing program says nothing about the task. The lease ends
without a try, its clock stops, and the phase waits for the agent's capacity or for another agent.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Final

from .building import open_attempt, requeue
from .consequences import count_tokens
from .decision import Decision
from .events import AgentUnavailable, CapacityAwaited
from .money import ZERO_USD
from .reviewing import await_review, require_reviewable
from .run import PhaseState
from .states import PhaseStatus
from .terms import Role

_WAITING: Final = {Role.BUILDER: PhaseStatus.QUEUED, Role.AUDITOR: PhaseStatus.GATE}


@dataclass(frozen=True, slots=True, kw_only=True)
class Unavailable:
    """An agent could not work. `account` owns the limit that ends at `retry_at`.

    `tokens` and `cost` are what it spent before it gave up.
    """

    phase_id: str
    role: Role
    reason: str
    retry_at: datetime | None = None
    account: str | None = None
    tokens: int = 0
    cost: Decimal = ZERO_USD


def accept_unavailable(decision: Decision, given: Unavailable) -> None:
    """Take a phase back from an agent that could not work: no try is used, the phase waits.

    What the agent spent before it gave up is counted. A review gets its whole time anew, from
    when it can be made again; the run's own deadline bounds how often. Raises RunOverError,
    WrongStateError, PhaseNotNextError.
    """
    phase_id = given.phase_id
    if given.role is Role.BUILDER:
        open_attempt(decision, phase_id)
    else:
        require_reviewable(decision.state, phase_id)
    decision.record(
        AgentUnavailable(
            phase_id=phase_id,
            reason=given.reason,
            role=given.role,
            lease_id=decision.phase(phase_id).lease_id,
            retry_at=given.retry_at,
            account=given.account,
            tokens=given.tokens,
            cost_usd=given.cost,
        )
    )
    count_tokens(decision, phase_id, given.tokens, given.cost)
    if decision.state.is_over:
        return
    said = f"the {given.role.capitalize()} was unavailable: {given.reason}"
    if given.role is Role.BUILDER:
        requeue(decision, phase_id, said)
    else:
        await_review(decision, phase_id, said, not_before=given.retry_at)
    if (
        decision.phase(phase_id).state is _WAITING[given.role]
    ):  # its tokens may have spent all tries
        decision.record(
            CapacityAwaited(
                phase_id=phase_id,
                reason=given.reason,
                retry_at=given.retry_at,
                account=given.account,
            )
        )


def must_wait(phase: PhaseState, account: str | None, now: datetime) -> bool:
    """Say whether a phase waits for capacity that an agent of this account lacks too.

    An agent that names another account than the one whose limit it is need not wait.
    """
    if phase.retry_at is None or phase.retry_at <= now:
        return False
    return phase.retry_account is None or account in (None, phase.retry_account)
