"""Answers with figures. A utilisation is the used share of a cap: 1.0 is the whole cap."""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated, ClassVar

from pydantic import Field

from ..domain.issues import IssueState
from ..domain.metrics import is_passed, left_of, utilization
from ..domain.run import CompletedBy, DebtStatus, FailureCode
from ..domain.states import Cleanliness, PhaseStatus, RunStatus, TierStatus
from ..domain.terms import CiProfile, Complexity, RunScope, SafetyProfile, Verdict
from ..domain.values import Usd
from . import MeasuredTokens, Shape, WireTime


class BudgetAnswer(Shape):
    """`cap`, `used` and `left` are numbers, or decimal strings for money."""

    name: str
    cap: int | Usd
    used: int | float | Usd
    left: int | float | Usd
    utilization: float
    is_passed: bool


def budget(name: str, cap: int | Decimal, used: float | Decimal) -> BudgetAnswer:
    """Return a cap, what is used of it and what is left: numbers, or USD as decimals."""
    return BudgetAnswer(
        name=name,
        cap=cap,
        used=used,
        left=left_of(cap, used),
        utilization=utilization(used, cap),
        is_passed=is_passed(cap, used),
    )


class RunMetricsAnswer(Shape):
    """One run's usage, counts and times; durations of live runs are those so far."""

    id: Annotated[str, Field(validation_alias="run_id")]
    run_id: str
    project_id: str
    state: RunStatus
    safety_profile: SafetyProfile
    run_scope: RunScope
    token_cap: int
    tokens_used: int
    tokens_measured: MeasuredTokens
    cost_cap_usd: Usd | None
    cost_usd: Usd
    token_utilization: float
    max_duration_minutes: int
    duration_minutes: float
    duration_utilization: float
    max_minor_issues_total: int
    minor_issues_count: int
    minor_issue_utilization: float
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
    created_at: WireTime
    updated_at: WireTime
    deadline_at: WireTime
    ended_at: WireTime | None


class RunMetricsPage(Shape):
    """`total_runs` counts all runs that match the filter, on all pages."""

    csv_rows: ClassVar[str] = "runs"

    total_runs: int
    runs: list[RunMetricsAnswer]
    next_cursor: str | None = None


class TierMetricsAnswer(Shape):
    """One tier's figures; `phase_states` counts its phases and names every state."""

    tier_id: str
    tier_index: int
    name: str
    state: TierStatus
    cleanliness: Cleanliness
    cleanliness_reasons: list[str]
    phase_count: int
    phase_states: dict[PhaseStatus, int]
    token_cap: int
    tokens_used: int
    tokens_measured: MeasuredTokens
    cost_usd: Usd
    token_utilization: float
    ci_run_cap: int
    ci_runs_count: int
    ci_run_utilization: float
    minors_tolerated: int
    minor_issues_count: int
    majors_tolerated: int
    major_issues_count: int
    issue_state: IssueState
    builder_attempts_used: int
    auditor_attempts_used: int
    started_at: WireTime | None
    ended_at: WireTime | None


class TierMetricsListAnswer(Shape):
    csv_rows: ClassVar[str] = "tiers"

    run_id: str
    tier_count: int
    tiers: list[TierMetricsAnswer]


class PhaseMetricsAnswer(Shape):
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
    tokens_measured: MeasuredTokens
    cost_usd: Usd
    token_utilization: float
    max_builder_attempts: int
    builder_attempts_used: int
    max_auditor_attempts: int
    auditor_attempts_used: int
    minor_issues_count: int
    major_issues_count: int
    issue_state: IssueState
    commit: str | None
    snapshot_tag: str | None
    started_at: WireTime | None
    ended_at: WireTime | None
