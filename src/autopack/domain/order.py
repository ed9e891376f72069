"""What may start now: the order of a run's phases. (rules §2.7)

Standard library alone: `scripts/check_promotion.py` is made from this module among others.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Generic, Protocol, TypeVar

from .paths import may_overlap
from .run import CompletedBy
from .states import PhaseStatus
from .terms import RunScope, Verdict


class OrderedPhase(Protocol):
    """What the order of phases depends on, of a state or a row."""

    @property
    def phase_id(self) -> str: ...
    @property
    def tier_index(self) -> int: ...
    @property
    def phase_index(self) -> int: ...
    @property
    def state(self) -> PhaseStatus: ...
    @property
    def depends_on(self) -> Sequence[str] | None: ...
    @property
    def allowed_paths(self) -> Sequence[str] | None: ...
    @property
    def allow_empty(self) -> bool: ...
    @property
    def approvals_needed(self) -> int: ...
    @property
    def started_at(self) -> datetime | None: ...
    @property
    def before_commit(self) -> str | None: ...
    @property
    def branch_place(self) -> int: ...


class EndingPhase(OrderedPhase, Protocol):
    """What becomes of a phase's commits depends on how it ended, too."""

    @property
    def completed_by(self) -> CompletedBy | None: ...
    @property
    def verdict(self) -> Verdict | None: ...


class _Stated(Protocol):
    @property
    def state(self) -> PhaseStatus: ...


Ordered = TypeVar("Ordered", bound=OrderedPhase)
Ordered_co = TypeVar("Ordered_co", bound=OrderedPhase, covariant=True)
Ending = TypeVar("Ending", bound=EndingPhase)
Stated = TypeVar("Stated", bound=_Stated)


class OrderedRun(Protocol[Ordered_co]):
    @property
    def run_scope(self) -> RunScope: ...
    @property
    def is_parallel(self) -> bool: ...
    @property
    def phases(self) -> Sequence[Ordered_co]: ...


@dataclass(frozen=True, slots=True)
class PhasesInRun(Generic[Ordered]):
    """A run as its order sees it, from rows."""

    run_scope: RunScope
    is_parallel: bool
    phases: Sequence[Ordered]


class WaitCause(StrEnum):
    """Why a phase waits for another one: by the plan's order, or because of paths."""

    ORDER = "order"
    PATHS = "paths"


@dataclass(frozen=True, slots=True)
class PhaseWait:
    """A queued phase waits until another one has ended."""

    phase_id: str
    cause: WaitCause


def in_order(phases: Iterable[Ordered]) -> list[Ordered]:
    """Sort phases by tier and phase index, the order of the plan. (rules §2.7)"""
    return sorted(phases, key=lambda phase: (phase.tier_index, phase.phase_index))


def is_begun(phase: OrderedPhase) -> bool:
    """Return whether a phase is under way: it was started and has not ended.

    Between two tries it is queued again, and still under way.
    """
    return phase.started_at is not None and not phase.state.is_final


def waits_of(run: OrderedRun[Ordered]) -> Mapping[str, tuple[PhaseWait, ...]]:
    """Return for each queued phase what it waits for; one that waits for nothing may start now.

    Its time is linear in phases, dependencies and phases under way. A phase that waits for
    many by one cause names only the first of them; those of its `depends_on` it names all. (rules
    §2.7)
    """
    return _waits(run, None)


def may_start(run: OrderedRun[Ordered]) -> list[Ordered]:
    """Return the queued phases that may start now, in order. (rules §2.7)

    Each may start as long as no other one does: two of them may wait for one another.
    """
    waits = waits_of(run)
    return [each for each in in_order(run.phases) if waits.get(each.phase_id) == ()]


def first_at_hand(phases: Iterable[Stated]) -> Stated | None:
    """Return what a run is about, of its phases in order: the first under way, else not ended.

    Without phases side by side these are the same.
    """
    left = [phase for phase in phases if not phase.state.is_final]
    at_work = (phase for phase in left if phase.state is not PhaseStatus.QUEUED)
    return next(at_work, left[0] if left else None)


def is_alone(run: OrderedRun[Ordered], phase_id: str) -> bool:
    """Return whether no other phase is under way beside this one, or may start beside it.

    Then the branch is its own: what it has put there stays there between its tries.
    """
    if not run.is_parallel:
        return True
    if any(is_begun(other) and other.phase_id != phase_id for other in run.phases):
        return False
    waits = _waits(run, phase_id)
    return not any(wait == () for name, wait in waits.items() if name != phase_id)


def ci_turn(run: OrderedRun[Ordered]) -> Ordered | None:
    """Return the phase whose commit CI judges now: the first of those that wait for a verdict.

    CI judges commits in the order of the branch, so all before the judged one are judged. (§2.7)
    """
    waiting = [each for each in in_order(run.phases) if each.state is PhaseStatus.CI_RUNNING]
    return min(waiting, key=lambda phase: phase.branch_place, default=None)


def has_commits(phase: OrderedPhase) -> bool:
    """Return whether commits of a phase are on the branch."""
    return phase.before_commit is not None


def to_undo(before: OrderedRun[Ending], after: OrderedRun[Ending]) -> list[Ending]:
    """Return the phases whose commits a change takes off the branch, the latest first.

    One that failed or was skipped by hand is undone, and so is one that left CI or its gate for
    another try while others are under way: they must not build on it. (rules §2.1, §2.7)
    """
    earlier = {phase.phase_id: phase.state for phase in before.phases}
    found = [
        phase
        for phase in after.phases
        if phase.state is not earlier[phase.phase_id]
        and (
            phase.state is PhaseStatus.FAILED
            or (phase.state is PhaseStatus.SKIPPED and phase.completed_by is CompletedBy.HAND)
            or (
                has_commits(phase)
                and phase.state in (PhaseStatus.QUEUED, PhaseStatus.EXECUTING, PhaseStatus.GATE)
                and earlier[phase.phase_id] in (PhaseStatus.CI_RUNNING, PhaseStatus.GATE)
                and not is_alone(after, phase.phase_id)
            )
        )
    ]
    return sorted(found, key=lambda phase: phase.branch_place, reverse=True)


def unjudged_before(run: OrderedRun[Ending], phase: Ending) -> list[Ending]:
    """Return the phases before this one on the branch whose commits no green verdict covers.

    These were completed by hand. CI judges a commit's whole tree, so the green verdict of any
    phase after them covers them too. (rules §6)
    """
    earlier = [
        each for each in run.phases if has_commits(each) and each.branch_place < phase.branch_place
    ]
    judged = max(
        (each.branch_place for each in earlier if each.verdict is Verdict.GREEN), default=0
    )
    found = [
        each
        for each in earlier
        if each.state is PhaseStatus.COMPLETE
        and each.completed_by is CompletedBy.HAND
        and each.branch_place > judged
    ]
    return sorted(found, key=lambda each: each.branch_place)


def after_it(run: OrderedRun[Ordered], phase: OrderedPhase) -> list[Ordered]:
    """Return the other phases with commits after a phase's own, in the order of the branch."""
    others = [
        each
        for each in run.phases
        if has_commits(each)
        and each.branch_place > phase.branch_place
        and each.phase_id != phase.phase_id
    ]
    return sorted(others, key=lambda each: each.branch_place)


def _waits(run: OrderedRun[Ordered], holder: str | None) -> dict[str, tuple[PhaseWait, ...]]:
    """Return what each queued phase waits for, as if `holder` had nothing on the branch."""
    phases = in_order(run.phases)
    open_ids = {phase.phase_id for phase in phases if not phase.state.is_final}
    under_way = [phase for phase in phases if is_begun(phase)]
    is_tiered = run.run_scope is not RunScope.MULTI_TIER
    found: dict[str, tuple[PhaseWait, ...]] = {}
    first: Ordered | None = None  # that has not ended
    for phase in phases:
        if phase.state is PhaseStatus.QUEUED:
            is_listed = run.is_parallel and phase.depends_on is not None
            names = [each for each in phase.depends_on or () if each in open_ids]
            if first is not None and not (
                is_listed and (not is_tiered or first.tier_index == phase.tier_index)
            ):
                names.insert(0, first.phase_id)
            waits = [PhaseWait(name, WaitCause.ORDER) for name in dict.fromkeys(names)]
            if run.is_parallel:
                waits += [
                    PhaseWait(other.phase_id, WaitCause.PATHS)
                    for other in under_way
                    if other is not phase
                    and other.phase_id not in names
                    and _excludes(other, phase, has_branch=other.phase_id != holder)
                ]
            found[phase.phase_id] = tuple(waits)
        if first is None and not phase.state.is_final:
            first = phase
    return found


def _excludes(other: OrderedPhase, phase: OrderedPhase, *, has_branch: bool) -> bool:
    """Return whether a phase that is under way makes another one wait.

    What is on the branch outside of CI is unfinished: nothing may be built on it.
    """
    is_unfinished = other.before_commit is not None and other.state is not PhaseStatus.CI_RUNNING
    if has_branch and is_unfinished:
        return True
    return (
        _needs_branch(other)
        or _needs_branch(phase)
        or other.allowed_paths is None
        or phase.allowed_paths is None
        or may_overlap(tuple(other.allowed_paths), tuple(phase.allowed_paths))
    )


def _needs_branch(phase: OrderedPhase) -> bool:
    """Return whether a phase is never beside another one.

    One that may change nothing has no commit of its own that CI could judge, and a patch that
    only some of several Auditors have approved would be unfinished work on the branch.
    """
    return phase.allow_empty or phase.approvals_needed > 1
