"""An Auditor's review: the request and the answer. (rules §2.2)"""

from __future__ import annotations

from dataclasses import replace

from ..domain.deciding import weigh_auditor_result
from ..domain.errors import AutopackError, ConflictError, InvalidError, NotFoundError
from ..domain.money import ZERO_USD
from ..domain.outcomes import Outcome, PatchStatus
from ..domain.patches import AppliedPatch
from ..domain.redaction import redacted
from ..domain.results import AuditorReport, AuditRequest
from ..domain.reviewing import RefusedReview, Review, ReviewWish, require_reviewable
from ..domain.states import PhaseStatus
from ..domain.terms import Recommendation, Role
from ..models import Patch, Phase, ReviewRequest, Submission
from ..store import review_requests, submissions
from ..store.patches import list_patches, new_patch
from ..views.results import AuditorResultAnswer, AuditRequestAnswer, PatchRepairAnswer
from . import patching
from .change import RunChange
from .claiming import check_lease
from .context import AppContext
from .replies import Answer, changing_once, key_scope, once
from .settling import settle
from .sightings import seen_issues
from .submitting import could_not_work, identify, record_submission, require_same_names

_WITHOUT_PATCHES = (Recommendation.ESCALATE, Recommendation.UNAVAILABLE)
_OUTCOMES = {
    Recommendation.APPROVE: Outcome.APPROVED,
    Recommendation.REVISE: Outcome.REVISED,
    Recommendation.ESCALATE: Outcome.ESCALATED,
}


class PhaseFinalError(ConflictError):
    code = "phase_final"


class AuditAnsweredError(ConflictError):
    code = "audit_answered"


def request_review(
    context: AppContext,
    run_id: str,
    phase_id: str,
    request: AuditRequest,
    idempotency_key: str | None,
) -> Answer:
    """Request a review of a phase: now if it is in the gate, else when it reaches the gate.

    For a final phase the request is recorded as advisory, and changes nothing.
    """
    require_same_names(run_id, phase_id, request.run_id, request.phase_id)
    document = request.model_dump(mode="json")
    identity = once(
        "auditor_request", {"phase_id": phase_id, "request": document}, [key_scope(idempotency_key)]
    )
    request = redacted(request)
    with changing_once(context, run_id, identity) as turn:
        if turn.is_new:
            change = turn.change
            phase = change.phase(phase_id)
            if request.tier_id is not None and request.tier_id != phase.tier_id:
                raise InvalidError(
                    f"tier_id: phase '{phase_id}' is in tier '{phase.tier_id}', "
                    f"not in '{request.tier_id}'"
                )
            asked = review_requests.add_review_request(
                change.session,
                review_requests.REVIEW_REQUESTS.new(
                    run_pk=change.run.id,
                    phase_pk=phase.id,
                    review_focus=request.review_focus,
                    auditor_profile=request.auditor_profile or phase.auditor_profile,
                    is_advisory=phase.state.is_final,
                    requested_at=change.now,
                ),
            )
            if not asked.is_advisory:
                change.decide(ReviewWish(phase_id))
            settle(change)
            turn.answer(_request_answer(phase_id, asked))
    return turn.result()


def _request_answer(phase_id: str, asked: ReviewRequest) -> AuditRequestAnswer:
    became = "recorded as advisory: the phase is final" if asked.is_advisory else "asked for"
    return AuditRequestAnswer(
        message=f"review {asked.id} of phase '{phase_id}' is {became}",
        audit_id=asked.id,
        review_focus=asked.review_focus,
        auditor_profile=asked.auditor_profile,
    )


def submit_auditor_result(
    context: AppContext,
    run_id: str,
    phase_id: str,
    report: AuditorReport,
    idempotency_key: str | None = None,
) -> Answer:
    """Accept one review: approve, send back or escalate; its patches are applied all or none.

    A refusal because of a patch's content uses a try, which is committed before the error is
    raised: a raised error would otherwise roll the try back. A review of a final phase is advisory:
    recorded, and without effect.
    """
    require_same_names(run_id, phase_id, report.run_id, report.phase_id)
    identity = identify(context, phase_id, Role.AUDITOR, report, idempotency_key)
    report = redacted(report)
    patches = _own_patches(report)
    is_unavailable = report.recommendation is Recommendation.UNAVAILABLE
    if patches and is_unavailable:
        raise InvalidError("suggested_patches: an Auditor that was unavailable has none")
    with changing_once(context, run_id, identity) as turn:
        if turn.is_new:
            change = turn.change
            phase = change.phase(phase_id)
            asked = _answered_request(change, phase, report.audit_id)
            refusal: AutopackError | None = None
            repairs: list[PatchRepairAnswer] = []
            if phase.state.is_final:
                submission = _record_advisory(change, phase, report, patches)
            else:
                lease = check_lease(change, phase, Role.AUDITOR, report.lease_token)
                require_reviewable(change.state, phase_id)
                if report.recommendation not in _WITHOUT_PATCHES:
                    patching.require_free_branch(change)
                submission = record_submission(change, phase, report, patches, lease)
                refusal, repairs = _decide(change, phase, report, submission, patches)
                patching.keep_no_secrets(patches)
            if asked is not None and refusal is None and not is_unavailable:
                # A refused review, or one of an unavailable Auditor, may be sent again.
                asked.answered_at = change.now
                asked.submission_pk = submission.id
            commits = [each.sha for each in change.commits if each.patch_pk is not None]
            settle(change)
            if refusal is not None:
                turn.refuse(refusal)
            turn.answer(
                AuditorResultAnswer(
                    message=f"review of phase '{phase_id}': {report.recommendation}; "
                    f"the phase is {phase.state}",
                    recommendation=report.recommendation,
                    patches_applied=len(commits),
                    commit_shas=commits,
                    repairs=tuple(repairs),
                    phase_state=phase.state,
                )
            )
    return turn.result()


def _record_advisory(
    change: RunChange, phase: Phase, report: AuditorReport, patches: list[Patch]
) -> Submission:
    if patches:
        raise PhaseFinalError(
            f"phase '{phase.phase_id}' is {phase.state}: a review of it is advisory and can bring "
            "no patches"
        )
    submission = record_submission(change, phase, report, [], None)
    submission.outcome = Outcome.ADVISORY
    return submission


def _own_patches(report: AuditorReport) -> list[Patch]:
    patches = []
    for index, suggested in enumerate(report.suggested_patches):
        content = suggested.patch()
        if content is None:
            raise InvalidError(
                f"suggested_patches[{index}]: needs patch_content or patch_content_base64"
            )
        patches.append(new_patch(index + 1, content, PatchStatus.REFUSED, suggested.description))
    return patches


def _answered_request(
    change: RunChange, phase: Phase, audit_id: int | None
) -> ReviewRequest | None:
    """Return the request that a review answers, if there is one. Raises AuditAnsweredError."""
    if audit_id is None:
        return review_requests.find_open_request(change.session, phase.id)
    asked = review_requests.find_review_request(change.session, phase.id, audit_id)
    if asked is None:
        raise NotFoundError(f"audit_id: phase '{phase.phase_id}' has no audit {audit_id}")
    if asked.answered_at is not None:
        raise AuditAnsweredError(f"audit_id: audit {audit_id} was answered already")
    return asked


def _decide(
    change: RunChange,
    phase: Phase,
    report: AuditorReport,
    submission: Submission,
    patches: list[Patch],
) -> tuple[AutopackError | None, list[PatchRepairAnswer]]:
    """Weigh the review, do in git what the rules demand, and let them decide."""
    if report.recommendation is Recommendation.UNAVAILABLE:
        why = could_not_work(phase, Role.AUDITOR, report, submission, report.review_notes)
        change.decide(why)
        return None, []
    review = Review(
        phase_id=phase.phase_id,
        submission_id=submission.id,
        attempt=submission.attempt,
        recommendation=report.recommendation,
        tokens=submission.tokens_used,
        cost=submission.cost_usd or ZERO_USD,
        is_measured=submission.is_measured,
        notes=report.review_notes or "no notes",
        model=submission.model,
        patch_sha256s=tuple(patch.sha256 for patch in patches),
        issues=seen_issues(change, phase, report.issues_found),
        resolved_keys=report.resolved_issues,
    )
    change.prepare(review)
    weighed = weigh_auditor_result(change.state, review, change.now, change.actor)
    refusal: AutopackError | None = weighed.refusal
    repairs: list[PatchRepairAnswer] = []
    if weighed.is_wanted:
        made, repairs, refusal = _put(change, phase, report, submission, patches)
        review = replace(review, patches=made)
    change.decide(review)
    if refusal is not None:
        patching.refuse(submission, refusal)
    elif change.phase_state(phase.phase_id).state is PhaseStatus.SKIPPED:
        submission.outcome, submission.reason = Outcome.OVER_BUDGET, change.state.failure_reason
    else:
        submission.outcome = _OUTCOMES[report.recommendation]
    return refusal, repairs


def _put(
    change: RunChange,
    phase: Phase,
    report: AuditorReport,
    submission: Submission,
    patches: list[Patch],
) -> tuple[tuple[AppliedPatch, ...] | RefusedReview, list[PatchRepairAnswer], AutopackError | None]:
    """Put the pending patch and the Auditor's own on the branch, all of them or none.

    Return the answers of git and policy, and the repairs of each patch: `patch` is its place in the
    review, None for the pending one.
    """
    before = len(change.commits)
    pending, pending_patches = _pending(change, phase, report)
    wanted: list[tuple[Submission, str, int | None, Patch]] = [
        (pending or submission, phase.name, None, patch) for patch in pending_patches
    ]
    own_title = f"Review of {phase.name}"
    wanted += [(submission, own_title, index, patch) for index, patch in enumerate(patches)]
    applied: list[AppliedPatch] = []
    repairs: list[PatchRepairAnswer] = []
    for sender, otherwise, index, patch in wanted:
        title = patching.title_of(patch, otherwise)
        try:
            put, mended = patching.apply(change, phase, sender, patch, title=title)
        except patching.PATCH_FAULTS as error:
            change.drop_commits(before)
            is_pending = index is None
            if is_pending:
                patching.refuse(sender, error)
            return RefusedReview(error.detail, is_pending), [], error
        applied.append(put)
        repairs += [PatchRepairAnswer.of(repair, patch=index) for repair in mended]
    for patch in [*pending_patches, *patches]:
        patch.status = PatchStatus.APPLIED
    if pending is not None:
        pending.outcome = Outcome.APPLIED
    return tuple(applied), repairs, None


def _pending(
    change: RunChange, phase: Phase, report: AuditorReport
) -> tuple[Submission | None, list[Patch]]:
    """Return the Builder's pending submission with its patches, if this review applies it."""
    pending_id = change.phase_state(phase.phase_id).pending_submission_id
    if report.recommendation is not Recommendation.APPROVE or pending_id is None:
        return None, []
    submission = submissions.get_submission(change.session, pending_id)
    return submission, list_patches(change.session, submission.id)
