"""Leases: claims, lost leases, and the state after each way to end one. (rules §4)"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from autopack.domain import claiming
from autopack.domain.claiming import Directive, LeaseHeldError, LeaseLostError
from autopack.domain.events import to_record
from autopack.domain.evolve import change_phase
from autopack.domain.run import FailureCode, PhaseState
from autopack.domain.states import PhaseStatus, RunStatus
from autopack.domain.terms import Role

if TYPE_CHECKING:
    from tests.domain.conftest import Drive, Start

pytestmark = pytest.mark.unit

NEEDS_APPROVAL = {"auto_apply": False}
SECONDS = 900
BUILDER, AUDITOR = Role.BUILDER, Role.AUDITOR


def claim(drive: Drive, role: Role = BUILDER, seconds: int = SECONDS) -> PhaseState | None:
    return drive.claim(role, seconds)


def must_claim(drive: Drive, role: Role = BUILDER, seconds: int = SECONDS) -> PhaseState:
    phase = claim(drive, role, seconds)
    assert phase is not None
    return phase


def report(drive: Drive, tokens: int, phase_id: str = "P1") -> None:
    """Note what a heartbeat said."""
    drive.run = change_phase(drive.run, phase_id, tokens_reported=tokens)


def assert_released(drive: Drive) -> None:
    assert drive.run.tokens_reserved == 0
    for phase in drive.run.phases:
        assert (phase.lease_id, phase.lease_role) == (None, None)
        assert (phase.tokens_reserved, phase.tokens_reported) == (0, 0)


class TestClaim:
    @pytest.mark.parametrize(
        ("state", "role", "is_given"),
        [
            (PhaseStatus.QUEUED, BUILDER, True),
            (PhaseStatus.QUEUED, AUDITOR, False),
            (PhaseStatus.EXECUTING, BUILDER, False),
            (PhaseStatus.EXECUTING, AUDITOR, False),
            (PhaseStatus.GATE, BUILDER, False),
            (PhaseStatus.GATE, AUDITOR, True),
            (PhaseStatus.CI_RUNNING, BUILDER, False),
            (PhaseStatus.CI_RUNNING, AUDITOR, False),
            (PhaseStatus.COMPLETE, BUILDER, False),
            (PhaseStatus.FAILED, AUDITOR, False),
            (PhaseStatus.SKIPPED, BUILDER, False),
        ],
    )
    def test_each_role_is_given_what_waits_for_it(
        self, start: Start, state: PhaseStatus, role: Role, is_given: bool
    ) -> None:
        drive = start(phase={"state": state})
        assert (claim(drive, role) is not None) is is_given

    def test_a_builder_starts_its_phase_under_a_higher_fence(self, start: Start) -> None:
        drive = start()
        phase = must_claim(drive)
        assert phase.state == "EXECUTING"
        assert (phase.fence, phase.lease_role) == (1, BUILDER)
        assert phase.started_at == drive.now
        assert phase.deadline_at == drive.now + timedelta(seconds=SECONDS)
        assert phase.builder_attempts_used == 0

    def test_an_auditor_leaves_its_phase_in_the_gate(self, start: Start) -> None:
        drive = start(phase=NEEDS_APPROVAL)
        before = drive.build()
        phase = must_claim(drive, AUDITOR)
        assert phase.state == "GATE"
        assert (phase.fence, phase.lease_role) == (before.fence + 1, AUDITOR)
        assert phase.pending_submission_id == before.pending_submission_id
        assert phase.deadline_at == drive.now + timedelta(seconds=SECONDS)

    def test_a_phase_under_a_lease_is_not_given_to_another_agent(self, start: Start) -> None:
        drive = start({"T1": ("P1", "P2")}, phase=NEEDS_APPROVAL)
        must_claim(drive)
        assert claim(drive) is None
        drive.build()
        must_claim(drive, AUDITOR)
        assert claim(drive, AUDITOR) is None
        assert claim(drive) is None

    def test_phases_are_given_in_their_order(self, start: Start) -> None:
        drive = start({"T1": ("P1", "P2"), "T2": ("P3",)})
        given = []
        while (phase := claim(drive)) is not None:
            given.append(phase.phase_id)
            drive.build(phase.phase_id)
        assert given == ["P1", "P2", "P3"]
        assert drive.run.state == "DONE_SUCCESS"

    def test_no_auditor_is_called_where_none_has_a_try(self, start: Start) -> None:
        drive = start(phase={"state": PhaseStatus.GATE, "max_auditor_attempts": 0})
        assert claim(drive, AUDITOR) is None

    def test_a_lease_ends_with_its_run_at_the_latest(self, start: Start) -> None:
        drive = start(max_duration_minutes=10)
        assert must_claim(drive, seconds=86_400).deadline_at == drive.run.deadline_at

    def test_each_claim_raises_the_fence(self, start: Start) -> None:
        drive = start(phase={"max_builder_attempts": 9})
        fences = []
        for _ in range(3):
            fences.append(must_claim(drive).fence)
            drive.fail()
        assert fences == sorted(set(fences))

    def test_a_run_that_is_over_gives_nothing(self, start: Start) -> None:
        drive = start()
        drive.cancel()
        assert claim(drive) is None


class TestReservation:
    @pytest.mark.parametrize(
        ("token_cap", "used", "incident_cap", "reserved"),
        [(10_000, 0, 1_000, 1_000), (10_000, 9_500, 1_000, 500), (700, 0, 1_000, 700)],
    )
    def test_is_the_phases_cap_or_what_the_run_has_left(
        self, start: Start, token_cap: int, used: int, incident_cap: int, reserved: int
    ) -> None:
        phase = {"incident_token_cap": incident_cap}
        drive = start(phase=phase, token_cap=token_cap, tokens_used=used)
        assert must_claim(drive).tokens_reserved == reserved
        assert drive.run.tokens_reserved == reserved

    @pytest.mark.parametrize("role", list(Role))
    def test_nothing_left_ends_the_run_with_the_figure(self, start: Start, role: Role) -> None:
        state = PhaseStatus.QUEUED if role is BUILDER else PhaseStatus.GATE
        drive = start(phase={"state": state}, token_cap=500, tokens_used=500)
        assert claim(drive, role) is None
        assert drive.run.state == "DONE_FAILED_BUDGET_EXHAUSTED"
        assert drive.run.failure_code is FailureCode.TOKEN_CAP
        assert drive.run.failure_reason == (
            "run token_cap 500 is used up: 500 tokens used, none left for phase 'P1'"
        )

    def test_agents_side_by_side_cannot_reserve_more_than_there_is(self, start: Start) -> None:
        """Phases follow each other today; what another would hold is reserved all the same."""
        drive = start(token_cap=1_500, tokens_reserved=1_000)
        phase = must_claim(drive)
        assert phase.tokens_reserved == 500
        assert drive.run.tokens_reserved == 1_500
        assert claiming.directive_for(drive.run, phase, 500)[0] is Directive.CONTINUE
        assert claiming.directive_for(drive.run, phase, 501)[0] is Directive.STOP

    def test_budget_that_other_agents_reserve_is_waited_for_and_ends_nothing(
        self, start: Start
    ) -> None:
        drive = start(token_cap=1_000, tokens_reserved=1_000)
        assert claim(drive) is None
        assert drive.run.state == RunStatus.RUN_CREATED

    @pytest.mark.parametrize(
        "end",
        [
            lambda drive: drive.build(tokens=70),
            lambda drive: drive.build(tokens=10_001),
            lambda drive: drive.fail(),
            lambda drive: drive.build(conflict="same"),
            lambda drive: drive.build(has_patch=False),
            lambda drive: drive.wait(seconds=SECONDS),
            lambda drive: drive.wait(minutes=121),
            lambda drive: drive.set_status(PhaseStatus.QUEUED),
            lambda drive: drive.set_status(PhaseStatus.GATE),
            lambda drive: drive.set_status(PhaseStatus.FAILED),
            lambda drive: drive.set_status(PhaseStatus.SKIPPED),
            lambda drive: drive.cancel(),
        ],
    )
    def test_is_released_at_every_end_of_a_builders_lease(
        self, start: Start, end: Callable[[Drive], Any]
    ) -> None:
        drive = start()
        must_claim(drive)
        end(drive)
        assert_released(drive)

    @pytest.mark.parametrize(
        "end",
        [
            lambda drive: drive.review("approve"),
            lambda drive: drive.review("approve", own_apply=False),
            lambda drive: drive.review("approve", pending_applies=False),
            lambda drive: drive.review("revise"),
            lambda drive: drive.review("escalate"),
            lambda drive: drive.review("approve", tokens=10_001),
            lambda drive: drive.wait(seconds=SECONDS),
            lambda drive: drive.wait(minutes=121),
            lambda drive: drive.set_status(PhaseStatus.QUEUED),
            lambda drive: drive.set_status(PhaseStatus.COMPLETE),
            lambda drive: drive.set_status(PhaseStatus.CI_RUNNING),
            lambda drive: drive.cancel(),
        ],
    )
    def test_is_released_at_every_end_of_an_auditors_lease(
        self, start: Start, end: Callable[[Drive], Any]
    ) -> None:
        drive = start(phase=NEEDS_APPROVAL)
        drive.build()
        must_claim(drive, AUDITOR)
        end(drive)
        assert_released(drive)

    def test_an_issue_that_ends_the_run_releases_it_too(self, start: Start) -> None:
        drive = start(minor_cap_ends_run=True, max_minor_issues_total=1)
        must_claim(drive)
        drive.count_issues(minors=2)
        assert drive.run.state == "DONE_FAILED_BUDGET_EXHAUSTED"
        assert_released(drive)


class TestLapse:
    def test_of_a_builder_uses_one_builder_try_and_raises_the_fence(self, start: Start) -> None:
        drive = start()
        held = must_claim(drive)
        drive.wait(seconds=SECONDS - 1)
        assert drive.phase("P1").state == "EXECUTING"
        drive.wait(seconds=1)
        phase = drive.phase("P1")
        assert phase.state == "QUEUED"
        assert (phase.builder_attempts_used, phase.auditor_attempts_used) == (1, 0)
        assert phase.fence > held.fence
        assert must_claim(drive).fence > phase.fence

    def test_of_an_auditor_uses_one_auditor_try_and_raises_the_fence(self, start: Start) -> None:
        drive = start(phase=NEEDS_APPROVAL)
        drive.build()
        held = must_claim(drive, AUDITOR)
        drive.wait(seconds=SECONDS)
        phase = drive.phase("P1")
        assert phase.state == "GATE"
        assert (phase.builder_attempts_used, phase.auditor_attempts_used) == (1, 1)
        assert phase.fence > held.fence
        assert phase.pending_submission_id is not None
        assert must_claim(drive, AUDITOR).lease_id != held.lease_id

    @pytest.mark.parametrize(("tries", "state"), [(1, "GATE"), (2, "QUEUED")])
    def test_goes_on_as_after_any_failed_try(self, start: Start, tries: int, state: str) -> None:
        drive = start(phase={"max_builder_attempts": tries})
        must_claim(drive)
        drive.wait(seconds=SECONDS)
        assert drive.phase("P1").state == state

    def test_of_the_last_try_fails_the_phase_and_the_run(self, start: Start) -> None:
        drive = start(phase={"max_builder_attempts": 1, "max_auditor_attempts": 0})
        must_claim(drive)
        drive.wait(seconds=SECONDS)
        assert drive.run.state == "DONE_FAILED_REQUIRES_HUMAN_REVIEW"
        assert "lease lapsed" in (drive.run.failure_reason or "")

    @pytest.mark.parametrize("reported", [0, 70])
    def test_settles_at_what_the_last_heartbeat_said(self, start: Start, reported: int) -> None:
        drive = start()
        must_claim(drive)
        report(drive, reported)
        drive.wait(seconds=SECONDS)
        assert drive.run.tokens_used == drive.phase("P1").tokens_used == reported
        assert drive.tier("T1").tokens_used == reported
        assert_released(drive)
        lapsed = next(event for event in drive.events if event.kind == "LeaseLapsed")
        assert to_record(lapsed).data == {"lease_id": 1, "tokens_reported": reported}

    def test_that_passes_the_runs_cap_ends_the_run(self, start: Start) -> None:
        drive = start(token_cap=100)
        must_claim(drive)
        report(drive, 101)
        drive.wait(seconds=SECONDS)
        assert drive.run.failure_code is FailureCode.TOKEN_CAP
        assert drive.phase("P1").builder_attempts_used == 1
        assert_released(drive)

    def test_that_passes_the_phases_cap_spends_its_builder_tries(self, start: Start) -> None:
        drive = start()
        must_claim(drive)
        report(drive, 1_001)
        drive.wait(seconds=SECONDS)
        assert drive.phase("P1").is_builder_spent
        assert drive.phase("P1").state == "GATE"


class TestHeartbeat:
    @pytest.mark.parametrize(
        ("reported", "directive", "names"),
        [
            (0, Directive.CONTINUE, "extended"),
            (600, Directive.CONTINUE, "extended"),
            (601, Directive.STOP, "incident_token_cap 1000"),
            (901, Directive.STOP, "token_cap 1500"),
        ],
    )
    def test_stops_an_agent_whose_budget_is_gone(
        self, start: Start, reported: int, directive: Directive, names: str
    ) -> None:
        drive = start(token_cap=1_500, tokens_used=600, phase={"tokens_used": 400})
        phase = must_claim(drive)
        said, reason = claiming.directive_for(drive.run, phase, reported)
        assert said is directive
        assert names in reason


class TestLease:
    @pytest.mark.parametrize(
        ("holder", "role", "lease_id", "has_token", "error"),
        [
            (BUILDER, BUILDER, 7, True, None),
            (AUDITOR, AUDITOR, 7, True, None),
            (BUILDER, BUILDER, None, False, LeaseHeldError),
            (AUDITOR, AUDITOR, None, False, LeaseHeldError),
            (BUILDER, AUDITOR, None, False, None),  # refused for the phase's state instead
            (BUILDER, BUILDER, None, True, LeaseLostError),  # an unknown token
            (BUILDER, BUILDER, 6, True, LeaseLostError),  # an earlier lease
            (BUILDER, AUDITOR, 7, True, LeaseLostError),  # the other role's
            (None, BUILDER, None, False, None),  # no agent holds one
            (None, BUILDER, 7, True, LeaseLostError),  # used, or lapsed
        ],
    )
    def test_a_result_needs_the_lease_that_is_held_or_none(
        self,
        start: Start,
        holder: Role | None,
        role: Role,
        lease_id: int | None,
        has_token: bool,
        error: type[Exception] | None,
    ) -> None:
        drive = start()
        phase = replace(
            drive.phase("P1"),
            lease_id=7 if holder else None,
            lease_role=holder,
            deadline_at=drive.now,
        )
        if error is None:
            claiming.require_lease(phase, role, lease_id, has_token=has_token)
        else:
            with pytest.raises(error, match="P1"):
                claiming.require_lease(phase, role, lease_id, has_token=has_token)
