"""Answers about runs, tiers and phases."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from ..domain.issues import IssueState
from ..domain.order import WaitCause
from ..domain.promotion import PromotionState
from ..domain.retention import Details
from ..domain.run import CompletedBy, DebtStatus, FailureCode
from ..domain.states import Cleanliness, PhaseStatus, RunStatus, TierStatus
from ..domain.terms import (
    CiProfile,
    Complexity,
    EvidenceKind,
    Independence,
    Role,
    RunScope,
    SafetyProfile,
    Sandbox,
    Verdict,
)
from ..domain.values import Usd
from . import MeasuredTokens, Shape, WireTime
from .dependencies import DependencyAnswer
from .issues import PhaseIssue
from .results import (
    AttemptAnswer,
    AttemptDetail,
    CiRunAnswer,
    EvidenceAnswer,
    NextStep,
    SegmentAnswer,
)


class PhaseAnswer(Shape):
    phase_id: str
    tier_id: str
    phase_index: int
    name: str
    description: str | None
    state: PhaseStatus
    task_category: str
    complexity: Complexity
    builder_mode: str | None
    allow_empty: bool
    allowed_paths: list[str] | None
    depends_on: Annotated[
        list[str] | None,
        Field(description="Which phases must have ended before; null: all before it."),
    ]
    expected_issues: list[str]
    issue_key: Annotated[str | None, Field(description="The aged issue that it cleans up.")]
    ci_profile: CiProfile
    auto_apply: bool
    auditor_profile: str | None
    independence: Independence
    approvals_needed: Annotated[int, Field(description="How many Auditors must approve it.")]
    max_builder_attempts: int
    builder_attempts_used: int
    max_auditor_attempts: int
    auditor_attempts_used: int
    incident_token_cap: int
    tokens_used: int
    tokens_measured: MeasuredTokens
    cost_usd: Usd
    minor_issues_count: int
    major_issues_count: int
    issue_state: IssueState
    dependencies: Annotated[
        list[DependencyAnswer], Field(description="New and changed ones, on the branch.")
    ]
    pending_dependencies: Annotated[
        list[DependencyAnswer], Field(description="Those of the pending patch.")
    ]
    verdict: Verdict | None
    sandbox: Sandbox | None
    evidence_required: Annotated[
        list[EvidenceKind], Field(description="What a green verdict must rest on.")
    ]
    evidence: Annotated[list[EvidenceAnswer], Field(description="What the last verdict rests on.")]
    completed_by: CompletedBy | None
    built_by: Annotated[str | None, Field(description="Who sent the last Builder's result.")]
    reviewed_by: Annotated[str | None, Field(description="Who sent the last review.")]
    approved_by: Annotated[list[str], Field(description="Who approved what it has now.")]
    judged_by: Annotated[str | None, Field(description="Who posted the last verdict of CI.")]
    failure_reason: str | None
    start_commit: str | None
    commit: str | None
    snapshot_tag: str | None
    deadline_at: WireTime | None
    unavailable_reason: str | None
    retry_at: WireTime | None
    retry_account: str | None
    started_at: WireTime | None
    ended_at: WireTime | None


class PhaseDetail(PhaseAnswer):
    """A phase in the files of a run; attempts and issues only for phases that are written."""

    tier_index: int
    attempts: list[AttemptDetail]
    issues: list[PhaseIssue]


class LeaseState(Shape):
    """An agent at work, as others may see it: without the lease's token.

    `heartbeat_at` is null before the first heartbeat, `tokens_reported` is what the last one said.
    """

    phase_id: str
    tier_id: str
    role: Role
    agent: str
    actor: Annotated[str | None, Field(description="Who claimed it; null for older leases.")]
    account: str | None
    fence: int
    heartbeat_at: WireTime | None
    expires_at: WireTime
    tokens_reserved: int
    tokens_reported: int
    cost_reserved_usd: Usd
    cost_reported_usd: Usd


class PhaseReport(Shape):
    """A phase with all that happened in it; attempts and CI runs are in order, oldest first."""

    run_id: str
    run_state: RunStatus
    phase: PhaseAnswer
    lease: LeaseState | None
    segments: list[SegmentAnswer]
    attempts: list[AttemptAnswer]
    ci_command: Annotated[str | None, Field(description="Null where CI is elsewhere, or off.")]
    ci_runs: list[CiRunAnswer]
    issues: list[PhaseIssue]


class TierSummary(Shape):
    """A tier without its phases."""

    tier_id: str
    tier_index: int
    name: str
    description: str | None
    state: TierStatus
    cleanliness: Cleanliness
    cleanliness_reasons: list[str]
    token_cap: int
    tokens_used: int
    tokens_measured: MeasuredTokens
    cost_usd: Usd
    ci_run_cap: int
    ci_runs_count: int
    minors_tolerated: int
    majors_tolerated: int
    minor_issues_count: int
    major_issues_count: int
    issue_state: IssueState


class TierAnswer(TierSummary):
    phases: list[PhaseAnswer]


class TierDetail(TierSummary):
    phases: list[PhaseDetail]


class RunSummaryAnswer(Shape):
    """A run without its tiers."""

    id: Annotated[str, Field(validation_alias="run_id")]
    run_id: str
    project_id: str
    state: RunStatus
    safety_profile: SafetyProfile
    run_scope: RunScope
    started_by: str | None
    created_at: WireTime
    updated_at: WireTime
    deadline_at: WireTime
    ended_at: WireTime | None
    token_cap: int
    tokens_used: int
    tokens_measured: MeasuredTokens
    cost_cap_usd: Usd | None
    cost_usd: Usd
    max_phases: int
    max_duration_minutes: int
    max_minor_issues_total: int
    minor_issues_count: int
    major_issues_count: int
    debt_status: DebtStatus
    promotion: PromotionState
    promotion_eligible_to_main: bool
    promotion_reasons: list[str]
    failure_code: FailureCode | None
    failure_reason: str | None
    warnings: list[str]
    base_branch: str
    base_commit: str
    base_problem: Annotated[
        str | None, Field(description="Why CI does not run on the base commit; null: none known.")
    ]
    continues: str | None
    rebases: str | None
    branch: str
    head_commit: str
    last_snapshot: str | None
    strategy_version: int
    details: Annotated[
        Details,
        Field(description="Whether patches, logs and events are here, or retention removed them."),
    ]
    details_removed_at: WireTime | None
    imported_at: Annotated[
        WireTime | None, Field(description="When it came from another service; it never changes.")
    ]
    imported_by: str | None
    revision: int


class PhaseMark(Shape):
    phase_id: str
    state: PhaseStatus


class TierMarks(Shape):
    """A tier with the states of its phases, in their order."""

    tier_id: str
    name: str
    state: TierStatus
    cleanliness: Cleanliness
    phases: list[PhaseMark]


class CurrentPhase(Shape):
    """The phase that a run is about: the first under way, else the first that is queued."""

    phase_id: str
    tier_id: str
    name: str
    state: PhaseStatus


class ListedRun(RunSummaryAnswer):
    """A run in a list: its progress, without the details of its phases.

    `commits_ahead` are the branch's commits that the base branch does not have, `commits_behind`
    the base branch's since the run started; null where git cannot tell.
    """

    tokens_reserved: int
    cost_reserved_usd: Usd
    phases_total: int
    phases_complete: int
    builder_attempts_used: int
    tiers: list[TierMarks]
    current_phase: CurrentPhase | None
    next: NextStep
    leases: list[LeaseState]
    commits_ahead: int | None
    commits_behind: int | None


class PhaseWaitAnswer(Shape):
    """A queued phase waits until another one has ended: by the plan's order, or for its paths."""

    phase_id: str
    waits_for: str
    cause: WaitCause


class RunAnswer(RunSummaryAnswer):
    """A run with its tiers and phases; `leases` are the agents at work.

    A queued phase that is not among `waits` may start now.
    """

    tokens_reserved: int
    cost_reserved_usd: Usd
    next: NextStep
    leases: list[LeaseState]
    is_parallel: Annotated[bool, Field(description="Whether phases may be side by side.")]
    waits: list[PhaseWaitAnswer]
    tiers: list[TierAnswer]

    @property
    def phases(self) -> list[PhaseAnswer]:
        """The phases of all tiers, in order."""
        return [phase for tier in self.tiers for phase in tier.phases]


class RunDetail(RunSummaryAnswer):
    """A run in its files.

    `head_commit` is the last commit of the work. It cannot be the commit of the run's record, which
    contains the files that are made from this shape.
    """

    continued_commit: str | None
    rebased_commit: str | None
    promotion_warnings: list[str]
    is_rolled_back: bool
    is_sandbox_required: bool
    dependencies_need_review: bool
    is_parallel: bool
    tiers: list[TierDetail]

    @property
    def phases(self) -> list[PhaseDetail]:
        """The phases of all tiers, in order."""
        return [phase for tier in self.tiers for phase in tier.phases]


class RunPage(Shape):
    csv_rows: ClassVar[str] = "runs"

    runs: list[ListedRun]
    next_cursor: str | None = None


class StatusAnswer(Shape):
    message: str
    phase: PhaseAnswer
