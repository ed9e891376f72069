"""Figures about runs: what was used of which budget, and what became of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import cast

from .issues import BacklogStatus, IssueState
from .money import ZERO_USD
from .run import CompletedBy, DebtStatus, FailureCode
from .states import Cleanliness, PhaseStatus, RunStatus, TierStatus
from .terms import CiProfile, Complexity, RunScope, SafetyProfile, Severity, Verdict


def utilization(used: float | Decimal, cap: int | Decimal) -> float:
    """Return the used share of a cap, 0 to n, with four digits.

    Some caps may be 0; what is used of one counts as if it were 1, so the answer is always finite.
    """
    return round(float(used) / float(cap or 1), 4)


@dataclass(frozen=True, slots=True)
class Budget:
    """A cap and how much of it is used: numbers, or USD as decimals.

    Reaching a cap exactly is allowed, passing it is not.
    """

    name: str
    cap: int | Decimal
    used: int | float | Decimal

    @property
    def left(self) -> int | float | Decimal:
        if isinstance(self.cap, Decimal):
            return max(ZERO_USD, self.cap - Decimal(self.used))
        return max(0, round(self.cap - cast("int | float", self.used), 2))

    @property
    def utilization(self) -> float:
        return utilization(self.used, self.cap)

    @property
    def is_passed(self) -> bool:
        return self.used > self.cap


@dataclass(frozen=True, slots=True, kw_only=True)
class RunMetrics:
    """One run's usage, counts and times. Durations of live runs are those so far."""

    run_id: str
    project_id: str
    state: RunStatus
    safety_profile: SafetyProfile
    run_scope: RunScope
    created_at: datetime
    updated_at: datetime
    deadline_at: datetime
    ended_at: datetime | None
    duration_minutes: float
    max_duration_minutes: int
    token_cap: int
    tokens_used: int
    cost_cap_usd: Decimal | None
    cost_usd: Decimal
    max_minor_issues_total: int
    minor_issues_count: int
    major_issues_count: int
    debt_status: DebtStatus
    promotion_eligible_to_main: bool
    failure_code: FailureCode | None
    failure_reason: str | None
    tier_count: int
    tiers_not_clean: int
    phase_count: int
    phases_complete: int
    phases_failed: int
    phases_skipped: int
    builder_attempts_used: int
    auditor_attempts_used: int
    ci_runs_count: int

    @property
    def token_utilization(self) -> float:
        return utilization(self.tokens_used, self.token_cap)

    @property
    def duration_utilization(self) -> float:
        return utilization(self.duration_minutes, self.max_duration_minutes)

    @property
    def minor_issue_utilization(self) -> float:
        return utilization(self.minor_issues_count, self.max_minor_issues_total)


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseMetrics:
    phase_id: str
    tier_id: str
    tier_index: int
    phase_index: int
    name: str
    state: PhaseStatus
    task_category: str
    complexity: Complexity
    ci_profile: CiProfile
    verdict: Verdict | None
    completed_by: CompletedBy | None
    failure_reason: str | None
    incident_token_cap: int
    tokens_used: int
    cost_usd: Decimal
    max_builder_attempts: int
    builder_attempts_used: int
    max_auditor_attempts: int
    auditor_attempts_used: int
    minor_issues_count: int
    major_issues_count: int
    issue_state: IssueState
    commit: str | None
    snapshot_tag: str | None
    started_at: datetime | None
    ended_at: datetime | None

    @property
    def token_utilization(self) -> float:
        return utilization(self.tokens_used, self.incident_token_cap)


@dataclass(frozen=True, slots=True, kw_only=True)
class TierMetrics:
    """One tier's figures; `phase_states` counts its phases by state, every state named."""

    tier_id: str
    tier_index: int
    name: str
    state: TierStatus
    cleanliness: Cleanliness
    cleanliness_reasons: tuple[str, ...]
    phase_count: int
    phase_states: Mapping[PhaseStatus, int]
    token_cap: int
    tokens_used: int
    cost_usd: Decimal
    ci_run_cap: int
    ci_runs_count: int
    minors_tolerated: int
    minor_issues_count: int
    majors_tolerated: int
    major_issues_count: int
    issue_state: IssueState
    builder_attempts_used: int
    auditor_attempts_used: int
    started_at: datetime | None
    ended_at: datetime | None

    @property
    def token_utilization(self) -> float:
        return utilization(self.tokens_used, self.token_cap)

    @property
    def ci_run_utilization(self) -> float:
        return utilization(self.ci_runs_count, self.ci_run_cap)


@dataclass(frozen=True, slots=True)
class Spender:
    """A part of a run and the LLM tokens that it used."""

    name: str
    tokens_used: int
    share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditorHelp:
    """What the Auditor was worth to a run.

    `phases_reviewed` are those on which at least one Auditor try was used, lapsed ones included.
    """

    phases_reviewed: int
    phases_completed: int
    attempts_used: int
    tokens_used: int

    @property
    def has_helped(self) -> bool | None:
        """Whether a phase that the Auditor worked on was completed; None: it never worked."""
        return self.phases_completed > 0 if self.phases_reviewed else None


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetFailure:
    """A run that a budget ended."""

    run_id: str
    project_id: str
    failure_code: FailureCode | None
    failure_reason: str | None
    budget: Budget | None
    tokens_used: int
    token_cap: int
    cost_usd: Decimal
    cost_cap_usd: Decimal | None
    created_at: datetime
    ended_at: datetime | None
    phase_count: int
    phases_complete: int
    top_tiers: tuple[Spender, ...]
    top_slices: tuple[Spender, ...]
    auditor: AuditorHelp

    @property
    def token_utilization(self) -> float:
        return utilization(self.tokens_used, self.token_cap)


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetTotals:
    """All runs that a budget ended."""

    total_budget_failures: int
    average_token_utilization: float
    failures_by_budget: Mapping[FailureCode, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class AgingIssue:
    """A key of the backlog that is not resolved."""

    issue_key: str
    category: str
    base_severity: Severity
    status: BacklogStatus
    age_in_runs: int
    age_in_tiers: int
    total_occurrences: int
    first_seen_run: str
    last_seen_run: str
    last_seen_at: datetime
    needs_cleanup_at: datetime | None
    tiers: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class BacklogCounts:
    """Keys of the backlog by status; severities are of those that are not resolved."""

    total: int = 0
    open: int = 0
    needs_cleanup: int = 0
    resolved: int = 0
    minor: int = 0
    major: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class IssueCounts:
    """Distinct keys of a run. Expected failures count as reported and as expected alone."""

    reported: int = 0
    occurrences: int = 0
    open_minor: int = 0
    open_major: int = 0
    resolved: int = 0
    expected: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenIssue:
    """A key that is open in a run, over all its phases."""

    issue_key: str
    category: str
    severity: Severity
    effective_severity: Severity
    occurrence_count: int
    phases: tuple[str, ...]
    description: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptCounts:
    """Submissions of one role to a run, by what came of them."""

    count: int = 0
    tokens_used: int = 0
    cost_usd: Decimal = ZERO_USD
    outcomes: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class CiCounts:
    """Runs of CI by verdict."""

    ci_runs_count: int = 0
    green: int = 0
    red: int = 0
    did_not_run: int = 0
    under_way: int = 0
    flaky: int = 0
