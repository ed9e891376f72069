"""Random walks of runs whose phases are side by side: the properties of every walk, and some more.

The branch is followed by the events alone, as a list of the patches that are on it. (rules §2.7)
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import Phase, event
from hypothesis import strategies as st
from tests.campaigns import random_examples
from tests.domain.test_walks import check_change, check_events, check_phase

from autopack.domain.errors import ConflictError
from autopack.domain.events import Event, PatchApplied, PhaseUndone, TryReturned
from autopack.domain.order import ci_turn, in_order, is_begun, may_start
from autopack.domain.paths import may_overlap
from autopack.domain.run import PhaseState, RunState
from autopack.domain.states import PhaseStatus
from autopack.domain.terms import BuilderStatus, Role, RunScope, Verdict

if TYPE_CHECKING:
    from tests.domain.conftest import Drive, Start

pytestmark = pytest.mark.unit

PATHS = (("x/**",), ("y/**",), ("z",), ("v/*.py", "w"), ("x/a.py",), None)
CI, GATE = PhaseStatus.CI_RUNNING, PhaseStatus.GATE


def draw_run(draw: st.DrawFn, start: Start) -> Drive:
    """Start a run of up to two tiers and six phases, with a random graph of dependencies."""
    sizes = draw(st.sampled_from([[4], [5], [3, 2], [2, 3], [6]]))
    drive = start(
        {f"T{t}": tuple(f"P{t}{p}" for p in range(size)) for t, size in enumerate(sizes)},
        phase={
            "max_builder_attempts": draw(st.integers(1, 3)),
            "max_auditor_attempts": draw(st.integers(0, 2)),
            "incident_token_cap": draw(st.sampled_from([100, 5])),
            "auto_apply": draw(st.sampled_from([True, True, False])),
            "has_ci": draw(st.sampled_from([True, True, False])),
        },
        run_scope=draw(st.sampled_from(RunScope)),
        token_cap=draw(st.sampled_from([2_000, 2_000, 2_000, 220])),
        any_failure_stops=draw(st.sampled_from([False, False, False, True])),
        is_parallel=True,
    )
    phases: list[PhaseState] = []
    for phase in in_order(drive.run.phases):
        names = [each.phase_id for each in phases]
        few = st.lists(st.sampled_from(names), unique=True, max_size=1) if names else st.just([])
        depends_on = draw(st.one_of(st.just([]), few, few, st.none()))
        phases.append(
            replace(
                phase,
                depends_on=None if depends_on is None else tuple(depends_on),
                allowed_paths=draw(st.sampled_from(PATHS)),
                allow_empty=draw(st.integers(0, 9)) == 7,
                approvals_needed=1 + (draw(st.integers(0, 9)) == 7),
            )
        )
    drive.run = replace(drive.run, phases=tuple(phases))
    return drive


def step(draw: st.DrawFn, drive: Drive) -> None:
    """Do something with a phase that something can be done with, mostly what it waits for."""
    ready = may_start(drive.run)
    begun = [phase for phase in drive.run.phases if is_begun(phase)]
    phase = draw(st.sampled_from([*ready, *begun] or list(drive.run.phases)))
    name, tokens = phase.phase_id, draw(st.sampled_from([0, 1, 6]))
    match draw(st.sampled_from([3, 4, 9, 8, 7, 6, 5, 3, 10, 11, 9, 8, 2, 0, 1])):
        case 0:
            drive.wait(minutes=draw(st.sampled_from([1, 1, 30])))
        case 1:
            drive.set_status(draw(st.sampled_from(PhaseStatus)), name)
        case 2:
            drive.ask_for_review(name)
        case 3 | 4 | 5:
            drive.claim(draw(st.sampled_from([Role.BUILDER, Role.BUILDER, Role.AUDITOR])))
        case _:
            go_on(draw, drive, phase, tokens)


def go_on(draw: st.DrawFn, drive: Drive, phase: PhaseState, tokens: int) -> None:
    if phase.state is GATE:
        what = draw(st.sampled_from(["approve", "approve", "revise", "escalate"]))
        drive.review(
            what,
            phase.phase_id,
            tokens=tokens,
            own_patches=draw(st.integers(0, 1)),
            pending_applies=draw(st.booleans()),
        )
    elif phase.state is CI:
        turn = ci_turn(drive.run)
        assert turn is not None
        good = st.sampled_from([Verdict.GREEN, Verdict.GREEN, Verdict.RED])
        drive.judge(draw(good), turn.phase_id, draw(st.sampled_from(["a", "b"])))
    else:
        drive.build(
            phase.phase_id,
            draw(st.sampled_from([*[BuilderStatus.SUCCESS] * 5, *BuilderStatus])),
            tokens=tokens,
            has_patch=draw(st.sampled_from([True, True, True, False])),
            conflict=draw(st.sampled_from([None, None, None, "a"])),
        )


def check_order(run: RunState) -> None:
    """Check what holds of phases side by side at any moment."""
    final = {phase.phase_id for phase in run.phases if phase.state.is_final}
    begun = [phase for phase in run.phases if is_begun(phase)]
    before: set[str] = set()
    for phase in in_order(run.phases):
        wanted = before if phase.depends_on is None else set(phase.depends_on)
        assert not is_begun(phase) or wanted <= final, f"{phase.phase_id} has begun too early"
        before |= {phase.phase_id}
        check_phase_beside(phase, [each for each in begun if each is not phase])
    reserved = sum(phase.tokens_reserved for phase in run.phases)
    assert run.tokens_reserved == reserved
    assert run.tokens_used + reserved <= run.token_cap or run.is_over


def check_phase_beside(phase: PhaseState, others: list[PhaseState]) -> None:
    if phase.state is not CI or phase.deadline_at is not None:
        check_phase(phase)
    if not is_begun(phase):
        return
    for other in others:
        assert phase.allowed_paths is not None
        assert other.allowed_paths is not None
        assert not may_overlap(phase.allowed_paths, other.allowed_paths)
        assert phase.before_commit is None or phase.state is CI, "unfinished work on the branch"


def patches_on_branch(events: Iterable[Event], base: str) -> list[tuple[str, str, str]]:
    """Return the patches on the branch as (phase, commit, head before it)."""
    branch: list[tuple[str, str, str]] = []
    head = base
    for each in events:
        if isinstance(each, PatchApplied):
            branch.append((each.phase_id, each.commit, head))
            head = each.commit
        elif isinstance(each, PhaseUndone):
            gone = {each.phase_id, *each.taken_off}
            first = min(at for at, (name, _, _) in enumerate(branch) if name in gone)
            assert {name for name, _, _ in branch[first:]} <= gone, "another phase's work is lost"
            del branch[first:]
            head = each.commit
    return branch


def check_branch(drive: Drive, first: RunState) -> None:
    """Check that each phase knows its commits on the branch, and that no others are there."""
    branch = patches_on_branch(drive.events, str(first.head_commit))
    for phase in drive.run.phases:
        mine = [(commit, before) for name, commit, before in branch if name == phase.phase_id]
        assert (phase.before_commit is not None) is bool(mine), phase.phase_id
        if mine:
            assert phase.commit == mine[-1][0]
        if phase.state is PhaseStatus.FAILED:
            assert not mine, "a failed phase is undone"
        if phase.state is PhaseStatus.COMPLETE and phase.commit is not None:
            assert mine, "what is complete is on the branch"


@random_examples(8, 25, derandomize=True, phases=(Phase.generate,), data=st.data())
def test_every_walk_side_by_side_ends_and_breaks_no_rule(start: Start, data: st.DataObject) -> None:
    drive = draw_run(lambda strategy: data.draw(strategy), start)  # type: ignore[arg-type]
    first = drive.run
    most = 0
    for _ in range(data.draw(st.integers(10, 40))):
        before = drive.run
        try:
            step(lambda strategy: data.draw(strategy), drive)  # type: ignore[arg-type]
        except ConflictError:
            assert drive.run == before
        check_order(drive.run)
        if not any(isinstance(each, PhaseUndone | TryReturned) for each in drive.events):
            check_change(before, drive.run)
        check_branch(drive, first)
        most = max(most, sum(is_begun(phase) for phase in drive.run.phases))
    drive.now = max(drive.now, first.deadline_at)
    drive.wait(minutes=0)
    assert drive.run.state.is_final
    event(f"{most} at once")
    event(f"{drive.run.state}")
    event(f"undone: {sum(isinstance(each, PhaseUndone) for each in drive.events)}")
    again = sum(isinstance(each, PatchApplied) and each.is_again for each in drive.events)
    event(f"again: {again}")
    check_events(drive, first)
