"""The effect of an event on a run: the only code that changes a state. (rules §1)

`evolve` is total: it refuses nothing and decides nothing. `decide` (deciding.py) decides before
whether an event may happen, so a recorded event always has its effect, here and in the offline
checker.

Standard library alone: `scripts/check_promotion.py` is made from this module among others.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, Final

from .dependencies import merged
from .events import (
    SUPERVISOR,
    AgentUnavailable,
    ApprovalGiven,
    AttemptFailed,
    AuditLapsed,
    AuditorResultReceived,
    BaselineMeasured,
    BuilderResultReceived,
    BuilderTriesSpent,
    CapacityAwaited,
    CiRequested,
    CiStarted,
    CiVerdictReceived,
    Event,
    IssueRecorded,
    IssueResolved,
    LeaseGranted,
    LeaseLapsed,
    PatchApplied,
    PatchHeld,
    PatchReplayed,
    PendingPatchDiscarded,
    PhaseApproved,
    PhaseCiStarted,
    PhaseCompleted,
    PhaseFailed,
    PhaseMoved,
    PhaseQueued,
    PhaseSkipped,
    PhaseStarted,
    PhaseUndone,
    ReviewFailed,
    ReviewOpened,
    ReviewRequested,
    RevisionRequested,
    RunEnded,
    RunRolledBack,
    RunStateChanged,
    TierCleanlinessChanged,
    TierStateChanged,
    TokensCounted,
    TryReturned,
)
from .money import ZERO_USD
from .promotion import judge_promotion
from .run import CompletedBy, DebtStatus, RunState, TierState, altered
from .sightings import Counts, Sighting, count_open, sight
from .states import PhaseStatus
from .terms import Verdict


def fold(state: RunState, events: Iterable[Event]) -> RunState:
    """Return the state that a sequence of events leads to."""
    for event in events:
        state = evolve(state, event)
    return state


def evolve(state: RunState, event: Event) -> RunState:
    """Return the state after an event."""
    match event:
        case PhaseMoved():
            return _move_phase(state, event)
        case TokensCounted():
            return _count_tokens(state, event)
        case LeaseGranted():
            return _grant_lease(state, event)
        case BuilderResultReceived():
            author = {"built_by": _known_actor(event), "built_with": event.model}
            return _use_builder_try(change_phase(state, event.phase_id, **author), event)
        case AuditorResultReceived():
            state = change_phase(state, event.phase_id, reviewed_by=_known_actor(event))
            return _use_auditor_try(state, event)
        case LeaseLapsed():
            return _use_builder_try(state, event)
        case AuditLapsed():
            return _use_auditor_try(state, event)
        case PendingPatchDiscarded():
            return _give_back_auditor_try(state, event)
        case PatchApplied():
            return _apply_patch(altered(state, head_commit=event.commit), event)
        case PatchReplayed():
            return _rebase_patch(altered(state, head_commit=event.commit), event)
        case PatchHeld():
            return change_phase(
                state,
                event.phase_id,
                pending_submission_id=event.submission_id,
                pending_dependencies=event.dependencies,
            )
        case PhaseUndone():
            return _undo_phase(state, event)
        case TryReturned():
            used = state.phase(event.phase_id).builder_attempts_used - 1
            return change_phase(
                state, event.phase_id, builder_attempts_used=used, is_conflict_forgiven=True
            )
        case RevisionRequested():
            return change_phase(state, event.phase_id, **_NOTHING_PENDING, approved_by=())
        case ApprovalGiven() | PhaseApproved():
            return _approve(state, event)
        case AttemptFailed():
            return _fail_attempt(state, event)
        case ReviewFailed():
            return change_phase(state, event.phase_id, failure_reason=event.reason)
        case BuilderTriesSpent():
            return change_phase(state, event.phase_id, is_builder_spent=True)
        case ReviewRequested():
            return change_phase(state, event.phase_id, is_review_requested=True)
        case ReviewOpened():
            return change_phase(
                state, event.phase_id, deadline_at=event.deadline_at, **_WAITS_FOR_NO_CAPACITY
            )
        case CiStarted():
            return change_phase(state, event.phase_id, deadline_at=event.deadline_at)
        case AgentUnavailable():
            return _end_lease(state, event.phase_id)
        case CapacityAwaited():
            return change_phase(
                state,
                event.phase_id,
                unavailable_reason=event.reason,
                retry_at=event.retry_at,
                retry_account=event.account,
            )
        case CiRequested():
            # It waits for a worker; only the run's own deadline limits that wait.
            return change_phase(state, event.phase_id, deadline_at=None)
        case CiVerdictReceived():
            return _apply_verdict(state, event)
        case BaselineMeasured(verdict=Verdict.DID_NOT_RUN):
            problem = f"CI ({event.profile}) does not run on the base commit: {event.reason}"
            return altered(state, base_problem=problem)
        case IssueRecorded() | IssueResolved():
            return _count_issues(_keep_issue(state, event))
        case TierStateChanged():
            return _change_tier(state, event.tier_id, state=event.to_state)
        case TierCleanlinessChanged():
            return _change_tier(state, event.tier_id, cleanliness=event.to_state)
        case RunStateChanged():
            return altered(state, state=event.to_state)
        case RunEnded():
            ended = altered(
                state,
                state=event.to_state,
                ended_at=event.at,
                failure_code=event.failure_code,
                failure_reason=event.reason if event.failure_code else None,
            )
            return _decide_eligibility(ended)
        case RunRolledBack():
            reset = altered(state, head_commit=event.commit, is_rolled_back=True)
            return _decide_eligibility(reset)
    # The remaining kinds record a decision and change no state: RunStarted, PatchRefused,
    # ReviewRefused.
    return state


def _known_actor(event: Event) -> str | None:
    """Return who caused an event; earlier records name the service for all that agents sent."""
    return None if event.actor == SUPERVISOR else event.actor


# Every event that moves a phase ends its wait for an agent's capacity.
_WAITS_FOR_NO_CAPACITY: Final[Mapping[str, None]] = {
    "unavailable_reason": None,
    "retry_at": None,
    "retry_account": None,
}
# A phase that comes here has other work to approve than before.
_BEFORE_APPROVAL: Final = frozenset({PhaseStatus.QUEUED, PhaseStatus.EXECUTING, PhaseStatus.GATE})
_NOTHING_PENDING: Final[Mapping[str, Any]] = {
    "pending_submission_id": None,
    "pending_dependencies": (),
}
_UNJUDGED: Final[Mapping[str, Any]] = {"verdict": None, "sandbox": None, "evidence": ()}


# Phases


def change_phase(state: RunState, phase_id: str, /, **changes: Any) -> RunState:
    """Return the state with changed fields of one phase."""
    phases = tuple(
        altered(phase, **changes) if phase.phase_id == phase_id else phase for phase in state.phases
    )
    return altered(state, phases=phases)


def _move_phase(state: RunState, event: PhaseMoved) -> RunState:
    state = _end_lease(state, event.phase_id)
    phase = state.phase(event.phase_id)
    to = event.STATE
    changes: dict[str, Any] = {
        **_WAITS_FOR_NO_CAPACITY,
        "state": to,
        "deadline_at": event.deadline_at,
    }
    if to is not PhaseStatus.GATE:
        changes |= _NOTHING_PENDING
    if to in _BEFORE_APPROVAL:
        changes["approved_by"] = ()
    if to.is_final:
        changes["ended_at"] = event.at
    match event:
        case PhaseStarted():
            changes |= {"fence": phase.fence + 1, "attempt_commit": state.head_commit}
            if phase.started_at is None:
                changes |= {"started_at": event.at, "start_commit": state.head_commit}
        case PhaseQueued(is_attempt_used=True):
            changes["fence"] = phase.fence + 1
            changes["builder_attempts_used"] = phase.builder_attempts_used + 1
        case PhaseCiStarted():
            changes |= _UNJUDGED
        case PhaseCompleted():
            changes["completed_by"] = event.completed_by
            if event.completed_by is CompletedBy.RULES:
                changes["failure_reason"] = None
        case PhaseFailed():
            changes["failure_reason"] = event.reason
            is_unjudged = phase.state is PhaseStatus.CI_RUNNING and phase.verdict is None
            if is_unjudged and event.actor == SUPERVISOR:
                changes["verdict"] = Verdict.DID_NOT_RUN  # CI returned no verdict in time
        case PhaseSkipped():
            changes["completed_by"] = event.completed_by
            if event.completed_by is None:
                changes["fence"] = phase.fence + 1  # an agent at work has lost its lease
    state = change_phase(state, event.phase_id, **changes)
    # A failed phase makes its tier not clean.
    return _decide_cleanliness(state, phase.tier_id) if to is PhaseStatus.FAILED else state


def _end_lease(state: RunState, phase_id: str) -> RunState:
    """End the lease on a phase, and release what it has reserved."""
    phase = state.phase(phase_id)
    if phase.lease_id is None:
        return state
    state = altered(
        state,
        tokens_reserved=state.tokens_reserved - phase.tokens_reserved,
        cost_reserved_usd=state.cost_reserved_usd - phase.cost_reserved_usd,
    )
    return change_phase(
        state,
        phase_id,
        lease_id=None,
        lease_role=None,
        tokens_reserved=0,
        tokens_reported=0,
        cost_reserved_usd=ZERO_USD,
        cost_reported_usd=ZERO_USD,
    )


def _grant_lease(state: RunState, event: LeaseGranted) -> RunState:
    """Give a phase to an agent; the higher fence makes every earlier lease on it invalid."""
    state = altered(
        state,
        tokens_reserved=state.tokens_reserved + event.tokens_reserved,
        cost_reserved_usd=state.cost_reserved_usd + event.cost_reserved_usd,
    )
    return change_phase(
        state,
        event.phase_id,
        lease_id=event.lease_id,
        lease_role=event.role,
        fence=event.fence,
        tokens_reserved=event.tokens_reserved,
        tokens_reported=0,
        cost_reserved_usd=event.cost_reserved_usd,
        cost_reported_usd=ZERO_USD,
        deadline_at=event.deadline_at,
        **_WAITS_FOR_NO_CAPACITY,
    )


def _use_builder_try(state: RunState, event: LeaseLapsed | BuilderResultReceived) -> RunState:
    phase = state.phase(event.phase_id)
    changes = {"builder_attempts_used": phase.builder_attempts_used + 1}
    if isinstance(event, LeaseLapsed):
        state = _end_lease(state, event.phase_id)
        changes["fence"] = phase.fence + 1
    return change_phase(state, event.phase_id, **changes)


def _use_auditor_try(state: RunState, event: AuditLapsed | AuditorResultReceived) -> RunState:
    phase = state.phase(event.phase_id)
    state = _end_lease(state, event.phase_id)
    changes: dict[str, Any] = {"auditor_attempts_used": phase.auditor_attempts_used + 1}
    if isinstance(event, AuditLapsed):
        changes["fence"] = phase.fence + 1
    else:
        changes["is_review_requested"] = False
    return change_phase(state, event.phase_id, **changes)


def _apply_patch(state: RunState, event: PatchApplied) -> RunState:
    """Add a patch to a phase: a Builder's, whose author is noted, or an Auditor's own.

    Earlier approvals were of the phase without the Auditor's own patch, so they do not count.
    """
    phase = state.phase(event.phase_id)
    changes: dict[str, Any] = {
        "commit": event.commit,
        "before_commit": phase.before_commit or event.parent or None,
        "branch_place": 1 + max(each.branch_place for each in state.phases),
        "dependencies": merged(phase.dependencies, event.dependencies),
        **_UNJUDGED,  # the verdict was on another tree
    }
    if event.is_again:  # the same patch, by the same authors, with its approvals
        return change_phase(state, event.phase_id, **changes)
    changes |= _NOTHING_PENDING
    is_pending = event.submission_id == phase.pending_submission_id
    if is_pending or phase.state is PhaseStatus.EXECUTING:
        changes["builders"] = _with(phase.builders, phase.built_by)
        changes["builder_models"] = _with(phase.builder_models, phase.built_with)
    else:
        changes["approved_by"] = ()
    return change_phase(state, event.phase_id, **changes)


def _rebase_patch(state: RunState, event: PatchReplayed) -> RunState:
    """Add a commit of another run to a phase, with its authors."""
    phase = state.phase(event.phase_id)
    builders, models = phase.builders, phase.builder_models
    for name in event.builders:
        builders = _with(builders, name)
    for name in event.builder_models:
        models = _with(models, name)
    return change_phase(
        state,
        event.phase_id,
        commit=event.commit,
        before_commit=phase.before_commit or event.parent or None,
        branch_place=1 + max(each.branch_place for each in state.phases),
        dependencies=merged(phase.dependencies, event.dependencies),
        builders=builders,
        builder_models=models,
        **_UNJUDGED,
    )


def _undo_phase(state: RunState, event: PhaseUndone) -> RunState:
    """Take a phase's commits off the branch, and those after it for as long as they are missing."""
    state = altered(state, head_commit=event.commit)
    for phase_id in event.taken_off:
        state = change_phase(state, phase_id, before_commit=None, dependencies=())
    changes: dict[str, Any] = {"dependencies": (), "before_commit": None}
    if not state.phase(event.phase_id).state.is_final:
        changes["commit"] = None
    return change_phase(state, event.phase_id, **changes)


def _with(names: tuple[str, ...], name: str | None) -> tuple[str, ...]:
    return names if name is None or name in names else (*names, name)


def _approve(state: RunState, event: ApprovalGiven | PhaseApproved) -> RunState:
    phase = state.phase(event.phase_id)
    changes: dict[str, Any] = {"approved_by": _with(phase.approved_by, event.actor)}
    if isinstance(event, PhaseApproved):
        changes["approved_dependencies"] = phase.dependencies
    if isinstance(event, ApprovalGiven) and not event.commits:
        changes["auditor_attempts_used"] = phase.auditor_attempts_used - 1
    return change_phase(state, event.phase_id, **changes)


def _give_back_auditor_try(state: RunState, event: PendingPatchDiscarded) -> RunState:
    phase = state.phase(event.phase_id)
    return change_phase(
        state,
        event.phase_id,
        **_NOTHING_PENDING,
        approved_by=(),
        auditor_attempts_used=phase.auditor_attempts_used - 1,
        failure_reason=event.reason,
    )


def _fail_attempt(state: RunState, event: AttemptFailed) -> RunState:
    phase = state.phase(event.phase_id)
    changes: dict[str, Any] = {"failure_reason": event.reason}
    if event.signature is not None and event.signature not in phase.failure_signatures:
        changes["failure_signatures"] = (*phase.failure_signatures, event.signature)
    return change_phase(state, event.phase_id, **changes)


# Figures


def _count_tokens(state: RunState, event: TokensCounted) -> RunState:
    phase = state.phase(event.phase_id)
    tier = state.tier(phase.tier_id)
    tokens, cost = event.tokens, event.cost_usd
    measured = tokens if event.is_measured else 0
    state = altered(
        state,
        tokens_used=state.tokens_used + tokens,
        tokens_measured=state.tokens_measured + measured,
        cost_usd=state.cost_usd + cost,
    )
    state = change_phase(
        state,
        event.phase_id,
        tokens_used=phase.tokens_used + tokens,
        tokens_measured=phase.tokens_measured + measured,
        cost_usd=phase.cost_usd + cost,
    )
    return _change_tier(
        state,
        tier.tier_id,
        tokens_used=tier.tokens_used + tokens,
        tokens_measured=tier.tokens_measured + measured,
        cost_usd=tier.cost_usd + cost,
    )


def _apply_verdict(state: RunState, event: CiVerdictReceived) -> RunState:
    """Set a final verdict on its phase; count a CI run that was made for its tier."""
    if event.is_repeated:
        return state
    state = change_phase(
        state,
        event.phase_id,
        verdict=event.verdict,
        sandbox=event.sandbox,
        evidence=event.evidence,
        judged_by=_known_actor(event),
    )
    if event.verdict is Verdict.DID_NOT_RUN:
        return state
    tier = state.tier(state.phase(event.phase_id).tier_id)
    return _change_tier(state, tier.tier_id, ci_runs_count=tier.ci_runs_count + 1)


# Issues


def _keep_issue(state: RunState, event: IssueRecorded | IssueResolved) -> RunState:
    issues = dict(state.issues)
    place = (event.phase_id, event.issue_key)
    if isinstance(event, IssueRecorded):
        seen = Sighting(
            phase_id=event.phase_id,
            issue_key=event.issue_key,
            source=event.source,
            severity=event.severity,
            effective_severity=event.effective_severity,
            is_expected=event.is_expected,
        )
        issues[place] = sight(issues.get(place), seen)
    else:
        for each in resolved_places(state, event):
            issues[each] = replace(issues[each], is_open=False)
    return altered(state, issues=issues)


def resolved_places(state: RunState, event: IssueResolved) -> list[tuple[str, str]]:
    """Return where a key is resolved: in one phase; in all phases by a review of an old record."""
    place = (event.phase_id, event.issue_key)
    # A review resolves issues while its phase is in GATE, CI while it is in CI_RUNNING.
    is_review = state.phase(event.phase_id).state is PhaseStatus.GATE
    if event.cause is None and is_review:
        return [each for each in state.issues if each[1] == event.issue_key]
    return [place] if place in state.issues else []


def _count_issues(state: RunState) -> RunState:
    """Compute all counts from the open issues, and the states that depend on the counts."""
    tier_of = {phase.phase_id: phase.tier_id for phase in state.phases}
    counts = count_open(tuple(state.issues.values()), tier_of)
    state = _put_counts(state, counts.run)
    for phase in state.phases:
        mine = counts.phases.get(phase.phase_id, Counts())
        if mine != Counts(phase.minor_issues_count, phase.major_issues_count):
            state = change_phase(state, phase.phase_id, **_as_fields(mine))
    for tier in state.tiers:
        mine = counts.tiers.get(tier.tier_id, Counts())
        if mine != Counts(tier.minor_issues_count, tier.major_issues_count):
            state = _change_tier(state, tier.tier_id, **_as_fields(mine))
    return state


def _as_fields(counts: Counts) -> dict[str, Any]:
    return {"minor_issues_count": counts.minors, "major_issues_count": counts.majors}


def _put_counts(state: RunState, counts: Counts) -> RunState:
    state = altered(state, **_as_fields(counts))
    if counts.majors:
        debt = DebtStatus.HAS_MAJOR_ISSUES
    elif counts.minors > state.max_minor_issues_total:
        debt = DebtStatus.EXCESS_MINOR_ISSUES
    else:
        debt = DebtStatus.HAS_MINOR_ISSUES if counts.minors else DebtStatus.CLEAN
    return altered(state, debt_status=debt)


# Tiers and the run


def _change_tier(state: RunState, tier_id: str, /, **changes: Any) -> RunState:
    tiers = tuple(
        altered(tier, **changes) if tier.tier_id == tier_id else tier for tier in state.tiers
    )
    return _decide_cleanliness(altered(state, tiers=tiers), tier_id)


def _decide_cleanliness(state: RunState, tier_id: str) -> RunState:
    """Set a tier's cleanliness and the reasons against it, from its figures. (rules §2.3)"""
    tier = state.tier(tier_id)
    reasons = _uncleanliness(tier, state)
    if reasons == tier.cleanliness_reasons:
        return state
    judged = altered(tier, cleanliness_reasons=reasons)
    return altered(state, tiers=tuple(judged if each is tier else each for each in state.tiers))


def _uncleanliness(tier: TierState, state: RunState) -> tuple[str, ...]:
    reasons = [
        f"phase '{phase.phase_id}' failed"
        for phase in state.phases
        if phase.tier_id == tier.tier_id and phase.state is PhaseStatus.FAILED
    ]
    for noun, figure, cap in (
        ("minor issues", tier.minor_issues_count, tier.minors_tolerated),
        ("major issues", tier.major_issues_count, tier.majors_tolerated),
        ("tokens", tier.tokens_used, tier.token_cap),
        ("CI runs", tier.ci_runs_count, tier.ci_run_cap),
    ):
        if figure > cap:
            reasons.append(f"{figure} {noun}, {cap} allowed")
    return tuple(reasons)


def _decide_eligibility(state: RunState) -> RunState:
    verdict = judge_promotion(state)
    return altered(
        state,
        promotion_eligible_to_main=verdict.is_eligible,
        promotion_reasons=verdict.reasons,
        promotion_warnings=verdict.warnings,
    )
