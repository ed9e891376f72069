"""A decision in the making: the run as it stands so far, and the events that led there.

The modules beside this one (`building`, `reviewing`, `judging`, `steering`) hold the rules of who
may do what; all of them move a run through a `Course`, which alone knows the transition tables,
what follows from a change, and when a run is over. (02 §2)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, Final

from .errors import ConflictError, NotFoundError
from .events import SUPERVISOR, Event
from .money import ZERO_USD, cost_entry, usd_text
from .promotion import judge_promotion
from .run import (
    FAILURE_STATES,
    CompletedBy,
    DebtStatus,
    FailureCode,
    PhaseState,
    RunState,
    TierState,
    in_order,
    next_phase,
)
from .sightings import Counts, OpenIssueCounts
from .states import (
    Cleanliness,
    PhaseStatus,
    RunStatus,
    TierStatus,
    check_phase_transition,
    check_run_transition,
    check_tier_transition,
)
from .values import RunScope


class RunOverError(ConflictError):
    code = "run_over"


class PhaseNotNextError(ConflictError):
    code = "phase_not_next"


class WrongStateError(ConflictError):
    code = "wrong_state"


_PHASE_EVENTS = {
    PhaseStatus.QUEUED: "PhaseQueued",
    PhaseStatus.EXECUTING: "PhaseStarted",
    PhaseStatus.GATE: "PhaseGated",
    PhaseStatus.CI_RUNNING: "PhaseCiStarted",
    PhaseStatus.COMPLETE: "PhaseCompleted",
    PhaseStatus.FAILED: "PhaseFailed",
    PhaseStatus.SKIPPED: "PhaseSkipped",
}


# Whatever moves a phase on ends its wait for an agent's capacity.
_WAITS_FOR_NO_CAPACITY: Final[Mapping[str, None]] = {
    "unavailable_reason": None,
    "retry_at": None,
    "retry_account": None,
}


class Course:
    """One decision about one run; `finish` gives the new state and its events."""

    def __init__(self, run: RunState, now: datetime, actor: str = SUPERVISOR) -> None:
        self.now = now
        self.actor = actor
        self.events: list[Event] = []
        self._run = run
        self._phases = {phase.phase_id: phase for phase in run.phases}
        self._tiers = {tier.tier_id: tier for tier in run.tiers}
        self._has_ended_phase = False
        self._has_snapshot = False
        self._has_moved = False

    # What stands now

    @property
    def run(self) -> RunState:
        return replace(
            self._run, phases=tuple(self._phases.values()), tiers=tuple(self._tiers.values())
        )

    @property
    def is_over(self) -> bool:
        return self._run.state.is_final

    @property
    def head_commit(self) -> str | None:
        return self._run.head_commit

    def phase(self, phase_id: str) -> PhaseState:
        phase = self._phases.get(phase_id)
        if phase is None:
            raise NotFoundError(f"run '{self._run.run_id}' has no phase '{phase_id}'")
        return phase

    def tier(self, tier_id: str) -> TierState:
        return self._tiers[tier_id]

    def in_minutes(self, minutes: int) -> datetime:
        return self.now + timedelta(minutes=minutes)

    def in_seconds(self, seconds: int) -> datetime:
        return self.now + timedelta(seconds=seconds)

    def next_phase(self) -> PhaseState | None:
        return next_phase(self._phases.values())

    # Guards

    def require_live(self) -> None:
        if self.is_over:
            because = f": {self._run.failure_reason}" if self._run.failure_reason else ""
            raise RunOverError(
                f"run '{self._run.run_id}' is over ({self._run.state}{because}); "
                "it takes no more results"
            )

    def require_next(self, phase_id: str) -> None:
        following = self.next_phase()
        if following is not None and following.phase_id != phase_id:
            raise PhaseNotNextError(
                f"phase '{phase_id}' may not start before '{following.phase_id}', "
                f"which is {following.state}",
                allowed=[following.phase_id],
            )

    # Steps

    def note(
        self,
        kind: str,
        *,
        phase_id: str | None = None,
        reason: str | None = None,
        data: Mapping[str, Any] | None = None,
    ) -> None:
        """Record an event that changes no state of its own."""
        tier_id = self._phases[phase_id].tier_id if phase_id in self._phases else None
        self.events.append(
            Event(
                kind=kind,
                actor=self.actor,
                at=self.now,
                phase_id=phase_id,
                tier_id=tier_id,
                reason=reason,
                data=data or {},
            )
        )

    def change_phase(self, phase_id: str, **changes: Any) -> PhaseState:
        """Change a phase's figures, not its state."""
        phase = replace(self.phase(phase_id), **changes)
        self._phases[phase_id] = phase
        return phase

    def change_run(self, **changes: Any) -> None:
        """Change the run's figures, not its state."""
        self._run = replace(self._run, **changes)

    def change_tier(self, tier_id: str, **changes: Any) -> None:
        """Change a tier's figures, not its state."""
        self._tiers[tier_id] = replace(self._tiers[tier_id], **changes)

    def move_phase(
        self,
        phase_id: str,
        to: PhaseStatus,
        reason: str,
        *,
        deadline_at: datetime | None = None,
        data: Mapping[str, Any] | None = None,
        **changes: Any,
    ) -> PhaseState:
        """Move a phase to another state; `deadline_at` is when it must have left it."""
        phase = self.phase(phase_id)
        check_phase_transition(phase_id, phase.state, to)
        self.release(phase_id)
        phase = self.phase(phase_id)
        changes = {**_WAITS_FOR_NO_CAPACITY, **changes, "deadline_at": deadline_at}
        if to is PhaseStatus.EXECUTING and phase.started_at is None:
            changes |= {"started_at": self.now, "start_commit": self._run.head_commit}
        if to.is_final:
            changes["ended_at"] = self.now
            self._has_ended_phase = True
        if to is PhaseStatus.COMPLETE:
            changes.setdefault("completed_by", CompletedBy.RULES)
            self._has_snapshot = True
        if "completed_by" in changes:
            data = {**(data or {}), "completed_by": changes["completed_by"]}
        self._has_moved = True
        moved = replace(phase, state=to, **changes)
        self._phases[phase_id] = moved
        self.events.append(
            Event(
                kind=_PHASE_EVENTS[to],
                actor=self.actor,
                at=self.now,
                phase_id=phase_id,
                tier_id=phase.tier_id,
                from_state=phase.state,
                to_state=to,
                reason=reason,
                data=data or {},
            )
        )
        return moved

    def end_wait(self, phase_id: str) -> None:
        """Let a phase wait for no agent's capacity any more."""
        self.change_phase(phase_id, **_WAITS_FOR_NO_CAPACITY)

    def release(self, phase_id: str) -> None:
        """End the lease on a phase, and what it has reserved."""
        phase = self.phase(phase_id)
        if phase.lease_id is not None:
            self.change_run(
                tokens_reserved=self._run.tokens_reserved - phase.tokens_reserved,
                cost_reserved_usd=self._run.cost_reserved_usd - phase.cost_reserved_usd,
            )
            self.change_phase(
                phase_id,
                lease_id=None,
                lease_role=None,
                tokens_reserved=0,
                tokens_reported=0,
                cost_reserved_usd=ZERO_USD,
                cost_reported_usd=ZERO_USD,
            )

    def count_tokens(self, phase_id: str, tokens: int, cost: Decimal = ZERO_USD) -> None:
        """Add an attempt's tokens and cost to phase, tier and run; passing a run's cap ends it.

        (docs/rules.md §3.1)
        """
        if not tokens and not cost:
            return
        phase = self.phase(phase_id)
        tier = self._tiers[phase.tier_id]
        self.change_phase(
            phase_id, tokens_used=phase.tokens_used + tokens, cost_usd=phase.cost_usd + cost
        )
        self.change_tier(
            phase.tier_id, tokens_used=tier.tokens_used + tokens, cost_usd=tier.cost_usd + cost
        )
        self.change_run(
            tokens_used=self._run.tokens_used + tokens, cost_usd=self._run.cost_usd + cost
        )
        data = {"tokens": tokens, **cost_entry(cost)}
        self.note("TokensCounted", phase_id=phase_id, data=data)
        if self._run.tokens_used > self._run.token_cap:
            self.end_failed(
                FailureCode.TOKEN_CAP,
                f"run token_cap {self._run.token_cap} passed: {self._run.tokens_used} tokens used",
            )
            return
        if self._run.cost_cap_usd is not None and self._run.cost_usd > self._run.cost_cap_usd:
            self.end_failed(
                FailureCode.COST_CAP,
                f"run cost_cap_usd {usd_text(self._run.cost_cap_usd)} passed: "
                f"{usd_text(self._run.cost_usd)} USD spent",
            )
            return
        phase = self.phase(phase_id)
        if phase.tokens_used > phase.incident_token_cap and not phase.is_builder_spent:
            self.change_phase(phase_id, is_builder_spent=True)
            self.note(
                "BuilderTriesSpent",
                phase_id=phase_id,
                reason=f"incident_token_cap {phase.incident_token_cap} passed: "
                f"{phase.tokens_used} tokens used by the phase",
            )

    def set_issue_counts(self, counts: OpenIssueCounts) -> None:
        """Take over the recounted open issues."""
        self.change_run(**_fields(counts.run))
        for tier_id in self._tiers:
            self.change_tier(tier_id, **_fields(counts.tiers.get(tier_id, Counts())))
        for phase_id in self._phases:
            self.change_phase(phase_id, **_fields(counts.phases.get(phase_id, Counts())))
        state = self._run
        if state.minor_cap_ends_run and state.minor_issues_count > state.max_minor_issues_total:
            self.end_failed(
                FailureCode.MINOR_ISSUE_CAP,
                f"max_minor_issues_total {state.max_minor_issues_total} passed: "
                f"{state.minor_issues_count} minor issues are open",
            )

    def end_failed(self, code: FailureCode, reason: str) -> None:
        """End the run as a failure: what is not final is skipped."""
        if not self.is_over:
            self._end(FAILURE_STATES[code], reason, code)

    # What follows

    def finish(self) -> tuple[RunState, tuple[Event, ...]]:
        """Let tiers and run follow from the phases; return the new state and the events."""
        self._settle_tiers()
        if not self.is_over and self._has_ended_phase:
            self._settle_end()
        if not self.is_over:
            self._settle_run_state()
        self.change_run(debt_status=_debt_status(self._run))
        if self.is_over:
            verdict = judge_promotion(self.run)
            self.change_run(
                promotion_eligible_to_main=verdict.is_eligible,
                promotion_reasons=verdict.reasons,
                promotion_warnings=verdict.warnings,
            )
        return self.run, tuple(self.events)

    def _settle_tiers(self) -> None:
        for tier in self._tiers.values():
            phases = [phase for phase in self._phases.values() if phase.tier_id == tier.tier_id]
            reasons = _uncleanliness(tier, phases)
            cleanliness = Cleanliness.NOT_CLEAN if reasons else Cleanliness.CLEAN
            if reasons != tier.cleanliness_reasons:
                self.change_tier(tier.tier_id, cleanliness=cleanliness, cleanliness_reasons=reasons)
            if cleanliness is not tier.cleanliness:
                self._tier_event(
                    "TierCleanlinessChanged",
                    tier.tier_id,
                    tier.cleanliness,
                    cleanliness,
                    "; ".join(reasons) or "nothing stands against it any more",
                )
            self._move_tier(tier.tier_id, _tier_state(phases))

    def _move_tier(self, tier_id: str, to: TierStatus) -> None:
        current = self._tiers[tier_id].state
        if current is to or current.is_final or to is TierStatus.PENDING:
            return
        if current is TierStatus.PENDING and to not in (TierStatus.IN_PROGRESS, TierStatus.SKIPPED):
            self._move_tier(tier_id, TierStatus.IN_PROGRESS)
            current = TierStatus.IN_PROGRESS
        check_tier_transition(tier_id, current, to)
        self.change_tier(tier_id, state=to)
        self._tier_event("TierStateChanged", tier_id, current, to, "follows from its phases")

    def _tier_event(
        self, kind: str, tier_id: str, from_state: str, to_state: str, reason: str
    ) -> None:
        self.events.append(
            Event(
                kind=kind,
                actor=SUPERVISOR,
                at=self.now,
                tier_id=tier_id,
                from_state=from_state,
                to_state=to_state,
                reason=reason,
            )
        )

    def _settle_end(self) -> None:
        """End the run where scope or profile say so. (02 §2)"""
        failed = [phase for phase in in_order(self._phases.values()) if _has_failed(phase)]
        is_strictly_ordered = self._run.run_scope is not RunScope.MULTI_TIER
        if failed and self._run.any_failure_stops:
            self.end_failed(FailureCode.PHASE_FAILED, _failed_text(failed))
        for tier in sorted(self._tiers.values(), key=lambda tier: tier.tier_index):
            is_stop = self._run.any_failure_stops or (is_strictly_ordered and tier.state.is_final)
            if is_stop and tier.state is TierStatus.FAILED:
                mine = [phase for phase in failed if phase.tier_id == tier.tier_id]
                self.end_failed(FailureCode.PHASE_FAILED, _failed_text(mine))
            elif is_stop and tier.cleanliness is Cleanliness.NOT_CLEAN:
                self.end_failed(
                    FailureCode.TIER_NOT_CLEAN,
                    f"tier '{tier.tier_id}' is not clean: {'; '.join(tier.cleanliness_reasons)}",
                )
        if self._run.any_failure_stops and self._run.major_issues_count:
            self.end_failed(
                FailureCode.MAJOR_ISSUE,
                f"{self._run.major_issues_count} major issues are open and the run is "
                "safety_critical",
            )
        if self.is_over or self.next_phase() is not None:
            return
        if failed:
            self.end_failed(FailureCode.PHASE_FAILED, _failed_text(failed))
        else:
            self._end(RunStatus.DONE_SUCCESS, "every phase is done", None)

    def _end(self, state: RunStatus, reason: str, code: FailureCode | None) -> None:
        for phase in in_order(self._phases.values()):
            if not phase.state.is_final:
                self.move_phase(
                    phase.phase_id,
                    PhaseStatus.SKIPPED,
                    f"the run ended: {reason}",
                    pending_submission_id=None,
                    fence=phase.fence + 1,
                )
        self._settle_tiers()
        self._move_run(state, reason, {"failure_code": code} if code else {})
        self.change_run(
            ended_at=self.now, failure_code=code, failure_reason=reason if code else None
        )

    def _settle_run_state(self) -> None:
        states = {phase.state for phase in self._phases.values()}
        following = RunStatus.PHASE_QUEUEING
        for active, name in (
            (PhaseStatus.EXECUTING, RunStatus.PHASE_EXECUTION),
            (PhaseStatus.GATE, RunStatus.GATE),
            (PhaseStatus.CI_RUNNING, RunStatus.CI_RUNNING),
        ):
            if active in states:
                following = name
                break
        else:
            if self._has_snapshot:
                following = RunStatus.SNAPSHOT_CREATED
            elif self._run.state is RunStatus.RUN_CREATED and not self._has_moved:
                return
            elif self._run.state is RunStatus.SNAPSHOT_CREATED and not self.events:
                return  # a request that changes nothing, such as a replayed one, is no change
        self._move_run(following, "follows from its phases", {})

    def _move_run(self, to: RunStatus, reason: str, data: Mapping[str, Any]) -> None:
        current = self._run.state
        if current is to:
            return
        check_run_transition(self._run.run_id, current, to)
        self.change_run(state=to)
        self.events.append(
            Event(
                kind="RunEnded" if to.is_final else "RunStateChanged",
                actor=SUPERVISOR,
                at=self.now,
                from_state=current,
                to_state=to,
                reason=reason,
                data=data,
            )
        )


def _fields(counts: Counts) -> dict[str, int]:
    return {"minor_issues_count": counts.minors, "major_issues_count": counts.majors}


def _has_failed(phase: PhaseState) -> bool:
    return phase.state is PhaseStatus.FAILED


def _failed_text(failed: list[PhaseState]) -> str:
    first = failed[0]
    why = f": {first.failure_reason}" if first.failure_reason else ""
    more = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
    return f"phase '{first.phase_id}' failed{why}{more}"


def _tier_state(phases: list[PhaseState]) -> TierStatus:
    states = {phase.state for phase in phases}
    if not states <= {PhaseStatus.COMPLETE, PhaseStatus.FAILED, PhaseStatus.SKIPPED}:
        has_begun = any(phase.started_at or phase.state.is_final for phase in phases)
        return TierStatus.IN_PROGRESS if has_begun else TierStatus.PENDING
    if PhaseStatus.FAILED in states:
        return TierStatus.FAILED
    if PhaseStatus.SKIPPED in states or not states:
        return TierStatus.SKIPPED
    return TierStatus.COMPLETE


def _uncleanliness(tier: TierState, phases: list[PhaseState]) -> tuple[str, ...]:
    """Say why a tier is not clean. (02 §6)"""
    reasons = [f"phase '{phase.phase_id}' failed" for phase in phases if _has_failed(phase)]
    for noun, figure, cap in (
        ("minor issues", tier.minor_issues_count, tier.minors_tolerated),
        ("major issues", tier.major_issues_count, tier.majors_tolerated),
        ("tokens", tier.tokens_used, tier.token_cap),
        ("CI runs", tier.ci_runs_count, tier.ci_run_cap),
    ):
        if figure > cap:
            reasons.append(f"{figure} {noun}, {cap} allowed")
    return tuple(reasons)


def _debt_status(run: RunState) -> DebtStatus:
    if run.major_issues_count:
        return DebtStatus.HAS_MAJOR_ISSUES
    if run.minor_issues_count > run.max_minor_issues_total:
        return DebtStatus.EXCESS_MINOR_ISSUES
    return DebtStatus.HAS_MINOR_ISSUES if run.minor_issues_count else DebtStatus.CLEAN
