"""Issues as they are answered."""

from __future__ import annotations

from ..domain.issues import BacklogStatus, IssueStatus
from ..domain.states import PhaseStatus, RunStatus
from ..domain.terms import Severity
from . import Shape, WireTime


class IndexEntryAnswer(Shape):
    category: str
    severity: Severity
    effective_severity: Severity
    status: IssueStatus
    first_phase_index: int
    last_phase_index: int
    occurrence_count: int
    tiers: list[str]
    phases: list[str]


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


class PlaceAnswer(Shape):
    """A phase that saw the issue; `status` and the severities are the issue's there."""

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


class BacklogIssueAnswer(BacklogEntryAnswer):
    """`places` are the twenty phases, at most, that saw it last, newest first.

    `description` and `evidence_refs` are those of the newest place that has any.
    """

    needs_cleanup_at: WireTime | None
    resolved_at: WireTime | None
    description: str | None
    evidence_refs: list[str]
    places: list[PlaceAnswer]


class RecordIssueAnswer(Shape):
    message: str
    phase_file: str
    run_index_entry: IndexEntryAnswer
    project_backlog_entry: BacklogEntryAnswer | None


class IssueIndexAnswer(Shape):
    run_id: str
    issues_by_key: dict[str, IndexEntryAnswer]


class BacklogAnswer(Shape):
    project_id: str
    issues_by_key: dict[str, BacklogEntryAnswer]
    next_cursor: str | None = None
