"""A run before its first event, from what its record says of plan and caps. (rules §8)

Standard library alone: `scripts/check_promotion.py` is made from this module among others.
"""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal

from .record_text import JsonObject
from .run import PhaseState, RunState, TierState
from .states import PhaseStatus, RunStatus, TierStatus
from .terms import CiProfile, EvidenceKind, Independence, RunScope


def state_at_start(record: JsonObject) -> RunState:
    """Return the run before its first event, by what the record says of its plan and caps.

    `evolve` reads neither the plan's minutes and profiles, by which rules decide, so
    these are left at nothing.
    """
    tiers = {tier["tier_id"]: tier for tier in record["tiers"]}
    with_phases = {tiers[phase["tier_id"]]["tier_id"] for phase in record["phases"]}
    budgets = record["budgets"]
    return RunState(
        run_id=record["run_id"],
        state=RunStatus.RUN_CREATED,
        run_scope=RunScope(record.get("run_scope", RunScope.SINGLE_TIER)),
        token_cap=budgets["token_cap"],
        cost_cap_usd=_dollars(budgets.get("cost_cap_usd")),
        max_minor_issues_total=budgets["max_minor_issues_total"],
        max_duration_minutes=0,
        attempt_minutes=0,
        audit_minutes=0,
        deadline_at=datetime.min.replace(tzinfo=UTC),
        minor_cap_ends_run=False,
        any_failure_stops=False,
        high_risk_needs_review=False,
        is_sandbox_required=record.get("is_sandbox_required", False) is True,
        dependencies_need_review=record.get("dependencies_need_review", False) is True,
        is_parallel=record.get("is_parallel", False) is True,
        head_commit=record["base_commit"],
        tiers=tuple(_tier_at_start(tier, with_phases) for tier in record["tiers"]),
        phases=tuple(_phase_at_start(phase) for phase in record["phases"]),
    )


def _tier_at_start(tier: JsonObject, with_phases: set[str]) -> TierState:
    has_phases = tier["tier_id"] in with_phases
    return TierState(
        tier_id=tier["tier_id"],
        tier_index=tier["tier_index"],
        state=TierStatus.PENDING if has_phases else TierStatus.SKIPPED,
        token_cap=tier["token_cap"],
        ci_run_cap=tier["ci_run_cap"],
        minors_tolerated=tier["minors_tolerated"],
        majors_tolerated=tier["majors_tolerated"],
    )


def _phase_at_start(phase: JsonObject) -> PhaseState:
    names = phase.get("depends_on")
    return PhaseState(
        phase_id=phase["phase_id"],
        tier_id=phase["tier_id"],
        tier_index=phase["tier_index"],
        phase_index=phase["phase_index"],
        state=PhaseStatus.QUEUED,
        ci_profile=CiProfile(phase["ci_profile"]),
        has_ci=False,
        ci_timeout_seconds=0,
        max_builder_attempts=0,
        max_auditor_attempts=0,
        incident_token_cap=0,
        auto_apply=False,
        is_high_risk=False,
        allow_empty=False,
        independence=Independence(phase.get("independence", Independence.NONE)),
        approvals_needed=phase.get("approvals_needed", 1),
        depends_on=None if names is None else tuple(names),
        evidence_required=tuple(map(EvidenceKind, phase.get("evidence_required", ()))),
    )


def _dollars(amount: str | None) -> Decimal | None:
    return None if amount is None else Decimal(amount)
