"""What an operator can do to a run. (rules §2.1)"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from .consequences import count_tokens, end_failed
from .decision import Decision, WrongStateError
from .errors import ConflictError
from .events import (
    PhaseCiStarted,
    PhaseCompleted,
    PhaseFailed,
    PhaseGated,
    PhaseQueued,
    PhaseSkipped,
    PhaseStarted,
    RunRolledBack,
)
from .order import is_alone
from .reviewing import await_review
from .run import CompletedBy, FailureCode, PhaseState, RunState
from .states import PHASE_TRANSITIONS, IllegalTransitionError, PhaseStatus, RunStatus

CANCELLED = "cancelled by operator"


class RunNotOverError(ConflictError):
    code = "run_not_over"


class BranchMovedError(ConflictError):
    code = "branch_moved"


@dataclass(frozen=True, slots=True, kw_only=True)
class StatusByHand:
    """An operator sets a phase's state, and reports the tokens of an attempt."""

    phase_id: str
    wanted: PhaseStatus
    tokens: int = 0


@dataclass(frozen=True, slots=True)
class Cancel:
    """An operator ends the run."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RollbackCommit:
    """An operator resets the branch to a phase's snapshot, by the new commit `commit`."""

    to_phase: str
    commit: str
    reason: str


@dataclass(frozen=True, slots=True)
class BranchMoved:
    """Another process moved the run's branch, or took the name of one of its tags."""

    detail: str


def set_status(decision: Decision, given: StatusByHand) -> None:
    """Move a phase by hand, by legal transitions only; its present state is no change. (rules §2.1)

    Raises RunOverError, IllegalTransitionError, PhaseNotNextError.
    """
    phase_id, wanted = given.phase_id, given.wanted
    if given.tokens:
        decision.require_live()
        count_tokens(decision, phase_id, given.tokens)
        if decision.state.is_over:
            return
    phase = decision.phase(phase_id)
    if phase.state is wanted:
        return
    decision.require_live()
    match wanted:
        case PhaseStatus.EXECUTING:
            if phase.state is PhaseStatus.QUEUED:
                decision.require_next(phase_id)
            deadline = decision.in_minutes(decision.state.attempt_minutes)
            decision.record(
                PhaseStarted(phase_id=phase_id, reason="started by hand", deadline_at=deadline)
            )
        case PhaseStatus.QUEUED:
            _requeue(decision, phase)
        case PhaseStatus.GATE:
            decision.record(PhaseGated(phase_id=phase_id, reason="sent to review by hand"))
            await_review(decision, phase_id, "sent to review by hand")
        case PhaseStatus.CI_RUNNING:
            if phase.commit is None and not is_alone(decision.state, phase_id):
                raise WrongStateError(
                    f"phase '{phase_id}' has no commit for CI, and others are under way"
                )
            deadline = decision.in_seconds(phase.ci_timeout_seconds)
            decision.record(
                PhaseCiStarted(phase_id=phase_id, reason="sent to CI by hand", deadline_at=deadline)
            )
        case PhaseStatus.FAILED:
            decision.record(PhaseFailed(phase_id=phase_id, reason="failed by hand"))
        case PhaseStatus.COMPLETE:
            decision.record(
                PhaseCompleted(
                    phase_id=phase_id, reason="ended by hand", completed_by=CompletedBy.HAND
                )
            )
        case PhaseStatus.SKIPPED:
            decision.record(
                PhaseSkipped(
                    phase_id=phase_id, reason="ended by hand", completed_by=CompletedBy.HAND
                )
            )


def moves_by_hand(run: RunState, phase_id: str, now: datetime) -> list[PhaseStatus]:
    """Return the states to which an operator may move a phase now, sorted. (rules §2.1)"""
    return [
        wanted
        for wanted in sorted(PHASE_TRANSITIONS[run.phase(phase_id).state])
        if _is_allowed(Decision(run, now), StatusByHand(phase_id=phase_id, wanted=wanted))
    ]


def _is_allowed(decision: Decision, given: StatusByHand) -> bool:
    try:
        set_status(decision, given)
    except ConflictError:
        return False
    return True


def _requeue(decision: Decision, phase: PhaseState) -> None:
    """Return a phase to the queue; an attempt that was under way counts as a failed try."""
    is_attempt = phase.state is PhaseStatus.EXECUTING
    if phase.state in (PhaseStatus.EXECUTING, PhaseStatus.GATE, PhaseStatus.CI_RUNNING):
        left = phase.builder_tries_left - int(is_attempt)
        if left <= 0:
            allowed = PHASE_TRANSITIONS[phase.state] - {PhaseStatus.QUEUED}
            raise IllegalTransitionError(
                f"phase '{phase.phase_id}' cannot become QUEUED: no Builder try would be left",
                allowed=sorted(str(state) for state in allowed),
            )
    decision.record(
        PhaseQueued(
            phase_id=phase.phase_id,
            reason="returned to the queue by hand",
            is_attempt_used=is_attempt,
        )
    )


def cancel(decision: Decision, given: Cancel) -> None:
    """End the run because the operator says so. Raises RunOverError."""
    decision.require_live()
    end_failed(decision, FailureCode.CANCELLED, cancelled_by_operator(given.reason))


def cancelled_by_operator(reason: str) -> str:
    """Return the failure reason of a run that an operator cancelled."""
    return f"{CANCELLED}: {reason}" if reason else CANCELLED


class _EndedRun(Protocol):
    @property
    def run_id(self) -> str: ...
    @property
    def state(self) -> RunStatus: ...
    @property
    def failure_code(self) -> FailureCode | None: ...


def require_rollback(run: _EndedRun) -> None:
    """Refuse a rollback of a run that is not over, or whose branch another process moved.

    Raises RunNotOverError, BranchMovedError.
    """
    if not run.state.is_final:
        raise RunNotOverError(
            f"run '{run.run_id}' is {run.state}; only a run that is over can be rolled back"
        )
    if run.failure_code is FailureCode.BRANCH_MOVED:
        raise BranchMovedError(
            f"the branch of run '{run.run_id}' was moved by another process and is left alone"
        )


def roll_back(decision: Decision, given: RollbackCommit) -> None:
    """Record that the branch was reset to a snapshot: the run is no longer eligible. (rules §8)"""
    require_rollback(decision.state)
    decision.record(
        RunRolledBack(phase_id=given.to_phase, reason=given.reason, commit=given.commit)
    )


def end_moved(decision: Decision, given: BranchMoved) -> None:
    """End a run whose branch another process moved. A run that is over does not change."""
    end_failed(decision, FailureCode.BRANCH_MOVED, given.detail)
