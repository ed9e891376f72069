"""Answers with reports."""

from __future__ import annotations

from typing import ClassVar

from ..domain.event_text import EventOutcome
from ..domain.issues import BacklogStatus
from ..domain.run import FailureCode
from ..domain.run_issues import IssueCounts, OpenIssue
from ..domain.terms import Role, Severity
from ..domain.values import Usd
from . import Shape, WireTime
from .issues import BacklogEntryAnswer
from .metrics import BudgetAnswer, PhaseMetricsAnswer, TierMetricsAnswer
from .promotion import PromotionVerdictAnswer
from .runs import RunSummaryAnswer


class BacklogCountsAnswer(Shape):
    """Distinct keys by status; `minor` and `major` are those that are not resolved."""

    total: int
    open: int
    needs_cleanup: int
    resolved: int
    minor: int
    major: int


class AgingIssueAnswer(BacklogEntryAnswer):
    needs_cleanup_at: WireTime | None


class BacklogSummaryAnswer(Shape):
    """`needs_cleanup` is a page, oldest first; `by_category` has the largest hundred."""

    project_id: str
    total_issues: int
    totals_by_status: dict[BacklogStatus, int]
    unresolved_by_severity: dict[Severity, int]
    by_category: dict[str, BacklogCountsAnswer]
    top_aging_issues: list[AgingIssueAnswer]
    needs_cleanup: list[AgingIssueAnswer]
    next_cursor: str | None = None


class TierSpenderAnswer(Shape):
    """`share` is of all tokens that the run used."""

    tier_id: str
    tokens_used: int
    share: float


class SliceSpenderAnswer(Shape):
    """A slice is `task_category:complexity`; `share` is of all tokens that the run used."""

    slice: str
    tokens_used: int
    share: float


class AuditorHelpAnswer(Shape):
    """`phases_reviewed`: those that used an Auditor try; `helped`: one of them was completed.

    `helped` is null where no Auditor try was used.
    """

    helped: bool | None
    phases_reviewed: int
    phases_completed: int
    attempts_used: int
    tokens_used: int


class BudgetFailureAnswer(Shape):
    """`broken_budget` is the one that ended the run, with its cap and the figure reached."""

    run_id: str
    project_id: str
    failure_code: FailureCode | None
    failure_reason: str | None
    broken_budget: BudgetAnswer | None
    token_cap: int
    tokens_used: int
    cost_cap_usd: Usd | None
    cost_usd: Usd
    token_utilization: float
    phase_count: int
    phases_complete: int
    top_tiers: list[TierSpenderAnswer]
    top_slices: list[SliceSpenderAnswer]
    auditor: AuditorHelpAnswer
    created_at: WireTime
    ended_at: WireTime | None


class BudgetTotals(Shape):
    """Over all runs that a budget ended."""

    total_budget_failures: int
    average_token_utilization: float
    failures_by_budget: dict[FailureCode, int]


class BudgetAnalysisAnswer(BudgetTotals):
    """The first three are over all budget failures, `failures` is a page, newest first."""

    csv_rows: ClassVar[str] = "failures"

    failures: list[BudgetFailureAnswer]
    next_cursor: str | None = None


class IssueSummaryAnswer(Shape):
    """`open_issues` are the fifty most severe; the run's issue index has all."""

    totals: IssueCounts
    by_category: dict[str, IssueCounts]
    open_issues: list[OpenIssue]


class AttemptCountsAnswer(Shape):
    count: int
    tokens_used: int
    cost_usd: Usd
    outcomes: dict[str, int]


class CiCountsAnswer(Shape):
    ci_runs_count: int
    green: int
    red: int
    did_not_run: int
    under_way: int
    flaky: int


class MoveAnswer(Shape):
    """An event that changed a state."""

    sequence: int
    at: WireTime
    actor: str
    kind: str
    tier_id: str | None
    phase_id: str | None
    from_state: str | None
    to_state: str | None
    reason: str | None
    sentence: str
    outcome: EventOutcome


class RunReportAnswer(Shape):
    """A run at one moment. `timeline`: the last 500 changes of state of `event_count` events."""

    run_id: str
    run: RunSummaryAnswer
    duration_minutes: float
    budgets: list[BudgetAnswer]
    issues: IssueSummaryAnswer
    tiers: list[TierMetricsAnswer]
    phases: list[PhaseMetricsAnswer]
    attempts: dict[Role, AttemptCountsAnswer]
    ci: CiCountsAnswer
    event_count: int
    timeline: list[MoveAnswer]
    promotion: PromotionVerdictAnswer
