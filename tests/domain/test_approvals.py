"""How many Auditors must approve a phase, and what their approvals are of. (rules §2.4)"""

from __future__ import annotations

from datetime import timedelta

import pytest
from tests.domain.conftest import NOON, Drive, start

from autopack.domain.claiming import WorkAsked, find_claimable, why_not_offered
from autopack.domain.independence import AlreadyApprovedError, NotIndependentError
from autopack.domain.run import PhaseState
from autopack.domain.states import PhaseStatus, RunStatus
from autopack.domain.terms import BuilderStatus, Independence, Role

pytestmark = pytest.mark.unit

BUILDER = "key:codex:builder"
ONE, TWO, THREE = (f"key:{name}:auditor" for name in ("claude", "gemini", "aider"))
UNNAMED = "local:auditor@host"
GATE, QUEUED, COMPLETE = PhaseStatus.GATE, PhaseStatus.QUEUED, PhaseStatus.COMPLETE


def pending(**phase: object) -> Drive:
    """Begin a phase that needs two approvals and whose patch is pending."""
    fields = {"approvals_needed": 2, "auto_apply": False, "max_auditor_attempts": 1, **phase}
    drive = start(phase=fields)
    drive.build(actor=BUILDER)
    return drive


def kinds(drive: Drive) -> list[str]:
    return [event.kind for event in drive.events]


def test_a_phase_passes_with_its_last_approval_and_its_patch_is_pending_until_then() -> None:
    drive = pending()
    phase = drive.review("approve", actor=ONE)
    assert (phase.state, phase.approved_by, phase.commit) == (GATE, (ONE,), None)
    assert phase.pending_submission_id is not None
    assert phase.auditor_attempts_used == 0, "an approval that others must follow uses no try"
    phase = drive.review("approve", actor=TWO)
    assert (phase.state, phase.approved_by, phase.builders) == (COMPLETE, (ONE, TWO), (BUILDER,))
    assert phase.auditor_attempts_used == 1
    assert drive.run.state is RunStatus.DONE_SUCCESS


def test_one_approval_is_enough_by_default() -> None:
    drive = pending(approvals_needed=1)
    phase = drive.review("approve", actor=ONE)
    assert (phase.state, phase.approved_by) == (COMPLETE, (ONE,))
    assert "ApprovalGiven" not in kinds(drive)


@pytest.mark.parametrize("actor", [ONE, UNNAMED])
def test_an_auditor_approves_once_and_may_still_reject(actor: str) -> None:
    drive = pending()
    before = drive.review("approve", actor=actor)
    with pytest.raises(AlreadyApprovedError, match="needs the approval of 1 more"):
        drive.review("approve", actor=actor)
    with pytest.raises(AlreadyApprovedError):
        drive.review("approve", own_patches=1, actor=actor)
    assert drive.phase("P1") == before
    assert drive.review("revise", actor=actor).state is QUEUED


def test_the_key_counts_whatever_role_or_name_comes_with_it() -> None:
    drive = pending()
    drive.review("approve", actor="key:claude:auditor")
    with pytest.raises(AlreadyApprovedError):
        drive.review("approve", actor="key:claude:operator")


@pytest.mark.parametrize("independence", list(Independence))
def test_two_approvals_are_of_two_auditors_whatever_the_builder_must_be(
    independence: Independence,
) -> None:
    drive = start(phase={"approvals_needed": 2, "auto_apply": False, "independence": independence})
    drive.build(actor=BUILDER, model="gpt-5")
    drive.review("approve", actor=ONE, model="opus")
    with pytest.raises(AlreadyApprovedError):
        drive.review("approve", actor=ONE, model="gemini")
    assert drive.review("approve", actor=TWO, model="opus").state is COMPLETE


@pytest.mark.parametrize("rejection", ["revise", "escalate"])
def test_any_rejection_counts_as_with_one_auditor(rejection: str) -> None:
    drive = pending()
    drive.review("approve", actor=ONE)
    phase = drive.review(rejection, actor=TWO)
    assert phase.state is (QUEUED if rejection == "revise" else PhaseStatus.FAILED)
    assert phase.pending_submission_id is None


def test_a_new_patch_needs_all_approvals_anew() -> None:
    drive = pending(max_auditor_attempts=3)
    drive.review("approve", actor=ONE)
    drive.review("revise", actor=TWO)
    assert drive.phase("P1").approved_by == ()
    drive.build(actor=BUILDER)
    drive.review("approve", actor=ONE)
    assert drive.phase("P1").state is GATE
    assert drive.review("approve", actor=TWO).state is COMPLETE


def test_an_auditors_own_patch_is_applied_at_once_and_ends_the_approvals_before_it() -> None:
    drive = pending(max_auditor_attempts=3)
    drive.review("approve", actor=ONE)
    phase = drive.review("approve", own_patches=1, actor=TWO)
    assert (phase.state, phase.approved_by) == (GATE, (TWO,))
    assert phase.commit is not None
    assert phase.pending_submission_id is None
    assert phase.auditor_attempts_used == 1, "an approval with a patch uses a try"
    assert phase.builders == (BUILDER,), "a fix-up does not make its Auditor a Builder"
    assert drive.review("approve", actor=ONE).state is COMPLETE


def test_approvals_with_patches_end_when_the_tries_are_used() -> None:
    drive = pending(max_auditor_attempts=2, max_builder_attempts=1)
    drive.review("approve", own_patches=1, actor=ONE)
    phase = drive.review("approve", own_patches=1, actor=TWO)
    assert phase.state is PhaseStatus.FAILED
    assert "no try is left" in (phase.failure_reason or "")


def test_after_a_red_verdict_nothing_is_approved() -> None:
    drive = pending(has_ci=True, max_auditor_attempts=3, max_builder_attempts=1)
    drive.review("approve", actor=ONE)
    assert drive.review("approve", actor=TWO).state is PhaseStatus.CI_RUNNING
    phase = drive.red()
    assert (phase.state, phase.approved_by) == (GATE, ())
    drive.review("approve", own_patches=1, actor=ONE)
    assert drive.review("approve", actor=TWO).state is PhaseStatus.CI_RUNNING


def test_each_approval_gives_the_next_review_its_whole_time_and_a_lapse_keeps_it() -> None:
    drive = pending(max_auditor_attempts=2)
    drive.wait(minutes=40)
    phase = drive.review("approve", actor=ONE)
    assert phase.deadline_at == NOON + timedelta(minutes=100)
    drive.wait(minutes=61)
    phase = drive.phase("P1")
    assert (phase.state, phase.approved_by, phase.auditor_attempts_used) == (GATE, (ONE,), 1)
    assert drive.review("approve", actor=TWO).state is COMPLETE


def test_a_review_is_offered_to_auditors_who_have_not_approved() -> None:
    drive = pending(independence=Independence.AGENT)
    drive.review("approve", actor=ONE)

    def offered(actor: str) -> PhaseState | None:
        found = find_claimable(drive.run, WorkAsked(Role.AUDITOR), drive.now, actor)
        return None if found is None else found.phase

    assert offered(ONE) is None
    assert offered(BUILDER) is None
    assert offered(TWO) == drive.phase("P1")
    asked = WorkAsked(Role.AUDITOR)
    assert why_not_offered(drive.run, asked, ONE) == (
        "P1 waits for another Auditor: key:claude has approved it"
    )
    assert why_not_offered(drive.run, asked, BUILDER) == (
        "P1 waits for another Auditor: key:codex built it"
    )
    assert why_not_offered(drive.run, asked, TWO) is None
    assert why_not_offered(drive.run, WorkAsked(Role.BUILDER), ONE) is None


def test_who_built_what_is_on_the_branch_does_not_review_it_though_another_built_last() -> None:
    drive = start(phase={"independence": Independence.AGENT, "has_ci": True})
    drive.build(actor=BUILDER)
    drive.red()
    drive.build(actor="key:other:builder", status=BuilderStatus.NEEDS_REVIEW)
    assert drive.phase("P1").state is GATE
    for reviewer in ("key:codex:auditor", "key:other:auditor"):
        with pytest.raises(NotIndependentError):
            drive.review("approve", actor=reviewer)
    assert drive.review("approve", actor=ONE).state is PhaseStatus.CI_RUNNING


def test_a_builder_whose_patch_was_discarded_may_review_the_next() -> None:
    drive = pending(independence=Independence.AGENT, approvals_needed=1, max_auditor_attempts=2)
    drive.review("revise", actor=ONE)
    drive.build(actor="key:other:builder")
    assert drive.review("approve", actor="key:codex:auditor").state is COMPLETE


def test_three_approvals_come_in_any_order() -> None:
    drive = pending(approvals_needed=3)
    for actor in (THREE, ONE):
        assert drive.review("approve", actor=actor).state is GATE
    assert drive.review("approve", actor=TWO).approved_by == (THREE, ONE, TWO)
    assert kinds(drive).count("ApprovalGiven") == 2
