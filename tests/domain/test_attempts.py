"""Attempts, reviews, the operator's hand and the clock: what each does to a phase. (rules §2)"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from autopack.domain import operating
from autopack.domain.decision import PhaseNotNextError, RunOverError, WrongStateError
from autopack.domain.events import PhaseQueued
from autopack.domain.judging import wait_before_repeat
from autopack.domain.reviewing import why_not_approvable
from autopack.domain.run import CompletedBy, FailureCode
from autopack.domain.states import IllegalTransitionError, PhaseStatus
from autopack.domain.terms import BuilderStatus, Verdict

if TYPE_CHECKING:
    from tests.domain.conftest import Drive, Start

pytestmark = pytest.mark.unit

NEEDS_APPROVAL = {"auto_apply": False}
SUCCESS, NEEDS_REVIEW = BuilderStatus.SUCCESS, BuilderStatus.NEEDS_REVIEW


class TestBuilder:
    def test_an_applied_patch_without_ci_completes_the_phase(self, start: Start) -> None:
        drive = start()
        phase = drive.build()
        assert phase.state == "COMPLETE"
        assert phase.completed_by is CompletedBy.RULES
        assert phase.commit == drive.run.head_commit
        assert phase.ended_at == drive.now
        assert phase.deadline_at is None

    def test_an_applied_patch_with_ci_waits_for_its_verdict(self, start: Start) -> None:
        drive = start(phase={"has_ci": True, "ci_timeout_seconds": 90})
        phase = drive.build()
        assert phase.state == "CI_RUNNING"
        assert phase.deadline_at == drive.now + timedelta(seconds=90)

    def test_a_result_without_a_claim_starts_the_phase_under_a_new_fence(
        self, start: Start
    ) -> None:
        drive = start()
        phase = drive.start_phase("P1")
        assert phase.state == "EXECUTING"
        assert phase.fence == 1
        assert phase.deadline_at == drive.now + timedelta(minutes=60)

    @pytest.mark.parametrize(
        ("status", "is_risky", "is_critical", "majors", "goes_to_review"),
        [
            (SUCCESS, False, False, 0, False),
            (NEEDS_REVIEW, False, False, 0, True),
            (SUCCESS, False, False, 1, True),
            (SUCCESS, True, False, 0, False),
            (SUCCESS, False, True, 0, False),
            (SUCCESS, True, True, 0, True),
        ],
    )
    def test_an_applied_patch_goes_to_review_where_the_gate_asks_for_one(
        self,
        start: Start,
        status: BuilderStatus,
        is_risky: bool,
        is_critical: bool,
        majors: int,
        goes_to_review: bool,
    ) -> None:
        drive = start(phase={"is_high_risk": is_risky}, high_risk_needs_review=is_critical)
        drive.count_issues(majors=majors)
        phase = drive.build(status=status)
        assert phase.commit is not None
        assert phase.state == ("GATE" if goes_to_review else "COMPLETE")
        if goes_to_review:
            assert phase.deadline_at == drive.now + timedelta(minutes=60)

    def test_a_review_asked_for_ahead_is_had_at_the_gate(self, start: Start) -> None:
        drive = start()
        drive.ask_for_review()
        assert drive.build().state == "GATE"
        assert drive.review("approve").state == "COMPLETE"

    def test_a_review_that_was_asked_for_is_had_once(self, start: Start) -> None:
        drive = start()
        drive.ask_for_review()
        drive.build()
        assert drive.review("revise").state == "QUEUED"
        assert drive.build().state == "COMPLETE"

    def test_a_patch_that_may_not_be_applied_at_once_is_pending_for_the_auditor(
        self, start: Start
    ) -> None:
        drive = start(phase=NEEDS_APPROVAL)
        head = drive.run.head_commit
        phase = drive.build()
        assert phase.state == "GATE"
        assert phase.pending_submission_id is not None
        assert phase.commit is None
        assert drive.run.head_commit == head

    def test_a_patch_that_needs_a_review_without_auditor_tries_is_a_failed_attempt(
        self, start: Start
    ) -> None:
        drive = start(phase={**NEEDS_APPROVAL, "max_auditor_attempts": 0})
        assert drive.build().state == "QUEUED"
        drive.build()
        assert drive.build().state == "FAILED"

    @pytest.mark.parametrize(
        ("status", "may_be_empty", "state"),
        [
            (SUCCESS, True, "COMPLETE"),
            (SUCCESS, False, "QUEUED"),
            (NEEDS_REVIEW, True, "QUEUED"),
            (BuilderStatus.FAILED, True, "QUEUED"),
        ],
    )
    def test_success_without_a_patch_completes_only_what_may_be_empty(
        self, start: Start, status: BuilderStatus, may_be_empty: bool, state: str
    ) -> None:
        drive = start(phase={"allow_empty": may_be_empty})
        phase = drive.build(status=status, has_patch=False)
        assert phase.state == state
        assert phase.builder_attempts_used == 1

    def test_an_empty_success_is_judged_by_ci_too(self, start: Start) -> None:
        drive = start(phase={"allow_empty": True, "has_ci": True})
        assert drive.build(has_patch=False).state == "CI_RUNNING"

    def test_failed_with_a_patch_applies_nothing(self, start: Start) -> None:
        phase = start().build(status=BuilderStatus.FAILED, has_patch=True)
        assert phase.commit is None
        assert phase.state == "QUEUED"


class TestEscalation:
    def test_a_failed_attempt_with_tries_left_returns_the_phase_to_the_queue(
        self, start: Start
    ) -> None:
        drive = start()
        phase = drive.fail()
        assert phase.state == "QUEUED"
        assert phase.builder_attempts_used == 1
        assert phase.deadline_at is None
        assert phase.failure_reason == "the Builder reported failure"

    def test_red_verdict_with_tries_left_returns_the_phase_to_the_queue(self, start: Start) -> None:
        drive = start(phase={"has_ci": True})
        drive.build()
        phase = drive.red()
        assert phase.state == "QUEUED"
        assert phase.builder_attempts_used == 1  # the attempt that CI found fault with

    def test_builder_tries_spent_hand_the_phase_to_the_auditor(self, start: Start) -> None:
        drive = start()
        assert [drive.fail().state for _ in range(3)] == ["QUEUED", "QUEUED", "GATE"]
        assert drive.phase("P1").deadline_at == drive.now + timedelta(minutes=60)

    def test_a_new_patch_has_no_verdict_yet(self, start: Start) -> None:
        drive = start(phase={"has_ci": True})
        drive.build()
        assert drive.red().verdict is Verdict.RED
        assert drive.build().verdict is None

    def test_red_verdict_with_builder_tries_spent_goes_to_the_auditor(self, start: Start) -> None:
        drive = start(phase={"has_ci": True, "max_builder_attempts": 1})
        drive.build()
        assert drive.red().state == "GATE"

    def test_no_try_of_any_role_left_fails_the_phase(self, start: Start) -> None:
        drive = start(phase={"max_builder_attempts": 2, "max_auditor_attempts": 0})
        assert [drive.fail().state for _ in range(2)] == ["QUEUED", "FAILED"]
        reason = drive.phase("P1").failure_reason
        assert reason == (
            "the Builder reported failure; no try is left "
            "(2 of 2 builder tries, 0 of 0 auditor tries)"
        )

    def test_a_success_after_failures_leaves_no_failure_reason(self, start: Start) -> None:
        drive = start()
        drive.fail()
        assert drive.build().failure_reason is None

    @pytest.mark.parametrize("kind", ["patch", "checks"])
    def test_two_attempts_that_fail_in_the_same_way_use_up_the_builder_tries(
        self, start: Start, kind: str
    ) -> None:
        drive = start(phase={"max_builder_attempts": 9, "has_ci": True})

        def attempt(name: str) -> str:
            if kind == "patch":
                return drive.build(conflict=name).state
            drive.build()
            return drive.red(checks=name).state

        assert [attempt(name) for name in ("a", "b", "b")] == ["QUEUED", "QUEUED", "GATE"]
        assert drive.phase("P1").builder_tries_left == 0
        assert drive.phase("P1").builder_attempts_used == 3
        assert "BuilderTriesSpent" in {e.kind for e in drive.events}

    def test_a_second_try_with_the_same_patch_that_no_auditor_can_approve_ends_the_builder_tries(
        self, start: Start
    ) -> None:
        drive = start(
            phase={**NEEDS_APPROVAL, "max_builder_attempts": 9, "max_auditor_attempts": 0}
        )
        tries = [drive.build(patch=name).state for name in ("a", "b", "b")]
        assert tries == ["QUEUED", "QUEUED", "FAILED"]
        assert drive.phase("P1").builder_attempts_used == 3

    def test_failures_without_a_signature_are_not_equal(self, start: Start) -> None:
        drive = start(phase={"max_builder_attempts": 9})
        assert {drive.fail().state for _ in range(5)} == {"QUEUED"}


def pending(start: Start) -> Drive:
    drive = start(phase=NEEDS_APPROVAL)
    drive.build()
    return drive


def spent(start: Start, **phase: object) -> Drive:
    """The Auditor's turn, with nothing on the branch."""
    drive = start(phase={"max_builder_attempts": 1, **phase})
    drive.fail()
    return drive


class TestReview:
    def test_approval_applies_the_pending_patch_and_then_the_auditors_own(
        self, start: Start
    ) -> None:
        drive = pending(start)
        phase = drive.review("approve", own_patches=2)
        assert phase.state == "COMPLETE"
        assert phase.pending_submission_id is None
        assert drive.commits == 3
        assert phase.commit == drive.run.head_commit == f"{3:040x}"
        assert phase.auditor_attempts_used == 1

    def test_an_approval_is_judged_by_ci(self, start: Start) -> None:
        drive = start(phase={**NEEDS_APPROVAL, "has_ci": True})
        drive.build()
        assert drive.review("approve").state == "CI_RUNNING"

    def test_approval_of_an_applied_patch_needs_no_new_commit(self, start: Start) -> None:
        drive = start()
        commit = drive.build(status=NEEDS_REVIEW).commit
        phase = drive.review("approve")
        assert phase.state == "COMPLETE"
        assert phase.commit == commit

    def test_approval_of_nothing_is_refused_and_uses_an_auditor_try(self, start: Start) -> None:
        drive = spent(start)
        assert "no patch to approve" in str(why_not_approvable(drive.phase("P1"), 0))
        phase = drive.review("approve")
        assert phase.state == "GATE"
        assert phase.auditor_attempts_used == 1
        assert drive.review("approve").state == "FAILED"

    def test_an_auditor_may_solve_the_phase_with_a_patch_of_its_own(self, start: Start) -> None:
        drive = spent(start)
        assert why_not_approvable(drive.phase("P1"), 1) is None
        assert drive.review("approve", own_patches=1).state == "COMPLETE"

    def test_after_a_red_verdict_approval_needs_a_new_patch(self, start: Start) -> None:
        drive = start(phase={"has_ci": True, "max_builder_attempts": 1})
        drive.build()
        phase = drive.red()
        assert "red verdict" in str(why_not_approvable(phase, 0))
        assert why_not_approvable(phase, 1) is None
        phase = drive.review("approve", own_patches=1)
        assert phase.state == "CI_RUNNING"
        assert phase.verdict is None  # the new head has none

    def test_revision_discards_what_is_pending_and_returns_the_phase_with_the_notes(
        self, start: Start
    ) -> None:
        drive = pending(start)
        phase = drive.review("revise")
        assert phase.state == "QUEUED"
        assert phase.pending_submission_id is None
        assert phase.commit is None
        queued = [e.reason for e in drive.events if isinstance(e, PhaseQueued)]
        assert queued == ["the Auditor asks for a revision: do it again"]

    def test_revision_of_an_applied_patch_keeps_the_auditors_fix_ups(self, start: Start) -> None:
        drive = start()
        drive.build(status=NEEDS_REVIEW)
        phase = drive.review("revise", own_patches=1)
        assert phase.state == "QUEUED"
        assert phase.commit == drive.run.head_commit == f"{2:040x}"

    def test_revision_without_a_builder_try_is_the_auditors_to_end(self, start: Start) -> None:
        drive = spent(start)
        assert drive.review("revise").state == "GATE"
        assert drive.review("revise").state == "FAILED"

    def test_escalation_fails_the_phase_and_applies_nothing(self, start: Start) -> None:
        drive = pending(start)
        phase = drive.review("escalate", own_patches=1)
        assert phase.state == "FAILED"
        assert drive.commits == 0
        assert phase.pending_submission_id is None
        assert phase.failure_reason == "the Auditor escalated: hopeless"

    def test_a_pending_patch_that_no_longer_applies_costs_the_builder_and_not_the_auditor(
        self, start: Start
    ) -> None:
        drive = pending(start)
        phase = drive.review("approve", pending_applies=False)
        assert phase.state == "QUEUED"
        assert phase.pending_submission_id is None
        assert (phase.builder_attempts_used, phase.auditor_attempts_used) == (1, 0)

    def test_a_pending_patch_that_no_longer_applies_with_builder_tries_spent_stays_in_review(
        self, start: Start
    ) -> None:
        drive = start(phase={**NEEDS_APPROVAL, "max_builder_attempts": 1})
        drive.build()
        phase = drive.review("approve", pending_applies=False)
        assert phase.state == "GATE"
        assert phase.deadline_at is not None
        assert drive.review("approve").state == "GATE"
        assert drive.review("approve").state == "FAILED"

    def test_a_fix_up_that_does_not_apply_costs_the_auditor_and_leaves_the_pending_patch(
        self, start: Start
    ) -> None:
        drive = pending(start)
        phase = drive.review("approve", own_patches=1, own_apply=False)
        assert phase.state == "GATE"
        assert phase.pending_submission_id is not None
        assert (phase.builder_attempts_used, phase.auditor_attempts_used) == (1, 1)
        assert drive.commits == 0

    def test_a_fix_up_needs_an_applied_patch_to_go_on(self, start: Start) -> None:
        drive = pending(start)
        phase = drive.review("revise", own_patches=1)
        assert phase.state == "GATE"
        assert phase.auditor_attempts_used == 1
        assert drive.commits == 0

    def test_an_auditors_tokens_spend_the_incident_cap_too(self, start: Start) -> None:
        drive = pending(start)
        assert drive.review("revise", tokens=1_001).state == "GATE"
        assert drive.review("revise").state == "FAILED"

    @pytest.mark.parametrize("recommendation", ["approve", "revise", "escalate"])
    def test_an_auditors_result_is_accepted_only_in_the_gate(
        self, start: Start, recommendation: str
    ) -> None:
        drive = start()
        with pytest.raises(WrongStateError) as refusal:
            drive.review(recommendation)
        assert refusal.value.extra["allowed"] == ["GATE"]
        assert drive.phase("P1").auditor_attempts_used == 0


IN_STATE = {
    "QUEUED": (),
    "EXECUTING": (PhaseStatus.EXECUTING,),
    "GATE": (PhaseStatus.EXECUTING, PhaseStatus.GATE),
    "CI_RUNNING": (PhaseStatus.EXECUTING, PhaseStatus.GATE, PhaseStatus.CI_RUNNING),
}


class TestByHand:
    @pytest.mark.parametrize("current", list(IN_STATE))
    def test_the_state_that_a_phase_has_is_no_change(self, start: Start, current: str) -> None:
        drive = start()
        for state in IN_STATE[current]:
            drive.set_status(state)
        before, events = drive.run, len(drive.events)
        drive.set_status(PhaseStatus(current))
        assert drive.run == before
        assert len(drive.events) == events

    @pytest.mark.parametrize(
        ("current", "refused", "allowed"),
        [
            ("QUEUED", "GATE CI_RUNNING COMPLETE FAILED", ["EXECUTING", "SKIPPED"]),
            ("EXECUTING", "CI_RUNNING COMPLETE", ["FAILED", "GATE", "QUEUED", "SKIPPED"]),
            ("GATE", "EXECUTING", ["CI_RUNNING", "COMPLETE", "FAILED", "QUEUED", "SKIPPED"]),
            ("CI_RUNNING", "EXECUTING", ["COMPLETE", "FAILED", "GATE", "QUEUED", "SKIPPED"]),
        ],
    )
    def test_legal_transitions_only(
        self, start: Start, current: str, refused: str, allowed: list[str]
    ) -> None:
        drive = start()
        for state in IN_STATE[current]:
            drive.set_status(state)
        for wanted in refused.split():
            with pytest.raises(IllegalTransitionError) as refusal:
                drive.set_status(PhaseStatus(wanted))
            assert refusal.value.extra["allowed"] == allowed
        assert drive.phase("P1").state == current
        assert operating.moves_by_hand(drive.run, "P1", drive.now) == allowed

    def test_a_final_phase_of_a_live_run_allows_nothing(self, start: Start) -> None:
        drive = start({"T1": ("P1", "P2")})
        drive.build("P1")
        for wanted in set(PhaseStatus) - {PhaseStatus.COMPLETE}:
            with pytest.raises(IllegalTransitionError, match="final") as refusal:
                drive.set_status(wanted, "P1")
            assert refusal.value.extra["allowed"] == []

    def test_a_phase_completed_by_hand_makes_its_run_ineligible(self, start: Start) -> None:
        drive = start()
        for state in (*IN_STATE["GATE"], PhaseStatus.COMPLETE):
            drive.set_status(state)
        assert drive.phase("P1").completed_by is CompletedBy.HAND
        assert drive.run.state == "DONE_SUCCESS"
        assert drive.run.promotion_reasons == ("phase 'P1' was completed by hand",)

    def test_a_later_phase_cannot_be_started_by_hand(self, start: Start) -> None:
        drive = start({"T1": ("P1", "P2")})
        with pytest.raises(PhaseNotNextError):
            drive.set_status(PhaseStatus.EXECUTING, "P2")
        assert operating.moves_by_hand(drive.run, "P2", drive.now) == ["SKIPPED"]

    def test_an_attempt_returned_by_hand_is_a_try_that_failed_and_its_holder_loses_it(
        self, start: Start
    ) -> None:
        drive = start()
        before = drive.start_phase("P1")
        phase = drive.set_status(PhaseStatus.QUEUED)
        assert phase.builder_attempts_used == 1
        assert phase.fence > before.fence

    def test_the_last_try_cannot_be_returned_by_hand(self, start: Start) -> None:
        drive = start(phase={"max_builder_attempts": 1})
        drive.start_phase("P1")
        with pytest.raises(IllegalTransitionError, match="no Builder try") as refusal:
            drive.set_status(PhaseStatus.QUEUED)
        assert refusal.value.extra["allowed"] == ["FAILED", "GATE", "SKIPPED"]
        moves = operating.moves_by_hand(drive.run, "P1", drive.now)
        assert moves == ["FAILED", "GATE", "SKIPPED"]

    @pytest.mark.parametrize("current", ["GATE", "CI_RUNNING"])
    def test_a_refused_return_names_every_legal_state(self, start: Start, current: str) -> None:
        drive = start(phase={"max_builder_attempts": 1, **NEEDS_APPROVAL, "has_ci": True})
        drive.build()
        if current == "CI_RUNNING":
            drive.review("approve")
        with pytest.raises(IllegalTransitionError) as refusal:
            drive.set_status(PhaseStatus.QUEUED)
        legal = {"CI_RUNNING", "COMPLETE", "FAILED", "GATE", "SKIPPED"} - {current}
        assert refusal.value.extra["allowed"] == sorted(legal)

    @pytest.mark.parametrize("wanted", ["QUEUED", "CI_RUNNING", "COMPLETE", "FAILED", "SKIPPED"])
    def test_a_pending_patch_does_not_outlive_the_gate(self, start: Start, wanted: str) -> None:
        phase = pending(start).set_status(PhaseStatus(wanted))
        assert phase.pending_submission_id is None

    def test_sent_to_review_by_hand_has_a_deadline_too(self, start: Start) -> None:
        drive = start()
        drive.start_phase("P1")
        assert drive.set_status(PhaseStatus.GATE).deadline_at is not None

    def test_cancel_ends_the_run_and_says_why(self, start: Start) -> None:
        drive = start()
        drive.start_phase("P1")
        run = drive.cancel("wrong plan")
        assert run.state == "DONE_FAILED_REQUIRES_HUMAN_REVIEW"
        assert run.failure_code is FailureCode.CANCELLED
        assert run.failure_reason == "cancelled by operator: wrong plan"
        assert drive.phase("P1").state == "SKIPPED"

    def test_a_run_that_is_over_can_neither_be_cancelled_nor_steered(self, start: Start) -> None:
        drive = start()
        drive.build()
        with pytest.raises(RunOverError):
            drive.cancel()
        with pytest.raises(RunOverError):
            drive.set_status(PhaseStatus.FAILED)
        assert drive.set_status(PhaseStatus.COMPLETE).state == "COMPLETE"  # what it is already


class TestRollback:
    def test_only_a_run_that_is_over_is_rolled_back(self, start: Start) -> None:
        with pytest.raises(operating.RunNotOverError):
            operating.require_rollback(start().run)

    def test_a_branch_that_another_process_moved_is_not_overwritten(self, start: Start) -> None:
        drive = start()
        drive.end_failed(FailureCode.BRANCH_MOVED, "moved")
        with pytest.raises(operating.BranchMovedError):
            operating.require_rollback(drive.run)

    def test_a_rolled_back_run_is_not_eligible_any_more(self, start: Start) -> None:
        drive = start()
        drive.build()
        assert drive.run.promotion_eligible_to_main

        given = operating.RollbackCommit(to_phase="P1", commit="f" * 40, reason="changed my mind")
        run = drive.decide(lambda decision: operating.roll_back(decision, given))
        assert run.state == "DONE_SUCCESS"
        assert run.head_commit == "f" * 40
        assert not run.promotion_eligible_to_main
        assert "rolled back" in run.promotion_reasons[0]


class TestTime:
    def test_before_a_deadline_nothing_happens(self, start: Start) -> None:
        drive = start()
        drive.start_phase("P1")
        before = drive.run
        drive.now += timedelta(minutes=59, seconds=59)
        assert drive.wait(seconds=0) == before

    def test_a_lapsed_attempt_uses_a_builder_try_and_its_holder_loses_it(
        self, start: Start
    ) -> None:
        drive = start()
        before = drive.start_phase("P1")
        drive.wait(minutes=60)
        phase = drive.phase("P1")
        assert phase.state == "QUEUED"
        assert phase.builder_attempts_used == 1
        assert phase.fence > before.fence
        assert phase.failure_reason == "the attempt's lease lapsed"

    def test_the_last_lapsed_attempt_goes_to_the_auditor(self, start: Start) -> None:
        drive = start(phase={"max_builder_attempts": 1})
        drive.start_phase("P1")
        drive.wait(minutes=60)
        assert drive.phase("P1").state == "GATE"

    def test_a_lapsed_audit_uses_an_auditor_try_and_opens_the_next(self, start: Start) -> None:
        drive = pending(start)
        drive.wait(minutes=60)
        phase = drive.phase("P1")
        assert phase.state == "GATE"
        assert phase.auditor_attempts_used == 1
        assert phase.deadline_at == drive.now + timedelta(minutes=60)
        assert phase.pending_submission_id is not None

    def test_when_no_audit_is_left_the_builder_tries_again(self, start: Start) -> None:
        drive = start(phase={**NEEDS_APPROVAL, "max_auditor_attempts": 1})
        drive.build()
        drive.wait(minutes=60)
        phase = drive.phase("P1")
        assert phase.state == "QUEUED"
        assert phase.pending_submission_id is None

    def test_when_no_try_of_any_role_is_left_a_lapsed_audit_fails_the_phase(
        self, start: Start
    ) -> None:
        drive = spent(start, max_auditor_attempts=1)
        drive.wait(minutes=60)
        assert drive.phase("P1").state == "FAILED"
        assert "1 of 1 auditor tries" in str(drive.phase("P1").failure_reason)

    def test_ci_without_a_verdict_in_time_ends_the_run_for_its_environment(
        self, start: Start
    ) -> None:
        drive = start({"T1": ("P1", "P2")}, phase={"has_ci": True})
        drive.build("P1")
        run = drive.wait(minutes=30)
        assert drive.phase("P1").state == "FAILED"
        assert drive.phase("P1").verdict is not Verdict.GREEN
        assert drive.phase("P2").state == "SKIPPED"
        assert run.state == "DONE_FAILED_ENVIRONMENT"
        assert run.failure_code is FailureCode.CI_DID_NOT_RUN

    def test_the_runs_own_deadline_comes_before_any_other(self, start: Start) -> None:
        drive = start(phase={"has_ci": True})
        drive.build()
        assert drive.wait(minutes=121).failure_code is FailureCode.DURATION_CAP

    def test_time_does_nothing_to_a_run_that_is_over(self, start: Start) -> None:
        drive = start()
        drive.build()
        before = drive.run
        assert drive.wait(days=9) == before


class TestRepeatedCi:
    """CI runs again on the same commit as often as its profile says, without a try. (rules §6)"""

    RED, NOT_RUN = Verdict.RED, Verdict.DID_NOT_RUN

    def test_a_red_run_is_repeated_at_once_as_often_as_the_profile_says(self) -> None:
        assert wait_before_repeat(self.RED, [], 2) == timedelta()
        assert wait_before_repeat(self.RED, [self.RED], 2) == timedelta()
        assert wait_before_repeat(self.RED, [self.RED, self.RED], 2) is None
        assert wait_before_repeat(self.RED, [], 0) is None

    def test_a_run_that_did_not_run_is_repeated_twice_after_a_while(self) -> None:
        assert wait_before_repeat(self.NOT_RUN, [], 0) == timedelta(seconds=5)
        assert wait_before_repeat(self.NOT_RUN, [self.NOT_RUN], 0) == timedelta(seconds=30)
        assert wait_before_repeat(self.NOT_RUN, [self.NOT_RUN] * 2, 0) is None

    def test_runs_of_another_verdict_use_none_of_its_repeats(self) -> None:
        assert wait_before_repeat(self.RED, [self.NOT_RUN, self.NOT_RUN], 1) == timedelta()
        assert wait_before_repeat(self.NOT_RUN, [self.RED, self.RED], 2) == timedelta(seconds=5)

    def test_a_green_run_is_final(self) -> None:
        assert wait_before_repeat(Verdict.GREEN, [self.RED], 2) is None
