"""A Builder's result. (rules §2)"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from ..domain import building
from ..domain.building import BuilderAction, BuilderResult, BuilderStatus, PatchRefusal
from ..domain.capacity import take_unavailable
from ..domain.changes import Repair
from ..domain.course import Course
from ..domain.errors import AutopackError, InvalidError
from ..domain.money import ZERO_USD, cost_entry
from ..domain.redaction import redacted
from ..domain.results import BuilderReport
from ..domain.states import PhaseStatus
from ..domain.values import Role
from ..domain.work import Outcome, PatchStatus
from ..models import Commit, Lease, Phase, Submission
from ..store import submissions
from . import patching
from .change import RunChange, changing
from .claiming import check_lease
from .house import House
from .issues import note_issues
from .replies import Answer
from .submitting import identify, record_submission, require_same_names, settle_unavailable


def submit_builder_result(
    house: House,
    run_id: str,
    phase_id: str,
    report: BuilderReport,
    idempotency_key: str | None = None,
) -> Answer:
    """Take one attempt of a Builder; a patch becomes a commit, is held, or is refused.

    A refusal that is the patch's fault uses up a try, which is committed before it is raised.
    """
    require_same_names(run_id, phase_id, report.run_id, report.phase_id)
    patch = report.patch()
    if patch is not None and report.status is BuilderStatus.UNAVAILABLE:
        raise InvalidError("patch_content: a Builder that was unavailable has no patch to submit")
    identity = identify(phase_id, Role.BUILDER, report, idempotency_key)
    report = redacted(report)
    refusal: AutopackError | None = None
    body: dict[str, Any] = {}
    with changing(house, run_id) as change, identity.keeping_refusals(change):
        phase = change.phase(phase_id)
        given = identity.find(change)
        if given is not None:
            return given
        lease = check_lease(change, phase, Role.BUILDER, report.lease_token)
        building.open_attempt(change.course, phase_id)
        if patch is not None:
            patching.require_free_branch(change)
        submission, commit, repairs, refusal = _take(change, phase, report, patch, lease)
        change.conclude()
        body = {
            "message": _message(submission, phase),
            "submission_id": submission.id,
            "commit_sha": commit.sha if commit else None,
            "repairs": [asdict(repair) for repair in repairs],
            "phase_state": phase.state,
            "run_state": change.run.state,
            "next": what_next(change.course),
        }
        identity.keep(change, body if refusal is None else refusal)
    if refusal is not None:
        raise refusal
    return Answer(body)


def _take(
    change: RunChange,
    phase: Phase,
    report: BuilderReport,
    content: bytes | None,
    lease: Lease | None,
) -> tuple[Submission, Commit | None, tuple[Repair, ...], AutopackError | None]:
    """Weigh the result, do what it asks of git, and let the rules go on."""
    course, phase_id = change.course, phase.phase_id
    patch = None if content is None else submissions.new_patch(1, content, PatchStatus.REFUSED)
    submission = record_submission(change, phase, report, [patch] if patch else [], lease)
    course.note(
        "BuilderResultReceived",
        phase_id=phase_id,
        data={
            "submission_id": submission.id,
            "attempt": submission.attempt,
            "status": report.status,
            "tokens_used": submission.tokens_used,
            **cost_entry(submission.cost_usd),
            "patch_sha256": patch.sha256 if patch else None,
        },
    )
    note_issues(change, phase, report.suggested_issues)
    commit: Commit | None = None
    repairs: tuple[Repair, ...] = ()
    refusal: AutopackError | None = None

    def put(action: BuilderAction) -> str | PatchRefusal | None:
        nonlocal commit, repairs, refusal
        assert patch is not None  # noqa: S101 - for the type checker: there is no action without
        try:
            if action is BuilderAction.HOLD:
                repairs = patching.dry_apply(change, phase, patch, report.base_commit)
                submission.outcome, patch.status = Outcome.HELD, PatchStatus.PENDING
                return None
            commit, repairs = patching.apply(
                change, phase, submission, patch, title=phase.name, base_commit=report.base_commit
            )
        except patching.PATCH_FAULTS as error:
            patching.refuse(submission, error)
            refusal = error
            return PatchRefusal(error.detail)
        submission.outcome, patch.status = Outcome.APPLIED, PatchStatus.APPLIED
        patching.note_applied(change, phase, patch, commit)
        return commit.sha

    cost = submission.cost_usd or ZERO_USD
    if report.status is BuilderStatus.UNAVAILABLE:
        why = report.unavailable(report.notes)
        take_unavailable(
            course, phase_id, Role.BUILDER, why, tokens=submission.tokens_used, cost=cost
        )
        settle_unavailable(submission, why)
        return submission, None, (), None
    result = BuilderResult(
        submission_id=submission.id,
        status=report.status,
        tokens=submission.tokens_used,
        cost=cost,
        patch_sha256=patch.sha256 if patch else None,
    )
    building.take_result(course, phase_id, result, put)
    if submission.outcome is Outcome.FAILED:  # nothing was put on the branch, nothing refused
        submission.outcome = _outcome_without_patch(course, phase_id)
        submission.reason = course.run.failure_reason or course.phase(phase_id).failure_reason
    patching.keep_no_secrets([patch] if patch else [])
    return submission, commit, repairs, refusal


def what_next(course: Course) -> dict[str, Any]:
    """Say what the run waits for now."""
    if course.is_over:
        return {"action": "none", "phase_id": None, "detail": f"the run is {course.run.state}"}
    phase = course.next_phase()
    if phase is None:
        return {"action": "none", "phase_id": None, "detail": "every phase is done"}
    action, detail = {
        PhaseStatus.QUEUED: ("build", "the phase waits for a builder result"),
        PhaseStatus.EXECUTING: ("build", "the phase waits for its builder result"),
        PhaseStatus.GATE: ("audit", "the phase waits for an auditor result"),
        PhaseStatus.CI_RUNNING: ("ci", "the phase waits for CI's verdict"),
    }[phase.state]
    if phase.unavailable_reason is not None:
        until = f" until {phase.retry_at:%Y-%m-%dT%H:%M:%SZ}" if phase.retry_at else ""
        detail += f"; the last agent was unavailable{until}: {phase.unavailable_reason}"
    return {"action": action, "phase_id": phase.phase_id, "detail": detail}


def _outcome_without_patch(course: Course, phase_id: str) -> Outcome:
    phase = course.phase(phase_id)
    if phase.state is PhaseStatus.SKIPPED:
        return Outcome.OVER_BUDGET
    return Outcome.EMPTY if phase.state in _GOES_ON else Outcome.FAILED


_GOES_ON = (PhaseStatus.COMPLETE, PhaseStatus.CI_RUNNING)


def _message(submission: Submission, phase: Phase) -> str:
    what = {
        Outcome.APPLIED: "the patch was applied",
        Outcome.HELD: "the patch applies and waits for the Auditor",
        Outcome.EMPTY: "nothing was to change",
        Outcome.UNAVAILABLE: "the Builder was unavailable, no try is used",
        Outcome.OVER_BUDGET: "a budget was passed, nothing was applied",
    }.get(submission.outcome, "the attempt failed")
    return f"attempt {submission.attempt}: {what}; phase '{phase.phase_id}' is {phase.state}"
