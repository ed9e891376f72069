"""What the clock does to a run: every wait has a deadline. (rules §3)"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal

from .building import fail_attempt
from .consequences import count_tokens, end_failed
from .decision import Decision
from .errors import ConflictError
from .events import AuditLapsed, LeaseLapsed
from .judging import fail_unjudged
from .money import ZERO_USD
from .reviewing import fail_review
from .run import FailureCode, PhaseState
from .states import PhaseStatus


class NotHeldError(ConflictError):
    code = "not_held"


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lapse:
    """A lease lapsed, according to a record; a backtest has no clock of its own."""

    phase_id: str
    lease_id: int
    tokens_reported: int
    cost_reported: Decimal = ZERO_USD


def pass_time(decision: Decision, _: Tick) -> None:
    """End every wait whose deadline has passed: of the run, attempts, reviews, CI. (rules §3)"""
    run = decision.state
    if run.is_over:
        return
    if decision.now >= run.deadline_at:
        _end_overdue(decision)
        return
    for phase in run.phases:
        if phase.deadline_at is None or decision.now < phase.deadline_at:
            continue
        if decision.phase(phase.phase_id).state is not phase.state:  # an earlier one ended the run
            continue
        if phase.state is PhaseStatus.CI_RUNNING:
            fail_unjudged(decision, phase.phase_id, "it returned no verdict in time")
        else:
            _lapse(decision, phase, phase.tokens_reported, phase.cost_reported_usd)


def _end_overdue(decision: Decision) -> None:
    """End a run whose deadline has passed; a lack of agents' capacity is named as the cause."""
    run = decision.state
    late = (decision.now - run.deadline_at).total_seconds() / 60
    passed = (
        f"max_duration_minutes {run.max_duration_minutes} passed: the run was not over after "
        f"{run.max_duration_minutes + late:.1f} minutes"
    )
    waiting = next((phase for phase in run.phases if phase.unavailable_reason is not None), None)
    if waiting is None:
        end_failed(decision, FailureCode.DURATION_CAP, passed)
    else:
        end_failed(
            decision,
            FailureCode.AGENTS_UNAVAILABLE,
            f"no agent was available for phase '{waiting.phase_id}': "
            f"{waiting.unavailable_reason}; {passed}",
        )


def accept_lapse(decision: Decision, lapse: Lapse) -> None:
    """Let a lease lapse that a record names. Raises NotHeldError if the phase has another."""
    phase = decision.phase(lapse.phase_id)
    if phase.lease_id != lapse.lease_id:
        raise NotHeldError(f"phase '{lapse.phase_id}' is not held by lease {lapse.lease_id}")
    _lapse(decision, phase, lapse.tokens_reported, lapse.cost_reported)


def _lapse(
    decision: Decision, phase: PhaseState, tokens_reported: int, cost_reported: Decimal
) -> None:
    """End an attempt or a review whose deadline has passed; it uses one try of its role.

    Its tokens and cost are those of the last heartbeat.
    """
    phase_id = phase.phase_id
    is_attempt = phase.state is PhaseStatus.EXECUTING
    lapsed = LeaseLapsed if is_attempt else AuditLapsed
    decision.record(
        lapsed(
            phase_id=phase_id,
            lease_id=phase.lease_id,
            tokens_reported=tokens_reported,
            cost_reported_usd=cost_reported,
        )
    )
    count_tokens(decision, phase_id, tokens_reported, cost_reported)
    if decision.state.is_over:
        return
    if is_attempt:
        fail_attempt(decision, phase_id, "the attempt's lease lapsed")
    else:
        fail_review(decision, phase_id, "the audit's deadline lapsed")
