"""The states of runs, tiers and phases, and the tables of legal transitions. (rules §2)"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import StrEnum

from .errors import ConflictError


class RunStatus(StrEnum):
    PLAN_BOOTSTRAP = "PLAN_BOOTSTRAP"
    RUN_CREATED = "RUN_CREATED"
    PHASE_QUEUEING = "PHASE_QUEUEING"
    PHASE_EXECUTION = "PHASE_EXECUTION"
    GATE = "GATE"
    CI_RUNNING = "CI_RUNNING"
    SNAPSHOT_CREATED = "SNAPSHOT_CREATED"
    DONE_SUCCESS = "DONE_SUCCESS"
    DONE_FAILED_BUDGET_EXHAUSTED = "DONE_FAILED_BUDGET_EXHAUSTED"
    DONE_FAILED_POLICY_VIOLATION = "DONE_FAILED_POLICY_VIOLATION"
    DONE_FAILED_REQUIRES_HUMAN_REVIEW = "DONE_FAILED_REQUIRES_HUMAN_REVIEW"
    DONE_FAILED_ENVIRONMENT = "DONE_FAILED_ENVIRONMENT"

    @property
    def is_final(self) -> bool:
        return not RUN_TRANSITIONS[self]


class PhaseStatus(StrEnum):
    QUEUED = "QUEUED"
    EXECUTING = "EXECUTING"
    GATE = "GATE"
    CI_RUNNING = "CI_RUNNING"
    COMPLETE = "COMPLETE"
    FAILED = "FAILED"
    SKIPPED = "SKIPPED"

    @property
    def is_final(self) -> bool:
        return not PHASE_TRANSITIONS[self]


class TierStatus(StrEnum):
    PENDING = "PENDING"
    IN_PROGRESS = "IN_PROGRESS"
    COMPLETE = "COMPLETE"
    FAILED = "FAILED"
    SKIPPED = "SKIPPED"

    @property
    def is_final(self) -> bool:
        return not TIER_TRANSITIONS[self]


class Cleanliness(StrEnum):
    CLEAN = "clean"
    NOT_CLEAN = "not_clean"


PHASE_TRANSITIONS: Mapping[PhaseStatus, frozenset[PhaseStatus]] = {
    PhaseStatus.QUEUED: frozenset({PhaseStatus.EXECUTING, PhaseStatus.SKIPPED}),
    PhaseStatus.EXECUTING: frozenset(
        {PhaseStatus.GATE, PhaseStatus.QUEUED, PhaseStatus.FAILED, PhaseStatus.SKIPPED}
    ),
    PhaseStatus.GATE: frozenset(
        {
            PhaseStatus.CI_RUNNING,
            PhaseStatus.COMPLETE,
            PhaseStatus.QUEUED,
            PhaseStatus.FAILED,
            PhaseStatus.SKIPPED,
        }
    ),
    PhaseStatus.CI_RUNNING: frozenset(
        {
            PhaseStatus.COMPLETE,
            PhaseStatus.QUEUED,
            PhaseStatus.GATE,
            PhaseStatus.FAILED,
            PhaseStatus.SKIPPED,
        }
    ),
    PhaseStatus.COMPLETE: frozenset(),
    PhaseStatus.FAILED: frozenset(),
    PhaseStatus.SKIPPED: frozenset(),
}

TIER_TRANSITIONS: Mapping[TierStatus, frozenset[TierStatus]] = {
    TierStatus.PENDING: frozenset({TierStatus.IN_PROGRESS, TierStatus.SKIPPED}),
    TierStatus.IN_PROGRESS: frozenset({TierStatus.COMPLETE, TierStatus.FAILED, TierStatus.SKIPPED}),
    TierStatus.COMPLETE: frozenset(),
    TierStatus.FAILED: frozenset(),
    TierStatus.SKIPPED: frozenset(),
}

_DONE = frozenset(
    {
        RunStatus.DONE_SUCCESS,
        RunStatus.DONE_FAILED_BUDGET_EXHAUSTED,
        RunStatus.DONE_FAILED_POLICY_VIOLATION,
        RunStatus.DONE_FAILED_REQUIRES_HUMAN_REVIEW,
        RunStatus.DONE_FAILED_ENVIRONMENT,
    }
)
_UNDER_WAY = frozenset(
    {
        RunStatus.PHASE_QUEUEING,
        RunStatus.PHASE_EXECUTION,
        RunStatus.GATE,
        RunStatus.CI_RUNNING,
        RunStatus.SNAPSHOT_CREATED,
    }
)
# A run's state follows from its phases, so any active state may follow any other. The table only
# forbids to return to the start or to leave a final state.
RUN_TRANSITIONS: Mapping[RunStatus, frozenset[RunStatus]] = {
    RunStatus.PLAN_BOOTSTRAP: frozenset({RunStatus.RUN_CREATED})
    | (_DONE - {RunStatus.DONE_SUCCESS}),
    RunStatus.RUN_CREATED: _UNDER_WAY | _DONE,
    **{state: (_UNDER_WAY - {state}) | _DONE for state in _UNDER_WAY},
    **{state: frozenset() for state in _DONE},
}


class IllegalTransitionError(ConflictError):
    code = "illegal_transition"


def check_phase_transition(phase_id: str, current: PhaseStatus, wanted: PhaseStatus) -> None:
    """Refuse a transition that is not in the table, and name those that are."""
    _check("phase", phase_id, current, wanted, PHASE_TRANSITIONS[current])


def check_tier_transition(tier_id: str, current: TierStatus, wanted: TierStatus) -> None:
    """Refuse a transition that is not in the table, and name those that are."""
    _check("tier", tier_id, current, wanted, TIER_TRANSITIONS[current])


def check_run_transition(run_id: str, current: RunStatus, wanted: RunStatus) -> None:
    """Refuse a transition that is not in the table, and name those that are."""
    _check("run", run_id, current, wanted, RUN_TRANSITIONS[current])


def _check(
    noun: str, name: str, current: StrEnum, wanted: StrEnum, allowed: Iterable[StrEnum]
) -> None:
    if wanted in allowed:
        return
    names = sorted(str(state) for state in allowed)
    says = f"it may become {', '.join(names)}" if names else "that state is final"
    raise IllegalTransitionError(
        f"{noun} '{name}' is {current} and cannot become {wanted}: {says}", allowed=names
    )
