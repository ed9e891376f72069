"""What a Builder's result does to its phase. (02 §5)"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum

from .course import Course, WrongStateError
from .money import ZERO_USD
from .reviewing import enter_review, pass_gate
from .run import PhaseState
from .states import PhaseStatus


class BuilderStatus(StrEnum):
    SUCCESS = "success"
    FAILED = "failed"
    NEEDS_REVIEW = "needs_review"
    UNAVAILABLE = "unavailable"  # it could not work: no attempt


class BuilderAction(StrEnum):
    """What the service has to do with a result before the rules can go on."""

    NOTHING = "nothing"
    APPLY = "apply"
    HOLD = "hold"


@dataclass(frozen=True, slots=True, kw_only=True)
class BuilderResult:
    """What the rules have to know of a Builder's result."""

    submission_id: int
    status: BuilderStatus
    tokens: int
    cost: Decimal = ZERO_USD
    patch_sha256: str | None


@dataclass(frozen=True, slots=True)
class PatchRefusal:
    """Git or policy does not take a patch, and it is the patch's fault."""

    detail: str


# Does to the patch what the rules say, and returns the commit, None for a held one, or the refusal.
Put = Callable[[BuilderAction], str | PatchRefusal | None]


def take_result(course: Course, phase_id: str, result: BuilderResult, put: Put) -> None:
    """Take one attempt, which `open_attempt` let in: tokens, patch, gate. (02 §5)"""
    action = weigh_result(
        course,
        phase_id,
        result.status,
        tokens=result.tokens,
        cost=result.cost,
        has_patch=result.patch_sha256 is not None,
    )
    if action is BuilderAction.NOTHING:
        return
    outcome = put(action)
    if isinstance(outcome, PatchRefusal):
        course.note(
            "PatchRefused",
            phase_id=phase_id,
            reason=outcome.detail,
            data={"submission_id": result.submission_id},
        )
        fail_attempt(course, phase_id, outcome.detail, signature=f"patch:{result.patch_sha256}")
    elif outcome is None:
        course.note("PatchHeld", phase_id=phase_id, data={"submission_id": result.submission_id})
        take_held(course, phase_id, result.submission_id)
    else:
        take_applied(course, phase_id, result.status, outcome)


def open_attempt(course: Course, phase_id: str) -> PhaseState:
    """Make sure that the phase takes a Builder's result now; start it when nobody claimed it."""
    course.require_live()
    phase = course.phase(phase_id)
    if phase.state is PhaseStatus.EXECUTING:
        return phase
    if phase.state is not PhaseStatus.QUEUED:
        raise WrongStateError(
            f"phase '{phase_id}' is {phase.state}; a builder result is taken only while it is "
            f"{PhaseStatus.QUEUED} or {PhaseStatus.EXECUTING}",
            allowed=[PhaseStatus.QUEUED, PhaseStatus.EXECUTING],
        )
    course.require_next(phase_id)
    return course.move_phase(
        phase_id,
        PhaseStatus.EXECUTING,
        "a builder result arrived unclaimed",
        deadline_at=course.in_minutes(course.run.attempt_minutes),
        fence=phase.fence + 1,
    )


def weigh_result(
    course: Course,
    phase_id: str,
    status: BuilderStatus,
    *,
    tokens: int,
    cost: Decimal = ZERO_USD,
    has_patch: bool,
) -> BuilderAction:
    """Count the attempt and its tokens, and say what to do with its patch.

    Tokens come first: a result that passes the run's cap ends the run and applies nothing.
    """
    phase = course.phase(phase_id)
    course.change_phase(phase_id, builder_attempts_used=phase.builder_attempts_used + 1)
    course.count_tokens(phase_id, tokens, cost)
    if course.is_over:
        return BuilderAction.NOTHING
    if status is BuilderStatus.FAILED:
        fail_attempt(course, phase_id, "the Builder reported failure")
        return BuilderAction.NOTHING
    if has_patch:
        return BuilderAction.APPLY if phase.auto_apply else BuilderAction.HOLD
    if status is BuilderStatus.SUCCESS and phase.allow_empty:
        course.move_phase(phase_id, PhaseStatus.GATE, "the Builder changed nothing, as allowed")
        pass_gate(course, phase_id)
    else:
        fail_attempt(
            course, phase_id, "the Builder sent no patch and the phase does not allow_empty"
        )
    return BuilderAction.NOTHING


def take_applied(course: Course, phase_id: str, status: BuilderStatus, commit: str) -> None:
    """Go on after the Builder's patch became a commit: to review, CI or completion."""
    course.change_run(head_commit=commit)
    course.change_phase(phase_id, commit=commit, verdict=None, sandbox=None)
    phase = course.move_phase(
        phase_id, PhaseStatus.GATE, "the patch was applied", data={"commit": commit}
    )
    review = _why_review(course, phase, status)
    if review:
        enter_review(course, phase_id, review)
    else:
        pass_gate(course, phase_id)


def take_held(course: Course, phase_id: str, submission_id: int) -> None:
    """Hold a patch that applies until the Auditor approves it."""
    if not course.phase(phase_id).auditor_tries_left:
        fail_attempt(course, phase_id, "the patch needs a review and no Auditor try is left")
        return
    course.move_phase(
        phase_id,
        PhaseStatus.GATE,
        "the patch applies and waits for the Auditor",
        pending_submission_id=submission_id,
    )
    enter_review(course, phase_id, "patches of this task category need the Auditor's approval")


def fail_attempt(
    course: Course, phase_id: str, reason: str, *, signature: str | None = None
) -> None:
    """End a Builder's attempt in failure: back to the queue, to the Auditor, or to the end.

    `signature` tells failures that are alike: two in a row spend what Builder tries are left.
    """
    phase = course.phase(phase_id)
    course.note("AttemptFailed", phase_id=phase_id, reason=reason, data={"role": "builder"})
    if signature in phase.failure_signatures:
        phase = course.change_phase(phase_id, is_builder_spent=True)
        course.note(
            "BuilderTriesSpent", phase_id=phase_id, reason="two attempts failed alike: no progress"
        )
    elif signature is not None:
        course.change_phase(phase_id, failure_signatures=(*phase.failure_signatures, signature))
    course.change_phase(phase_id, failure_reason=reason)
    requeue(course, phase_id, reason)


def requeue(course: Course, phase_id: str, reason: str) -> None:
    """Return a phase to the queue while Builder tries are left, else to the Auditor or its end."""
    phase = course.phase(phase_id)
    if phase.builder_tries_left:
        course.move_phase(phase_id, PhaseStatus.QUEUED, reason)
    elif phase.auditor_tries_left:
        course.move_phase(phase_id, PhaseStatus.GATE, f"Builder tries are spent: {reason}")
        enter_review(course, phase_id, "Builder tries are spent")
    else:
        reason = f"{reason}; no try is left ({phase.budgets_text})"
        course.move_phase(phase_id, PhaseStatus.FAILED, reason, failure_reason=reason)


def _why_review(course: Course, phase: PhaseState, status: BuilderStatus) -> str | None:
    if status is BuilderStatus.NEEDS_REVIEW:
        return "the Builder asks for a review"
    if phase.is_review_requested:
        return "a review was asked for"
    if phase.major_issues_count:
        return f"{phase.major_issues_count} major issues are open in the phase"
    if phase.is_high_risk and course.run.high_risk_needs_review:
        return "the phase is high risk and the run safety_critical"
    return None
