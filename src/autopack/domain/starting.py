"""The state in which a run starts, from its plan and strategy. (rules §2)"""

from __future__ import annotations

from datetime import datetime, timedelta

from .plan import Plan, PlanPhase, PlanTier
from .run import PhaseState, RunState, TierState
from .states import PhaseStatus, RunStatus, TierStatus
from .strategy import Strategy
from .terms import CiMode, DependencyReview, Severity


def starting_state(plan: Plan, strategy: Strategy, now: datetime, base_commit: str) -> RunState:
    """Return the state of a run whose plan was just accepted."""
    tiers = {tier.tier_id: tier for tier in plan.tiers}
    safety = strategy.safety
    return RunState(
        run_id=plan.run.run_id,
        state=RunStatus.RUN_CREATED,
        run_scope=strategy.run_scope,
        token_cap=strategy.token_cap,
        cost_cap_usd=strategy.cost_cap_usd,
        max_minor_issues_total=strategy.max_minor_issues_total,
        max_duration_minutes=strategy.max_duration_minutes,
        attempt_minutes=strategy.attempt_minutes,
        audit_minutes=strategy.audit_minutes,
        deadline_at=now + timedelta(minutes=strategy.max_duration_minutes),
        minor_cap_ends_run=safety.minor_cap_ends_run,
        any_failure_stops=safety.any_failure_stops,
        high_risk_needs_review=safety.high_risk_needs_review,
        is_sandbox_required=strategy.ci.require_sandbox,
        dependencies_need_review=strategy.review.new_dependencies is DependencyReview.REQUIRED,
        is_parallel=_is_parallel(plan, strategy),
        head_commit=base_commit,
        tiers=tuple(_tier(tier, plan, strategy) for tier in plan.tiers),
        phases=tuple(_phase(phase, tiers[phase.tier_id], strategy) for phase in plan.phases),
    )


def _is_parallel(plan: Plan, strategy: Strategy) -> bool:
    """Return whether phases may be under way side by side. (rules §2.7)

    An external CI judges a branch when it was pushed, not in the order that attribution needs.
    """
    return (
        strategy.parallel
        and strategy.ci.mode is not CiMode.EXTERNAL
        and any(phase.depends_on is not None for phase in plan.phases)
    )


def _tier(tier: PlanTier, plan: Plan, strategy: Strategy) -> TierState:
    mine = strategy.tiers[tier.tier_id]
    has_phases = any(phase.tier_id == tier.tier_id for phase in plan.phases)
    return TierState(
        tier_id=tier.tier_id,
        tier_index=tier.tier_index,
        state=TierStatus.PENDING if has_phases else TierStatus.SKIPPED,
        token_cap=mine.token_cap,
        ci_run_cap=mine.ci_run_cap,
        minors_tolerated=mine.minors_tolerated,
        majors_tolerated=mine.majors_tolerated,
    )


def _phase(phase: PlanPhase, tier: PlanTier, strategy: Strategy) -> PhaseState:
    mine = strategy.phases[phase.phase_id]
    return PhaseState(
        phase_id=phase.phase_id,
        tier_id=phase.tier_id,
        tier_index=tier.tier_index,
        phase_index=phase.phase_index,
        state=PhaseStatus.QUEUED,
        ci_profile=mine.ci_profile,
        has_ci=strategy.has_ci(mine.ci_profile),
        ci_timeout_seconds=mine.ci_timeout_seconds,
        max_builder_attempts=mine.max_builder_attempts,
        max_auditor_attempts=mine.max_auditor_attempts,
        incident_token_cap=mine.incident_token_cap,
        auto_apply=mine.auto_apply,
        is_high_risk=mine.default_severity is Severity.MAJOR,
        allow_empty=phase.allow_empty,
        depends_on=phase.depends_on,
        allowed_paths=phase.allowed_paths,
        independence=mine.independence,
        approvals_needed=mine.approvals,
        evidence_required=mine.evidence,
    )
