"""A Builder's result. (rules §2.2)"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ..domain.building import BuilderResult, PatchAction, require_buildable
from ..domain.changes import Repair
from ..domain.deciding import weigh_builder_result
from ..domain.errors import AutopackError, InvalidError
from ..domain.money import ZERO_USD
from ..domain.next_step import next_step
from ..domain.order import first_at_hand, in_order
from ..domain.outcomes import Outcome, PatchStatus
from ..domain.patches import AppliedPatch, PendingPatch, RefusedPatch
from ..domain.redaction import redacted
from ..domain.results import BuilderReport
from ..domain.states import PhaseStatus
from ..domain.terms import BuilderStatus, Role
from ..gitrepo import PatchConflictError
from ..models import Patch, Phase, Submission
from ..store import progress
from ..store.patches import new_patch
from ..views.branches import RepairAnswer
from ..views.results import BuilderResultAnswer, NextStep
from . import patching
from .change import RunChange
from .claiming import check_lease
from .context import AppContext
from .replies import Answer, changing_once
from .settling import settle
from .sightings import seen_issues
from .submitting import could_not_work, identify, record_submission, require_same_names


def submit_builder_result(
    context: AppContext,
    run_id: str,
    phase_id: str,
    report: BuilderReport,
    idempotency_key: str | None = None,
) -> Answer:
    """Accept one attempt of a Builder; its patch is applied, pending, or refused. (rules §2.2)

    A refusal because of the patch's content uses a try, which is committed before the error is
    raised: a raised error would otherwise roll the try back.
    """
    require_same_names(run_id, phase_id, report.run_id, report.phase_id)
    identity = identify(context, phase_id, Role.BUILDER, report, idempotency_key)
    content = report.patch()
    if content is not None and report.status is BuilderStatus.UNAVAILABLE:
        raise InvalidError("patch_content: a Builder that was unavailable has no patch to submit")
    report = redacted(report)
    with changing_once(context, run_id, identity) as turn:
        if turn.is_new:
            change = turn.change
            phase = change.phase(phase_id)
            lease = check_lease(change, phase, Role.BUILDER, report.lease_token)
            require_buildable(change.state, phase_id)
            if content is not None:
                patching.require_free_branch(change)
            patches = [new_patch(1, content, PatchStatus.REFUSED)] if content else []
            submission = record_submission(change, phase, report, patches, lease)
            refusal, repairs = _decide(change, phase, report, submission, patches)
            patching.keep_no_secrets(patches)
            settle(change)
            if refusal is not None:
                refusal.detail += f" {change.phase_state(phase_id).builder_tries_text}"
                turn.refuse(refusal)
            turn.answer(_answer(change, phase, submission, repairs))
    return turn.result()


def _decide(
    change: RunChange,
    phase: Phase,
    report: BuilderReport,
    submission: Submission,
    patches: list[Patch],
) -> tuple[AutopackError | None, tuple[Repair, ...]]:
    """Weigh the result, do in git what the rules demand, and let them decide."""
    if report.status is BuilderStatus.UNAVAILABLE:
        change.decide(could_not_work(phase, Role.BUILDER, report, submission, report.notes))
        return None, ()
    result = BuilderResult(
        phase_id=phase.phase_id,
        submission_id=submission.id,
        attempt=submission.attempt,
        status=report.status,
        tokens=submission.tokens_used,
        cost=submission.cost_usd or ZERO_USD,
        is_measured=submission.is_measured,
        patch_sha256=patches[0].sha256 if patches else None,
        model=submission.model,
        issues=seen_issues(change, phase, report.suggested_issues),
    )
    change.prepare(result)
    refusal: AutopackError | None = None
    repairs: tuple[Repair, ...] = ()
    action = weigh_builder_result(change.state, result, change.now, change.actor)
    if action is not PatchAction.NOTHING:
        try:
            made, repairs = _put(change, phase, report, submission, patches[0], action)
            result = replace(result, patch=made)
        except patching.PATCH_FAULTS as error:
            patching.refuse(submission, error)
            is_conflict = isinstance(error, PatchConflictError)
            result = replace(result, patch=RefusedPatch(error.detail, is_conflict))
            refusal = error
    change.decide(result)
    if submission.outcome is Outcome.FAILED:  # no patch was put on the branch or refused
        submission.outcome = _outcome_without_patch(change.phase_state(phase.phase_id).state)
        state = change.phase_state(phase.phase_id)
        submission.reason = change.state.failure_reason or state.failure_reason
    return refusal, repairs


def _put(
    change: RunChange,
    phase: Phase,
    report: BuilderReport,
    submission: Submission,
    patch: Patch,
    action: PatchAction,
) -> tuple[AppliedPatch | PendingPatch, tuple[Repair, ...]]:
    """Put a patch on the branch, or check that it applies; also return its repairs.

    Raises one of PATCH_FAULTS.
    """
    if action is not PatchAction.APPLY:
        pending, repairs = patching.dry_apply(change, phase, patch, report.base_commit)
        if action is PatchAction.KEEP_PENDING or pending.dependencies:
            submission.outcome, patch.status = Outcome.HELD, PatchStatus.PENDING
            return pending, repairs
    applied, repairs = patching.apply(
        change, phase, submission, patch, title=phase.name, base_commit=report.base_commit
    )
    submission.outcome, patch.status = Outcome.APPLIED, PatchStatus.APPLIED
    return applied, repairs


def _answer(
    change: RunChange, phase: Phase, submission: Submission, repairs: Sequence[Repair]
) -> BuilderResultAnswer:
    applied = next((each for each in change.commits if each.patch_pk is not None), None)
    return BuilderResultAnswer(
        message=_message(submission, phase),
        submission_id=submission.id,
        commit_sha=applied.sha if applied else None,
        repairs=tuple(RepairAnswer.of(repair) for repair in repairs),
        phase_state=phase.state,
        run_state=change.run.state,
        next=what_next(change),
    )


def what_next(change: RunChange) -> NextStep:
    """Return what the run waits for now; beside other phases its next one may have an agent."""
    state = change.state
    failed = [each.phase_id for each in in_order(state.phases) if each.state is PhaseStatus.FAILED]
    current = first_at_hand(in_order(state.phases))
    has_agent = current is not None and current.lease_id is not None
    leases = progress.list_leases(change.session, change.run.id) if has_agent else []
    agents = (each.agent for each in leases if current and each.phase_id == current.phase_id)
    step = next_step(change.run, current, change.now, agent=next(agents, None), failed=failed)
    return NextStep.of(step)


def _outcome_without_patch(state: PhaseStatus) -> Outcome:
    if state is PhaseStatus.SKIPPED:
        return Outcome.OVER_BUDGET
    return Outcome.EMPTY if state in _GOES_ON else Outcome.FAILED


_GOES_ON = (PhaseStatus.COMPLETE, PhaseStatus.CI_RUNNING)


def _message(submission: Submission, phase: Phase) -> str:
    what = {
        Outcome.APPLIED: "the patch was applied",
        Outcome.HELD: "the patch applies and is pending until the Auditor approves it",
        Outcome.EMPTY: "no change was needed",
        Outcome.UNAVAILABLE: "the Builder was unavailable, no try is used",
        Outcome.OVER_BUDGET: "a budget was passed, nothing was applied",
    }.get(submission.outcome, "the attempt failed")
    return f"attempt {submission.attempt}: {what}; phase '{phase.phase_id}' is {phase.state}"
