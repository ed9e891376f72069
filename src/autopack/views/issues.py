"""Answers about issues."""

from __future__ import annotations

from typing import ClassVar

from ..domain.debt import LifeKind
from ..domain.issues import BacklogStatus, IssueStatus
from ..domain.run_issues import IndexEntry
from ..domain.states import PhaseStatus, RunStatus
from ..domain.terms import Complexity, Severity, Verdict
from . import Shape, WireTime


class PhaseIssue(Shape):
    """One key in one phase."""

    issue_key: str
    category: str
    severity: Severity
    effective_severity: Severity
    source: str
    task_category: str
    complexity: Complexity
    is_expected: bool
    status: IssueStatus
    occurrence_count: int
    first_seen_run: str
    last_seen_run: str
    first_seen_at: WireTime
    last_seen_at: WireTime
    evidence_refs: list[str]
    description: str | None


class BacklogEntryAnswer(Shape):
    issue_key: str
    category: str
    base_severity: Severity
    status: BacklogStatus
    age_in_runs: int
    age_in_tiers: int
    total_occurrences: int
    first_seen_run: str
    last_seen_run: str
    last_seen_at: WireTime
    tiers: list[str]


class BacklogItem(BacklogEntryAnswer):
    """A key in the list of the backlog; `effective_severity` is what it counts as in a new run.

    `description` and `evidence_refs` are the latest that were given.
    """

    effective_severity: Severity
    needs_cleanup_at: WireTime | None
    resolved_at: WireTime | None
    description: str | None
    evidence_refs: list[str]


class CleanupThresholds(Shape):
    """A minor issue seen in so many runs, or in so many tiers, needs cleanup.

    They are those of the default safety profile; a run of another profile has its own.
    """

    after_runs: int
    after_tiers: int


class PlaceAnswer(Shape):
    """A phase that reported the issue; `status` and the severities are the issue's there."""

    run_id: str
    run_state: RunStatus
    tier_id: str
    phase_id: str
    phase_state: PhaseStatus
    status: IssueStatus
    severity: Severity
    effective_severity: Severity
    source: str
    occurrence_count: int
    first_seen_at: WireTime
    last_seen_at: WireTime


class CleanupAnswer(Shape):
    """A phase that was to clean the issue up."""

    run_id: str
    run_state: RunStatus
    phase_id: str
    phase_state: PhaseStatus
    verdict: Verdict | None
    started_at: WireTime | None
    ended_at: WireTime | None


class LifeAnswer(Shape):
    """What happened to the issue; `checks` are those that closed it.

    Times, runs and actors that were not kept are null.
    """

    kind: LifeKind
    at: WireTime
    run_id: str | None
    phase_id: str | None
    actor: str | None
    checks: list[str]
    reason: str | None


class BacklogIssueAnswer(BacklogItem):
    """`places` are the last phases that reported it, at most twenty, newest first.

    `red_checks` are checks that CI named red there, and that its reports name: one of them that
    passes closes it. `cleanups` and `life` are the newest first, at most twenty and fifty.
    """

    thresholds: CleanupThresholds
    places: list[PlaceAnswer]
    red_checks: list[str]
    cleanups: list[CleanupAnswer]
    life: list[LifeAnswer]


class RecordIssueAnswer(Shape):
    message: str
    phase_file: str
    run_index_entry: IndexEntry
    project_backlog_entry: BacklogEntryAnswer | None


class IssueIndexAnswer(Shape):
    run_id: str
    issues_by_key: dict[str, IndexEntry]


class BacklogAnswer(Shape):
    csv_rows: ClassVar[str] = "issues_by_key"

    project_id: str
    thresholds: CleanupThresholds
    issues_by_key: dict[str, BacklogItem]
    next_cursor: str | None = None
