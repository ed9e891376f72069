"""Runs, tiers and phases."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal

from sqlalchemy import ForeignKey, Index, UniqueConstraint, text
from sqlalchemy.orm import Mapped, mapped_column, relationship

from ..domain.attention import ClosedAs
from ..domain.issues import IssueState, issue_state
from ..domain.naming import branch_name
from ..domain.promotion import PromotionState, promotion_state
from ..domain.retention import Details
from ..domain.run import CompletedBy, DebtStatus, FailureCode
from ..domain.states import Cleanliness, PhaseStatus, RunStatus, TierStatus
from ..domain.terms import (
    CiProfile,
    Complexity,
    Independence,
    Role,
    RunScope,
    SafetyProfile,
    Sandbox,
    Verdict,
)
from .base import Base, Cost, Id, Json, guarded, not_negative, one_of


class Run(Base):
    __tablename__ = "runs"

    id: Mapped[Id]
    project_id: Mapped[str]
    run_id: Mapped[str]
    state: Mapped[RunStatus]
    safety_profile: Mapped[SafetyProfile]
    run_scope: Mapped[RunScope]

    plan: Mapped[Json] = mapped_column(deferred=True)
    plan_sha256: Mapped[str]
    started_by: Mapped[str | None]  # unknown of older runs
    strategy: Mapped[Json] = mapped_column(deferred=True)
    strategy_version: Mapped[int]

    token_cap: Mapped[int]
    cost_cap_usd: Mapped[Decimal | None]
    max_phases: Mapped[int]
    max_duration_minutes: Mapped[int]
    max_minor_issues_total: Mapped[int]
    attempt_minutes: Mapped[int]
    audit_minutes: Mapped[int]
    minor_cap_ends_run: Mapped[bool]
    any_failure_stops: Mapped[bool]
    high_risk_needs_review: Mapped[bool]
    is_sandbox_required: Mapped[bool] = mapped_column(default=False)
    dependencies_need_review: Mapped[bool] = mapped_column(
        default=False, server_default=text("false")
    )
    is_parallel: Mapped[bool] = mapped_column(default=False, server_default=text("false"))
    cleanup_after_runs: Mapped[int]
    cleanup_after_tiers: Mapped[int]
    major_categories: Mapped[Json]
    protected_paths: Mapped[Json]
    portable_names: Mapped[bool] = mapped_column(default=True)

    tokens_used: Mapped[int] = mapped_column(default=0)
    tokens_measured: Mapped[int] = mapped_column(default=0, server_default=text("0"))
    tokens_reserved: Mapped[int] = mapped_column(default=0)
    cost_usd: Mapped[Cost]
    cost_reserved_usd: Mapped[Cost]
    minor_issues_count: Mapped[int] = mapped_column(default=0)
    major_issues_count: Mapped[int] = mapped_column(default=0)
    debt_status: Mapped[DebtStatus] = mapped_column(default=DebtStatus.CLEAN)
    failure_code: Mapped[FailureCode | None]
    failure_reason: Mapped[str | None]
    promotion_eligible_to_main: Mapped[bool] = mapped_column(default=False)
    promotion_reasons: Mapped[Json] = mapped_column(default=list)
    promotion_warnings: Mapped[Json] = mapped_column(default=list)
    warnings: Mapped[Json] = mapped_column(default=list)
    is_rolled_back: Mapped[bool] = mapped_column(default=False)
    base_problem: Mapped[str | None]

    base_branch: Mapped[str]
    base_commit: Mapped[str]
    # The failed run that this one continues, and the commit of its record. Then `base_commit` is on
    # that run's branch, and `trunk_commit` where the first run of the chain left the base branch.
    continues: Mapped[str | None]
    continued_commit: Mapped[str | None]
    trunk_commit: Mapped[str | None]
    # The run whose commits this one makes again on a newer base, and the commit of its record.
    rebases: Mapped[str | None]
    rebased_commit: Mapped[str | None]
    head_commit: Mapped[str]
    # The last commit of the work: only the commit of the run's record comes after it.
    work_commit: Mapped[str]
    last_snapshot: Mapped[str | None]
    # The signatures of the statement in its record, as the file has them; None without a statement.
    statement_signatures: Mapped[Json] = mapped_column(nullable=True)

    # `revision` counts the changes of the run; branch and files of the node `mirrored_by`, which
    # made the last change, show the state at `mirrored_revision`. For other nodes: `node_runs`.
    revision: Mapped[int] = mapped_column(default=1)
    mirrored_revision: Mapped[int] = mapped_column(default=0)
    mirrored_by: Mapped[str | None]
    event_sequence: Mapped[int] = mapped_column(default=0)
    event_hash: Mapped[str]

    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]
    deadline_at: Mapped[datetime]
    ended_at: Mapped[datetime | None]
    # Whether its figures are added to those of their days.
    is_counted: Mapped[bool] = mapped_column(default=False, server_default=text("false"))
    # Since when a run that is over needs no person any more, by whom, and why.
    closed_at: Mapped[datetime | None]
    closed_by: Mapped[str | None]
    closed_as: Mapped[ClosedAs | None]
    # When and by whom a run of another service was put here, to be read alone.
    imported_at: Mapped[datetime | None]
    imported_by: Mapped[str | None]
    # Since when the run has only its record, its sums and what its summary shows. (rules §10)
    details_removed_at: Mapped[datetime | None]

    tiers: Mapped[list[Tier]] = relationship(
        back_populates="run", order_by="Tier.tier_index", lazy="raise"
    )
    phases: Mapped[list[Phase]] = relationship(
        back_populates="run", order_by="Phase.tier_index, Phase.phase_index", lazy="raise"
    )

    @property
    def details(self) -> Details:
        return Details.KEPT if self.details_removed_at is None else Details.REMOVED

    @property
    def branch(self) -> str:
        return branch_name(self.run_id)

    @property
    def has_record(self) -> bool:
        """Whether the branch ends with the commit of the run's record."""
        return self.head_commit != self.work_commit

    @property
    def promotion(self) -> PromotionState:
        return promotion_state(self.state, is_eligible=self.promotion_eligible_to_main)

    @property
    def trunk(self) -> str:
        """The commit of the base branch on which the run's branch stands."""
        return self.trunk_commit or self.base_commit

    __table_args__ = (
        Index("uq_runs_run_id_lower", text("lower(run_id)"), unique=True),
        Index("ix_runs_created_at_id", "created_at", "id"),
        Index("ix_runs_state_created_at_id", "state", "created_at", "id"),
        Index("ix_runs_project_id_created_at_id", "project_id", "created_at", "id"),
        Index("ix_runs_lagging", "id", postgresql_where=text("mirrored_revision < revision")),
        Index("ix_runs_live_deadline_at", "deadline_at", postgresql_where=text("ended_at IS NULL")),
        Index("ix_runs_uncounted_ended_at", "ended_at", postgresql_where=text("NOT is_counted")),
        Index("ix_runs_ended_at", "ended_at", postgresql_where=text("ended_at IS NOT NULL")),
        Index(
            "ix_runs_detailed_ended_at",
            "ended_at",
            "id",
            postgresql_where=text("ended_at IS NOT NULL AND details_removed_at IS NULL"),
        ),
        Index("ix_runs_continues", "continues", postgresql_where=text("continues IS NOT NULL")),
        Index("ix_runs_rebases", "rebases", postgresql_where=text("rebases IS NOT NULL")),
        Index(
            "ix_runs_unclosed_ended_at",
            "ended_at",
            postgresql_where=text(
                "ended_at IS NOT NULL AND closed_at IS NULL"
                " AND failure_code IS DISTINCT FROM 'cancelled'"
            ),
        ),
        Index(
            "ix_runs_eligible_created_at_id",
            "created_at",
            "id",
            postgresql_where=text("promotion_eligible_to_main"),
        ),
        guarded(
            one_of("state", RunStatus),
            one_of("safety_profile", SafetyProfile),
            one_of("run_scope", RunScope),
            one_of("debt_status", DebtStatus),
            one_of("failure_code", FailureCode),
            one_of("closed_as", ClosedAs),
            *not_negative(
                "token_cap",
                "tokens_used",
                "tokens_reserved",
                "minor_issues_count",
                "major_issues_count",
                "mirrored_revision",
                "event_sequence",
            ),
        ),
    )


class HasIssues:
    """Columns for counts of open issues, and the issue state that follows from them. (rules §7)"""

    minor_issues_count: Mapped[int] = mapped_column(default=0)
    major_issues_count: Mapped[int] = mapped_column(default=0)

    @property
    def issue_state(self) -> IssueState:
        return issue_state(self.minor_issues_count, self.major_issues_count)


class Tier(HasIssues, Base):
    __tablename__ = "tiers"

    id: Mapped[Id]
    run_pk: Mapped[int] = mapped_column(ForeignKey("runs.id", ondelete="CASCADE"))
    tier_id: Mapped[str]
    tier_index: Mapped[int]
    name: Mapped[str]
    description: Mapped[str | None]
    state: Mapped[TierStatus]
    cleanliness: Mapped[Cleanliness] = mapped_column(default=Cleanliness.CLEAN)
    cleanliness_reasons: Mapped[Json] = mapped_column(default=list)
    token_cap: Mapped[int]
    ci_run_cap: Mapped[int]
    minors_tolerated: Mapped[int]
    majors_tolerated: Mapped[int]
    tokens_used: Mapped[int] = mapped_column(default=0)
    tokens_measured: Mapped[int] = mapped_column(default=0, server_default=text("0"))
    cost_usd: Mapped[Cost]
    ci_runs_count: Mapped[int] = mapped_column(default=0)

    run: Mapped[Run] = relationship(back_populates="tiers", lazy="raise")
    phases: Mapped[list[Phase]] = relationship(
        back_populates="tier", order_by="Phase.phase_index", lazy="raise"
    )

    __table_args__ = (
        UniqueConstraint("run_pk", "tier_id"),
        UniqueConstraint("run_pk", "tier_index"),
        guarded(
            one_of("state", TierStatus),
            one_of("cleanliness", Cleanliness),
            *not_negative(
                "tokens_used", "ci_runs_count", "minor_issues_count", "major_issues_count"
            ),
        ),
    )


class Phase(HasIssues, Base):
    __tablename__ = "phases"

    id: Mapped[Id]
    run_pk: Mapped[int] = mapped_column(ForeignKey("runs.id", ondelete="CASCADE"))
    tier_pk: Mapped[int] = mapped_column(ForeignKey("tiers.id", ondelete="CASCADE"), index=True)
    phase_id: Mapped[str]
    tier_id: Mapped[str]
    tier_index: Mapped[int]
    phase_index: Mapped[int]
    name: Mapped[str]
    description: Mapped[str | None]
    state: Mapped[PhaseStatus]

    task_category: Mapped[str]
    complexity: Mapped[Complexity]
    builder_mode: Mapped[str | None]
    allow_empty: Mapped[bool]
    allowed_paths: Mapped[Json] = mapped_column(nullable=True)
    depends_on: Mapped[Json] = mapped_column(nullable=True)
    expected_issues: Mapped[Json]
    issue_key: Mapped[str | None]

    ci_profile: Mapped[CiProfile]
    has_ci: Mapped[bool]
    ci_timeout_seconds: Mapped[int]
    max_builder_attempts: Mapped[int]
    max_auditor_attempts: Mapped[int]
    incident_token_cap: Mapped[int]
    auto_apply: Mapped[bool]
    is_high_risk: Mapped[bool]
    independence: Mapped[Independence] = mapped_column(
        default=Independence.NONE, server_default=text("'none'")
    )
    approvals_needed: Mapped[int] = mapped_column(default=1, server_default=text("1"))
    auditor_profile: Mapped[str | None]
    max_patch_files: Mapped[int | None]
    opened_paths: Mapped[Json]

    builder_attempts_used: Mapped[int] = mapped_column(default=0)
    auditor_attempts_used: Mapped[int] = mapped_column(default=0)
    is_builder_spent: Mapped[bool] = mapped_column(default=False)
    is_review_requested: Mapped[bool] = mapped_column(default=False)
    tokens_used: Mapped[int] = mapped_column(default=0)
    tokens_measured: Mapped[int] = mapped_column(default=0, server_default=text("0"))
    cost_usd: Mapped[Cost]

    fence: Mapped[int] = mapped_column(default=0)
    lease_id: Mapped[int | None] = mapped_column(ForeignKey("leases.id", use_alter=True))
    lease_role: Mapped[Role | None]
    tokens_reserved: Mapped[int] = mapped_column(default=0)
    tokens_reported: Mapped[int] = mapped_column(default=0)
    cost_reserved_usd: Mapped[Cost]
    cost_reported_usd: Mapped[Cost]
    # Why the last agent could not work, and until when the phase waits for that account's limit.
    unavailable_reason: Mapped[str | None]
    retry_at: Mapped[datetime | None]
    retry_account: Mapped[str | None]
    deadline_at: Mapped[datetime | None]
    start_commit: Mapped[str | None]
    commit: Mapped[str | None]
    # The head when the latest attempt started; the commit that its own on the branch follow, none
    # without any there; the place of its last one among those of all phases.
    attempt_commit: Mapped[str | None]
    before_commit: Mapped[str | None]
    branch_place: Mapped[int] = mapped_column(default=0, server_default=text("0"))
    is_conflict_forgiven: Mapped[bool] = mapped_column(default=False, server_default=text("false"))
    snapshot_tag: Mapped[str | None]
    snapshot_oid: Mapped[str | None]
    snapshot_commit: Mapped[str | None]
    snapshot_signature: Mapped[str | None]
    pending_submission_id: Mapped[int | None] = mapped_column(
        ForeignKey("submissions.id", use_alter=True)
    )
    dependencies: Mapped[Json] = mapped_column(default=list, server_default=text("'[]'"))
    pending_dependencies: Mapped[Json] = mapped_column(default=list, server_default=text("'[]'"))
    approved_dependencies: Mapped[Json] = mapped_column(default=list, server_default=text("'[]'"))
    verdict: Mapped[Verdict | None]
    sandbox: Mapped[Sandbox | None]
    completed_by: Mapped[CompletedBy | None]
    # The actors of the last result, review and verdict; none: unknown, or the service itself.
    built_by: Mapped[str | None]
    reviewed_by: Mapped[str | None]
    judged_by: Mapped[str | None]
    built_with: Mapped[str | None]
    evidence_required: Mapped[Json] = mapped_column(default=list, server_default=text("'[]'"))
    evidence: Mapped[Json] = mapped_column(default=list, server_default=text("'[]'"))
    # Of every Builder whose patch is on the branch; who approved what the phase has now.
    builders: Mapped[Json] = mapped_column(default=list, server_default=text("'[]'"))
    builder_models: Mapped[Json] = mapped_column(default=list, server_default=text("'[]'"))
    approved_by: Mapped[Json] = mapped_column(default=list, server_default=text("'[]'"))
    failure_signatures: Mapped[Json] = mapped_column(default=list)
    failure_reason: Mapped[str | None]
    started_at: Mapped[datetime | None]
    ended_at: Mapped[datetime | None]

    run: Mapped[Run] = relationship(back_populates="phases", lazy="raise")
    tier: Mapped[Tier] = relationship(back_populates="phases", lazy="raise")

    __table_args__ = (
        UniqueConstraint("run_pk", "phase_id"),
        UniqueConstraint("tier_pk", "phase_index"),
        Index(
            "ix_phases_waiting_deadline_at",
            "deadline_at",
            postgresql_where=text("deadline_at IS NOT NULL"),
        ),
        Index("ix_phases_issue_key", "issue_key", postgresql_where=text("issue_key IS NOT NULL")),
        guarded(
            one_of("state", PhaseStatus),
            one_of("complexity", Complexity),
            one_of("ci_profile", CiProfile),
            one_of("verdict", Verdict),
            one_of("sandbox", Sandbox),
            one_of("completed_by", CompletedBy),
            one_of("independence", Independence),
            one_of("lease_role", Role),
            *not_negative(
                "builder_attempts_used",
                "auditor_attempts_used",
                "tokens_used",
                "fence",
                "minor_issues_count",
                "major_issues_count",
            ),
        ),
    )
