"""What a run waits for now, or what a person can do after its end. (rules §2.3)"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Protocol

from .incident import next_steps
from .run import FailureCode
from .states import PhaseStatus, RunStatus


class NextAction(StrEnum):
    BUILD = "build"
    AUDIT = "audit"
    CI = "ci"
    NONE = "none"


class RunAtHand(Protocol):
    """What a next step depends on, of a run."""

    @property
    def run_id(self) -> str: ...
    @property
    def state(self) -> RunStatus: ...
    @property
    def branch(self) -> str: ...
    @property
    def base_branch(self) -> str: ...
    @property
    def head_commit(self) -> str: ...
    @property
    def last_snapshot(self) -> str | None: ...
    @property
    def deadline_at(self) -> datetime: ...
    @property
    def failure_code(self) -> FailureCode | None: ...
    @property
    def promotion_eligible_to_main(self) -> bool: ...
    @property
    def base_problem(self) -> str | None: ...


class PhaseAtHand(Protocol):
    """What a next step depends on, of the phase that a run is about (`order.first_at_hand`)."""

    @property
    def phase_id(self) -> str: ...
    @property
    def state(self) -> PhaseStatus: ...
    @property
    def deadline_at(self) -> datetime | None: ...
    @property
    def unavailable_reason(self) -> str | None: ...
    @property
    def retry_at(self) -> datetime | None: ...
    @property
    def approvals_needed(self) -> int: ...
    @property
    def approved_by(self) -> Sequence[str]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class NextStep:
    """`agent` is who has the phase's lease. `until`: when the wait ends by itself.

    `will_fail`: the run goes on, but can only end as failed.
    """

    action: NextAction
    phase_id: str | None = None
    agent: str | None = None
    until: datetime | None = None
    will_fail: bool = False
    detail: str


_ACTIONS = {
    PhaseStatus.QUEUED: NextAction.BUILD,
    PhaseStatus.EXECUTING: NextAction.BUILD,
    PhaseStatus.GATE: NextAction.AUDIT,
    PhaseStatus.CI_RUNNING: NextAction.CI,
}


def next_step(
    run: RunAtHand,
    phase: PhaseAtHand | None,
    now: datetime,
    *,
    agent: str | None,
    failed: Sequence[str],
) -> NextStep:
    """Return what a run waits for, or what to do after its end.

    `phase` is the one that the run is about, and `agent` who has its lease; `failed` are the
    phases that failed. A run that goes on after a failed phase can only end as failed (rules §2.3).
    """
    if run.state.is_final or phase is None:
        return NextStep(action=NextAction.NONE, detail=_after_the_end(run))
    retry_at = phase.retry_at if phase.retry_at is not None and phase.retry_at > now else None
    detail = _wait(phase, agent, retry_at)
    if failed:
        detail += f"; the run will end as failed, since phase '{failed[0]}' failed"
    if run.base_problem is not None:
        detail += f"; {run.base_problem}"
    return NextStep(
        action=_ACTIONS[phase.state],
        phase_id=phase.phase_id,
        agent=agent,
        until=retry_at or phase.deadline_at or run.deadline_at,
        will_fail=bool(failed),
        detail=detail,
    )


def _wait(phase: PhaseAtHand, agent: str | None, retry_at: datetime | None) -> str:
    name = f"phase '{phase.phase_id}'"
    match phase.state:
        case PhaseStatus.EXECUTING:
            return f"{agent} builds {name}" if agent else f"{name} waits for its Builder's result"
        case PhaseStatus.GATE if agent:
            return f"{agent} reviews {name}"
        case PhaseStatus.CI_RUNNING:
            return f"CI judges {name}"
        case _:
            role = "an Auditor" if phase.state is PhaseStatus.GATE else "a Builder"
            detail = f"{name} waits for {role}"
            if phase.approved_by:
                detail += f": {len(phase.approved_by)} of {phase.approvals_needed} have approved"
    if phase.unavailable_reason is not None:
        until = f" until {retry_at:%Y-%m-%dT%H:%M:%SZ}" if retry_at else ""
        detail += f"; the last agent was unavailable{until}: {phase.unavailable_reason}"
    return detail


def _after_the_end(run: RunAtHand) -> str:
    if run.failure_code is not None:
        return next_steps(
            run.failure_code,
            branch=run.branch,
            head_commit=run.head_commit,
            last_snapshot=run.last_snapshot,
        )[0]
    if run.promotion_eligible_to_main:
        return (
            f"Review {run.branch}, check its record (autopack verify {run.run_id} --base"
            f" {run.base_branch}) and open a pull request to {run.base_branch}."
        )
    if run.state.is_final:
        return step_when_blocked(run.branch, run.base_branch)
    return "every phase has ended"


def step_when_blocked(branch: str, base_branch: str) -> str:
    """Return what to do with a run that succeeded, where something is against its merge."""
    return (
        f"{branch} is complete, but may not be merged into {base_branch}: settle the reasons in a"
        " new run."
    )
