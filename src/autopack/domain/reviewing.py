"""Reviews: how a phase enters one, and what an Auditor's result does to it. (rules §2.2)

`weigh_review` comes first and returns whether its patches are wanted. Then the use case runs git,
and `accept_review` decides with git's answer in the review. Both are called by way of
`deciding.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal

from .consequences import count_tokens
from .decision import Decision, WrongStateError, require_live
from .errors import ConflictError
from .events import (
    ApprovalGiven,
    AuditorResultReceived,
    PendingPatchDiscarded,
    PhaseApproved,
    PhaseCiStarted,
    PhaseCompleted,
    PhaseFailed,
    PhaseQueued,
    ReviewFailed,
    ReviewOpened,
    ReviewRefused,
    ReviewRequested,
    RevisionRequested,
    TryReturned,
)
from .independence import require_reviewer
from .issue_rules import IssueSeen, resolve_for_auditor, see_issues
from .money import ZERO_USD
from .order import ci_turn
from .patches import AppliedPatch, record_applied
from .run import CompletedBy, PhaseState, RunState
from .states import PhaseStatus
from .terms import Recommendation, Verdict


class NothingToApproveError(ConflictError):
    code = "nothing_to_approve"


class NothingToFixError(ConflictError):
    code = "nothing_to_fix"


@dataclass(frozen=True, slots=True)
class RefusedReview:
    """Git or the path policy refuses a patch of a review: the pending one, or an Auditor's own."""

    detail: str
    is_pending: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Review:
    """One review of an Auditor.

    `patches` is the answer about the pending patch and the Auditor's own, all or none; None before
    git has run.
    """

    phase_id: str
    submission_id: int
    attempt: int
    recommendation: Recommendation
    tokens: int
    cost: Decimal = ZERO_USD
    notes: str
    model: str | None = None
    is_measured: bool = False
    patch_sha256s: tuple[str, ...] = ()
    issues: tuple[IssueSeen, ...] = ()
    resolved_keys: tuple[str, ...] = ()
    patches: tuple[AppliedPatch, ...] | RefusedReview | None = None


@dataclass(frozen=True, slots=True)
class WeighedReview:
    """What the use case must do with a review: put its patches on the branch, or refuse it."""

    is_wanted: bool
    refusal: ConflictError | None = None


@dataclass(frozen=True, slots=True)
class ReviewWish:
    """A review of a phase is requested."""

    phase_id: str


def require_reviewable(run: RunState, phase_id: str) -> None:
    """Refuse a review that the phase cannot take now. Raises RunOverError, WrongStateError."""
    require_live(run)
    phase = run.phase(phase_id)
    if phase.state is not PhaseStatus.GATE:
        raise WrongStateError(
            f"phase '{phase_id}' is {phase.state}; an auditor result is taken only while it is "
            f"{PhaseStatus.GATE}",
            allowed=[PhaseStatus.GATE],
        )


def weigh_review(decision: Decision, review: Review) -> WeighedReview:
    """Count a review with its tokens and issues, and say what to do with its patches. (rules §2.4)

    An approval that others must follow leaves a pending patch pending; only patches of its own are
    applied, with the pending one before them. Raises RunOverError, WrongStateError,
    NotIndependentError, AlreadyApprovedError, InvalidError.
    """
    phase_id = review.phase_id
    require_reviewable(decision.state, phase_id)
    is_approval = review.recommendation is Recommendation.APPROVE
    require_reviewer(
        decision.phase(phase_id), decision.actor, review.model, is_approval=is_approval
    )
    decision.record(
        AuditorResultReceived(
            phase_id=phase_id,
            submission_id=review.submission_id,
            attempt=review.attempt,
            recommendation=review.recommendation,
            tokens_used=review.tokens,
            cost_usd=review.cost,
            patch_sha256s=review.patch_sha256s,
            model=review.model,
            is_measured=review.is_measured,
        )
    )
    see_issues(decision, phase_id, review.issues)
    resolve_for_auditor(decision, phase_id, review.resolved_keys)
    count_tokens(decision, phase_id, review.tokens, review.cost, is_measured=review.is_measured)
    if decision.state.is_over or review.recommendation is Recommendation.ESCALATE:
        return WeighedReview(is_wanted=False)
    phase = decision.phase(phase_id)
    refusal = _why_not(phase, review)
    is_put = not is_approval or bool(review.patch_sha256s) or phase.approvals_missing <= 1
    return WeighedReview(is_wanted=refusal is None and is_put, refusal=refusal)


def accept_review(decision: Decision, review: Review) -> None:
    """Decide on one review: tokens, issues, patches, and the phase's next state. (rules §2.4)"""
    phase_id = review.phase_id
    weighed = weigh_review(decision, review)
    if decision.state.is_over:
        return
    if review.recommendation is Recommendation.ESCALATE:
        reason = f"the Auditor escalated: {review.notes}"
        decision.record(PhaseFailed(phase_id=phase_id, reason=reason))
        return
    if weighed.refusal is not None:
        _refuse(decision, review, weighed.refusal.detail)
        fail_review(decision, phase_id, weighed.refusal.detail)
        return
    if not weighed.is_wanted:
        _approve(decision, phase_id, ())
        return
    if review.patches is None:
        raise ValueError("git was not asked about the patches")  # an error in the use case
    if isinstance(review.patches, RefusedReview):
        _refuse(decision, review, review.patches.detail)
        if review.patches.is_pending:
            _discard_pending(decision, phase_id, review.patches.detail)
        else:
            fail_review(decision, phase_id, review.patches.detail)
        return
    for applied in review.patches:
        record_applied(decision, phase_id, applied)
    if review.recommendation is Recommendation.APPROVE:
        _approve(decision, phase_id, tuple(applied.commit for applied in review.patches))
    else:
        _send_back(decision, review)


def _approve(decision: Decision, phase_id: str, commits: tuple[str, ...]) -> None:
    """Count an approval: the phase goes on, or waits for the next Auditor. (rules §2.4)"""
    phase = decision.phase(phase_id)
    if phase.approvals_missing <= 1:
        decision.record(PhaseApproved(phase_id=phase_id, commits=commits))
        pass_gate(decision, phase_id)
        return
    decision.record(ApprovalGiven(phase_id=phase_id, commits=commits))
    phase = decision.phase(phase_id)
    reason = f"{len(phase.approved_by)} of {phase.approvals_needed} Auditors have approved"
    enter_review(decision, phase_id, reason)  # its own patches may have used the last try


def ask_for_review(decision: Decision, wish: ReviewWish) -> None:
    """Record that a review is wanted: the phase does not pass its next gate without one."""
    decision.require_live()
    decision.record(ReviewRequested(phase_id=wish.phase_id))


def enter_review(decision: Decision, phase_id: str, reason: str) -> None:
    """Start a phase's review, with a deadline; without an Auditor try the review fails."""
    if decision.phase(phase_id).auditor_tries_left:
        await_review(decision, phase_id, reason)
    else:
        fail_review(decision, phase_id, f"{reason}, and no Auditor try is left")


def await_review(
    decision: Decision, phase_id: str, reason: str, *, not_before: datetime | None = None
) -> None:
    """Set the deadline of a review anew, counted from the time when it can be made."""
    run = decision.state
    opens = max(decision.now, not_before) if not_before else decision.now
    deadline = min(opens, run.deadline_at) + timedelta(minutes=run.audit_minutes)
    decision.record(ReviewOpened(phase_id=phase_id, reason=reason, deadline_at=deadline))


def fail_review(decision: Decision, phase_id: str, reason: str) -> None:
    """Record that a review has no result; give the next try to an Auditor, else to a Builder.

    The phase fails if neither has one. Without an Auditor try there was no review at all, or the
    approvals that are missing cannot come. (rules §2.1)
    """
    decision.record(ReviewFailed(phase_id=phase_id, reason=reason))
    phase = decision.phase(phase_id)
    if phase.auditor_tries_left:
        await_review(decision, phase_id, reason)
    elif phase.builder_tries_left:
        decision.record(PhaseQueued(phase_id=phase_id, reason=reason))
    else:
        fail_without_try(decision, phase_id, reason)


def fail_without_try(decision: Decision, phase_id: str, reason: str) -> None:
    """Fail a phase in which no role has a try left. (rules §2.1)"""
    budgets = decision.phase(phase_id).budgets_text
    reason = f"{reason}; no try is left ({budgets})"
    decision.record(PhaseFailed(phase_id=phase_id, reason=reason))


def pass_gate(decision: Decision, phase_id: str) -> None:
    """Move a phase out of the gate: to CI where it is configured, else to completion."""
    phase = decision.phase(phase_id)
    if phase.has_ci:
        decision.record(
            PhaseCiStarted(
                phase_id=phase_id,
                reason="the gate was passed",
                # Behind another commit only the wait for that one's verdict limits this wait.
                deadline_at=(
                    decision.in_seconds(phase.ci_timeout_seconds)
                    if ci_turn(decision.state) is None
                    else None
                ),
            )
        )
    else:
        decision.record(
            PhaseCompleted(
                phase_id=phase_id,
                reason="the gate was passed and no CI is configured",
                completed_by=CompletedBy.RULES,
            )
        )


def why_not_approvable(phase: PhaseState, own_patches: int) -> str | None:
    """Return why a phase has no patch to approve, or None.

    An approval needs a pending patch, an applied one or one of the Auditor's own; after a red
    verdict it needs a new one, since the applied one is what CI refused.
    """
    if own_patches or phase.pending_submission_id is not None:
        return None
    if phase.verdict is Verdict.RED:
        return (
            f"phase '{phase.phase_id}' had a red verdict: approve it with a patch, or revise "
            "or escalate"
        )
    if phase.commit is None:
        return f"phase '{phase.phase_id}' has no patch to approve: send one, or revise or escalate"
    return None


def _why_not(phase: PhaseState, review: Review) -> ConflictError | None:
    own_patches = len(review.patch_sha256s)
    if review.recommendation is Recommendation.APPROVE:
        why_not = why_not_approvable(phase, own_patches)
        return NothingToApproveError(why_not) if why_not else None
    if own_patches and phase.commit is None:
        return NothingToFixError(
            f"phase '{phase.phase_id}' has no applied patch to fix; revise "
            "without patches, or approve with them"
        )
    return None


def _refuse(decision: Decision, review: Review, detail: str) -> None:
    decision.record(
        ReviewRefused(phase_id=review.phase_id, submission_id=review.submission_id, reason=detail)
    )


def _discard_pending(decision: Decision, phase_id: str, reason: str) -> None:
    """Discard a pending patch that no longer applies; the Builder's attempt failed.

    The Auditor made no error, so its try is returned.
    """
    decision.record(PendingPatchDiscarded(phase_id=phase_id, reason=reason))
    forgive_conflict(decision, phase_id)
    if decision.phase(phase_id).builder_tries_left:
        decision.record(PhaseQueued(phase_id=phase_id, reason=reason))
    else:
        enter_review(decision, phase_id, f"the pending patch no longer applies: {reason}")


def forgive_conflict(decision: Decision, phase_id: str) -> bool:
    """Return a Builder's try, once, if the branch has changed since it began. (rules §2.7)"""
    run, phase = decision.state, decision.phase(phase_id)
    has_moved = run.is_parallel and phase.attempt_commit not in (None, run.head_commit)
    if not has_moved or phase.is_conflict_forgiven:
        return False
    decision.record(
        TryReturned(
            phase_id=phase_id,
            reason="it does not merge with what other phases have done since: no try is used",
        )
    )
    return True


def _send_back(decision: Decision, review: Review) -> None:
    """Return the phase to the Builder; a pending patch is discarded, fix-ups are kept."""
    phase_id = review.phase_id
    decision.record(RevisionRequested(phase_id=phase_id, reason=review.notes))
    if decision.phase(phase_id).builder_tries_left:
        reason = f"the Auditor asks for a revision: {review.notes}"
        decision.record(PhaseQueued(phase_id=phase_id, reason=reason))
    else:
        fail_review(decision, phase_id, "the Auditor asks for a revision, no Builder try left")
