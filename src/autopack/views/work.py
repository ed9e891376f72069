"""Answers about work items and heartbeats."""

from __future__ import annotations

from typing import Annotated, Any, Final

from pydantic import Field

from ..domain.claiming import Directive
from ..domain.outcomes import Outcome
from ..domain.states import PhaseStatus
from ..domain.terms import CiProfile, Complexity, EvidenceKind, Role
from ..domain.values import Usd
from . import Shape, WireTime
from .dependencies import DependencyAnswer
from .issues import PlaceAnswer

# The header of a claim's 204 that says which review waits for another Auditor, and why.
WAITS_HEADER: Final = "Autopack-Waits"


class LeaseAnswer(Shape):
    """Send `token` with the result and with each heartbeat; keep it secret."""

    token: str
    fence: int
    expires_at: WireTime
    tokens_reserved: int
    cost_reserved_usd: Usd


class TaskAnswer(Shape):
    name: str
    description: str | None
    task_category: str
    complexity: Complexity
    builder_mode: str | None
    allow_empty: bool
    allowed_paths: list[str] | None
    expected_issues: list[str]
    issue_key: str | None


class RepositoryAnswer(Shape):
    path: str
    remote: str | None
    branch: str
    base_commit: str


class LeftAnswer(Shape):
    builder_attempts: int
    auditor_attempts: int
    phase_tokens: int
    tier_tokens: int
    run_tokens: int
    run_cost_usd: Usd | None
    minutes: int


class GateAnswer(Shape):
    auto_apply: bool
    protected_paths: list[str]
    opened_paths: list[str]
    max_patch_bytes: int
    max_patch_files: int
    ci_profile: CiProfile
    ci_command: str | None
    # A service of an earlier version says nothing of these two.
    evidence: Annotated[
        list[EvidenceKind],
        Field(description="What CI measures beside the command on the commit."),
    ] = Field(default_factory=list)
    must_fail_before: Annotated[
        bool, Field(description="Whether a test must fail without the change.")
    ] = False


class PastAttemptAnswer(Shape):
    """An earlier attempt; `ticket` says how a refused patch can be repaired.

    `run_id` is the failed run that this one continues, if the attempt was there.
    """

    run_id: str | None = None
    role: Role
    attempt: int
    agent: str | None
    outcome: Outcome
    reason: str | None
    notes: str | None
    log_tail: str | None
    ticket: dict[str, Any] | None
    commits: list[str]


class OpenIssueAnswer(Shape):
    issue_key: str
    category: str
    effective_severity: str
    source: str
    occurrence_count: int
    evidence_refs: list[str]
    description: str | None


class DebtAnswer(Shape):
    """The aged issue that a cleanup phase is for, with the evidence of where it was seen.

    It closes by a check that failed before and passes now: one of `red_checks`, or a test that the
    phase adds or changes, where CI measures whether it fails on the code before.
    """

    issue_key: str
    description: str | None
    evidence_refs: list[str]
    red_checks: list[str]
    places: list[PlaceAnswer]


class ReviewAnswer(Shape):
    """What an Auditor reviews: the pending patch, or all commits of the phase on the branch.

    `dependencies` are those that it adds or changes.
    """

    audit_id: int | None
    review_focus: str | None
    auditor_profile: str | None
    is_pending: bool
    approvals_needed: int
    approved_by: list[str]
    dependencies: list[DependencyAnswer]
    patch_content: str | None
    patch_content_base64: str | None
    notes: str | None
    probe_results: list[dict[str, Any]]


class ModelPrice(Shape):
    """USD per million tokens of each kind; `cached` null: the price of `input`."""

    input: Usd
    cached: Usd | None = None
    output: Usd


class WorkItemAnswer(Shape):
    """Everything that an agent needs; `lease` is null if nothing was claimed.

    `unavailable_messages`: by agent, what it prints when it cannot work. `prices`: by model, those
    of the run's ruleset.
    """

    role: Role
    run_id: str
    tier_id: str
    phase_id: str
    lease: LeaseAnswer | None
    task: TaskAnswer
    repository: RepositoryAnswer
    left: LeftAnswer
    gate: GateAnswer
    history: list[PastAttemptAnswer]
    open_issues: list[OpenIssueAnswer]
    aged_issues: list[str]
    debt: DebtAnswer | None = None
    review: ReviewAnswer | None
    unavailable_messages: dict[str, list[str]]
    prices: dict[str, ModelPrice]


class ReleaseAnswer(Shape):
    """`retry_at`: until when the phase waits; null: any agent may claim it now."""

    message: str
    phase_state: PhaseStatus
    retry_at: WireTime | None


class HeartbeatAnswer(Shape):
    directive: Directive
    reason: str
    expires_at: WireTime | None
