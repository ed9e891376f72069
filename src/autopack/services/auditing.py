"""An Auditor's review: asked for, and answered. (02 §5)"""

from __future__ import annotations

from typing import Any

from ..domain import building, reviewing
from ..domain.errors import AutopackError, ConflictError, InvalidError, NotFoundError
from ..domain.results import AuditorReport, AuditRequest, without_patches
from ..domain.reviewing import NothingToApproveError, Recommendation
from ..domain.values import Role
from ..domain.work import Outcome, PatchStatus
from ..models import Audit, Commit, Patch, Phase, Submission
from ..store import audits, issues, submissions
from . import patching
from .change import RunChange, changing
from .house import House
from .issues import note_issues, recount_issues
from .naming import require_same_names
from .replies import Answer, key_scope, once


class PhaseFinalError(ConflictError):
    code = "phase_final"


class AuditAnsweredError(ConflictError):
    code = "audit_answered"


class NothingToFixError(ConflictError):
    code = "nothing_to_fix"


def request_audit(
    house: House, run_id: str, phase_id: str, request: AuditRequest, idempotency_key: str | None
) -> Answer:
    """Ask for a review of a phase: now if it is in the gate, else as soon as it comes there.

    For a phase that is final the request is recorded as advisory, and changes nothing.
    """
    require_same_names(run_id, phase_id, request.run_id, request.phase_id)
    document = request.model_dump(mode="json")
    identity = once(
        "auditor_request", {"phase_id": phase_id, "request": document}, [key_scope(idempotency_key)]
    )
    with changing(house, run_id) as change:
        given = identity.find(change)
        if given is not None:
            return given
        phase = change.phase(phase_id)
        if request.tier_id is not None and request.tier_id != phase.tier_id:
            raise InvalidError(
                f"tier_id: phase '{phase_id}' is in tier '{phase.tier_id}', "
                f"not in '{request.tier_id}'"
            )
        audit = audits.add_audit(
            change.session,
            Audit(
                run_pk=change.run.id,
                phase_pk=phase.id,
                review_focus=request.review_focus,
                auditor_profile=request.auditor_profile or phase.auditor_profile,
                is_advisory=phase.state.is_final,
                requested_at=change.now,
            ),
        )
        if not phase.state.is_final:
            reviewing.request_review(change.course, phase_id)
        body = {
            "message": f"review {audit.id} of phase '{phase_id}' is "
            + ("recorded as advisory: the phase is final" if audit.is_advisory else "asked for"),
            "audit_id": audit.id,
            "review_focus": audit.review_focus,
            "auditor_profile": audit.auditor_profile,
        }
        identity.keep(change, body)
    return Answer(body)


def submit_auditor_result(
    house: House,
    run_id: str,
    phase_id: str,
    report: AuditorReport,
    idempotency_key: str | None = None,
) -> Answer:
    """Take one review: approve, send back or escalate; its patches are applied all or none.

    A refusal that is a patch's fault uses up a try, which is committed before it is raised.
    """
    require_same_names(run_id, phase_id, report.run_id, report.phase_id)
    patches = _own_patches(report)
    identity = once(
        "auditor_result",
        {"phase_id": phase_id, "report": report.model_dump(mode="json")},
        [key_scope(idempotency_key), f"latest:{phase_id}:{Role.AUDITOR}"],
    )
    refusal: AutopackError | None = None
    body: dict[str, Any] = {}
    with changing(house, run_id) as change:
        phase = change.phase(phase_id)
        given = identity.find(change)
        if given is not None:
            return given
        audit = _audit(change, phase, report.audit_id)
        if phase.state.is_final:
            if patches:
                raise PhaseFinalError(
                    f"phase '{phase_id}' is {phase.state}: a review of it is advisory and can "
                    "bring no patches"
                )
            submission = _record(change, phase, report, [])
            submission.outcome = Outcome.ADVISORY
            commits: list[Commit] = []
        else:
            reviewing.require_reviewable(change.course, phase_id)
            if report.recommendation is not Recommendation.ESCALATE:
                patching.require_free_branch(change)
            submission = _record(change, phase, report, patches)
            commits, refusal = _take(change, phase, report, submission, patches)
        if audit is not None:
            audit.answered_at = change.now
            audit.submission_pk = submission.id
        change.conclude()
        body = {
            "message": f"review of phase '{phase_id}': {report.recommendation}; "
            f"the phase is {phase.state}",
            "recommendation": report.recommendation,
            "patches_applied": len(commits),
            "commit_shas": [commit.sha for commit in commits],
            "phase_state": phase.state,
        }
        identity.keep(change, body if refusal is None else refusal)
    if refusal is not None:
        raise refusal
    return Answer(body)


def _own_patches(report: AuditorReport) -> list[Patch]:
    patches = []
    for index, suggested in enumerate(report.suggested_patches):
        content = suggested.patch()
        if content is None:
            raise InvalidError(
                f"suggested_patches[{index}]: needs patch_content or patch_content_base64"
            )
        patches.append(
            submissions.new_patch(index + 1, content, PatchStatus.REFUSED, suggested.description)
        )
    return patches


def _audit(change: RunChange, phase: Phase, audit_id: int | None) -> Audit | None:
    if audit_id is None:
        return audits.find_open_audit(change.session, phase.id)
    audit = audits.find_audit(change.session, phase.id, audit_id)
    if audit is None:
        raise NotFoundError(f"audit_id: phase '{phase.phase_id}' has no audit {audit_id}")
    if audit.answered_at is not None:
        raise AuditAnsweredError(f"audit_id: audit {audit_id} was answered already")
    return audit


def _record(
    change: RunChange, phase: Phase, report: AuditorReport, patches: list[Patch]
) -> Submission:
    change.touched.add(phase.phase_id)
    return submissions.add_submission(
        change.session,
        Submission(
            run_pk=change.run.id,
            phase_pk=phase.id,
            role=Role.AUDITOR,
            attempt=submissions.next_attempt(change.session, phase.id, Role.AUDITOR),
            agent=report.agent,
            model=report.model,
            status=report.recommendation,
            body=without_patches(report),
            tokens_used=report.tokens_used,
            outcome=Outcome.FAILED,
            base_commit=change.head,
            created_at=change.now,
        ),
        patches,
    )


def _take(
    change: RunChange,
    phase: Phase,
    report: AuditorReport,
    submission: Submission,
    patches: list[Patch],
) -> tuple[list[Commit], AutopackError | None]:
    course, phase_id = change.course, phase.phase_id
    course.note(
        "AuditorResultReceived",
        phase_id=phase_id,
        data={
            "submission_id": submission.id,
            "attempt": submission.attempt,
            "recommendation": report.recommendation,
            "patch_sha256s": [patch.sha256 for patch in patches],
        },
    )
    note_issues(change, phase, report.issues_found)
    _resolve_issues(change, phase, report.resolved_issues)
    reviewing.count_review(course, phase_id, report.tokens_used)
    if course.is_over:
        submission.outcome = Outcome.OVER_BUDGET
        return [], None
    notes = report.review_notes or "no notes"
    match report.recommendation:
        case Recommendation.ESCALATE:
            submission.outcome = Outcome.ESCALATED
            reviewing.take_escalation(course, phase_id, notes)
            return [], None
        case Recommendation.APPROVE:
            return _approve(change, phase, submission, patches)
        case Recommendation.REVISE:
            return _revise(change, phase, submission, patches, notes)


def _approve(
    change: RunChange, phase: Phase, submission: Submission, patches: list[Patch]
) -> tuple[list[Commit], AutopackError | None]:
    course, phase_id = change.course, phase.phase_id
    why_not = reviewing.why_not_approvable(course.phase(phase_id), len(patches))
    if why_not is not None:
        return [], _refuse_review(change, phase, submission, NothingToApproveError(why_not))
    pending: list[tuple[Patch, Commit]] = []
    builder_submission: Submission | None = None
    pending_id = course.phase(phase_id).pending_submission_id
    if pending_id is not None:
        builder_submission = submissions.get_submission(change.session, pending_id)
        held = submissions.list_patches(change.session, pending_id)
        try:
            pending = _apply_all(change, phase, builder_submission, held, phase.name)
        except patching.PATCH_FAULTS as error:
            builder_submission.outcome = Outcome.CONFLICT
            builder_submission.reason = error.detail
            submission.outcome, submission.reason = Outcome.CONFLICT, error.detail
            reviewing.drop_pending(course, phase_id, error.detail)
            return [], error
    try:
        own = _apply_all(change, phase, submission, patches, f"Review of {phase.name}")
    except patching.PATCH_FAULTS as error:
        change.discard_commits()
        return [], _refuse_review(change, phase, submission, error)
    submission.outcome = Outcome.APPROVED
    if builder_submission is not None:
        builder_submission.outcome = Outcome.APPLIED
    commits = _note_all(change, phase, [*pending, *own])
    reviewing.take_approval(course, phase_id, [commit.sha for commit in commits])
    building.pass_gate(course, phase_id)
    return commits, None


def _revise(
    change: RunChange, phase: Phase, submission: Submission, patches: list[Patch], notes: str
) -> tuple[list[Commit], AutopackError | None]:
    course, phase_id = change.course, phase.phase_id
    if patches and course.phase(phase_id).commit is None:
        error = NothingToFixError(
            f"phase '{phase_id}' has no applied patch that a fix-up could go on; revise without "
            "patches, or approve with them"
        )
        return [], _refuse_review(change, phase, submission, error)
    try:
        applied = _apply_all(change, phase, submission, patches, f"Review of {phase.name}")
    except patching.PATCH_FAULTS as fault:
        change.discard_commits()
        return [], _refuse_review(change, phase, submission, fault)
    submission.outcome = Outcome.REVISED
    commits = _note_all(change, phase, applied)
    reviewing.take_revision(course, phase_id, [commit.sha for commit in commits], notes)
    return commits, None


def _apply_all(
    change: RunChange,
    phase: Phase,
    submission: Submission,
    patches: list[Patch],
    title: str,
) -> list[tuple[Patch, Commit]]:
    """Put patches on the branch one after the other; the caller notes them when all are there."""
    applied = []
    for patch in patches:
        title = patching.title_of(patch, title)
        applied.append((patch, patching.apply(change, phase, submission, patch, title=title)))
    return applied


def _note_all(change: RunChange, phase: Phase, applied: list[tuple[Patch, Commit]]) -> list[Commit]:
    for patch, commit in applied:
        patch.status = PatchStatus.APPLIED
        patching.note_applied(change, phase, patch, commit)
    return [commit for _, commit in applied]


def _refuse_review(
    change: RunChange, phase: Phase, submission: Submission, error: AutopackError
) -> AutopackError:
    patching.refuse(submission, error)
    reviewing.after_failed_review(change.course, phase.phase_id, error.detail)
    return error


def _resolve_issues(change: RunChange, phase: Phase, keys: tuple[str, ...]) -> None:
    if not keys:
        return
    change.session.flush()
    touched = issues.resolve_in_run(change.session, change.run.id, keys)
    unknown = sorted(set(keys) - touched.keys())
    if unknown:
        raise InvalidError(
            f"resolved_issues: run '{change.run.run_id}' has no issue {unknown[0]!r}"
        )
    change.touched |= {phase_id for phases in touched.values() for phase_id in phases}
    for key in keys:
        change.course.note("IssueResolved", phase_id=phase.phase_id, data={"issue_key": key})
    recount_issues(change)
