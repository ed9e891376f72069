"""What follows for tiers and run from its phases, and when a run is over. (rules §2, §3)"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from autopack.domain.building import open_attempt
from autopack.domain.consequences import count_tokens, end_failed
from autopack.domain.decision import Decision, PhaseNotNextError, RunOverError, WrongStateError
from autopack.domain.errors import NotFoundError
from autopack.domain.events import BuilderTriesSpent, TierCleanlinessChanged, to_record
from autopack.domain.evolve import change_phase
from autopack.domain.run import FailureCode
from autopack.domain.states import PhaseStatus
from autopack.domain.terms import RunScope

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.domain.conftest import Drive, Start

pytestmark = pytest.mark.unit

MANY_TRIES = {"has_ci": True, "max_builder_attempts": 9}
TWO_TIERS = {"T1": ("P1", "P2"), "T2": ("P3",)}
SAFETY_CRITICAL: dict[str, Any] = {
    "minor_cap_ends_run": True,
    "any_failure_stops": True,
    "high_risk_needs_review": True,
}
ONE_TRY = {"max_builder_attempts": 1, "max_auditor_attempts": 0}


def spend(drive: Drive, tokens: int) -> None:
    drive.decide(lambda decision: count_tokens(decision, "P1", tokens))


def judge(drive: Drive, times: int) -> None:
    for number in range(times):
        drive.build()
        drive.red(checks=f"test_{number}")


class TestTheRunFollowsItsPhases:
    def test_a_run_that_only_issues_were_recorded_in_is_still_created(self, start: Start) -> None:
        assert start().count_issues(minors=1).state == "RUN_CREATED"

    def test_a_phase_under_way_gives_the_run_its_state(self, start: Start) -> None:
        drive = start(phase={"has_ci": True})
        drive.start_phase("P1")
        assert drive.run.state == "PHASE_EXECUTION"
        drive.set_status(PhaseStatus.GATE)
        assert drive.run.state == "GATE"
        drive.set_status(PhaseStatus.CI_RUNNING)
        assert drive.run.state == "CI_RUNNING"

    def test_a_phase_back_in_the_queue_makes_the_run_queue(self, start: Start) -> None:
        drive = start()
        drive.fail()
        assert drive.run.state == "PHASE_QUEUEING"

    def test_a_completed_phase_with_more_to_do_leaves_a_snapshot_until_the_next_change(
        self, start: Start
    ) -> None:
        drive = start(TWO_TIERS)
        drive.build("P1")
        assert drive.run.state == "SNAPSHOT_CREATED"
        drive.count_issues("P2", minors=1)
        assert drive.run.state == "PHASE_QUEUEING"

    def test_a_request_that_changes_nothing_is_no_change_and_no_event(self, start: Start) -> None:
        drive = start(TWO_TIERS)
        drive.build("P1")
        before, events = drive.run, len(drive.events)
        drive.set_status(PhaseStatus.COMPLETE, "P1")
        assert drive.run == before
        assert len(drive.events) == events

    def test_the_last_completed_phase_ends_the_run_in_success(self, start: Start) -> None:
        drive = start(TWO_TIERS)
        for phase_id in ("P1", "P2", "P3"):
            drive.build(phase_id)
        assert drive.run.state == "DONE_SUCCESS"
        assert drive.run.ended_at == drive.now
        assert drive.run.failure_code is None
        assert drive.run.failure_reason is None
        assert drive.run.promotion_eligible_to_main

    def test_every_change_of_run_tier_and_phase_is_an_event(self, start: Start) -> None:
        drive = start()
        drive.build()
        records = [to_record(event) for event in drive.events]
        moves = [(e.kind, e.from_state, e.to_state) for e in records if e.to_state]
        assert moves == [
            ("PhaseStarted", "QUEUED", "EXECUTING"),
            ("PhaseGated", "EXECUTING", "GATE"),
            ("PhaseCompleted", "GATE", "COMPLETE"),
            ("TierStateChanged", "PENDING", "IN_PROGRESS"),
            ("TierStateChanged", "IN_PROGRESS", "COMPLETE"),
            ("RunEnded", "RUN_CREATED", "DONE_SUCCESS"),
        ]
        assert all(e.actor and e.reason and e.at == drive.now for e in records if e.to_state)


class TestOrder:
    def test_a_phase_may_not_start_before_the_one_before_it_is_final(self, start: Start) -> None:
        drive = start(TWO_TIERS)
        for later in ("P2", "P3"):
            with pytest.raises(PhaseNotNextError, match="'P1'") as refusal:
                drive.start_phase(later)
            assert refusal.value.extra["allowed"] == ["P1"]

    def test_indexes_give_the_order_and_not_the_order_of_the_plan(self, start: Start) -> None:
        drive = start({"T2": ("P3",), "T1": ("P1",)})
        drive.run = change_phase(drive.run, "P1", tier_index=0)
        drive.run = change_phase(drive.run, "P3", tier_index=1)
        drive.build("P1")
        assert drive.build("P3").state == "COMPLETE"

    def test_after_a_failed_phase_the_next_of_its_tier_can_start(self, start: Start) -> None:
        drive = start(TWO_TIERS, phase=ONE_TRY)
        drive.fail("P1")
        assert drive.phase("P1").state == "FAILED"
        assert drive.start_phase("P2").state == "EXECUTING"

    def test_an_unknown_phase_is_not_found(self, start: Start) -> None:
        with pytest.raises(NotFoundError, match="'P9'"):
            start().start_phase("P9")

    def test_a_phase_remembers_the_commit_it_started_from_through_all_its_attempts(
        self, start: Start
    ) -> None:
        drive = start(phase={"has_ci": True})
        first = drive.run.head_commit
        drive.build()
        drive.red()
        drive.build()
        assert drive.phase("P1").start_commit == first != drive.run.head_commit


class TestTiers:
    def test_a_tier_is_in_progress_from_its_first_phase_on(self, start: Start) -> None:
        drive = start(TWO_TIERS)
        assert drive.tier("T1").state == "PENDING"
        drive.fail("P1")  # and back to the queue
        assert drive.tier("T1").state == "IN_PROGRESS"
        assert drive.tier("T2").state == "PENDING"

    def test_a_tier_whose_first_phase_is_skipped_is_in_progress(self, start: Start) -> None:
        drive = start(TWO_TIERS)
        drive.set_status(PhaseStatus.SKIPPED, "P1")
        assert drive.tier("T1").state == "IN_PROGRESS"
        assert drive.tier("T2").state == "PENDING"

    def test_a_tier_completes_with_its_last_phase(self, start: Start) -> None:
        drive = start(TWO_TIERS)
        drive.build("P1")
        assert drive.tier("T1").state == "IN_PROGRESS"
        drive.build("P2")
        assert drive.tier("T1").state == "COMPLETE"

    def test_a_tier_with_a_failed_phase_fails_when_all_its_phases_are_final(
        self, start: Start
    ) -> None:
        drive = start(TWO_TIERS, phase=ONE_TRY, run_scope=RunScope.MULTI_TIER)
        drive.fail("P1")
        assert drive.tier("T1").state == "IN_PROGRESS"
        drive.build("P2")
        assert drive.tier("T1").state == "FAILED"

    def test_a_tier_without_phases_is_skipped_and_blocks_no_other(self, start: Start) -> None:
        drive = start({"T0": (), "T1": ("P1",)})
        drive.build()
        assert drive.tier("T0").state == "SKIPPED"
        assert drive.run.state == "DONE_SUCCESS"

    def test_tiers_that_a_runs_end_cuts_off_are_skipped(self, start: Start) -> None:
        drive = start(TWO_TIERS)
        drive.start_phase("P1")
        drive.wait(minutes=120)
        assert [tier.state for tier in drive.run.tiers] == ["SKIPPED", "SKIPPED"]


class TestCleanliness:
    @pytest.mark.parametrize(
        ("reach", "reason"),
        [
            (lambda drive, figure: drive.count_issues(minors=figure), "3 minor issues, 2 allowed"),
            (lambda drive, figure: spend(drive, 1_000 * figure + 1), "3001 tokens, 3000 allowed"),
            (lambda drive, figure: judge(drive, figure), "3 CI runs, 2 allowed"),
        ],
    )
    def test_a_tier_past_a_cap_is_not_clean_and_says_by_how_much(
        self, start: Start, reach: Callable[[Drive, int], object], reason: str
    ) -> None:
        within, past = start(phase=MANY_TRIES), start(phase=MANY_TRIES)
        reach(within, 2)
        assert within.tier("T1").cleanliness == "clean"
        assert within.tier("T1").cleanliness_reasons == ()
        reach(past, 3)
        assert past.tier("T1").cleanliness == "not_clean"
        assert past.tier("T1").cleanliness_reasons == (reason,)

    def test_a_tier_is_clean_again_when_what_stood_against_it_is_resolved(
        self, start: Start
    ) -> None:
        drive = start()
        drive.count_issues(majors=1)
        assert drive.tier("T1").cleanliness_reasons == ("1 major issues, 0 allowed",)
        drive.count_issues()
        assert drive.tier("T1").cleanliness_reasons == ()
        changes = [
            event.to_state for event in drive.events if isinstance(event, TierCleanlinessChanged)
        ]
        assert changes == ["not_clean", "clean"]

    def test_a_failed_phase_makes_its_tier_unclean(self, start: Start) -> None:
        drive = start(TWO_TIERS, phase=ONE_TRY)
        drive.fail("P1")
        assert drive.tier("T1").cleanliness_reasons == ("phase 'P1' failed",)

    def test_the_tier_cap_ends_no_run_by_itself(self, start: Start) -> None:
        drive = start(tier={"token_cap": 10}, run_scope=RunScope.MULTI_TIER)
        drive.build(tokens=11)
        assert drive.run.state == "DONE_SUCCESS"
        assert not drive.run.promotion_eligible_to_main
        assert drive.run.promotion_reasons == ("tier 'T1' is not clean: 11 tokens, 10 allowed",)


class TestScopeAndProfile:
    @pytest.mark.parametrize("scope", [RunScope.INCREMENTAL, RunScope.SINGLE_TIER])
    def test_a_failed_tier_stops_a_strict_run_once_it_is_over(
        self, start: Start, scope: RunScope
    ) -> None:
        drive = start(TWO_TIERS, phase=ONE_TRY, run_scope=scope)
        drive.fail("P1")
        assert not drive.run.state.is_final
        drive.build("P2")
        assert drive.run.state == "DONE_FAILED_REQUIRES_HUMAN_REVIEW"
        assert drive.run.failure_code is FailureCode.PHASE_FAILED
        assert "phase 'P1' failed: the Builder reported failure" in str(drive.run.failure_reason)
        assert drive.phase("P3").state == "SKIPPED"

    @pytest.mark.parametrize("scope", [RunScope.INCREMENTAL, RunScope.SINGLE_TIER])
    def test_an_unclean_tier_stops_a_strict_run_once_it_is_over(
        self, start: Start, scope: RunScope
    ) -> None:
        drive = start(TWO_TIERS, run_scope=scope)
        drive.count_issues("P1", majors=1)
        assert not drive.run.state.is_final
        drive.build("P1")
        drive.review("approve", "P1")
        assert not drive.run.state.is_final
        drive.build("P2")
        assert drive.run.state == "DONE_FAILED_REQUIRES_HUMAN_REVIEW"
        assert drive.run.failure_code is FailureCode.TIER_NOT_CLEAN
        assert drive.run.failure_reason == "tier 'T1' is not clean: 1 major issues, 0 allowed"

    def test_the_first_of_several_failed_phases_is_named_with_their_number(
        self, start: Start
    ) -> None:
        drive = start(TWO_TIERS, phase=ONE_TRY, run_scope=RunScope.MULTI_TIER)
        for phase_id in ("P1", "P2"):
            drive.fail(phase_id)
        drive.build("P3")
        assert str(drive.run.failure_reason).endswith(" (and 1 more)")
        assert "phase 'P1' failed: " in str(drive.run.failure_reason)

    def test_an_issue_resolved_before_the_tier_ends_stops_nothing(self, start: Start) -> None:
        drive = start(TWO_TIERS)
        drive.count_issues("P1", minors=5)
        drive.build("P1")
        drive.count_issues("P1", minors=4)
        drive.build("P2")
        assert drive.tier("T1").cleanliness == "clean"
        assert not drive.run.state.is_final

    def test_a_multi_tier_run_goes_on_and_ends_as_a_failure_for_a_failed_phase(
        self, start: Start
    ) -> None:
        drive = start(TWO_TIERS, phase=ONE_TRY, run_scope=RunScope.MULTI_TIER)
        drive.fail("P1")
        drive.build("P2")
        drive.build("P3")
        assert drive.phase("P3").state == "COMPLETE"
        assert drive.run.state == "DONE_FAILED_REQUIRES_HUMAN_REVIEW"
        assert drive.run.failure_code is FailureCode.PHASE_FAILED

    def test_a_multi_tier_run_goes_on_past_an_unclean_tier_and_succeeds(self, start: Start) -> None:
        drive = start({"T1": ("P1",), "T2": ("P2",)}, run_scope=RunScope.MULTI_TIER)
        drive.count_issues("P1", minors=3)
        drive.build("P1")
        drive.build("P2")
        assert drive.run.state == "DONE_SUCCESS"
        assert not drive.run.promotion_eligible_to_main

    @pytest.mark.parametrize("scope", list(RunScope))
    def test_a_safety_critical_run_stops_at_the_first_failed_phase(
        self, start: Start, scope: RunScope
    ) -> None:
        drive = start(TWO_TIERS, phase=ONE_TRY, run_scope=scope, **SAFETY_CRITICAL)
        drive.fail("P1")
        assert drive.run.state == "DONE_FAILED_REQUIRES_HUMAN_REVIEW"
        assert drive.run.failure_code is FailureCode.PHASE_FAILED
        assert [drive.phase(p).state for p in ("P2", "P3")] == ["SKIPPED", "SKIPPED"]

    def test_a_safety_critical_run_stops_at_an_unclean_tier_before_its_end(
        self, start: Start
    ) -> None:
        drive = start(TWO_TIERS, tier={"minors_tolerated": 1}, **SAFETY_CRITICAL)
        drive.count_issues("P1", minors=2)
        drive.build("P1")
        assert drive.run.failure_code is FailureCode.TIER_NOT_CLEAN

    def test_an_open_major_issue_stops_a_safety_critical_run_even_where_a_tier_tolerates_it(
        self, start: Start
    ) -> None:
        drive = start(TWO_TIERS, tier={"majors_tolerated": 5}, **SAFETY_CRITICAL)
        drive.count_issues("P1", majors=1)
        assert not drive.run.state.is_final  # judged when a phase ends
        drive.build("P1")
        drive.review("approve", "P1")
        assert drive.run.state == "DONE_FAILED_REQUIRES_HUMAN_REVIEW"
        assert drive.run.failure_code is FailureCode.MAJOR_ISSUE


class TestBudgets:
    def test_the_runs_token_cap_may_be_reached(self, start: Start) -> None:
        drive = start(token_cap=500)
        assert drive.build(tokens=500).state == "COMPLETE"
        assert drive.run.state == "DONE_SUCCESS"

    def test_a_result_past_the_runs_token_cap_applies_nothing_and_ends_the_run(
        self, start: Start
    ) -> None:
        drive = start(TWO_TIERS, token_cap=500)
        head = drive.run.head_commit
        phase = drive.build("P1", tokens=501)
        assert phase.state == "SKIPPED"
        assert phase.commit is None
        assert drive.run.head_commit == head
        assert drive.run.tokens_used == drive.tier("T1").tokens_used == phase.tokens_used == 501
        assert phase.builder_attempts_used == 1
        assert drive.run.state == "DONE_FAILED_BUDGET_EXHAUSTED"
        assert drive.run.failure_code is FailureCode.TOKEN_CAP
        assert drive.run.failure_reason == "run token_cap 500 passed: 501 tokens used"
        assert not drive.run.promotion_eligible_to_main

    def test_an_auditors_result_past_the_runs_token_cap_applies_nothing(self, start: Start) -> None:
        drive = start(phase={"auto_apply": False}, token_cap=500)
        drive.build(tokens=400)
        assert drive.review("approve", tokens=101).commit is None
        assert drive.run.state == "DONE_FAILED_BUDGET_EXHAUSTED"

    def test_tokens_add_up_over_attempts_and_phases(self, start: Start) -> None:
        drive = start(TWO_TIERS)
        drive.build("P1", tokens=1, conflict="a")
        drive.build("P1", tokens=2)
        drive.build("P2", tokens=4)
        drive.build("P3", tokens=8)
        assert [phase.tokens_used for phase in drive.run.phases] == [3, 4, 8]
        assert [tier.tokens_used for tier in drive.run.tiers] == [7, 8]
        assert drive.run.tokens_used == 15

    def test_tokens_count_even_where_the_issues_of_the_result_end_the_run(
        self, start: Start
    ) -> None:
        drive = start(max_minor_issues_total=2, **SAFETY_CRITICAL)
        phase = drive.build(tokens=7, minors=3)
        assert drive.run.failure_code is FailureCode.MINOR_ISSUE_CAP
        assert phase.commit is None
        assert drive.run.tokens_used == drive.tier("T1").tokens_used == phase.tokens_used == 7

    def test_the_incident_cap_may_be_reached(self, start: Start) -> None:
        drive = start()
        assert drive.build(tokens=1_000, conflict="a").state == "QUEUED"

    def test_past_the_incident_cap_the_builder_has_no_tries_left(self, start: Start) -> None:
        drive = start()
        drive.build(tokens=600, conflict="a")
        phase = drive.build(tokens=401, conflict="b")
        assert phase.builder_tries_left == 0
        assert phase.state == "GATE"  # over to the Auditor
        spent = next(e for e in drive.events if isinstance(e, BuilderTriesSpent))
        assert spent.reason == "incident_token_cap 1000 passed: 1001 tokens used by the phase"

    def test_a_patch_past_the_incident_cap_alone_still_counts(self, start: Start) -> None:
        assert start().build(tokens=1_001).state == "COMPLETE"

    def test_a_phase_that_fails_for_its_budget_names_budget_cap_and_figure(
        self, start: Start
    ) -> None:
        drive = start(phase={"max_auditor_attempts": 0})
        drive.build(tokens=1_001, conflict="a")
        reason = str(drive.run.failure_reason)
        assert "1 of 3 builder tries" in reason
        assert "0 of 0 auditor tries" in reason
        assert "incident_token_cap 1000 passed: 1001 tokens" in reason
        assert str(drive.phase("P1").failure_reason) in reason

    def test_the_minor_issue_cap_ends_only_a_safety_critical_run(self, start: Start) -> None:
        normal = start(max_minor_issues_total=2)
        assert normal.count_issues(minors=2).debt_status == "has_minor_issues"
        assert normal.count_issues(minors=3).debt_status == "excess_minor_issues"
        assert not normal.run.state.is_final
        critical = start(max_minor_issues_total=2, **SAFETY_CRITICAL)
        assert not critical.count_issues(minors=2).state.is_final
        run = critical.count_issues(minors=3)
        assert run.state == "DONE_FAILED_BUDGET_EXHAUSTED"
        assert run.failure_code is FailureCode.MINOR_ISSUE_CAP
        assert run.failure_reason == "max_minor_issues_total 2 passed: 3 minor issues are open"

    @pytest.mark.parametrize(
        ("minors", "majors", "status"),
        [
            (0, 0, "clean"),
            (1, 0, "has_minor_issues"),
            (4, 0, "excess_minor_issues"),
            (0, 1, "has_major_issues"),
            (4, 1, "has_major_issues"),
        ],
    )
    def test_debt_status_follows_from_the_open_issues(
        self, start: Start, minors: int, majors: int, status: str
    ) -> None:
        assert start().count_issues(minors=minors, majors=majors).debt_status == status

    def test_a_run_ends_when_its_time_is_up_and_names_the_figures(self, start: Start) -> None:
        drive = start(max_duration_minutes=10)
        drive.start_phase("P1")
        assert not drive.wait(minutes=9.9).state.is_final
        run = drive.wait(minutes=2.6)
        assert run.state == "DONE_FAILED_BUDGET_EXHAUSTED"
        assert run.failure_code is FailureCode.DURATION_CAP
        assert "max_duration_minutes 10 passed" in str(run.failure_reason)
        assert "12.5 minutes" in str(run.failure_reason)


class TestTheEnd:
    def test_what_is_not_final_is_skipped_and_its_holders_lose_it(self, start: Start) -> None:
        drive = start(TWO_TIERS, phase={"auto_apply": False})
        before = drive.build("P1")
        assert before.pending_submission_id is not None
        drive.end_failed(FailureCode.BRANCH_MOVED, "moved")
        phase = drive.phase("P1")
        assert phase.state == "SKIPPED"
        assert phase.pending_submission_id is None
        assert phase.deadline_at is None
        assert phase.fence > before.fence
        assert phase.ended_at == drive.now
        assert drive.run.state == "DONE_FAILED_POLICY_VIOLATION"

    def test_completed_and_failed_phases_stay_as_they_are(self, start: Start) -> None:
        drive = start(TWO_TIERS)
        drive.build("P1")
        drive.end_failed(FailureCode.CI_DID_NOT_RUN, "gone")
        assert [phase.state for phase in drive.run.phases] == ["COMPLETE", "SKIPPED", "SKIPPED"]
        assert drive.run.state == "DONE_FAILED_ENVIRONMENT"

    def test_the_first_end_is_the_only_one(self, start: Start) -> None:
        drive = start()

        def step(decision: Decision) -> None:
            end_failed(decision, FailureCode.TOKEN_CAP, "first")
            end_failed(decision, FailureCode.CANCELLED, "second")

        assert drive.decide(step).failure_reason == "first"
        assert [e.kind for e in drive.events].count("RunEnded") == 1

    def test_a_run_that_is_over_refuses_results_with_the_reason(self, start: Start) -> None:
        drive = start()
        drive.end_failed(FailureCode.CANCELLED, "cancelled: enough")
        with pytest.raises(RunOverError, match="enough") as refusal:
            drive.build()
        assert refusal.value.code == "run_over"

    @pytest.mark.parametrize("code", list(FailureCode))
    def test_no_failed_run_is_eligible(self, start: Start, code: FailureCode) -> None:
        run = start().end_failed(code, "because")
        assert run.state.is_final
        assert not run.promotion_eligible_to_main
        assert run.promotion_reasons[0] == f"the run is {run.state}, not DONE_SUCCESS"


def test_a_builder_result_is_accepted_only_in_queued_and_executing(start: Start) -> None:
    drive = start(phase={"auto_apply": False})
    drive.build()
    with pytest.raises(WrongStateError) as refusal:
        drive.decide(lambda decision: open_attempt(decision, "P1"))
    assert refusal.value.extra["allowed"] == ["QUEUED", "EXECUTING"]
