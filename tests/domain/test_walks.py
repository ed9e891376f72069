"""Whatever happens to a run, it ends, and on the way no rule is broken. (rules §1, §2)"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
from hypothesis import event
from hypothesis import strategies as st
from tests.campaigns import random_examples

from autopack.domain.errors import ConflictError
from autopack.domain.events import GENESIS_HASH, from_record, seal, to_record
from autopack.domain.evidence import is_refuted
from autopack.domain.evidence_rules import Judged, conclude, entry
from autopack.domain.evolve import fold
from autopack.domain.order import first_at_hand, in_order
from autopack.domain.run import PhaseState, RunState
from autopack.domain.states import Cleanliness, PhaseStatus, RunStatus
from autopack.domain.terms import (
    BuilderStatus,
    CiProfile,
    EvidenceKind,
    EvidenceResult,
    RunScope,
    Verdict,
)

if TYPE_CHECKING:
    from tests.domain.conftest import Drive, Start

pytestmark = pytest.mark.unit

PHASE_MOVES = {
    "QUEUED": {"EXECUTING", "SKIPPED"},
    "EXECUTING": {"GATE", "QUEUED", "FAILED", "SKIPPED"},
    "GATE": {"CI_RUNNING", "COMPLETE", "QUEUED", "FAILED", "SKIPPED"},
    "CI_RUNNING": {"COMPLETE", "QUEUED", "GATE", "FAILED", "SKIPPED"},
    "COMPLETE": set(),
    "FAILED": set(),
    "SKIPPED": set(),
}
TIER_MOVES = {
    "PENDING": {"IN_PROGRESS", "SKIPPED"},
    "IN_PROGRESS": {"COMPLETE", "FAILED", "SKIPPED"},
}
ACTIVE = {"EXECUTING", "GATE", "CI_RUNNING"}

Step = Callable[["Drive"], object]


def plans(start: Start) -> st.SearchStrategy[Drive]:
    """Small runs of every scope and profile, with few tries and low caps."""
    return st.builds(
        lambda sizes, phase, tier, run: start(
            {
                f"T{t}": tuple(f"P{t}{p}" for p in range(size))
                for t, size in enumerate(sizes if sum(sizes) else [1])
            },
            phase=phase,
            tier=tier,
            **run,
        ),
        st.lists(st.integers(0, 2), min_size=1, max_size=3),
        st.fixed_dictionaries(
            {
                "max_builder_attempts": st.integers(1, 3),
                "max_auditor_attempts": st.integers(0, 2),
                "incident_token_cap": st.sampled_from([5, 1_000]),
                "auto_apply": st.booleans(),
                "has_ci": st.booleans(),
                "allow_empty": st.booleans(),
                "is_high_risk": st.booleans(),
                "ci_profile": st.sampled_from(CiProfile),
                "evidence_required": st.sampled_from([(), (EvidenceKind.BASELINE,)]),
            }
        ),
        st.fixed_dictionaries({"minors_tolerated": st.integers(0, 2)}),
        st.fixed_dictionaries(
            {
                "run_scope": st.sampled_from(RunScope),
                "max_duration_minutes": st.sampled_from([120, 10_000]),
                "token_cap": st.sampled_from([20, 1_000]),
                "max_minor_issues_total": st.integers(0, 3),
                "minor_cap_ends_run": st.booleans(),
                "any_failure_stops": st.booleans(),
                "high_risk_needs_review": st.booleans(),
            }
        ),
    )


def at_hand(drive: Drive) -> str:
    phase = first_at_hand(in_order(drive.run.phases))
    return phase.phase_id if phase else drive.run.phases[0].phase_id


def build(status: BuilderStatus, tokens: int, has_patch: bool, conflict: str | None) -> Step:
    return lambda drive: drive.build(
        at_hand(drive), status, tokens=tokens, has_patch=has_patch, conflict=conflict
    )


def review(recommendation: str, tokens: int, own_patches: int, pending_applies: bool) -> Step:
    return lambda drive: drive.review(
        recommendation,
        at_hand(drive),
        tokens=tokens,
        own_patches=own_patches,
        pending_applies=pending_applies,
    )


def verdict(is_green: bool, checks: str, result: EvidenceResult | None = None) -> Step:
    """Let CI judge; `result` is that of the baseline, None if CI did not measure it."""

    def step(drive: Drive) -> None:
        phase_id = at_hand(drive)
        if drive.phase(phase_id).state is PhaseStatus.CI_RUNNING:
            found = () if result is None else (entry(EvidenceKind.BASELINE, result, "why"),)
            told = Judged(verdict=Verdict.GREEN if is_green else Verdict.RED, reason="why")
            drive.judge(conclude(told, found).verdict, phase_id, checks, found)

    return step


def by_hand(wanted: PhaseStatus, index: int) -> Step:
    return lambda drive: drive.set_status(
        wanted, drive.run.phases[index % len(drive.run.phases)].phase_id
    )


def count_issues(index: int, minors: int, majors: int) -> Step:
    def step(drive: Drive) -> None:
        phase_id = drive.run.phases[index % len(drive.run.phases)].phase_id
        if not drive.run.state.is_final:
            drive.count_issues(phase_id, minors=minors, majors=majors)

    return step


def wait(minutes: int) -> Step:
    return lambda drive: drive.wait(minutes=minutes)


def ask_for_review(drive: Drive) -> None:
    drive.ask_for_review(at_hand(drive))


def cancel(drive: Drive) -> None:
    drive.cancel("enough")


def work(building: Step, reviewing: Step, judging: Step) -> Step:
    """Do what the run waits for."""
    steps = {"GATE": reviewing, "CI_RUNNING": judging}
    return lambda drive: steps.get(drive.phase(at_hand(drive)).state, building)(drive)


TOKENS = st.sampled_from([0, 1, 6])
BUILDS = st.builds(
    build,
    st.sampled_from([BuilderStatus.SUCCESS, *BuilderStatus]),
    TOKENS,
    st.sampled_from([True, True, False]),
    st.sampled_from([None, None, None, "a", "b"]),
)
REVIEWS = st.builds(
    review,
    st.sampled_from(["approve", "approve", "revise", "escalate"]),
    TOKENS,
    st.integers(0, 1),
    st.booleans(),
)
VERDICTS = st.builds(
    verdict,
    st.booleans(),
    st.sampled_from(["test_a", "test_b"]),
    st.sampled_from([None, None, *EvidenceResult]),
)
STEPS: st.SearchStrategy[Step] = st.builds(
    lambda choice, expected, other: other if choice == 0 else expected,
    st.integers(0, 3),
    st.builds(work, BUILDS, REVIEWS, VERDICTS),
    st.one_of(
        BUILDS,
        REVIEWS,
        st.builds(by_hand, st.sampled_from(PhaseStatus), st.integers(0, 5)),
        st.builds(count_issues, st.integers(0, 5), st.integers(0, 4), st.integers(0, 1)),
        st.builds(wait, st.sampled_from([1, 30, 60])),
        st.sampled_from([ask_for_review, ask_for_review, ask_for_review, cancel]),
    ),
)


def check_state(run: RunState) -> None:
    """Check what holds of a run at any moment."""
    tokens = sum(phase.tokens_used for phase in run.phases)
    assert tokens == sum(tier.tokens_used for tier in run.tiers) == run.tokens_used
    earlier_are_final = True
    for phase in in_order(run.phases):
        if phase.state in ACTIVE:
            assert earlier_are_final, f"{phase.phase_id} is active before its time"
        earlier_are_final = earlier_are_final and phase.state.is_final
        check_phase(phase)
    for tier in run.tiers:
        states = {phase.state for phase in run.phases if phase.tier_id == tier.tier_id}
        assert tier.state.is_final is (states <= {"COMPLETE", "FAILED", "SKIPPED"})
        assert (tier.cleanliness is Cleanliness.NOT_CLEAN) is bool(tier.cleanliness_reasons)
    assert run.state.is_final is earlier_are_final is (run.ended_at is not None)
    assert (run.failure_code is not None) is run.state.startswith("DONE_FAILED")
    assert bool(run.failure_reason) is run.state.startswith("DONE_FAILED")
    assert run.promotion_eligible_to_main is (run.state.is_final and not run.promotion_reasons)
    if run.promotion_eligible_to_main:
        assert run.state is RunStatus.DONE_SUCCESS
        for phase in run.phases:
            if phase.verdict is Verdict.GREEN and phase.evidence_required:
                [found] = phase.evidence
                assert found.result in ("passed", "warned", "not_needed")


def check_phase(phase: PhaseState) -> None:
    assert (phase.deadline_at is not None) is (phase.state in ACTIVE), "no wait without an end"
    if phase.pending_submission_id is not None:
        assert phase.state is PhaseStatus.GATE
    assert (phase.ended_at is not None) is phase.state.is_final
    assert phase.auditor_attempts_used >= 0
    if phase.state is PhaseStatus.FAILED:
        assert phase.failure_reason
    if phase.evidence:
        assert phase.verdict is not None, "evidence of another tree"
    if phase.verdict is Verdict.GREEN:
        assert not is_refuted(phase.evidence)


def check_change(before: RunState, after: RunState) -> None:
    """Check that what is final stayed, and that figures only grow."""
    if before.state.is_final:
        assert after == before
    if after.state in ("RUN_CREATED", "PLAN_BOOTSTRAP"):
        assert after.state == before.state
    for old, new in zip(before.phases, after.phases, strict=True):
        if old.state.is_final:
            assert new.state == old.state
            assert new.commit == old.commit
        assert new.tokens_used >= old.tokens_used
        assert new.builder_attempts_used >= old.builder_attempts_used
        assert new.fence >= old.fence
    for tier, later in zip(before.tiers, after.tiers, strict=True):
        if tier.state.is_final:
            assert later.state == tier.state


def check_events(drive: Drive, first: RunState) -> None:
    """Replay the events from the start: they lead by legal moves to the state as it is."""
    phases = {phase.phase_id: str(phase.state) for phase in first.phases}
    tiers = {tier.tier_id: str(tier.state) for tier in first.tiers}
    run = str(first.state)
    records = [to_record(event) for event in drive.events]
    assert [from_record(record) for record in records] == drive.events
    assert fold(first, drive.events) == drive.run
    for one in records:
        if one.to_state is None:
            continue
        moved = str(one.to_state)
        if one.kind in ("RunStateChanged", "RunEnded"):
            assert one.from_state == run
            assert not run.startswith("DONE")
            run = moved
        elif one.kind == "TierStateChanged":
            name = str(one.tier_id)
            assert one.from_state == tiers[name]
            assert moved in TIER_MOVES[tiers[name]]
            tiers[name] = moved
        elif one.phase_id is not None:
            assert one.from_state == phases[one.phase_id]
            assert moved in PHASE_MOVES[phases[one.phase_id]]
            phases[one.phase_id] = moved
    assert run == drive.run.state
    assert phases == {phase.phase_id: phase.state for phase in drive.run.phases}
    assert tiers == {tier.tier_id: tier.state for tier in drive.run.tiers}
    assert len(seal(records, 0, GENESIS_HASH)) == len(drive.events)


def take(drive: Drive, step: Step) -> None:
    """Take a step, which may be refused; a refusal is of the rules' own and changes nothing."""
    before = drive.run
    try:
        step(drive)
    except ConflictError:
        assert drive.run == before
    check_state(drive.run)
    check_change(before, drive.run)


@random_examples(20, 80, derandomize=True, data=st.data())
def test_every_walk_ends_within_the_runs_time_and_breaks_no_rule_on_the_way(
    start: Start, data: st.DataObject
) -> None:
    drive = data.draw(plans(start))
    first = drive.run
    check_state(first)
    for step in data.draw(st.lists(STEPS, min_size=5, max_size=30)):
        take(drive, step)
    drive.now = max(drive.now, first.deadline_at)
    take(drive, wait(0))
    assert drive.run.state.is_final
    assert drive.run.ended_at is not None
    event(f"{drive.run.state} {drive.run.failure_code or ''}")
    check_events(drive, first)


@random_examples(20, 80, derandomize=True, data=st.data())
def test_agents_that_never_solve_anything_run_out_of_tries_before_they_run_out_of_time(
    start: Start, data: st.DataObject
) -> None:
    drive = data.draw(plans(start))
    bad_steps = st.sampled_from(
        [
            build(BuilderStatus.FAILED, 0, has_patch=False, conflict=None),
            build(BuilderStatus.SUCCESS, 0, has_patch=True, conflict="a"),
            build(BuilderStatus.SUCCESS, 0, has_patch=True, conflict=None),
            build(BuilderStatus.NEEDS_REVIEW, 0, has_patch=False, conflict=None),
            review("revise", 0, 0, pending_applies=True),
            review("approve", 0, 0, pending_applies=False),
            verdict(is_green=False, checks="test_a"),
        ]
    )
    tries = sum(p.max_builder_attempts + p.max_auditor_attempts for p in drive.run.phases)
    used = 0
    while not drive.run.state.is_final:
        before = drive.run
        take(drive, data.draw(bad_steps))
        if drive.run != before:
            used += 1
        # A builder's try may be judged three times: by git, by the Auditor and by CI.
        assert used <= 3 * tries


@random_examples(20, 80, derandomize=True, data=st.data())
def test_agents_that_never_answer_are_not_waited_for_beyond_their_tries(
    start: Start, data: st.DataObject
) -> None:
    drive = data.draw(plans(start))
    drive.run = replace(drive.run, deadline_at=drive.now + timedelta(days=365))
    tries = sum(p.max_builder_attempts + p.max_auditor_attempts for p in drive.run.phases)
    for _ in range(tries + 1):
        if drive.run.state.is_final:
            break
        phase_id = at_hand(drive)
        if drive.phase(phase_id).state is PhaseStatus.QUEUED:
            drive.start_phase(phase_id)
        take(drive, wait(60))
    assert drive.run.state == "DONE_FAILED_REQUIRES_HUMAN_REVIEW"
    assert all(phase.state in ("FAILED", "SKIPPED") for phase in drive.run.phases)
