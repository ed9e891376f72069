"""The transition tables, each pair of states, against the tables of rules §2 written out here."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product

import pytest

from autopack.domain.errors import ErrorKind
from autopack.domain.run import FAILURE_STATES, FailureCode
from autopack.domain.states import (
    IllegalTransitionError,
    PhaseStatus,
    RunStatus,
    TierStatus,
    check_phase_transition,
    check_run_transition,
    check_tier_transition,
)

pytestmark = pytest.mark.unit

Table = Mapping[str, str]

PHASES: Table = {
    "QUEUED": "EXECUTING SKIPPED",
    "EXECUTING": "GATE QUEUED FAILED SKIPPED",
    "GATE": "CI_RUNNING COMPLETE QUEUED FAILED SKIPPED",
    "CI_RUNNING": "COMPLETE QUEUED GATE FAILED SKIPPED",
    "COMPLETE": "",
    "FAILED": "",
    "SKIPPED": "",
}
TIERS: Table = {
    "PENDING": "IN_PROGRESS SKIPPED",
    "IN_PROGRESS": "COMPLETE FAILED SKIPPED",
    "COMPLETE": "",
    "FAILED": "",
    "SKIPPED": "",
}
FAILURES = (
    "DONE_FAILED_BUDGET_EXHAUSTED DONE_FAILED_POLICY_VIOLATION "
    "DONE_FAILED_REQUIRES_HUMAN_REVIEW DONE_FAILED_ENVIRONMENT"
)
DONE = f"DONE_SUCCESS {FAILURES}"
RUNS: Table = {
    "PLAN_BOOTSTRAP": f"RUN_CREATED {FAILURES}",
    "RUN_CREATED": f"PHASE_QUEUEING PHASE_EXECUTION GATE CI_RUNNING SNAPSHOT_CREATED {DONE}",
    "PHASE_QUEUEING": f"PHASE_EXECUTION GATE CI_RUNNING SNAPSHOT_CREATED {DONE}",
    "PHASE_EXECUTION": f"PHASE_QUEUEING GATE CI_RUNNING SNAPSHOT_CREATED {DONE}",
    "GATE": f"PHASE_QUEUEING PHASE_EXECUTION CI_RUNNING SNAPSHOT_CREATED {DONE}",
    "CI_RUNNING": f"PHASE_QUEUEING PHASE_EXECUTION GATE SNAPSHOT_CREATED {DONE}",
    "SNAPSHOT_CREATED": f"PHASE_QUEUEING PHASE_EXECUTION GATE CI_RUNNING {DONE}",
    "DONE_SUCCESS": "",
    "DONE_FAILED_BUDGET_EXHAUSTED": "",
    "DONE_FAILED_POLICY_VIOLATION": "",
    "DONE_FAILED_REQUIRES_HUMAN_REVIEW": "",
    "DONE_FAILED_ENVIRONMENT": "",
}

CASES = [
    pytest.param(kind, current, wanted, table[current].split(), id=f"{kind}-{current}-{wanted}")
    for kind, table in (("phase", PHASES), ("tier", TIERS), ("run", RUNS))
    for current, wanted in product(table, table)
]


def check(kind: str, current: str, wanted: str) -> None:
    match kind:
        case "phase":
            check_phase_transition("X", PhaseStatus(current), PhaseStatus(wanted))
        case "tier":
            check_tier_transition("X", TierStatus(current), TierStatus(wanted))
        case _:
            check_run_transition("X", RunStatus(current), RunStatus(wanted))


@pytest.mark.parametrize(("kind", "current", "wanted", "allowed"), CASES)
def test_a_transition_in_the_table_is_accepted_and_any_other_is_refused_with_the_legal_ones(
    kind: str, current: str, wanted: str, allowed: list[str]
) -> None:
    if wanted in allowed:
        check(kind, current, wanted)
        return
    with pytest.raises(IllegalTransitionError) as refusal:
        check(kind, current, wanted)
    assert refusal.value.kind is ErrorKind.CONFLICT
    assert refusal.value.extra["allowed"] == sorted(allowed)
    for word in ("'X'", current, wanted, *allowed):
        assert word in refusal.value.detail


def test_there_are_no_other_states() -> None:
    assert set(PhaseStatus) == set(PHASES)
    assert set(TierStatus) == set(TIERS)
    assert set(RunStatus) == set(RUNS)


@pytest.mark.parametrize("state", [*PhaseStatus, *TierStatus, *RunStatus], ids=repr)
def test_a_state_is_final_when_nothing_may_follow(
    state: PhaseStatus | TierStatus | RunStatus,
) -> None:
    tables = {PhaseStatus: PHASES, TierStatus: TIERS, RunStatus: RUNS}
    assert state.is_final is (tables[type(state)][state] == "")


def test_each_failure_code_ends_the_run_as_the_spec_says() -> None:
    assert {code.value: state.value for code, state in FAILURE_STATES.items()} == {
        "token_cap": "DONE_FAILED_BUDGET_EXHAUSTED",
        "cost_cap": "DONE_FAILED_BUDGET_EXHAUSTED",
        "duration_cap": "DONE_FAILED_BUDGET_EXHAUSTED",
        "minor_issue_cap": "DONE_FAILED_BUDGET_EXHAUSTED",
        "branch_moved": "DONE_FAILED_POLICY_VIOLATION",
        "ci_did_not_run": "DONE_FAILED_ENVIRONMENT",
        "agents_unavailable": "DONE_FAILED_ENVIRONMENT",
        "cancelled": "DONE_FAILED_REQUIRES_HUMAN_REVIEW",
        "phase_failed": "DONE_FAILED_REQUIRES_HUMAN_REVIEW",
        "tier_not_clean": "DONE_FAILED_REQUIRES_HUMAN_REVIEW",
        "major_issue": "DONE_FAILED_REQUIRES_HUMAN_REVIEW",
    }
    assert set(FAILURE_STATES) == set(FailureCode)
