"""What a Builder's result does to its phase. (rules §2.2)

`weigh_result` comes first and returns what to do with the patch. Then the use case runs git, and
`accept_result` decides with git's answer in the result. Both are called by way of `deciding.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum

from .consequences import count_tokens
from .decision import Decision, WrongStateError, require_live, require_next
from .events import (
    AttemptFailed,
    BuilderResultReceived,
    BuilderTriesSpent,
    PatchHeld,
    PatchRefused,
    PhaseGated,
    PhaseQueued,
    PhaseStarted,
)
from .independence import require_model
from .issue_rules import IssueSeen, see_issues
from .money import ZERO_USD
from .order import is_alone
from .patches import AppliedPatch, PendingPatch, RefusedPatch, record_applied
from .reviewing import enter_review, fail_without_try, forgive_conflict, pass_gate
from .run import PhaseState, RunState
from .states import PhaseStatus
from .terms import BuilderStatus, Role


class PatchAction(StrEnum):
    """What the use case must do with a patch before the rules can decide."""

    NOTHING = "nothing"
    APPLY = "apply"
    KEEP_PENDING = "keep_pending"
    APPLY_UNLESS_NEW_DEPENDENCIES = "apply_unless_new_dependencies"


@dataclass(frozen=True, slots=True, kw_only=True)
class BuilderResult:
    """One attempt of a Builder. `patch` is git's and the policy's answer; None before that."""

    phase_id: str
    submission_id: int
    attempt: int
    status: BuilderStatus
    tokens: int
    cost: Decimal = ZERO_USD
    patch_sha256: str | None
    model: str | None = None
    is_measured: bool = False
    issues: tuple[IssueSeen, ...] = ()
    patch: AppliedPatch | PendingPatch | RefusedPatch | None = None


def weigh_result(decision: Decision, result: BuilderResult) -> PatchAction:
    """Count an attempt with its tokens and issues, and say what to do with its patch. (rules §2.2)

    Tokens are counted first: a result whose tokens pass the run's cap ends the run, and its patch
    is not applied. Raises RunOverError, WrongStateError, PhaseNotNextError, NotIndependentError.
    """
    phase_id = result.phase_id
    open_attempt(decision, phase_id)
    is_wanted = result.patch_sha256 is not None and result.status is not BuilderStatus.FAILED
    if is_wanted:
        require_model(decision.phase(phase_id), decision.actor, result.model)
    decision.record(
        BuilderResultReceived(
            phase_id=phase_id,
            submission_id=result.submission_id,
            attempt=result.attempt,
            status=result.status,
            tokens_used=result.tokens,
            cost_usd=result.cost,
            patch_sha256=result.patch_sha256,
            model=result.model,
            is_measured=result.is_measured,
        )
    )
    see_issues(decision, phase_id, result.issues)
    count_tokens(decision, phase_id, result.tokens, result.cost, is_measured=result.is_measured)
    if decision.state.is_over or not is_wanted:
        return PatchAction.NOTHING
    phase = decision.phase(phase_id)
    if not phase.auto_apply:
        return PatchAction.KEEP_PENDING
    if is_alone(decision.state, phase_id):
        return PatchAction.APPLY
    # What waits for an Auditor is unfinished: beside other phases it is not put on the branch.
    why_review = _why_review(decision.state, phase, result.status)
    if why_review is not None:
        return PatchAction.KEEP_PENDING
    is_asked = decision.state.dependencies_need_review
    return PatchAction.APPLY_UNLESS_NEW_DEPENDENCIES if is_asked else PatchAction.APPLY


def accept_result(decision: Decision, result: BuilderResult) -> None:
    """Decide on one attempt: its tokens, issues and patch, then the gate. (rules §2.2)"""
    phase_id = result.phase_id
    action = weigh_result(decision, result)
    if decision.state.is_over:
        return
    if action is PatchAction.NOTHING:
        _accept_without_patch(decision, result)
        return
    match result.patch:
        case RefusedPatch(detail) as refused:
            decision.record(
                PatchRefused(phase_id=phase_id, submission_id=result.submission_id, reason=detail)
            )
            if refused.is_conflict and forgive_conflict(decision, phase_id):
                decision.record(PhaseQueued(phase_id=phase_id, reason=detail))
                return
            fail_attempt(decision, phase_id, detail, signature=_patch_signature(result))
        case PendingPatch() as pending:
            _keep_pending(decision, result, pending)
        case AppliedPatch() as applied:
            record_applied(decision, phase_id, applied)
            _gate(decision, result, applied)
        case None:
            raise ValueError("git was not asked about the patch")  # an error in the use case


def fail_attempt(
    decision: Decision, phase_id: str, reason: str, *, signature: str | None = None
) -> None:
    """End a Builder's attempt in failure: back to the queue, to the Auditor, or to the end.

    `signature` identifies equal failures. A second failure with the same signature uses up all
    Builder tries that are left: the Builder makes no progress. (rules §2.2)
    """
    is_alike = signature in decision.phase(phase_id).failure_signatures
    decision.record(
        AttemptFailed(phase_id=phase_id, role=Role.BUILDER, reason=reason, signature=signature)
    )
    if is_alike:
        decision.record(
            BuilderTriesSpent(
                phase_id=phase_id, reason="two attempts failed in the same way: no progress"
            )
        )
    give_next_try(decision, phase_id, reason)


def _patch_signature(result: BuilderResult) -> str:
    return f"patch:{result.patch_sha256}"


def give_next_try(decision: Decision, phase_id: str, reason: str) -> None:
    """Give the next try to a Builder, else to an Auditor; the phase fails if neither has one.

    So the phase comes to QUEUED, to the gate or to its end. (rules §2.1)
    """
    phase = decision.phase(phase_id)
    if phase.builder_tries_left:
        decision.record(PhaseQueued(phase_id=phase_id, reason=reason))
    elif phase.auditor_tries_left:  # it may send a patch of its own, or skip the phase
        decision.record(PhaseGated(phase_id=phase_id, reason=f"Builder tries are spent: {reason}"))
        enter_review(decision, phase_id, "Builder tries are spent")
    else:
        fail_without_try(decision, phase_id, reason)


def require_buildable(run: RunState, phase_id: str) -> None:
    """Refuse a Builder's result for a phase that cannot take one now.

    Raises RunOverError, WrongStateError, PhaseNotNextError.
    """
    require_live(run)
    phase = run.phase(phase_id)
    if phase.state not in (PhaseStatus.QUEUED, PhaseStatus.EXECUTING):
        raise WrongStateError(
            f"phase '{phase_id}' is {phase.state}; a builder result is taken only while it "
            f"is {PhaseStatus.QUEUED} or {PhaseStatus.EXECUTING}",
            allowed=[PhaseStatus.QUEUED, PhaseStatus.EXECUTING],
        )
    if phase.state is PhaseStatus.QUEUED:
        require_next(run, phase_id)


def open_attempt(decision: Decision, phase_id: str) -> None:
    """Refuse a result that the phase cannot take; start the phase if no agent claimed it."""
    require_buildable(decision.state, phase_id)
    if decision.phase(phase_id).state is PhaseStatus.QUEUED:
        decision.record(
            PhaseStarted(
                phase_id=phase_id,
                reason="a builder result arrived without a claim",
                deadline_at=decision.in_minutes(decision.state.attempt_minutes),
            )
        )


def _accept_without_patch(decision: Decision, result: BuilderResult) -> None:
    phase_id = result.phase_id
    if result.status is BuilderStatus.FAILED:
        fail_attempt(decision, phase_id, "the Builder reported failure")
    elif result.status is BuilderStatus.SUCCESS and decision.phase(phase_id).allow_empty:
        decision.record(
            PhaseGated(phase_id=phase_id, reason="the Builder changed nothing, as allowed")
        )
        gate_work(decision, phase_id)
    else:
        fail_attempt(
            decision, phase_id, "the Builder sent no patch and the phase does not allow_empty"
        )


def gate_work(decision: Decision, phase_id: str) -> None:
    """Move a phase in the gate on, to which no Builder's patch came now.

    What it has on the branch may bring in new dependencies, and an earlier approval ended with its
    red verdict.
    """
    review = _why_dependencies(decision.state, decision.phase(phase_id))
    if review:
        enter_review(decision, phase_id, review)
    else:
        pass_gate(decision, phase_id)


def _gate(decision: Decision, result: BuilderResult, applied: AppliedPatch) -> None:
    """Move the phase on after its patch became a commit: to review, CI or completion."""
    phase_id = result.phase_id
    decision.record(
        PhaseGated(phase_id=phase_id, reason="the patch was applied", commit=applied.commit)
    )
    review = _why_review(decision.state, decision.phase(phase_id), result.status)
    if review:
        enter_review(decision, phase_id, review)
    else:
        pass_gate(decision, phase_id)


def _keep_pending(decision: Decision, result: BuilderResult, pending: PendingPatch) -> None:
    """Keep a patch that applies pending until the Auditor approves it."""
    phase_id = result.phase_id
    reason = "patches of this task category need the Auditor's approval"
    if decision.phase(phase_id).auto_apply:
        asked = _why_review(decision.state, decision.phase(phase_id), result.status)
        why = asked or "new dependencies need an Auditor"
        reason = f"{why}, and other phases are under way"
    if not decision.phase(phase_id).auditor_tries_left:
        hopeless = "the patch needs a review and no Auditor try is left"
        fail_attempt(decision, phase_id, hopeless, signature=_patch_signature(result))
        return
    decision.record(
        PatchHeld(
            phase_id=phase_id,
            submission_id=result.submission_id,
            dependencies=pending.dependencies,
        )
    )
    decision.record(
        PhaseGated(
            phase_id=phase_id,
            reason="the patch applies and is pending until the Auditor approves it",
        )
    )
    enter_review(decision, phase_id, reason)


def _why_review(run: RunState, phase: PhaseState, status: BuilderStatus) -> str | None:
    """Return why an applied patch needs a review before CI; None: it needs none. (rules §2.2)"""
    if status is BuilderStatus.NEEDS_REVIEW:
        return "the Builder asks for a review"
    if phase.is_review_requested:
        return "a review was requested"
    if phase.major_issues_count:
        return f"{phase.major_issues_count} major issues are open in the phase"
    if phase.is_high_risk and run.high_risk_needs_review:
        return "the phase is high risk and the run safety_critical"
    return _why_dependencies(run, phase)


def _why_dependencies(run: RunState, phase: PhaseState) -> str | None:
    """Return why new dependencies need a review; None if they need none. (rules §2.6)"""
    many = len(phase.unapproved_dependencies)
    if not many or not run.dependencies_need_review:
        return None
    what = f"{many} dependencies are" if many > 1 else "a dependency is"
    return f"{what} new or changed, and review.new_dependencies asks for an Auditor"
