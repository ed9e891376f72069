"""An Auditor's review: asked for, and answered. (rules §2.2)"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from ..domain import reviewing
from ..domain.capacity import take_unavailable
from ..domain.changes import Repair
from ..domain.errors import AutopackError, ConflictError, InvalidError, NotFoundError
from ..domain.money import ZERO_USD, cost_entry
from ..domain.redaction import redacted
from ..domain.results import AuditorReport, AuditRequest
from ..domain.reviewing import Recommendation, Review, ReviewRefusal
from ..domain.run import PhaseState
from ..domain.sightings import Cause, resolved_by_auditor
from ..domain.states import PhaseStatus
from ..domain.values import Role
from ..domain.work import Outcome, PatchStatus
from ..models import Audit, Commit, Patch, Phase, Submission
from ..store import audits, submissions
from . import patching
from .change import RunChange, changing
from .claiming import check_lease
from .house import House
from .issues import note_issues, resolve_issues
from .replies import Answer, key_scope, once
from .submitting import identify, record_submission, require_same_names, settle_unavailable


class PhaseFinalError(ConflictError):
    code = "phase_final"


class AuditAnsweredError(ConflictError):
    code = "audit_answered"


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
    request = redacted(request)
    with changing(house, run_id) as change, identity.keeping_refusals(change):
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
    identity = identify(phase_id, Role.AUDITOR, report, idempotency_key)
    report = redacted(report)
    patches = _own_patches(report)
    is_unavailable = report.recommendation is Recommendation.UNAVAILABLE
    if patches and is_unavailable:
        raise InvalidError("suggested_patches: an Auditor that was unavailable has none")
    refusal: AutopackError | None = None
    body: dict[str, Any] = {}
    with changing(house, run_id) as change, identity.keeping_refusals(change):
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
            submission = record_submission(change, phase, report, [], None)
            submission.outcome = Outcome.ADVISORY
            applied: list[_Applied] = []
        else:
            lease = check_lease(change, phase, Role.AUDITOR, report.lease_token)
            reviewing.require_reviewable(change.course, phase_id)
            if report.recommendation not in _WITHOUT_PATCHES:
                patching.require_free_branch(change)
            submission = record_submission(change, phase, report, patches, lease)
            applied, refusal = _take(change, phase, report, submission, patches)
            patching.keep_no_secrets(patches)
        if audit is not None and refusal is None and not is_unavailable:
            # A refused review, or one that could not be made, may be sent anew.
            audit.answered_at = change.now
            audit.submission_pk = submission.id
        change.conclude()
        body = {
            "message": f"review of phase '{phase_id}': {report.recommendation}; "
            f"the phase is {phase.state}",
            "recommendation": report.recommendation,
            "patches_applied": len(applied),
            "commit_shas": [each.commit.sha for each in applied],
            "repairs": [
                {"patch": each.index, **asdict(repair)}
                for each in applied
                for repair in each.repairs
            ],
            "phase_state": phase.state,
        }
        identity.keep(change, body if refusal is None else refusal)
    if refusal is not None:
        raise refusal
    return Answer(body)


@dataclass(frozen=True, slots=True)
class _Applied:
    """A patch on the branch; `index` is its place in the review, None if the Builder sent it."""

    patch: Patch
    commit: Commit
    repairs: tuple[Repair, ...]
    index: int | None


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


def _take(
    change: RunChange,
    phase: Phase,
    report: AuditorReport,
    submission: Submission,
    patches: list[Patch],
) -> tuple[list[_Applied], AutopackError | None]:
    course, phase_id = change.course, phase.phase_id
    course.note(
        "AuditorResultReceived",
        phase_id=phase_id,
        data={
            "submission_id": submission.id,
            "attempt": submission.attempt,
            "recommendation": report.recommendation,
            "tokens_used": submission.tokens_used,
            **cost_entry(submission.cost_usd),
            "patch_sha256s": [patch.sha256 for patch in patches],
        },
    )
    note_issues(change, phase, report.issues_found)
    _resolve_issues(change, phase, report.resolved_issues)
    applied: list[_Applied] = []
    fault: AutopackError | None = None

    def put() -> list[str] | ReviewRefusal:
        nonlocal fault
        pending: list[_Applied] = []
        held = _held(change, course.phase(phase_id), report.recommendation)
        is_pending = held is not None
        try:
            if held is not None:
                pending = _apply_all(change, phase, held[0], held[1], phase.name)
                pending = [replace(each, index=None) for each in pending]
            is_pending = False
            own = _apply_all(change, phase, submission, patches, f"Review of {phase.name}")
        except patching.PATCH_FAULTS as error:
            change.discard_commits()
            fault = error
            patching.refuse(held[0] if held and is_pending else submission, error)
            return ReviewRefusal(error.detail, is_pending)
        if held is not None:
            held[0].outcome = Outcome.APPLIED
        applied.extend([*pending, *own])
        _note_all(change, phase, applied)
        return [each.commit.sha for each in applied]

    cost = submission.cost_usd or ZERO_USD
    if report.recommendation is Recommendation.UNAVAILABLE:
        why = report.unavailable(report.review_notes)
        take_unavailable(
            course, phase_id, Role.AUDITOR, why, tokens=submission.tokens_used, cost=cost
        )
        settle_unavailable(submission, why)
        return applied, None
    review = Review(
        submission_id=submission.id,
        recommendation=report.recommendation,
        tokens=submission.tokens_used,
        cost=cost,
        notes=report.review_notes or "no notes",
        own_patches=len(patches),
    )
    refusal = reviewing.take_review(course, phase_id, review, put) or fault
    if refusal is not None:
        patching.refuse(submission, refusal)
    elif course.is_over and course.phase(phase_id).state is PhaseStatus.SKIPPED:
        submission.outcome, submission.reason = Outcome.OVER_BUDGET, course.run.failure_reason
    else:
        submission.outcome = _OUTCOMES[report.recommendation]
    return applied, refusal


_WITHOUT_PATCHES = (Recommendation.ESCALATE, Recommendation.UNAVAILABLE)
_OUTCOMES = {
    Recommendation.APPROVE: Outcome.APPROVED,
    Recommendation.REVISE: Outcome.REVISED,
    Recommendation.ESCALATE: Outcome.ESCALATED,
}


def _held(
    change: RunChange, phase: PhaseState, recommendation: Recommendation
) -> tuple[Submission, list[Patch]] | None:
    """Return the Builder's pending submission with its patches, if this review applies it."""
    if recommendation is not Recommendation.APPROVE or phase.pending_submission_id is None:
        return None
    submission = submissions.get_submission(change.session, phase.pending_submission_id)
    return submission, submissions.list_patches(change.session, submission.id)


def _apply_all(
    change: RunChange,
    phase: Phase,
    submission: Submission,
    patches: list[Patch],
    title: str,
) -> list[_Applied]:
    """Put patches on the branch one after the other; the caller notes them when all are there."""
    applied = []
    for index, patch in enumerate(patches):
        own_title = patching.title_of(patch, title)
        commit, repairs = patching.apply(change, phase, submission, patch, title=own_title)
        applied.append(_Applied(patch, commit, repairs, index))
    return applied


def _note_all(change: RunChange, phase: Phase, applied: list[_Applied]) -> None:
    for each in applied:
        each.patch.status = PatchStatus.APPLIED
        patching.note_applied(change, phase, each.patch, each.commit)


def _resolve_issues(change: RunChange, phase: Phase, keys: tuple[str, ...]) -> None:
    if not keys:
        return
    unknown = sorted(set(keys) - {issue.issue_key for issue in change.issues()})
    if unknown:
        raise InvalidError(
            f"resolved_issues: run '{change.run.run_id}' has no issue {unknown[0]!r}"
        )
    resolve_issues(
        change,
        lambda issues: resolved_by_auditor(issues, keys),
        Cause.AUDITOR,
        f"the Auditor of phase '{phase.phase_id}' says so",
    )
