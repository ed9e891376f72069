"""What entering a review and an Auditor's result do to a phase. (02 §5)"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from enum import StrEnum

from .course import Course, WrongStateError
from .errors import ConflictError
from .money import ZERO_USD
from .run import PhaseState, Verdict
from .states import PhaseStatus


class Recommendation(StrEnum):
    APPROVE = "approve"
    REVISE = "revise"
    ESCALATE = "escalate"
    UNAVAILABLE = "unavailable"  # it could not work: no review


class NothingToApproveError(ConflictError):
    code = "nothing_to_approve"


class NothingToFixError(ConflictError):
    code = "nothing_to_fix"


@dataclass(frozen=True, slots=True, kw_only=True)
class Review:
    """What the rules have to know of an Auditor's result."""

    submission_id: int
    recommendation: Recommendation
    tokens: int
    cost: Decimal = ZERO_USD
    notes: str
    own_patches: int


@dataclass(frozen=True, slots=True)
class ReviewRefusal:
    """Git or policy does not take a patch of a review: the pending one, or one of the Auditor's."""

    detail: str
    is_pending: bool


# Puts all patches on the branch or none, and returns the commits or the refusal.
PutAll = Callable[[], Sequence[str] | ReviewRefusal]


def take_review(course: Course, phase_id: str, review: Review, put: PutAll) -> ConflictError | None:
    """Take one review, which `require_reviewable` let in. (02 §5)

    Returns the refusal of a review that has nothing to stand on; it cost a try.
    """
    course.release(phase_id)
    count_review(course, phase_id, review.tokens, review.cost)
    if course.is_over:
        return None
    if review.recommendation is Recommendation.ESCALATE:
        take_escalation(course, phase_id, review.notes)
        return None
    refusal = _why_not(course.phase(phase_id), review)
    if refusal is not None:
        _note_refusal(course, phase_id, review, refusal.detail)
        after_failed_review(course, phase_id, refusal.detail)
        return refusal
    outcome = put()
    if isinstance(outcome, ReviewRefusal):
        _note_refusal(course, phase_id, review, outcome.detail)
        if outcome.is_pending:
            drop_pending(course, phase_id, outcome.detail)
        else:
            after_failed_review(course, phase_id, outcome.detail)
    elif review.recommendation is Recommendation.APPROVE:
        take_approval(course, phase_id, outcome)
        pass_gate(course, phase_id)
    else:
        take_revision(course, phase_id, outcome, review.notes)
    return None


def _note_refusal(course: Course, phase_id: str, review: Review, detail: str) -> None:
    course.note(
        "ReviewRefused",
        phase_id=phase_id,
        reason=detail,
        data={"submission_id": review.submission_id},
    )


def _why_not(phase: PhaseState, review: Review) -> ConflictError | None:
    if review.recommendation is Recommendation.APPROVE:
        why_not = why_not_approvable(phase, review.own_patches)
        return NothingToApproveError(why_not) if why_not else None
    if review.own_patches and phase.commit is None:
        return NothingToFixError(
            f"phase '{phase.phase_id}' has no applied patch that a fix-up could go on; revise "
            "without patches, or approve with them"
        )
    return None


def enter_review(course: Course, phase_id: str, reason: str) -> None:
    """Open the audit of a phase that is in the gate; it has a deadline."""
    phase = course.phase(phase_id)
    if not phase.auditor_tries_left:
        after_failed_review(course, phase_id, f"{reason}, and no Auditor try is left")
        return
    await_review(course, phase_id, reason)


def await_review(
    course: Course, phase_id: str, reason: str, *, not_before: datetime | None = None
) -> None:
    """Give the phase in the gate another audit's time, from when the audit can be made."""
    course.end_wait(phase_id)
    opens = max(course.now, not_before) if not_before else course.now
    audit = timedelta(minutes=course.run.audit_minutes)
    course.change_phase(phase_id, deadline_at=min(opens, course.run.deadline_at) + audit)
    course.note("ReviewOpened", phase_id=phase_id, reason=reason)


def request_review(course: Course, phase_id: str) -> None:
    """Note that a review is wanted: the phase will not pass its next gate without one."""
    course.require_live()
    course.change_phase(phase_id, is_review_requested=True)
    course.note("ReviewRequested", phase_id=phase_id)


def count_review(course: Course, phase_id: str, tokens: int, cost: Decimal = ZERO_USD) -> None:
    """Count an Auditor's try, its tokens and cost; passing a cap of the run ends it."""
    phase = course.phase(phase_id)
    course.change_phase(
        phase_id,
        auditor_attempts_used=phase.auditor_attempts_used + 1,
        is_review_requested=False,
    )
    course.count_tokens(phase_id, tokens, cost)


def drop_pending(course: Course, phase_id: str, reason: str) -> None:
    """Discard a pending patch that no longer applies, on the Builder's account.

    The Auditor did nothing wrong, so its try is given back.
    """
    phase = course.phase(phase_id)
    course.change_phase(
        phase_id,
        pending_submission_id=None,
        auditor_attempts_used=phase.auditor_attempts_used - 1,
        failure_reason=reason,
    )
    course.note("PendingPatchDiscarded", phase_id=phase_id, reason=reason)
    if phase.builder_tries_left:
        course.move_phase(phase_id, PhaseStatus.QUEUED, reason)
    else:
        enter_review(course, phase_id, f"the held patch no longer applies: {reason}")


def require_reviewable(course: Course, phase_id: str) -> PhaseState:
    """Make sure that the phase takes an Auditor's result now."""
    course.require_live()
    phase = course.phase(phase_id)
    if phase.state is not PhaseStatus.GATE:
        raise WrongStateError(
            f"phase '{phase_id}' is {phase.state}; an auditor result is taken only while it is "
            f"{PhaseStatus.GATE}",
            allowed=[PhaseStatus.GATE],
        )
    return phase


def why_not_approvable(phase: PhaseState, own_patches: int) -> str | None:
    """Say why an approval has nothing to stand on, or None.

    It needs a pending patch, an applied one or the Auditor's own; after a red verdict a new one.
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


def pass_gate(course: Course, phase_id: str) -> None:
    """Leave the gate: to CI where it is configured, else to completion."""
    phase = course.phase(phase_id)
    if phase.has_ci:
        course.move_phase(
            phase_id,
            PhaseStatus.CI_RUNNING,
            "the gate was passed",
            deadline_at=course.in_seconds(phase.ci_timeout_seconds),
        )
    else:
        course.move_phase(
            phase_id,
            PhaseStatus.COMPLETE,
            "the gate was passed and no CI is configured",
            failure_reason=None,
        )


def take_approval(course: Course, phase_id: str, commits: Sequence[str]) -> None:
    """Go on after an approval; `commits` are those of the pending and the Auditor's patches."""
    _take_commits(course, phase_id, commits)
    course.note("PhaseApproved", phase_id=phase_id, data={"commits": list(commits)})


def take_revision(course: Course, phase_id: str, commits: Sequence[str], notes: str) -> None:
    """Return the phase to the Builder; a pending patch is discarded, fix-ups are kept."""
    _take_commits(course, phase_id, commits)
    phase = course.change_phase(phase_id, pending_submission_id=None)
    if phase.builder_tries_left:
        course.move_phase(phase_id, PhaseStatus.QUEUED, f"the Auditor asks for a revision: {notes}")
    else:
        after_failed_review(
            course, phase_id, "the Auditor asks for a revision, no Builder try left"
        )


def take_escalation(course: Course, phase_id: str, notes: str) -> None:
    """Fail the phase on the Auditor's word."""
    reason = f"the Auditor escalated: {notes}"
    course.move_phase(
        phase_id,
        PhaseStatus.FAILED,
        reason,
        pending_submission_id=None,
        failure_reason=reason,
    )


def after_failed_review(course: Course, phase_id: str, reason: str) -> None:
    """End an Auditor's try in failure: another, back to the Builder, or the end."""
    phase = course.change_phase(phase_id, failure_reason=reason)
    if phase.auditor_tries_left:
        await_review(course, phase_id, reason)
    elif phase.builder_tries_left:
        course.move_phase(phase_id, PhaseStatus.QUEUED, reason, pending_submission_id=None)
    else:
        reason = f"{reason}; no try is left ({phase.budgets_text})"
        course.move_phase(
            phase_id,
            PhaseStatus.FAILED,
            reason,
            pending_submission_id=None,
            failure_reason=reason,
        )


def _take_commits(course: Course, phase_id: str, commits: Sequence[str]) -> None:
    if commits:
        course.change_run(head_commit=commits[-1])
        course.change_phase(
            phase_id,
            commit=commits[-1],
            pending_submission_id=None,
            verdict=None,
            sandbox=None,
        )
