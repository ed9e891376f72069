"""The work item: everything that an agent needs for its work. (docs/agents.md)"""

from __future__ import annotations

import base64
from decimal import Decimal
from typing import Any

from ..domain.claiming import cost_left
from ..domain.dependencies import merged
from ..domain.issues import IssueStatus
from ..domain.money import ZERO_USD
from ..domain.path_policy import DEFAULT_PROTECTED
from ..domain.run import PhaseState, RunState
from ..domain.terms import EvidenceKind, Role
from ..models import Phase, Run
from ..store import issues, patches, review_requests, runs, submissions
from ..store.session import RowSession
from ..views.dependencies import DependencyAnswer
from ..views.work import (
    DebtAnswer,
    GateAnswer,
    LeftAnswer,
    ModelPrice,
    OpenIssueAnswer,
    PastAttemptAnswer,
    RepositoryAnswer,
    ReviewAnswer,
    TaskAnswer,
    WorkItemAnswer,
)
from .context import AppContext
from .patching import most_files
from .projection import happened_in

AGED_ISSUES = 20


def work_item(
    context: AppContext,
    session: RowSession,
    run: Run,
    run_state: RunState,
    state: PhaseState,
    role: Role,
) -> WorkItemAnswer:
    """Return a phase as a work item, without a lease."""
    phase = runs.get_phase(run, state.phase_id)
    strategy = runs.get_strategy(session, run)
    happened = happened_in(session, [phase])[phase.id]
    remote = context.repository.remote
    aged = issues.list_needing_cleanup(
        session, run.project_id, limit=AGED_ISSUES, category=phase.task_category
    )
    is_review = role is Role.AUDITOR
    return WorkItemAnswer(
        role=role,
        run_id=run.run_id,
        tier_id=phase.tier_id,
        phase_id=phase.phase_id,
        lease=None,
        task=TaskAnswer.of(phase),
        repository=RepositoryAnswer(
            path=str(context.repository.path),
            remote=remote.url if remote else None,
            branch=run.branch,
            base_commit=run.head_commit,
        ),
        left=_left(context, run_state, state),
        gate=_gate(context, strategy, run, phase),
        history=[
            *_earlier_attempts(session, run, phase.phase_id),
            *(PastAttemptAnswer.of(attempt) for attempt in happened.attempts),
        ],
        open_issues=[
            OpenIssueAnswer.of(issue)
            for issue in happened.issues
            if issue.status is IssueStatus.OPEN
        ],
        aged_issues=[entry.issue_key for entry in aged],
        debt=_debt(session, run, phase),
        review=_review(context, session, run, phase, state) if is_review else None,
        unavailable_messages=strategy.get("unavailable_messages", {}),
        prices={model: ModelPrice(**price) for model, price in strategy.get("prices", {}).items()},
    )


def _earlier_attempts(session: RowSession, run: Run, phase_id: str) -> list[PastAttemptAnswer]:
    """Return the attempts in the failed runs that this one continues, oldest first."""
    found: list[PastAttemptAnswer] = []
    while run.continues is not None:
        run = runs.get_run(session, run.continues)
        phase = runs.phases_of(run).get(phase_id)
        if phase is None:
            continue
        attempts = happened_in(session, [phase])[phase.id].attempts
        earlier = [PastAttemptAnswer.of(each, run_id=run.run_id) for each in attempts]
        found = [*earlier, *found]
    return found


def _left(context: AppContext, run: RunState, phase: PhaseState) -> LeftAnswer:
    """Return what an agent may still use, without what other agents have reserved."""
    tier = next(tier for tier in run.tiers if tier.tier_id == phase.tier_id)
    minutes = int((run.deadline_at - context.now()).total_seconds() // 60)
    spoken_for = run.tokens_used + run.tokens_reserved - phase.tokens_reserved
    return LeftAnswer(
        builder_attempts=phase.builder_tries_left,
        auditor_attempts=phase.auditor_tries_left,
        phase_tokens=max(0, phase.incident_token_cap - phase.tokens_used),
        tier_tokens=max(0, tier.token_cap - tier.tokens_used),
        run_tokens=max(0, run.token_cap - spoken_for),
        run_cost_usd=_cost_left(run, phase),
        minutes=max(0, minutes),
    )


def _cost_left(run: RunState, phase: PhaseState) -> Decimal | None:
    if run.cost_cap_usd is None:
        return None
    return max(ZERO_USD, cost_left(run, phase.phase_id))


def _gate(context: AppContext, strategy: dict[str, Any], run: Run, phase: Phase) -> GateAnswer:
    settings = context.settings
    profiles = strategy["ci"]["profiles"]
    return GateAnswer(
        auto_apply=phase.auto_apply,
        protected_paths=[*DEFAULT_PROTECTED, *run.protected_paths],
        opened_paths=phase.opened_paths,
        max_patch_bytes=settings.max_patch_bytes,
        max_patch_files=most_files(settings, phase),
        ci_profile=phase.ci_profile,
        ci_command=profiles[phase.ci_profile]["command"] if phase.has_ci else None,
        evidence=phase.evidence_required,
        must_fail_before=_must_fail_before(strategy, phase),
    )


def _debt(session: RowSession, run: Run, phase: Phase) -> DebtAnswer | None:
    """Return what is known of the issue that a cleanup phase is for. (rules §7.1)"""
    if phase.issue_key is None:
        return None
    entry = issues.find_backlog_entry(session, run.project_id, phase.issue_key)
    if entry is None:
        return None
    description, evidence = issues.list_latest_words(session, [entry.id])[entry.id]
    return DebtAnswer(
        issue_key=phase.issue_key,
        description=description,
        evidence_refs=evidence,
        red_checks=issues.list_red_checks(session, run.project_id, phase.issue_key),
        places=issues.list_places(session, entry, AGED_ISSUES),
    )


def _must_fail_before(strategy: dict[str, Any], phase: Phase) -> bool:
    mine = strategy["phases"][phase.phase_id]
    is_measured = EvidenceKind.FAILS_BEFORE in phase.evidence_required
    return is_measured and mine.get("must_fail_before", False)


def _review(
    context: AppContext, session: RowSession, run: Run, phase: Phase, state: PhaseState
) -> ReviewAnswer:
    """Return what to review: the pending patch, or the phase's commits on the branch."""
    asked = review_requests.find_open_request(session, phase.id)
    review = ReviewAnswer(
        audit_id=asked.id if asked else None,
        review_focus=asked.review_focus if asked else None,
        auditor_profile=(asked.auditor_profile if asked else None) or phase.auditor_profile,
        is_pending=state.pending_submission_id is not None,
        approvals_needed=state.approvals_needed,
        approved_by=list(state.approved_by),
        dependencies=[
            DependencyAnswer.of(each)
            for each in merged(state.dependencies, state.pending_dependencies)
        ],
        patch_content=None,
        patch_content_base64=None,
        notes=None,
        probe_results=[],
    )
    if state.pending_submission_id is not None:
        pending = patches.list_patches(session, state.pending_submission_id)
        content = b"".join(patch.content for patch in pending)
    elif phase.start_commit is not None and phase.commit is not None:
        before = phase.before_commit or phase.start_commit
        content = context.repository.diff(before, phase.commit)
    else:
        content = b""
    try:
        review.patch_content = content.decode()
    except UnicodeDecodeError:
        review.patch_content_base64 = base64.b64encode(content).decode()
    latest = submissions.find_latest(session, phase.id, Role.BUILDER)
    if latest is not None:
        review.notes = latest.body.get("notes")
        review.probe_results = latest.body.get("probe_results", [])
    return review
