"""What the files, and people, are told of a run: plain values, read off the tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from datetime import datetime
from decimal import Decimal
from functools import cache
from operator import attrgetter
from typing import Any, TypeVar

from .issues import BacklogStatus, IssueState, IssueStatus
from .outcomes import CommitKind, Outcome
from .run import CompletedBy, DebtStatus, FailureCode
from .states import Cleanliness, PhaseStatus, RunStatus, TierStatus
from .terms import CiProfile, Complexity, Role, RunScope, SafetyProfile, Sandbox, Verdict

Value = TypeVar("Value")


def read_off(kind: type[Value], row: object, **given: Any) -> Value:
    """Make a dataclass from the attributes of the same names of a row, and from `given`.

    JSON lists become tuples.
    """
    names, read = _reader(kind, tuple(given))  # type: ignore[arg-type]  # a class is hashable
    values = dict(zip(names, read(row), strict=True))
    for name, value in values.items():
        if type(value) is list:
            values[name] = tuple(value)
    return kind(**values, **given)


@cache
def _reader(
    kind: type[Any], given: tuple[str, ...]
) -> tuple[tuple[str, ...], Callable[[object], tuple[Any, ...]]]:
    """Return which attributes are read, and a function that reads them all at once."""
    names = tuple(field.name for field in fields(kind) if field.name not in given)
    return names, attrgetter(*names)


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptReport:
    """One submission of a Builder or an Auditor."""

    id: int
    role: Role
    attempt: int
    agent: str | None
    model: str | None
    status: str
    outcome: Outcome
    reason: str | None
    tokens_used: int
    input_tokens: int | None
    output_tokens: int | None
    cached_tokens: int | None
    cost_usd: Decimal | None
    price: Mapping[str, Any] | None
    account: str | None
    retry_at: datetime | None
    base_commit: str
    commits: tuple[str, ...]
    files_changed: tuple[str, ...]
    notes: str | None
    log_tail: str | None
    ticket: Mapping[str, Any] | None
    created_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class IssueReportEntry:
    """One key in one phase."""

    issue_key: str
    category: str
    severity: str
    effective_severity: str
    source: str
    task_category: str
    complexity: Complexity
    is_expected: bool
    status: IssueStatus
    occurrence_count: int
    first_seen_run: str
    last_seen_run: str
    first_seen_at: datetime
    last_seen_at: datetime
    evidence_refs: tuple[str, ...]
    description: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseReport:
    phase_id: str
    tier_id: str
    tier_index: int
    phase_index: int
    name: str
    description: str | None
    state: PhaseStatus
    task_category: str
    complexity: Complexity
    builder_mode: str | None
    ci_profile: CiProfile
    auto_apply: bool
    allow_empty: bool
    allowed_paths: tuple[str, ...] | None
    expected_issues: tuple[str, ...]
    issue_key: str | None
    auditor_profile: str | None
    max_builder_attempts: int
    max_auditor_attempts: int
    builder_attempts_used: int
    auditor_attempts_used: int
    incident_token_cap: int
    tokens_used: int
    cost_usd: Decimal
    unavailable_reason: str | None
    retry_at: datetime | None
    retry_account: str | None
    start_commit: str | None
    commit: str | None
    snapshot_tag: str | None
    minor_issues_count: int
    major_issues_count: int
    issue_state: IssueState
    verdict: Verdict | None
    sandbox: Sandbox | None
    completed_by: CompletedBy | None
    failure_reason: str | None
    deadline_at: datetime | None
    started_at: datetime | None
    ended_at: datetime | None
    attempts: tuple[AttemptReport, ...] = ()
    issues: tuple[IssueReportEntry, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class TierReport:
    tier_id: str
    tier_index: int
    name: str
    description: str | None
    state: TierStatus
    cleanliness: Cleanliness
    cleanliness_reasons: tuple[str, ...]
    token_cap: int
    tokens_used: int
    cost_usd: Decimal
    ci_run_cap: int
    ci_runs_count: int
    minors_tolerated: int
    majors_tolerated: int
    minor_issues_count: int
    major_issues_count: int
    phases: tuple[PhaseReport, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunReport:
    """A run as a whole. Phases carry attempts and issues only where they were asked for.

    `head_commit` is the last commit of the work: the commit of the run's record holds what is made
    of this, and cannot name itself.
    """

    run_id: str
    project_id: str
    state: RunStatus
    safety_profile: SafetyProfile
    run_scope: RunScope
    strategy_version: int
    token_cap: int
    tokens_used: int
    cost_cap_usd: Decimal | None
    cost_usd: Decimal
    max_phases: int
    max_duration_minutes: int
    max_minor_issues_total: int
    minor_issues_count: int
    major_issues_count: int
    debt_status: DebtStatus
    failure_code: FailureCode | None
    failure_reason: str | None
    promotion_eligible_to_main: bool
    promotion_reasons: tuple[str, ...]
    promotion_warnings: tuple[str, ...]
    is_rolled_back: bool
    is_sandbox_required: bool
    base_branch: str
    base_commit: str
    branch: str
    head_commit: str
    last_snapshot: str | None
    revision: int
    created_at: datetime
    updated_at: datetime
    deadline_at: datetime
    ended_at: datetime | None
    tiers: tuple[TierReport, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitReport:
    """One value of the run's branch, and the patch that it came of."""

    sha: str
    tree: str
    parent: str
    kind: CommitKind
    phase_id: str | None
    patch_sha256: str | None
    is_merged: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class CiRunReport:
    """One judgement of one commit by CI."""

    commit_sha: str
    profile: CiProfile
    attempt: int
    verdict: Verdict | None
    sandbox: Sandbox | None
    is_flaky: bool
    tests: Mapping[str, Any] | None
    url: str | None
    reason: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexEntry:
    """One key over all phases of a run."""

    category: str
    severity: str
    effective_severity: str
    status: IssueStatus
    first_phase_index: int
    last_phase_index: int
    occurrence_count: int
    tiers: tuple[str, ...]
    phases: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunIndex:
    run_id: str
    issues_by_key: Mapping[str, IndexEntry]


@dataclass(frozen=True, slots=True, kw_only=True)
class BacklogReportEntry:
    """One key over all runs of the project."""

    issue_key: str
    category: str
    base_severity: str
    status: BacklogStatus
    age_in_runs: int
    age_in_tiers: int
    total_occurrences: int
    first_seen_run: str
    last_seen_run: str
    last_seen_at: datetime
    tiers: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlaceReport:
    """A phase in which a key of the backlog was seen, with its run."""

    run_id: str
    run_state: RunStatus
    tier_id: str
    phase_id: str
    phase_state: PhaseStatus
    status: IssueStatus
    severity: str
    effective_severity: str
    source: str
    occurrence_count: int
    first_seen_at: datetime
    last_seen_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class BacklogIssueReport(BacklogReportEntry):
    """A backlog's entry with what was last said of it, and the newest places that saw it."""

    needs_cleanup_at: datetime | None
    resolved_at: datetime | None
    description: str | None
    evidence_refs: tuple[str, ...]
    places: tuple[PlaceReport, ...]
