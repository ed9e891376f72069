"""Which branch may go to the base branch, and which run may be continued. (rules §8, §2.5)"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from autopack.domain.promotion import judge_continued, judge_promotion
from autopack.domain.run import CompletedBy, FailureCode, PhaseState, RunState
from autopack.domain.sightings import Sighting
from autopack.domain.states import Cleanliness, PhaseStatus, RunStatus
from autopack.domain.terms import CiProfile, Sandbox, Severity, Verdict

if TYPE_CHECKING:
    from tests.domain.conftest import Start

pytestmark = pytest.mark.unit


@pytest.fixture
def done(start: Start) -> RunState:
    """A run in which all is well and CI found everything green."""
    drive = start(phase={"has_ci": True, "ci_profile": CiProfile.STRICT})
    drive.build()
    drive.green()
    return drive.run


def with_phase(run: RunState, **changes: object) -> RunState:
    phase: PhaseState = replace(run.phases[0], **changes)  # type: ignore[arg-type]
    return replace(run, phases=(phase,))


def test_a_clean_green_run_is_eligible_without_a_word(done: RunState) -> None:
    verdict = judge_promotion(done)
    assert verdict.is_eligible
    assert (verdict.reasons, verdict.warnings) == ((), ())
    assert done.promotion_eligible_to_main


def unclean(run: RunState) -> RunState:
    reasons = ("3 minor issues, 2 allowed",)
    tier = replace(run.tiers[0], cleanliness=Cleanliness.NOT_CLEAN, cleanliness_reasons=reasons)
    return replace(run, tiers=(tier,))


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (
            lambda run: replace(run, state=RunStatus.GATE),
            "the run is GATE, not DONE_SUCCESS",
        ),
        (
            lambda run: replace(run, failure_code=FailureCode.TOKEN_CAP, failure_reason="9 of 8"),
            "a budget was exhausted: 9 of 8",
        ),
        (lambda run: replace(run, is_rolled_back=True), "the branch was rolled back by hand"),
        (unclean, "tier 'T1' is not clean: 3 minor issues, 2 allowed"),
        (
            lambda run: replace(run, minor_issues_count=4),
            "debt_status is excess_minor_issues: 4 minor issues, 3 allowed",
        ),
        (
            lambda run: with_phase(run, completed_by=CompletedBy.HAND),
            "phase 'P1' was completed by hand",
        ),
        (
            lambda run: with_phase(run, verdict=None),
            "strict phase 'P1' has no green verdict",
        ),
        (
            lambda run: with_phase(run, verdict=Verdict.DID_NOT_RUN),
            "strict phase 'P1' has no green verdict",
        ),
        (
            lambda run: with_phase(run, verdict=Verdict.RED),
            "strict phase 'P1' has no green verdict",
        ),
    ],
)
def test_each_thing_that_speaks_against_a_run_is_named(
    done: RunState, spoil: Callable[[RunState], RunState], reason: str
) -> None:
    verdict = judge_promotion(spoil(done))
    assert not verdict.is_eligible
    assert verdict.reasons == (reason,)


def test_all_reasons_are_named_at_once(done: RunState) -> None:
    spoilt = replace(unclean(with_phase(done, verdict=None)), is_rolled_back=True)
    assert len(judge_promotion(spoilt).reasons) == 3


def test_minor_issues_within_the_cap_speak_against_nothing(done: RunState) -> None:
    assert judge_promotion(replace(done, minor_issues_count=3)).is_eligible


def test_a_normal_phase_that_nothing_verified_is_allowed_and_named(done: RunState) -> None:
    verdict = judge_promotion(with_phase(done, ci_profile=CiProfile.NORMAL, verdict=None))
    assert verdict.is_eligible
    assert verdict.warnings == ("nothing verified phase 'P1'",)


@pytest.mark.parametrize(
    ("sandbox", "is_required", "said"),
    [
        (Sandbox.BUBBLEWRAP, False, ""),
        (Sandbox.BUBBLEWRAP, True, ""),
        (Sandbox.EXTERNAL, False, ""),
        (None, False, ""),  # of a version that did not say
        (Sandbox.NONE, False, "warning: the green verdict of phase 'P1' was made without a"),
        (Sandbox.NONE, True, "reason: the green verdict of phase 'P1' was not made in a sandbox"),
        (None, True, "reason: the green verdict of phase 'P1' was not made in a sandbox"),
    ],
)
def test_a_green_verdict_without_a_sandbox_is_reported_and_refused_where_one_is_required(
    done: RunState, sandbox: Sandbox | None, is_required: bool, said: str
) -> None:
    run = with_phase(replace(done, is_sandbox_required=is_required), sandbox=sandbox)
    verdict = judge_promotion(run)
    told = [f"reason: {each}" for each in verdict.reasons]
    told += [f"warning: {each}" for each in verdict.warnings]
    assert len(told) == bool(said)
    assert all(each.startswith(said) for each in told)


@pytest.fixture
def cancelled(start: Start) -> RunState:
    """A cancelled run with one complete phase, one that failed and one that no agent began."""
    drive = start({"T1": ("P1", "P2", "P3")}, phase={"has_ci": True})
    drive.build()
    drive.green()
    failed = replace(drive.run.phases[1], state=PhaseStatus.FAILED, verdict=Verdict.RED)
    drive.run = replace(drive.run, phases=(drive.run.phases[0], failed, drive.run.phases[2]))
    drive.cancel()
    return drive.run


def with_phase_at(run: RunState, index: int, **changes: object) -> RunState:
    phases = list(run.phases)
    phases[index] = replace(phases[index], **changes)  # type: ignore[arg-type]
    return replace(run, phases=tuple(phases))


def with_issue(run: RunState, phase_id: str, severity: Severity, **fields: bool) -> RunState:
    issue = Sighting(
        phase_id=phase_id,
        issue_key="a_leak",
        source="test",
        severity=severity,
        effective_severity=severity,
        **fields,
    )
    return run.with_issues([issue])


def test_a_run_that_failed_is_continued_if_its_complete_phases_could_be_promoted(
    cancelled: RunState,
) -> None:
    assert judge_continued(cancelled).reasons == ()


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        *(
            (
                lambda run, code=code: replace(run, failure_code=code, failure_reason="why"),
                "why",
            )
            for code in (FailureCode.BRANCH_MOVED, FailureCode.MINOR_ISSUE_CAP)
        ),
        (lambda run: replace(run, is_rolled_back=True), "the branch was rolled back by hand"),
        (
            lambda run: with_phase_at(run, 0, completed_by=CompletedBy.HAND),
            "phase 'P1' was completed by hand",
        ),
        (
            lambda run: with_phase_at(run, 0, ci_profile=CiProfile.STRICT, verdict=None),
            "strict phase 'P1' has no green verdict",
        ),
        (
            lambda run: with_phase_at(
                replace(run, is_sandbox_required=True), 0, sandbox=Sandbox.NONE
            ),
            "the green verdict of phase 'P1' was not made in a sandbox,"
            " which ci.require_sandbox asks for",
        ),
        (
            lambda run: with_issue(run, "P1", Severity.MAJOR),
            "the major issue 'a_leak' of a complete phase is open",
        ),
    ],
)
def test_each_thing_that_speaks_against_a_continuation_is_named(
    cancelled: RunState, spoil: Callable[[RunState], RunState], reason: str
) -> None:
    assert judge_continued(spoil(cancelled)).reasons == (reason,)


@pytest.mark.parametrize(
    "change",
    [
        *(
            lambda run, code=code: replace(run, failure_code=code, failure_reason="why")
            for code in set(FailureCode) - {FailureCode.BRANCH_MOVED, FailureCode.MINOR_ISSUE_CAP}
        ),
        lambda run: with_phase_at(run, 2, completed_by=CompletedBy.HAND),
        lambda run: with_phase_at(run, 1, ci_profile=CiProfile.STRICT),
        lambda run: with_issue(run, "P2", Severity.MAJOR),
        lambda run: with_issue(run, "P1", Severity.MINOR),
        lambda run: with_issue(run, "P1", Severity.MAJOR, is_open=False),
        lambda run: with_issue(run, "P1", Severity.MAJOR, is_expected=True),
    ],
)
def test_what_is_done_again_speaks_against_no_continuation(
    cancelled: RunState, change: Callable[[RunState], RunState]
) -> None:
    """What is not complete is not on the branch of the new run: how it ended does not count."""
    assert judge_continued(change(cancelled)).reasons == ()
