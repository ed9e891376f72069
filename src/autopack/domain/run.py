"""The state of a run: plain values, loaded from the tables and written back to them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from typing import Any, Protocol, TypeVar

from .dependencies import DependencyChange
from .errors import NotFoundError
from .evidence import Evidence
from .money import ZERO_USD
from .sightings import Sighting
from .states import Cleanliness, PhaseStatus, RunStatus, TierStatus
from .terms import CiProfile, EvidenceKind, Independence, Role, RunScope, Sandbox, Verdict


class FailureCode(StrEnum):
    """Why a run failed, in more detail than its state."""

    TOKEN_CAP = "token_cap"  # noqa: S105 - a budget's name, not a secret
    COST_CAP = "cost_cap"
    DURATION_CAP = "duration_cap"
    MINOR_ISSUE_CAP = "minor_issue_cap"
    BRANCH_MOVED = "branch_moved"
    CI_DID_NOT_RUN = "ci_did_not_run"
    AGENTS_UNAVAILABLE = "agents_unavailable"
    CANCELLED = "cancelled"
    PHASE_FAILED = "phase_failed"
    TIER_NOT_CLEAN = "tier_not_clean"
    MAJOR_ISSUE = "major_issue"


FAILURE_STATES = {
    FailureCode.TOKEN_CAP: RunStatus.DONE_FAILED_BUDGET_EXHAUSTED,
    FailureCode.COST_CAP: RunStatus.DONE_FAILED_BUDGET_EXHAUSTED,
    FailureCode.DURATION_CAP: RunStatus.DONE_FAILED_BUDGET_EXHAUSTED,
    FailureCode.MINOR_ISSUE_CAP: RunStatus.DONE_FAILED_BUDGET_EXHAUSTED,
    FailureCode.BRANCH_MOVED: RunStatus.DONE_FAILED_POLICY_VIOLATION,
    FailureCode.CI_DID_NOT_RUN: RunStatus.DONE_FAILED_ENVIRONMENT,
    FailureCode.AGENTS_UNAVAILABLE: RunStatus.DONE_FAILED_ENVIRONMENT,
    FailureCode.CANCELLED: RunStatus.DONE_FAILED_REQUIRES_HUMAN_REVIEW,
    FailureCode.PHASE_FAILED: RunStatus.DONE_FAILED_REQUIRES_HUMAN_REVIEW,
    FailureCode.TIER_NOT_CLEAN: RunStatus.DONE_FAILED_REQUIRES_HUMAN_REVIEW,
    FailureCode.MAJOR_ISSUE: RunStatus.DONE_FAILED_REQUIRES_HUMAN_REVIEW,
}


class DebtStatus(StrEnum):
    CLEAN = "clean"
    HAS_MINOR_ISSUES = "has_minor_issues"
    EXCESS_MINOR_ISSUES = "excess_minor_issues"
    HAS_MAJOR_ISSUES = "has_major_issues"


class CompletedBy(StrEnum):
    """How a phase ended: by the rules, or by hand."""

    RULES = "rules"
    HAND = "hand"


@dataclass(frozen=True, kw_only=True)
class PhaseState:
    phase_id: str
    tier_id: str
    tier_index: int
    phase_index: int
    state: PhaseStatus
    ci_profile: CiProfile
    has_ci: bool
    ci_timeout_seconds: int
    max_builder_attempts: int
    max_auditor_attempts: int
    incident_token_cap: int
    auto_apply: bool
    is_high_risk: bool
    allow_empty: bool
    # What a green verdict must rest on, and what the last verdict rests on.
    evidence_required: tuple[EvidenceKind, ...] = ()
    evidence: tuple[Evidence, ...] = ()
    builder_attempts_used: int = 0
    auditor_attempts_used: int = 0
    is_builder_spent: bool = False
    is_review_requested: bool = False
    tokens_used: int = 0
    tokens_measured: int = 0
    cost_usd: Decimal = ZERO_USD
    fence: int = 0
    lease_id: int | None = None
    lease_role: Role | None = None
    tokens_reserved: int = 0
    tokens_reported: int = 0
    cost_reserved_usd: Decimal = ZERO_USD
    cost_reported_usd: Decimal = ZERO_USD
    unavailable_reason: str | None = None
    retry_at: datetime | None = None
    retry_account: str | None = None
    deadline_at: datetime | None = None
    start_commit: str | None = None
    commit: str | None = None
    # Without `depends_on` a phase waits for all before it; `allowed_paths` is of the plan.
    depends_on: tuple[str, ...] | None = None
    allowed_paths: tuple[str, ...] | None = None
    attempt_commit: str | None = None  # the head when the latest attempt started
    # The commit that the phase's own commits on the branch follow; None without any there.
    before_commit: str | None = None
    branch_place: int = 0  # of its last commit, in the order of all commits of phases
    is_conflict_forgiven: bool = False
    pending_submission_id: int | None = None
    # New and changed dependencies: of what is on the branch, and of the pending patch.
    dependencies: tuple[DependencyChange, ...] = ()
    pending_dependencies: tuple[DependencyChange, ...] = ()
    # Those that the phase had when an Auditor approved it last.
    approved_dependencies: tuple[DependencyChange, ...] = ()
    minor_issues_count: int = 0
    major_issues_count: int = 0
    verdict: Verdict | None = None
    sandbox: Sandbox | None = None
    completed_by: CompletedBy | None = None
    independence: Independence = Independence.NONE
    approvals_needed: int = 1
    # Of the last Builder's result; and of every Builder whose patch is on the branch.
    built_by: str | None = None
    built_with: str | None = None
    builders: tuple[str, ...] = ()
    builder_models: tuple[str, ...] = ()
    # Who approved what the phase has now, each once.
    approved_by: tuple[str, ...] = ()
    reviewed_by: str | None = None
    judged_by: str | None = None
    failure_signatures: tuple[str, ...] = ()
    failure_reason: str | None = None
    started_at: datetime | None = None
    ended_at: datetime | None = None

    @property
    def builder_tries_left(self) -> int:
        if self.is_builder_spent:
            return 0
        return max(0, self.max_builder_attempts - self.builder_attempts_used)

    @property
    def builder_tries_text(self) -> str:
        """Say how many tries of the Builder are used and left."""
        used = f"{self.builder_attempts_used} of {self.max_builder_attempts}"
        return f"Builder tries used: {used}; left: {self.builder_tries_left}."

    @property
    def auditor_tries_left(self) -> int:
        return max(0, self.max_auditor_attempts - self.auditor_attempts_used)

    @property
    def unapproved_dependencies(self) -> tuple[DependencyChange, ...]:
        """Those that no approval of the phase has covered. (rules §2.6)"""
        return tuple(each for each in self.dependencies if each not in self.approved_dependencies)

    @property
    def approvals_missing(self) -> int:
        return max(0, self.approvals_needed - len(self.approved_by))

    @property
    def budgets_text(self) -> str:
        """Name the phase's budgets, their caps and the figures reached. (rules §3)"""
        figures = [
            f"{self.builder_attempts_used} of {self.max_builder_attempts} builder tries",
            f"{self.auditor_attempts_used} of {self.max_auditor_attempts} auditor tries",
        ]
        if self.tokens_used > self.incident_token_cap:
            figures.append(
                f"incident_token_cap {self.incident_token_cap} passed: {self.tokens_used} tokens"
            )
        return ", ".join(figures)


@dataclass(frozen=True, kw_only=True)
class TierState:
    tier_id: str
    tier_index: int
    state: TierStatus
    token_cap: int
    ci_run_cap: int
    minors_tolerated: int
    majors_tolerated: int
    tokens_used: int = 0
    tokens_measured: int = 0
    cost_usd: Decimal = ZERO_USD
    ci_runs_count: int = 0
    minor_issues_count: int = 0
    major_issues_count: int = 0
    cleanliness: Cleanliness = Cleanliness.CLEAN
    cleanliness_reasons: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class RunState:
    run_id: str
    state: RunStatus
    run_scope: RunScope
    token_cap: int
    max_minor_issues_total: int
    max_duration_minutes: int
    attempt_minutes: int
    audit_minutes: int
    deadline_at: datetime
    minor_cap_ends_run: bool
    any_failure_stops: bool
    high_risk_needs_review: bool
    is_sandbox_required: bool = False
    dependencies_need_review: bool = False
    is_parallel: bool = False
    cost_cap_usd: Decimal | None = None
    tokens_used: int = 0
    tokens_measured: int = 0
    tokens_reserved: int = 0
    cost_usd: Decimal = ZERO_USD
    cost_reserved_usd: Decimal = ZERO_USD
    minor_issues_count: int = 0
    major_issues_count: int = 0
    debt_status: DebtStatus = DebtStatus.CLEAN
    failure_code: FailureCode | None = None
    failure_reason: str | None = None
    promotion_eligible_to_main: bool = False
    promotion_reasons: tuple[str, ...] = ()
    promotion_warnings: tuple[str, ...] = ()
    is_rolled_back: bool = False
    # Why CI's command does not run on the base commit; None: it does, or that was not measured.
    base_problem: str | None = None
    head_commit: str | None = None
    ended_at: datetime | None = None
    tiers: tuple[TierState, ...] = ()
    phases: tuple[PhaseState, ...] = ()
    # By phase and key. Empty in a state that was loaded for a decision that concerns no issue.
    issues: Mapping[tuple[str, str], Sighting] = field(default_factory=dict)

    def with_issues(self, issues: Iterable[Sighting]) -> RunState:
        """Return the state with the run's issues, for a decision that concerns issues."""
        return altered(self, issues={(each.phase_id, each.issue_key): each for each in issues})

    @property
    def is_over(self) -> bool:
        return self.state.is_final

    def phase(self, phase_id: str) -> PhaseState:
        """Return a phase. Raises NotFoundError."""
        for phase in self.phases:
            if phase.phase_id == phase_id:
                return phase
        raise NotFoundError(f"run '{self.run_id}' has no phase '{phase_id}'")

    def tier(self, tier_id: str) -> TierState:
        return next(tier for tier in self.tiers if tier.tier_id == tier_id)


State = TypeVar("State", PhaseState, TierState, RunState)


def altered(state: State, /, **changes: Any) -> State:
    """Return a copy of a state with other values in some fields.

    The states have no slots for its sake: `dataclasses.replace` passes all 64 fields of a phase to
    `__init__` again, which takes 60 times as long, and a request alters a dozen states. Raises
    TypeError for a field that the state does not have.
    """
    values = state.__dict__
    if not changes.keys() <= values.keys():
        unknown = ", ".join(changes.keys() - values.keys())
        raise TypeError(f"{type(state).__name__} has no {unknown}")
    copy = object.__new__(type(state))
    copy.__dict__.update(values, **changes)
    return copy


class _Begun(Protocol):
    @property
    def started_at(self) -> datetime | None: ...


def has_ended_early(state: TierStatus, phases: Iterable[_Begun]) -> bool:
    """Say whether a tier is `SKIPPED` although work on it had begun. (rules §2.3)

    People are told so in other words than of a tier that was skipped as a whole.
    """
    return state is TierStatus.SKIPPED and any(phase.started_at is not None for phase in phases)
