"""What follows from a change of a phase: budgets, tiers, the run's state and its end.

(rules §3, §2.3)
"""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal

from .decision import Decision
from .events import (
    SUPERVISOR,
    BuilderTriesSpent,
    PhaseSkipped,
    RunEnded,
    RunStateChanged,
    TierCleanlinessChanged,
    TierStateChanged,
    TokensCounted,
)
from .money import ZERO_USD, usd_text
from .order import in_order
from .run import FAILURE_STATES, FailureCode, PhaseState, RunState
from .states import (
    Cleanliness,
    PhaseStatus,
    RunStatus,
    TierStatus,
    check_run_transition,
    check_tier_transition,
)
from .terms import RunScope


def count_tokens(
    decision: Decision,
    phase_id: str,
    tokens: int,
    cost: Decimal = ZERO_USD,
    *,
    is_measured: bool = False,
) -> None:
    """Add an attempt's tokens and cost to phase, tier and run; end a run whose cap is passed.

    Measured tokens count like others against every cap: the mark is for people. (rules §3.1)

    A phase that passes its incident cap loses all Builder tries that are left. (rules §3)
    """
    if not tokens and not cost:
        return
    decision.record(
        TokensCounted(phase_id=phase_id, tokens=tokens, cost_usd=cost, is_measured=is_measured)
    )
    run, phase = decision.state, decision.phase(phase_id)
    if run.tokens_used > run.token_cap:
        end_failed(
            decision,
            FailureCode.TOKEN_CAP,
            f"run token_cap {run.token_cap} passed: {run.tokens_used} tokens used",
        )
    elif run.cost_cap_usd is not None and run.cost_usd > run.cost_cap_usd:
        end_failed(
            decision,
            FailureCode.COST_CAP,
            f"run cost_cap_usd {usd_text(run.cost_cap_usd)} passed: "
            f"{usd_text(run.cost_usd)} USD spent",
        )
    elif phase.tokens_used > phase.incident_token_cap and not phase.is_builder_spent:
        decision.record(
            BuilderTriesSpent(
                phase_id=phase_id,
                reason=f"incident_token_cap {phase.incident_token_cap} passed: "
                f"{phase.tokens_used} tokens used by the phase",
            )
        )


def check_minor_issues(decision: Decision) -> None:
    """End a run whose minor issues pass its cap, if its safety profile demands that. (rules §3)"""
    run = decision.state
    if run.minor_cap_ends_run and run.minor_issues_count > run.max_minor_issues_total:
        end_failed(
            decision,
            FailureCode.MINOR_ISSUE_CAP,
            f"max_minor_issues_total {run.max_minor_issues_total} passed: "
            f"{run.minor_issues_count} minor issues are open",
        )


def end_failed(decision: Decision, code: FailureCode, reason: str) -> None:
    """End the run as a failure and skip its unfinished phases. No effect on a run that is over."""
    if not decision.state.is_over:
        _end(decision, FAILURE_STATES[code], reason, code)


def conclude(decision: Decision, before: RunState) -> None:
    """Update tiers and run from their phases, once a change is complete.

    `before` is the run before the change. Only what the change itself moved has consequences, so a
    request that changes nothing records no event.
    """
    _update_tiers(decision)
    if not decision.state.is_over and _newly(before, decision.state, lambda state: state.is_final):
        _end_if_due(decision)
    if not decision.state.is_over:
        _update_run_state(decision, before)


def _newly(before: RunState, after: RunState, holds: Callable[[PhaseStatus], bool]) -> bool:
    """Return whether a predicate holds for some phase now and held for no phase before."""
    return any(
        holds(new.state) and not holds(old.state)
        for old, new in zip(before.phases, after.phases, strict=True)
    )


def _update_tiers(decision: Decision) -> None:
    for tier in decision.state.tiers:
        wanted = Cleanliness.NOT_CLEAN if tier.cleanliness_reasons else Cleanliness.CLEAN
        if wanted is not tier.cleanliness:
            decision.record(
                TierCleanlinessChanged(
                    actor=SUPERVISOR,
                    tier_id=tier.tier_id,
                    from_state=tier.cleanliness,
                    to_state=wanted,
                    reason="; ".join(tier.cleanliness_reasons) or "no reason against it is left",
                )
            )
        phases = [each for each in decision.state.phases if each.tier_id == tier.tier_id]
        _move_tier(decision, tier.tier_id, _tier_state(phases))


def _tier_state(phases: list[PhaseState]) -> TierStatus:
    states = {phase.state for phase in phases}
    if not all(state.is_final for state in states):
        has_begun = any(phase.started_at or phase.state.is_final for phase in phases)
        return TierStatus.IN_PROGRESS if has_begun else TierStatus.PENDING
    if PhaseStatus.FAILED in states:
        return TierStatus.FAILED
    if PhaseStatus.SKIPPED in states or not states:
        return TierStatus.SKIPPED
    return TierStatus.COMPLETE


def _move_tier(decision: Decision, tier_id: str, to: TierStatus) -> None:
    current = decision.state.tier(tier_id).state
    if current is to or current.is_final or to is TierStatus.PENDING:
        return
    if current is TierStatus.PENDING and to not in (TierStatus.IN_PROGRESS, TierStatus.SKIPPED):
        _move_tier(decision, tier_id, TierStatus.IN_PROGRESS)
        current = TierStatus.IN_PROGRESS
    check_tier_transition(tier_id, current, to)
    decision.record(
        TierStateChanged(
            actor=SUPERVISOR,
            tier_id=tier_id,
            from_state=current,
            to_state=to,
            reason="follows from its phases",
        )
    )


def _end_if_due(decision: Decision) -> None:
    """End the run where its scope or its safety profile demands it."""
    run = decision.state
    failed = [phase for phase in in_order(run.phases) if phase.state is PhaseStatus.FAILED]
    is_strictly_ordered = run.run_scope is not RunScope.MULTI_TIER
    if failed and run.any_failure_stops:
        end_failed(decision, FailureCode.PHASE_FAILED, _failed_text(failed))
    for tier in sorted(run.tiers, key=lambda tier: tier.tier_index):
        is_stop = run.any_failure_stops or (is_strictly_ordered and tier.state.is_final)
        if is_stop and tier.state is TierStatus.FAILED:
            mine = [phase for phase in failed if phase.tier_id == tier.tier_id]
            end_failed(decision, FailureCode.PHASE_FAILED, _failed_text(mine))
        elif is_stop and tier.cleanliness is Cleanliness.NOT_CLEAN:
            end_failed(
                decision,
                FailureCode.TIER_NOT_CLEAN,
                f"tier '{tier.tier_id}' is not clean: {'; '.join(tier.cleanliness_reasons)}",
            )
    if run.any_failure_stops and run.major_issues_count:
        end_failed(
            decision,
            FailureCode.MAJOR_ISSUE,
            f"{run.major_issues_count} major issues are open and the run is safety_critical",
        )
    if decision.state.is_over or not all(each.state.is_final for each in run.phases):
        return
    if failed:
        end_failed(decision, FailureCode.PHASE_FAILED, _failed_text(failed))
    else:
        _end(decision, RunStatus.DONE_SUCCESS, "every phase has ended", None)


def _failed_text(failed: list[PhaseState]) -> str:
    first = failed[0]
    why = f": {first.failure_reason}" if first.failure_reason else ""
    more = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
    return f"phase '{first.phase_id}' failed{why}{more}"


def _end(decision: Decision, to: RunStatus, reason: str, code: FailureCode | None) -> None:
    for phase in in_order(decision.state.phases):
        if not phase.state.is_final:
            decision.record(
                PhaseSkipped(phase_id=phase.phase_id, reason=f"the run ended: {reason}")
            )
    _update_tiers(decision)
    current = decision.state.state
    check_run_transition(decision.state.run_id, current, to)
    decision.record(
        RunEnded(
            actor=SUPERVISOR, from_state=current, to_state=to, reason=reason, failure_code=code
        )
    )


# A run that is not over has the state of its active phase; the first match counts.
_ACTIVE = (
    (PhaseStatus.EXECUTING, RunStatus.PHASE_EXECUTION),
    (PhaseStatus.GATE, RunStatus.GATE),
    (PhaseStatus.CI_RUNNING, RunStatus.CI_RUNNING),
)


def _update_run_state(decision: Decision, before: RunState) -> None:
    run = decision.state
    states = {phase.state for phase in run.phases}
    wanted = next((name for state, name in _ACTIVE if state in states), None)
    if wanted is None:
        if _newly(before, run, lambda state: state is PhaseStatus.COMPLETE):
            wanted = RunStatus.SNAPSHOT_CREATED
        elif run.state is RunStatus.RUN_CREATED and not _has_moved(before, run):
            return
        elif run == before:
            return  # a request that changes nothing, such as a repeated one, records no event
        else:
            wanted = RunStatus.PHASE_QUEUEING
    if wanted is run.state:
        return
    check_run_transition(run.run_id, run.state, wanted)
    decision.record(
        RunStateChanged(
            actor=SUPERVISOR,
            from_state=run.state,
            to_state=wanted,
            reason="follows from its phases",
        )
    )


def _has_moved(before: RunState, after: RunState) -> bool:
    pairs = zip(before.phases, after.phases, strict=True)
    # The fence differs where a phase started and returned to the queue within one change.
    return any((old.state, old.fence) != (new.state, new.fence) for old, new in pairs)
