"""What an operator's hand and the clock do to a run. (02 §2, §5)"""

from __future__ import annotations

from decimal import Decimal

from .building import fail_attempt
from .course import Course
from .errors import ConflictError
from .judging import Judgement, take_verdict
from .money import ZERO_USD, usd_text
from .reviewing import after_failed_review, await_review
from .run import CompletedBy, FailureCode, PhaseState, Verdict
from .states import PHASE_TRANSITIONS, IllegalTransitionError, PhaseStatus


def set_status(course: Course, phase_id: str, wanted: PhaseStatus) -> None:
    """Move a phase by hand: legal transitions only; the state it has already is no change."""
    phase = course.phase(phase_id)
    if phase.state is wanted:
        return
    course.require_live()
    match wanted:
        case PhaseStatus.EXECUTING:
            if phase.state is PhaseStatus.QUEUED:
                course.require_next(phase_id)
            course.move_phase(
                phase_id,
                wanted,
                "started by hand",
                deadline_at=course.in_minutes(course.run.attempt_minutes),
                fence=phase.fence + 1,
            )
        case PhaseStatus.QUEUED:
            _requeue(course, phase)
        case PhaseStatus.GATE:
            course.move_phase(phase_id, wanted, "sent to review by hand")
            await_review(course, phase_id, "sent to review by hand")
        case PhaseStatus.CI_RUNNING:
            course.move_phase(
                phase_id,
                wanted,
                "sent to CI by hand",
                deadline_at=course.in_seconds(phase.ci_timeout_seconds),
                pending_submission_id=None,
            )
        case PhaseStatus.FAILED:
            course.move_phase(
                phase_id,
                wanted,
                "failed by hand",
                failure_reason="failed by hand",
                pending_submission_id=None,
            )
        case PhaseStatus.COMPLETE | PhaseStatus.SKIPPED:
            course.move_phase(
                phase_id,
                wanted,
                "ended by hand",
                completed_by=CompletedBy.HAND,
                pending_submission_id=None,
            )


def _requeue(course: Course, phase: PhaseState) -> None:
    """Return a phase to the queue: what was under way is a try that failed."""
    is_attempt = phase.state is PhaseStatus.EXECUTING
    if phase.state in (PhaseStatus.EXECUTING, PhaseStatus.GATE, PhaseStatus.CI_RUNNING):
        left = phase.builder_tries_left - int(is_attempt)
        if left <= 0:
            allowed = PHASE_TRANSITIONS[phase.state] - {PhaseStatus.QUEUED}
            raise IllegalTransitionError(
                f"phase '{phase.phase_id}' cannot become QUEUED: no Builder try would be left",
                allowed=sorted(str(state) for state in allowed),
            )
    course.move_phase(
        phase.phase_id,
        PhaseStatus.QUEUED,
        "returned to the queue by hand",
        pending_submission_id=None,
        builder_attempts_used=phase.builder_attempts_used + int(is_attempt),
        fence=phase.fence + int(is_attempt),
    )


CANCELLED = "cancelled by operator"


def cancelled_by_operator(reason: str) -> str:
    return f"{CANCELLED}: {reason}" if reason else CANCELLED


def cancel(course: Course, reason: str) -> None:
    """End the run at the operator's word."""
    course.require_live()
    course.end_failed(FailureCode.CANCELLED, cancelled_by_operator(reason))


class RunNotOverError(ConflictError):
    code = "run_not_over"


class BranchNotOursError(ConflictError):
    code = "branch_moved"


def require_rollback(course: Course) -> None:
    """Only a run that is over can be rolled back, and only where the branch is still its own."""
    run = course.run
    if not course.is_over:
        raise RunNotOverError(f"run '{run.run_id}' is {run.state}; it can be rolled back when over")
    if run.failure_code is FailureCode.BRANCH_MOVED:
        raise BranchNotOursError(
            f"the branch of run '{run.run_id}' was moved by somebody else and is left alone"
        )


def roll_back(course: Course, commit: str, to_phase: str, reason: str) -> None:
    """Note that the branch was put back to a snapshot: the run is not eligible any more."""
    course.change_run(is_rolled_back=True, head_commit=commit)
    course.note("RunRolledBack", phase_id=to_phase, reason=reason, data={"commit": commit})


def pass_time(course: Course) -> None:
    """Let every wait end that has lasted too long: the run's own, attempts, reviews, CI."""
    if course.is_over:
        return
    run = course.run
    if course.now >= run.deadline_at:
        _end_overdue(course)
        return
    for phase in run.phases:
        if phase.deadline_at is None or course.now < phase.deadline_at:
            continue
        if course.phase(phase.phase_id).state is not phase.state:  # an earlier lapse ended the run
            continue
        if phase.state is PhaseStatus.CI_RUNNING:
            judgement = Judgement(verdict=Verdict.DID_NOT_RUN, reason="it gave no verdict in time")
            take_verdict(course, phase.phase_id, judgement)
        else:
            lapse(course, phase.phase_id, phase.tokens_reported, phase.cost_reported_usd)


def _end_overdue(course: Course) -> None:
    """End a run whose time is up; one that waits for agents' capacity failed for lack of it."""
    run = course.run
    late = (course.now - run.deadline_at).total_seconds() / 60
    passed = (
        f"max_duration_minutes {run.max_duration_minutes} passed: the run was not done after "
        f"{run.max_duration_minutes + late:.1f} minutes"
    )
    waiting = next((phase for phase in run.phases if phase.unavailable_reason is not None), None)
    if waiting is None:
        course.end_failed(FailureCode.DURATION_CAP, passed)
    else:
        course.end_failed(
            FailureCode.AGENTS_UNAVAILABLE,
            f"no agent was available for phase '{waiting.phase_id}': "
            f"{waiting.unavailable_reason}; {passed}",
        )


def lapse(
    course: Course, phase_id: str, tokens_reported: int, cost_reported: Decimal = ZERO_USD
) -> None:
    """End an attempt or a review that has lasted too long; it used one try of its role.

    Its tokens and cost are settled at what the last heartbeat said.
    """
    phase = course.phase(phase_id)
    data: dict[str, object] = {"lease_id": phase.lease_id, "tokens_reported": tokens_reported}
    if cost_reported:
        data["cost_reported_usd"] = usd_text(cost_reported)
    course.release(phase_id)
    if phase.state is PhaseStatus.EXECUTING:
        course.change_phase(
            phase_id,
            builder_attempts_used=phase.builder_attempts_used + 1,
            fence=phase.fence + 1,
        )
        course.note("LeaseLapsed", phase_id=phase_id, data=data)
    else:
        course.change_phase(
            phase_id,
            auditor_attempts_used=phase.auditor_attempts_used + 1,
            fence=phase.fence + 1,
        )
        course.note("AuditLapsed", phase_id=phase_id, data=data)
    course.count_tokens(phase_id, tokens_reported, cost_reported)
    if course.is_over:
        return
    if phase.state is PhaseStatus.EXECUTING:
        fail_attempt(course, phase_id, "the attempt's lease lapsed")
    else:
        after_failed_review(course, phase_id, "the audit's deadline lapsed")
