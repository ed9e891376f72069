"""Agents that could not work: missing capacity is not a failed attempt. (rules §3.2)

A rate limit, an exhausted quota or a missing program says nothing about the task. The lease ends
and uses no try, its deadline is removed, and the phase waits for the agent's capacity or for
another agent.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Final

from .building import give_next_try, open_attempt
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

    `tokens` and `cost` are what it spent before it stopped.
    """

    phase_id: str
    role: Role
    reason: str
    retry_at: datetime | None = None
    account: str | None = None
    tokens: int = 0
    cost: Decimal = ZERO_USD
    is_measured: bool = False


def accept_unavailable(decision: Decision, given: Unavailable) -> None:
    """Take a phase back from an agent that could not work: it uses no try, and the phase waits.

    What the agent spent before it stopped is counted. A review gets its whole time again, from the
    time when an Auditor can work; only the run's own deadline limits how often. Raises
    RunOverError, WrongStateError, PhaseNotNextError.
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
            is_measured=given.is_measured,
        )
    )
    count_tokens(decision, phase_id, given.tokens, given.cost, is_measured=given.is_measured)
    if decision.state.is_over:
        return
    reason = f"the {given.role.capitalize()} was unavailable: {given.reason}"
    if given.role is Role.BUILDER:
        give_next_try(decision, phase_id, reason)
    else:
        await_review(decision, phase_id, reason, not_before=given.retry_at)
    if (
        decision.phase(phase_id).state is _WAITING[given.role]
    ):  # counting its tokens may have failed the phase
        decision.record(
            CapacityAwaited(
                phase_id=phase_id,
                reason=given.reason,
                retry_at=given.retry_at,
                account=given.account,
            )
        )


def must_wait(phase: PhaseState, account: str | None, now: datetime) -> bool:
    """Return whether a phase waits for capacity that agents of this account do not have either.

    An agent that names another account than the one that reached its limit need not wait. An agent
    without an account must wait, since the limit may be its own.
    """
    if phase.retry_at is None or phase.retry_at <= now:
        return False
    return phase.retry_account is None or account in (None, phase.retry_account)
