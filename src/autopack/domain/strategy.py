"""The strategy: caps of a run, tiers and phases, compiled from ruleset and plan. (rules §9)"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from difflib import get_close_matches

from pydantic import Field

from .plan import InvalidPlanError, Plan, PlanPhase
from .ruleset import (
    DEBT_CATEGORY,
    DEFAULT_CATEGORY,
    CiRules,
    Message,
    PathRules,
    Price,
    ReviewRules,
    Ruleset,
    SafetyRule,
)
from .terms import (
    CiMode,
    CiProfile,
    Complexity,
    EvidenceKind,
    Independence,
    RunScope,
    SafetyProfile,
    Severity,
)
from .values import MAX_COUNT, Closed, Count, Identifier, PathGlob, PositiveCount, PositiveUsd, Word


class PhaseStrategy(Closed):
    """The caps and checks of one phase; fixed when the run starts."""

    task_category: Word
    complexity: Complexity
    builder_mode: Word | None
    ci_profile: CiProfile
    ci_timeout_seconds: PositiveCount
    max_builder_attempts: Count
    max_auditor_attempts: Count
    incident_token_cap: PositiveCount
    auto_apply: bool
    auditor_profile: Word | None
    default_severity: Severity
    max_patch_files: PositiveCount | None
    opened_paths: tuple[PathGlob, ...]
    independence: Independence = Independence.NONE
    approvals: int = 1
    evidence: tuple[EvidenceKind, ...] = ()
    must_fail_before: bool = False


class TierStrategy(Closed):
    token_cap: Count
    ci_run_cap: Count
    minors_tolerated: Count
    majors_tolerated: Count


class Strategy(Closed):
    """Everything that is decided at the start of a run and does not change while it lasts."""

    version: PositiveCount
    ruleset_version: PositiveCount
    project_id: Identifier
    safety_profile: SafetyProfile
    run_scope: RunScope
    token_cap: PositiveCount
    cost_cap_usd: PositiveUsd | None = None
    max_phases: PositiveCount
    max_duration_minutes: PositiveCount
    max_minor_issues_total: Count
    attempt_minutes: PositiveCount
    audit_minutes: PositiveCount
    parallel: bool = True
    safety: SafetyRule
    major_categories: tuple[Word, ...]
    paths: PathRules
    review: ReviewRules = ReviewRules()
    ci: CiRules
    prices: Mapping[Word, Price] = Field(default_factory=dict)
    unavailable_messages: Mapping[Word, tuple[Message, ...]] = Field(default_factory=dict)
    tiers: Mapping[str, TierStrategy]
    phases: Mapping[str, PhaseStrategy]
    warnings: tuple[str, ...] = ()

    def has_ci(self, profile: CiProfile) -> bool:
        """Return whether CI is configured for commits of this profile."""
        if self.ci.mode is CiMode.LOCAL:
            return bool(self.ci.command_for(profile).command)
        return self.ci.mode is CiMode.EXTERNAL


def compile_strategy(ruleset: Ruleset, plan: Plan, *, version: int = 1) -> Strategy:
    """Compile the strategy of a plan under a ruleset. (rules §9)"""
    profile = plan.run.safety_profile or ruleset.default_safety_profile
    safety = ruleset.safety_profiles[profile]
    phases = {phase.phase_id: _phase_strategy(ruleset, safety, phase) for phase in plan.phases}
    tiers = {}
    for tier in plan.tiers:
        members = [phases[phase.phase_id] for phase in plan.phases if phase.tier_id == tier.tier_id]
        tiers[tier.tier_id] = TierStrategy(
            token_cap=_count(
                ruleset.tier.token_cap_factor * sum(member.incident_token_cap for member in members)
            ),
            ci_run_cap=_count(ruleset.tier.ci_runs_per_phase * len(members)),
            minors_tolerated=_count(safety.minors_tolerated_per_phase * len(members)),
            majors_tolerated=ruleset.tier.majors_tolerated,
        )
    strategy = Strategy(
        version=version,
        ruleset_version=ruleset.version,
        project_id=ruleset.project_id,
        safety_profile=profile,
        run_scope=plan.run.run_scope or ruleset.default_run_scope,
        token_cap=plan.run.token_cap or ruleset.run.token_cap,
        cost_cap_usd=(
            ruleset.run.cost_cap_usd if plan.run.cost_cap_usd is None else plan.run.cost_cap_usd
        ),
        max_phases=plan.run.max_phases or ruleset.run.max_phases,
        max_duration_minutes=plan.run.max_duration_minutes or ruleset.run.max_duration_minutes,
        max_minor_issues_total=_count(ruleset.run.minor_issues_per_phase * len(plan.phases)),
        attempt_minutes=ruleset.attempt_minutes,
        audit_minutes=ruleset.audit_minutes,
        parallel=ruleset.parallel,
        safety=safety,
        major_categories=_major_categories(ruleset),
        paths=ruleset.paths,
        review=ruleset.review,
        ci=ruleset.ci,
        prices=ruleset.prices,
        unavailable_messages=ruleset.unavailable_messages,
        tiers=tiers,
        phases=phases,
    )
    return strategy.model_copy(
        update={"warnings": (*_unknown(ruleset, plan), *_warnings(strategy))}
    )


def require_evidence(plan: Plan, ruleset: Ruleset, strategy: Strategy) -> None:
    """Refuse a plan whose `must_fail_before` CI cannot measure. Raises InvalidPlanError."""
    for index, phase in enumerate(plan.phases):
        profile = strategy.phases[phase.phase_id].ci_profile
        problem = ruleset.ci.evidence_problem(profile, EvidenceKind.FAILS_BEFORE)
        if phase.must_fail_before and problem is not None:
            place = f"phases[{index}].must_fail_before"
            raise InvalidPlanError(
                f"{place}: phase '{phase.phase_id}' {problem}",
                errors=[{"loc": place, "message": problem}],
            )


def _count(product: int) -> int:
    """Limit a product of caps to the highest count; a cap that high is no cap."""
    return min(product, MAX_COUNT)


def _phase_strategy(ruleset: Ruleset, safety: SafetyRule, phase: PlanPhase) -> PhaseStrategy:
    category = ruleset.canonical_category(phase.task_category or "default")
    rule = ruleset.rule_for(category)
    complexity = phase.complexity or rule.complexity
    is_strict = (
        safety.every_phase_strict
        or complexity is Complexity.HIGH
        or rule.ci_profile is CiProfile.STRICT
    )
    mode = ruleset.builder_modes.get(phase.builder_mode or "")
    builder_attempts = rule.max_builder_attempts
    if mode and mode.max_builder_attempts is not None:
        builder_attempts = min(builder_attempts, mode.max_builder_attempts)
    ci_profile = CiProfile.STRICT if is_strict else CiProfile.NORMAL
    command = ruleset.ci.command_for(ci_profile)
    evidence = command.evidence
    if phase.must_fail_before and EvidenceKind.FAILS_BEFORE not in evidence:
        evidence = (*evidence, EvidenceKind.FAILS_BEFORE)
    return PhaseStrategy(
        task_category=category,
        complexity=complexity,
        builder_mode=phase.builder_mode,
        ci_profile=ci_profile,
        ci_timeout_seconds=command.most_seconds(evidence),
        max_builder_attempts=builder_attempts,
        max_auditor_attempts=rule.max_auditor_attempts,
        incident_token_cap=rule.incident_token_cap,
        auto_apply=rule.auto_apply,
        auditor_profile=rule.auditor_profile,
        default_severity=rule.default_severity,
        independence=(
            safety.independence if rule.independence is Independence.NONE else rule.independence
        ),
        approvals=rule.approvals,
        evidence=evidence,
        must_fail_before=phase.must_fail_before or category == DEBT_CATEGORY,
        max_patch_files=mode.max_patch_files if mode else None,
        opened_paths=tuple(ruleset.paths.opened.get(category, ())),
    )


def _major_categories(ruleset: Ruleset) -> tuple[str, ...]:
    """Return the categories, aliases too, whose issues are major by default."""
    names = {*ruleset.categories, *ruleset.aliases}
    return tuple(sorted(name for name in names if ruleset.rule_for(name).is_high_risk))


def _unknown(ruleset: Ruleset, plan: Plan) -> Iterator[str]:
    """Warn of each category that the ruleset does not have: the default's rule applies to it."""
    known = {*ruleset.categories, *ruleset.aliases}
    phases: dict[str, list[str]] = {}
    for phase in plan.phases:
        if phase.task_category and phase.task_category not in known:
            phases.setdefault(phase.task_category, []).append(phase.phase_id)
    for category, ids in phases.items():
        near = get_close_matches(category.casefold(), sorted(known), n=1, cutoff=0.0)
        named = f"{', '.join(ids[:5])}{', …' if len(ids) > 5 else ''}"
        yield (
            f"The ruleset has no task_category '{category}' ({named}), so the rule of"
            f" '{DEFAULT_CATEGORY}' applies; the nearest that it has is '{near[0]}'."
        )


def _warnings(strategy: Strategy) -> tuple[str, ...]:
    strict = [
        phase_id
        for phase_id, phase in strategy.phases.items()
        if phase.ci_profile is CiProfile.STRICT and not strategy.has_ci(CiProfile.STRICT)
    ]
    if not strict:
        return ()
    return (
        f"No CI is configured, so the run cannot become eligible for promotion: "
        f"{len(strict)} of its phases are strict and need a green verdict "
        f"({', '.join(strict[:5])}{', …' if len(strict) > 5 else ''}).",
    )
