"""Agents that could not work: what their saying so ends, and what it leaves alone."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest

from autopack.domain import claiming
from autopack.domain.backtest import decide_again
from autopack.domain.capacity import Unavailable, accept_unavailable
from autopack.domain.evolve import change_phase
from autopack.domain.results import log_tail
from autopack.domain.run import FailureCode, PhaseState
from autopack.domain.states import PhaseStatus
from autopack.domain.terms import BuilderStatus, Role

if TYPE_CHECKING:
    from tests.domain.conftest import Drive, Start

pytestmark = pytest.mark.unit

BUILDER, AUDITOR = Role.BUILDER, Role.AUDITOR
NEEDS_APPROVAL = {"auto_apply": False}
LIMIT = "usage limit reached"


def claim(drive: Drive, role: Role = BUILDER, account: str | None = None) -> PhaseState | None:
    return drive.claim(role, account=account)


def give_up(
    drive: Drive,
    role: Role = BUILDER,
    *,
    minutes: float | None = None,
    account: str | None = None,
    **usage: Any,
) -> PhaseState:
    retry_at = None if minutes is None else drive.now + timedelta(minutes=minutes)
    why = Unavailable(
        phase_id="P1", role=role, reason=LIMIT, retry_at=retry_at, account=account, **usage
    )
    drive.decide(lambda decision: accept_unavailable(decision, why))
    return drive.phase("P1")


def lanes(start: Start, **phase: Any) -> Drive:
    """Start a run of four phases side by side that may cost 10 USD and 100,000 tokens."""
    names = ("P1", "P2", "P3", "P4")
    fields = {"depends_on": (), **phase}
    caps = {"token_cap": 100_000, "cost_cap_usd": Decimal(10)}
    drive = start({"T1": names}, phase=fields, is_parallel=True, **caps)
    for name in names:
        drive.run = change_phase(drive.run, name, allowed_paths=(f"{name}/**",))
    return drive


def test_a_builder_that_could_not_work_uses_no_try_and_its_clock_stops(start: Start) -> None:
    drive = start(phase={"max_builder_attempts": 1})
    claim(drive)
    for _ in range(3):
        phase = give_up(drive, tokens=10, cost=Decimal("0.5"))
        assert phase.state is PhaseStatus.QUEUED
        assert (phase.builder_attempts_used, phase.lease_id, phase.deadline_at) == (0, None, None)
        assert phase.unavailable_reason == LIMIT
        assert claim(drive) is not None
    drive.wait(minutes=14)
    assert drive.build().state is PhaseStatus.COMPLETE
    assert (drive.run.tokens_used, drive.run.cost_usd) == (30, Decimal("1.5"))
    assert "AttemptFailed" not in {event.kind for event in drive.events}


def test_the_wait_for_capacity_is_over_when_a_result_comes_without_a_claim(start: Start) -> None:
    drive = start(max_duration_minutes=60)
    claim(drive)
    give_up(drive, minutes=50)
    phase = drive.fail("P1")
    assert (phase.unavailable_reason, phase.retry_at, phase.retry_account) == (None, None, None)
    assert claim(drive) is not None, "no agent has to wait for the one that came"
    drive.wait(minutes=60)
    assert drive.run.failure_code is FailureCode.DURATION_CAP


def test_an_auditor_that_could_not_work_uses_no_try_and_gets_its_whole_time_again(
    start: Start,
) -> None:
    drive = start(phase={**NEEDS_APPROVAL, "max_auditor_attempts": 1}, audit_minutes=10)
    drive.build()
    claim(drive, AUDITOR)
    phase = give_up(drive, AUDITOR, minutes=30)
    assert (phase.state, phase.auditor_attempts_used) == (PhaseStatus.GATE, 0)
    assert phase.pending_submission_id is not None
    assert phase.deadline_at == drive.now + timedelta(minutes=40)
    assert claim(drive, AUDITOR) is None
    drive.wait(minutes=30)
    assert claim(drive, AUDITOR) is not None
    assert drive.review("approve").state is PhaseStatus.COMPLETE


def test_a_review_is_not_awaited_beyond_the_end_of_the_run(start: Start) -> None:
    """However far off the time is that an Auditor names, its own time counts from the run's end."""
    drive = start(phase=NEEDS_APPROVAL, audit_minutes=10)
    drive.build()
    claim(drive, AUDITOR)
    phase = give_up(drive, AUDITOR, minutes=60 * 24 * 365)
    assert phase.deadline_at == drive.run.deadline_at + timedelta(minutes=10)


@pytest.mark.parametrize(
    ("owner", "claimant", "waits"),
    [
        (None, None, True),
        (None, "mine", True),
        ("mine", "mine", True),
        ("mine", None, True),
        ("mine", "other", False),
    ],
)
def test_until_retry_at_only_another_account_may_take_the_phase(
    start: Start, owner: str | None, claimant: str | None, waits: bool
) -> None:
    drive = start()
    claim(drive, account=owner)
    give_up(drive, minutes=5, account=owner)
    assert (claim(drive, account=claimant) is None) is waits
    if waits:
        drive.wait(minutes=5)
        assert claim(drive, account=claimant) is not None
    phase = drive.phase("P1")
    assert (phase.unavailable_reason, phase.retry_at, phase.retry_account) == (None, None, None)


def test_without_retry_at_the_next_agent_may_take_the_phase_at_once(start: Start) -> None:
    drive = start()
    claim(drive)
    give_up(drive)
    assert claim(drive) is not None


def test_a_run_that_ends_for_lack_of_capacity_says_so(start: Start) -> None:
    drive = start(max_duration_minutes=60)
    claim(drive)
    give_up(drive, minutes=600)
    drive.wait(minutes=61)
    assert drive.run.state == "DONE_FAILED_ENVIRONMENT"
    assert drive.run.failure_code is FailureCode.AGENTS_UNAVAILABLE
    assert drive.run.failure_reason == (
        "no agent was available for phase 'P1': usage limit reached; max_duration_minutes 60 "
        "passed: the run was not over after 61.0 minutes"
    )


def test_a_run_whose_agents_have_capacity_again_ends_by_its_duration(start: Start) -> None:
    drive = start(max_duration_minutes=60)
    claim(drive)
    give_up(drive, minutes=59)
    drive.wait(minutes=59)
    claim(drive)
    drive.wait(minutes=2)
    assert drive.run.failure_code is FailureCode.DURATION_CAP


def test_tokens_that_an_unavailable_agent_used_count_against_every_cap(start: Start) -> None:
    drive = start(phase={"incident_token_cap": 100})
    claim(drive)
    phase = give_up(drive, minutes=5, tokens=101)
    assert phase.state is PhaseStatus.GATE  # the Builder's tries are spent: it is the Auditor's
    assert (phase.retry_at, phase.unavailable_reason) == (None, None)
    drive = start(token_cap=100)
    claim(drive)
    give_up(drive, tokens=101)
    assert drive.run.failure_code is FailureCode.TOKEN_CAP


def test_a_lease_that_is_given_back_is_decided_again_from_its_events(start: Start) -> None:
    begun = start(phase={**NEEDS_APPROVAL, "max_builder_attempts": 1, "max_auditor_attempts": 1})
    state, drive = begun.run, begun
    claim(drive, account="mine")
    drive.now += timedelta(minutes=1)  # what happens at one time is one decision
    give_up(drive, minutes=5, account="mine", tokens=7, cost=Decimal("0.25"))
    drive.now += timedelta(minutes=1)
    claim(drive, account="other")
    drive.now += timedelta(minutes=1)
    give_up(drive, tokens=3)
    again = decide_again(state, list(enumerate(drive.events, start=1)), ())
    assert (again.parting, again.skipped_inputs) == (None, 0)
    assert again.run.tokens_used == 10
    assert again.run.cost_usd == Decimal("0.25")
    assert again.run.phases == drive.run.phases


class TestCost:
    def test_a_result_that_passes_the_cap_ends_the_run_with_cap_and_figure(
        self, start: Start
    ) -> None:
        drive = start({"T1": ("P1", "P2")}, cost_cap_usd=Decimal("1.5"))
        drive.build(cost=Decimal("1.5"))
        assert not drive.run.state.is_final  # reaching a cap is allowed
        drive.build("P2", cost=Decimal("0.000001"))
        assert drive.run.state == "DONE_FAILED_BUDGET_EXHAUSTED"
        assert drive.run.failure_code is FailureCode.COST_CAP
        assert drive.run.failure_reason == ("run cost_cap_usd 1.500000 passed: 1.500001 USD spent")
        assert drive.phase("P2").commit is None

    def test_a_claim_with_nothing_left_ends_the_run(self, start: Start) -> None:
        drive = start({"T1": ("P1", "P2")}, cost_cap_usd=Decimal(1))
        drive.build(cost=Decimal(1))
        assert claim(drive) is None
        assert drive.run.failure_code is FailureCode.COST_CAP
        assert "none left for phase 'P2'" in str(drive.run.failure_reason)

    def test_sums_are_exact_on_phase_tier_and_run(self, start: Start) -> None:
        drive = start({"T1": ("P1", "P2")}, phase={"max_builder_attempts": 20})
        for _ in range(10):
            drive.build(status=BuilderStatus.FAILED, has_patch=False, cost=Decimal("0.1"))
        assert drive.phase("P1").cost_usd == drive.tier("T1").cost_usd == Decimal(1)
        assert drive.run.cost_usd == Decimal(1)

    def test_a_claim_reserves_and_its_end_releases(self, start: Start) -> None:
        drive = start(cost_cap_usd=Decimal(10))
        phase = claim(drive)
        assert phase is not None
        assert phase.cost_reserved_usd == drive.run.cost_reserved_usd == Decimal(10)
        give_up(drive)
        assert drive.run.cost_reserved_usd == 0
        assert drive.phase("P1").cost_reserved_usd == 0

    @pytest.mark.parametrize(
        ("tokens", "reserved"),
        [
            (10_000, ["1", "1", "1", "1"]),  # a tenth of the tokens: a tenth of the money
            (40_000, ["4", "4", "2", None]),
            (100_000, ["10", None, None, None]),
        ],
    )
    def test_claims_side_by_side_never_reserve_more_than_the_cap(
        self, start: Start, tokens: int, reserved: list[str | None]
    ) -> None:
        drive = lanes(start, incident_token_cap=tokens)
        found = [claim(drive) for _ in reserved]
        assert [phase and phase.cost_reserved_usd for phase in found] == [
            amount and Decimal(amount) for amount in reserved
        ]
        assert drive.run.cost_reserved_usd <= Decimal(10)
        assert not drive.run.is_over, "what is reserved may be released again"

    def test_an_agent_that_would_pass_the_cap_is_stopped(self, start: Start) -> None:
        drive = start(cost_cap_usd=Decimal(2))
        phase = claim(drive)
        assert phase is not None
        for cost, directive in ((2, "continue"), (Decimal("2.01"), "stop")):
            assert claiming.directive_for(drive.run, phase, 0, Decimal(cost))[0] == directive

    @pytest.mark.parametrize(
        ("reported", "most"), [("0", "9"), ("1", "9"), ("6", "4"), ("10", "0")]
    )
    def test_an_agent_may_not_spend_what_others_hold_or_say_they_have_spent(
        self, start: Start, reported: str, most: str
    ) -> None:
        drive = lanes(start, incident_token_cap=10_000)
        first, second = claim(drive), claim(drive)
        assert first is not None
        assert second is not None
        drive.run = change_phase(drive.run, first.phase_id, cost_reported_usd=Decimal(reported))
        for cost, directive in ((Decimal(most), "continue"), (Decimal(most) + 1, "stop")):
            assert claiming.directive_for(drive.run, second, 0, cost)[0] == directive
        assert claiming.cost_left(drive.run) == Decimal(most) - 1

    def test_a_lapse_settles_at_what_the_last_heartbeat_said(self, start: Start) -> None:
        drive = start()
        claim(drive)
        drive.run = change_phase(drive.run, "P1", cost_reported_usd=Decimal("0.3"))
        drive.wait(minutes=16)
        assert drive.run.cost_usd == Decimal("0.3")


def test_the_last_output_keeps_its_streams_apart() -> None:
    probe = {"probe_type": "builder_command", "exit_code": 1, "stdout": "half", "stderr": "no\n"}
    assert log_tail({"probe_results": [probe]}) == "$ builder_command: exit 1\nhalf\nno"
    assert log_tail({"output_tail": "no quota"}, ["CI: red"]) == "no quota\nCI: red"
