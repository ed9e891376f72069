"""May a run's branch go to the base branch? (rules §8)"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from .evidence import missing_evidence
from .independence import rests_on_names
from .order import in_order
from .run import CompletedBy, FailureCode, PhaseState, RunState
from .states import Cleanliness, PhaseStatus, RunStatus
from .terms import CiProfile, EvidenceResult, Sandbox, Severity, Verdict

_BUDGETS = (
    FailureCode.TOKEN_CAP,
    FailureCode.COST_CAP,
    FailureCode.DURATION_CAP,
    FailureCode.MINOR_ISSUE_CAP,
)


class PromotionState(StrEnum):
    """The verdict in one word; a later rehearsal of the merge may still be against it."""

    UNDECIDED = "undecided"  # the run is not over
    ELIGIBLE = "eligible"
    BLOCKED = "blocked"  # the run succeeded, and something is against it
    NEVER = "never"  # the run failed


def promotion_state(state: RunStatus, *, is_eligible: bool) -> PromotionState:
    """Return the verdict on a run in one word."""
    if not state.is_final:
        return PromotionState.UNDECIDED
    if is_eligible:
        return PromotionState.ELIGIBLE
    is_success = state is RunStatus.DONE_SUCCESS
    return PromotionState.BLOCKED if is_success else PromotionState.NEVER


class PromotionCheck(StrEnum):
    """What is checked, in the order in which it is shown. The last two are about today."""

    SUCCESS = "success"
    BUDGETS = "budgets"
    BRANCH = "branch"
    TIERS = "tiers"
    ISSUES = "issues"
    BY_RULES = "by_rules"
    VERDICTS = "verdicts"
    RECORD = "record"
    MERGE = "merge"


#: What a check that is passed says.
PASSED: Mapping[PromotionCheck, str] = {
    PromotionCheck.SUCCESS: "every phase has ended, and none failed",
    PromotionCheck.BUDGETS: "no budget was exhausted",
    PromotionCheck.BRANCH: "the branch was not rolled back",
    PromotionCheck.TIERS: "every tier is clean",
    PromotionCheck.ISSUES: "no more minor issues are open than allowed",
    PromotionCheck.BY_RULES: "no phase was completed or skipped by hand",
    PromotionCheck.VERDICTS: "every phase that needs a green verdict has one that counts",
    PromotionCheck.RECORD: "the branch ends in a whole record of the run",
    PromotionCheck.MERGE: "it merges with today's base branch",
}
_Reasons = list[tuple[PromotionCheck, str]]


@dataclass(frozen=True, slots=True)
class PromotionVerdict:
    """`checked` are the reasons by what they are about, where the rules gave them."""

    reasons: tuple[str, ...]
    warnings: tuple[str, ...]
    checked: tuple[tuple[PromotionCheck, str], ...] = ()

    @property
    def is_eligible(self) -> bool:
        return not self.reasons


def judge_promotion(run: RunState) -> PromotionVerdict:
    """Say whether a run is eligible, with every reason against it and what to look at."""
    reasons: _Reasons = []
    warnings: list[str] = []
    if run.state is not RunStatus.DONE_SUCCESS:
        reasons.append((PromotionCheck.SUCCESS, f"the run is {run.state}, not DONE_SUCCESS"))
    if run.failure_code in _BUDGETS:
        reasons.append((PromotionCheck.BUDGETS, f"a budget was exhausted: {run.failure_reason}"))
    if run.is_rolled_back:
        reasons.append((PromotionCheck.BRANCH, "the branch was rolled back by hand"))
    for tier in sorted(run.tiers, key=lambda tier: tier.tier_index):
        if tier.cleanliness is Cleanliness.NOT_CLEAN:
            why = "; ".join(tier.cleanliness_reasons)
            reasons.append((PromotionCheck.TIERS, f"tier '{tier.tier_id}' is not clean: {why}"))
    if run.minor_issues_count > run.max_minor_issues_total:
        figures = f"{run.minor_issues_count} minor issues, {run.max_minor_issues_total} allowed"
        why = f"debt_status is excess_minor_issues: {figures}"
        reasons.append((PromotionCheck.ISSUES, why))
    _judge_phases(run, run.phases, reasons, warnings)
    texts = tuple(reason for _, reason in reasons)
    return PromotionVerdict(texts, tuple(warnings), tuple(reasons))


def judge_continued(run: RunState) -> PromotionVerdict:
    """Judge the complete phases of a failed run, which another run continues. (rules §2.5)

    Their commits become part of that run's branch, so they must satisfy what its own phases must.
    All other phases are done again, so how they ended does not count. `run` has its issues.
    """
    reasons: list[str] = []
    warnings: list[str] = []
    if run.failure_code in (FailureCode.BRANCH_MOVED, FailureCode.MINOR_ISSUE_CAP):
        reasons.append(str(run.failure_reason))
    if run.is_rolled_back:
        reasons.append("the branch was rolled back by hand")
    complete = [phase for phase in run.phases if phase.state is PhaseStatus.COMPLETE]
    names = {phase.phase_id for phase in complete}
    majors = {
        issue.issue_key
        for issue in run.issues.values()
        if issue.is_counted
        and issue.phase_id in names
        and issue.effective_severity is Severity.MAJOR
    }
    reasons += [f"the major issue '{key}' of a complete phase is open" for key in sorted(majors)]
    of_phases: _Reasons = []
    _judge_phases(run, complete, of_phases, warnings)
    reasons += [reason for _, reason in of_phases]
    return PromotionVerdict(tuple(reasons), tuple(warnings))


def _judge_phases(
    run: RunState, phases: Iterable[PhaseState], reasons: _Reasons, warnings: list[str]
) -> None:
    phases = in_order(phases)
    if any(map(rests_on_names, phases)):
        warnings.append("independence rests on names that agents gave themselves")
    for phase in phases:
        if phase.completed_by is CompletedBy.HAND:
            how = "completed" if phase.state is PhaseStatus.COMPLETE else "skipped"
            why = f"phase '{phase.phase_id}' was {how} by hand"
            reasons.append((PromotionCheck.BY_RULES, why))
        if phase.state is not PhaseStatus.COMPLETE:
            continue
        if phase.verdict is Verdict.GREEN:
            reasons += [
                (
                    PromotionCheck.VERDICTS,
                    f"the green verdict of phase '{phase.phase_id}' lacks evidence: {what}",
                )
                for what in missing_evidence(phase.evidence_required, phase.evidence)
            ]
            warnings += [
                f"phase '{phase.phase_id}': {each.text}"
                for each in phase.evidence
                if each.result is EvidenceResult.WARNED
            ]
            if phase.sandbox is not Sandbox.BUBBLEWRAP and run.is_sandbox_required:
                why = f"the green verdict of phase '{phase.phase_id}' was not made in a sandbox,"
                why += " which ci.require_sandbox asks for"
                reasons.append((PromotionCheck.VERDICTS, why))
            elif phase.sandbox is Sandbox.NONE:
                warnings.append(
                    f"the green verdict of phase '{phase.phase_id}' was made without a sandbox"
                )
            continue
        if phase.ci_profile is CiProfile.STRICT:
            why = f"strict phase '{phase.phase_id}' has no green verdict"
            reasons.append((PromotionCheck.VERDICTS, why))
        else:
            warnings.append(f"nothing verified phase '{phase.phase_id}'")
