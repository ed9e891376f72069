"""What a person must look at after a failed run. (rules §2.3)"""

from __future__ import annotations

from datetime import datetime

from .run import FailureCode
from .states import PhaseStatus


def is_troubled(state: PhaseStatus, started_at: datetime | None) -> bool:
    """Return whether a phase failed, or had started and not ended when its run ended."""
    was_under_way = state is PhaseStatus.SKIPPED and started_at is not None
    return state is PhaseStatus.FAILED or was_under_way


def next_steps(
    failure: FailureCode, *, branch: str, head_commit: str, last_snapshot: str | None
) -> list[str]:
    """Return what to do about a failure, what is on the branch, and how to continue."""
    steps = {
        FailureCode.TOKEN_CAP: "Raise run.token_cap in the ruleset or the plan, or split the plan.",
        FailureCode.COST_CAP: "Raise run.cost_cap_usd in the ruleset or the plan, or "
        "split the plan.",
        FailureCode.DURATION_CAP: "Raise run.max_duration_minutes, or split the plan.",
        FailureCode.MINOR_ISSUE_CAP: "Resolve the open minor issues, or raise "
        "run.minor_issues_per_phase in the ruleset.",
        FailureCode.BRANCH_MOVED: f"Find out which process moved {branch}; this run left it at "
        f"{head_commit} and will not touch it again.",
        FailureCode.CI_DID_NOT_RUN: "Repair the CI command: it did not run, so the branch has no "
        "verdict.",
        FailureCode.AGENTS_UNAVAILABLE: "Give the agents capacity again (quota, login, program), "
        "or name a second one: autopack work --fallback.",
        FailureCode.CANCELLED: "Nothing, unless you want to keep what is on the branch.",
        FailureCode.PHASE_FAILED: "Read the last attempts below, then change the phase's task, "
        "its category or its budgets.",
        FailureCode.TIER_NOT_CLEAN: "Resolve what makes the tier not clean, or change what it "
        "tolerates in the ruleset.",
        FailureCode.MAJOR_ISSUE: "Resolve the open major issues; a safety_critical run allows "
        "none.",
    }
    keep = (
        f"What was completed is on {branch}, last snapshot {last_snapshot}."
        if last_snapshot
        else f"No phase was completed on {branch}."
    )
    return [steps[failure], keep, "Start a new run under another run_id."]
