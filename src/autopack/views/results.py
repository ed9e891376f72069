"""Answers to results of agents."""

from __future__ import annotations

import datetime
from typing import Annotated, Any, ClassVar

from pydantic import Field

from ..domain.evidence import evidence_text
from ..domain.next_step import NextAction
from ..domain.outcomes import Outcome, PatchOutcome
from ..domain.results import MEASURED_MEANING
from ..domain.segments import SegmentKind
from ..domain.states import PhaseStatus, RunStatus
from ..domain.terms import (
    CiProfile,
    EvidenceKind,
    EvidenceResult,
    Recommendation,
    Role,
    Sandbox,
    Severity,
    Verdict,
)
from ..domain.values import Usd
from . import Shape, WireTime
from .branches import RepairAnswer


class NextStep(Shape):
    """What the run waits for now, or what to do after its end.

    `agent` holds the phase's lease. `until`: when the wait ends by itself. `will_fail`: the run
    goes on, but a failed phase lets it only end as failed.
    """

    action: NextAction
    phase_id: str | None
    detail: str
    # Answers of earlier versions, which are returned again, do not have these.
    agent: str | None = None
    until: WireTime | None = None
    will_fail: bool = False


class BuilderResultAnswer(Shape):
    message: str
    submission_id: int
    commit_sha: str | None
    repairs: tuple[RepairAnswer, ...] = ()
    phase_state: PhaseStatus
    run_state: RunStatus
    next: NextStep


class AuditRequestAnswer(Shape):
    message: str
    audit_id: int
    review_focus: str | None
    auditor_profile: str | None


class PatchRepairAnswer(RepairAnswer):
    """`patch` is the place in `suggested_patches`, from 0; null: the patch under review."""

    patch: int | None


class AuditorResultAnswer(Shape):
    message: str
    recommendation: Recommendation
    patches_applied: int
    commit_shas: list[str]
    repairs: tuple[PatchRepairAnswer, ...] = ()
    phase_state: PhaseStatus


class CiResultAnswer(Shape):
    """`verdict` is the one that counts: a green run of zero tests is red."""

    message: str
    ci_run_id: int
    verdict: Verdict
    phase_state: PhaseStatus
    run_state: RunStatus


class CiCounts(Shape):
    total: int
    passed: int
    failed: int
    skipped: int


class EvidenceAnswer(Shape):
    """What CI measured beside the command on the commit. (docs/evidence.md)

    `tree` and `base_tree`: what it was measured on, and what that is compared with. `checks` are
    the first names of those that matter, `checks_count` is how many there are.
    """

    kind: EvidenceKind
    result: EvidenceResult
    reason: str
    command: str | None
    tree: str | None
    base_tree: str | None
    counts: dict[str, int]
    checks: list[str]
    checks_count: int

    @property
    def text(self) -> str:
        """What was measured and found, in one line."""
        return evidence_text(self.kind, self.result, self.reason)


class CiRunAnswer(Shape):
    """One CI run on one commit; `verdict` and `ended_at` are null while it runs.

    `command` is what the service runs; null where CI is elsewhere.
    """

    id: int
    phase_id: str
    commit_sha: str
    profile: CiProfile
    command: str | None
    attempt: int
    verdict: Verdict | None
    flaky: bool
    reason: str | None
    tests: CiCounts | None
    failing_checks: list[str]
    evidence: list[EvidenceAnswer]
    sandbox: Sandbox | None
    url: str | None
    log: str | None
    requested_at: WireTime
    started_at: WireTime | None
    ended_at: WireTime | None


class CiRunsAnswer(Shape):
    run_id: str
    ci_runs: list[CiRunAnswer]


class PriceAnswer(Shape):
    """The ruleset's price that made a cost: USD per million tokens of each kind, as of a date."""

    # In the order in which Postgres stores a price, which the files of a run have too.
    date: datetime.date
    input: Usd
    model: str
    cached: Usd | None
    output: Usd


class SubmittedAttempt(Shape):
    """One submission. `cost_usd` is null if it is not known; `log_tail` is its last output."""

    id: int
    role: Role
    attempt: int
    agent: str | None
    actor: Annotated[str | None, Field(description="Who sent it; null for older submissions.")]
    model: str | None
    status: str
    outcome: Outcome
    reason: str | None
    tokens_used: int
    input_tokens: int | None
    output_tokens: int | None
    cached_tokens: int | None
    reasoning_tokens: int | None
    is_measured: Annotated[bool, Field(description=MEASURED_MEANING)]
    cost_usd: Usd | None
    price: PriceAnswer | None
    account: str | None
    retry_at: WireTime | None
    base_commit: str
    commits: list[str]
    files_changed: list[str]
    notes: str | None
    log_tail: str | None
    created_at: WireTime


class AttemptDetail(SubmittedAttempt):
    """An attempt in the files of a run; `ticket` says how a refused patch can be repaired."""

    ticket: dict[str, Any] | None
    # Not in the files, whose earlier versions did not have it.
    confidence: Annotated[str | None, Field(exclude=True)] = None


class AttemptPatch(Shape):
    """A patch of an attempt, on the branch or not; `content` is where to read it."""

    id: int
    sha256: str
    status: PatchOutcome
    description: str | None
    files_changed: list[str]
    size_bytes: Annotated[int | None, Field(description="Null: the bytes were removed.")]
    content: str


class AttemptIssue(Shape):
    issue_key: str
    category: str
    severity: Annotated[Severity, Field(description="What it counts as.")]


class AttemptAnswer(AttemptDetail):
    """One submission, with all that is known of it.

    `started_at` is when the agent began. Where that is not known, as of a result without a
    claim, it is the result's own time.
    """

    started_at: WireTime
    duration_seconds: float
    confidence: Annotated[str | None, Field(description="Of an Auditor: low, medium or high.")]
    issues_found: list[AttemptIssue]
    issues_resolved: list[str]
    patches: list[AttemptPatch]


class SegmentAnswer(Shape):
    """A part of a phase's time; `ended_at` is null while it lasts.

    `role` is who works or is waited for, null: CI. `outcome` is what came of it, among them
    `lapsed` and `unavailable`; then `tokens` and `cost_usd` are what the agent had reported.
    """

    kind: SegmentKind
    role: Role | None
    agent: str | None
    started_at: WireTime
    ended_at: WireTime | None
    outcome: str | None
    submission_id: int | None
    ci_run_id: int | None
    tokens: int | None
    cost_usd: Usd | None


class PhaseTimeline(Shape):
    phase_id: str
    tier_id: str
    segments: list[SegmentAnswer]


class TimelineAnswer(Shape):
    """How the time of each phase was spent, in the order in which phases run."""

    run_id: str
    phases: list[PhaseTimeline]


class AttemptsAnswer(Shape):
    csv_rows: ClassVar[str] = "attempts"

    run_id: str
    phase_id: str
    attempts: list[AttemptAnswer]
