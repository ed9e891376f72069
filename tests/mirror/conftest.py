"""Runs to mirror, made of few words."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from autopack.domain.issues import BacklogStatus, IssueState, IssueStatus
from autopack.domain.money import ZERO_USD
from autopack.domain.outcomes import Outcome
from autopack.domain.promotion import PromotionState
from autopack.domain.retention import Details
from autopack.domain.run import DebtStatus
from autopack.domain.states import Cleanliness, PhaseStatus, RunStatus, TierStatus
from autopack.domain.terms import (
    CiProfile,
    Complexity,
    Independence,
    Role,
    RunScope,
    SafetyProfile,
    Sandbox,
    Severity,
)
from autopack.mirror import Mirror
from autopack.views.issues import BacklogEntryAnswer, PhaseIssue
from autopack.views.results import AttemptDetail
from autopack.views.runs import PhaseDetail, RunDetail, TierDetail

NOON = datetime(2025, 3, 1, 12, 0, tzinfo=UTC)
SHA = "0123456789abcdef0123456789abcdef01234567"

MakeRun = Callable[..., RunDetail]
MakePhase = Callable[..., PhaseDetail]


@pytest.fixture
def mirror(tmp_path: Path) -> Mirror:
    mirror = Mirror(tmp_path / "runs")
    mirror.prepare()
    return mirror


@pytest.fixture
def a_phase() -> MakePhase:
    return make_phase


@pytest.fixture
def a_run() -> MakeRun:
    return make_run


@pytest.fixture
def an_attempt() -> Callable[..., AttemptDetail]:
    return make_attempt


@pytest.fixture
def an_issue() -> Callable[..., PhaseIssue]:
    return make_issue


@pytest.fixture
def a_backlog_entry() -> Callable[..., BacklogEntryAnswer]:
    return make_backlog_entry


def make_run(phases: list[PhaseDetail] | None = None, **changes: Any) -> RunDetail:
    """Make a run; its tiers follow from the phases given."""
    phases = [make_phase()] if phases is None else phases
    tiers: dict[int, list[PhaseDetail]] = {}
    for phase in phases:
        tiers.setdefault(phase.tier_index, []).append(phase)
    run = RunDetail(
        id="run-001",
        run_id="run-001",
        project_id="Autopack",
        state=RunStatus.PHASE_QUEUEING,
        safety_profile=SafetyProfile.NORMAL,
        run_scope=RunScope.INCREMENTAL,
        started_by="local:operator@host-1",
        strategy_version=1,
        details=Details.KEPT,
        details_removed_at=None,
        imported_at=None,
        imported_by=None,
        token_cap=5_000_000,
        tokens_used=0,
        tokens_measured=0,
        cost_cap_usd=None,
        cost_usd=ZERO_USD,
        max_phases=25,
        max_duration_minutes=120,
        max_minor_issues_total=3 * len(phases),
        minor_issues_count=0,
        major_issues_count=0,
        debt_status=DebtStatus.CLEAN,
        failure_code=None,
        failure_reason=None,
        promotion=PromotionState.UNDECIDED,
        promotion_eligible_to_main=False,
        promotion_reasons=[],
        promotion_warnings=[],
        warnings=[],
        is_rolled_back=False,
        dependencies_need_review=False,
        base_problem=None,
        is_parallel=False,
        is_sandbox_required=False,
        continues=None,
        rebases=None,
        continued_commit=None,
        rebased_commit=None,
        base_branch="main",
        base_commit=SHA,
        branch="autonomous/run-001",
        head_commit=SHA,
        last_snapshot=None,
        revision=1,
        created_at=NOON,
        updated_at=NOON,
        deadline_at=NOON + timedelta(hours=2),
        ended_at=None,
        tiers=[make_tier(index, tiers[index]) for index in sorted(tiers)],
    )
    return run.model_copy(update=changes)


def make_tier(index: int, phases: list[PhaseDetail]) -> TierDetail:
    return TierDetail(
        tier_id=phases[0].tier_id,
        tier_index=index,
        name="Foundations",
        description=None,
        state=TierStatus.IN_PROGRESS,
        cleanliness=Cleanliness.CLEAN,
        cleanliness_reasons=[],
        token_cap=1_500_000,
        tokens_used=0,
        tokens_measured=0,
        cost_usd=ZERO_USD,
        ci_run_cap=2,
        ci_runs_count=0,
        minors_tolerated=2,
        majors_tolerated=0,
        minor_issues_count=0,
        major_issues_count=0,
        phases=phases,
        issue_state=IssueState.NO_ISSUES,
    )


def make_phase(
    phase_id: str = "P1.1", tier: int = 0, index: int = 0, **changes: Any
) -> PhaseDetail:
    phase = PhaseDetail(
        phase_id=phase_id,
        tier_id=f"T{tier + 1}",
        tier_index=tier,
        phase_index=index,
        name="Lay the ground",
        description=None,
        state=PhaseStatus.QUEUED,
        task_category="feature_scaffolding",
        complexity=Complexity.MEDIUM,
        builder_mode=None,
        ci_profile=CiProfile.NORMAL,
        auto_apply=True,
        allow_empty=False,
        allowed_paths=None,
        depends_on=None,
        expected_issues=[],
        auditor_profile=None,
        max_builder_attempts=3,
        max_auditor_attempts=2,
        builder_attempts_used=0,
        auditor_attempts_used=0,
        incident_token_cap=500_000,
        tokens_used=0,
        tokens_measured=0,
        cost_usd=ZERO_USD,
        unavailable_reason=None,
        retry_at=None,
        retry_account=None,
        start_commit=None,
        commit=None,
        snapshot_tag=None,
        minor_issues_count=0,
        major_issues_count=0,
        issue_state=IssueState.NO_ISSUES,
        issue_key=None,
        dependencies=[],
        pending_dependencies=[],
        verdict=None,
        sandbox=Sandbox.BUBBLEWRAP,
        completed_by=None,
        independence=Independence.NONE,
        built_by=None,
        reviewed_by=None,
        approvals_needed=1,
        approved_by=[],
        evidence_required=[],
        evidence=[],
        judged_by=None,
        failure_reason=None,
        deadline_at=None,
        started_at=None,
        ended_at=None,
        attempts=[],
        issues=[],
    )
    return phase.model_copy(update=changes)


def make_attempt(**changes: Any) -> AttemptDetail:
    attempt = AttemptDetail(
        id=1,
        role=Role.BUILDER,
        attempt=1,
        agent="codex@host-3",
        actor="local:codex@host-3",
        model=None,
        status="success",
        outcome=Outcome.APPLIED,
        reason=None,
        tokens_used=12_000,
        input_tokens=None,
        output_tokens=None,
        cached_tokens=None,
        reasoning_tokens=None,
        is_measured=False,
        cost_usd=None,
        price=None,
        account=None,
        retry_at=None,
        base_commit=SHA,
        commits=["feedc0de" * 5],
        files_changed=["src/app.py"],
        notes=None,
        log_tail=None,
        ticket=None,
        created_at=NOON,
    )
    return attempt.model_copy(update=changes)


def make_issue(**changes: Any) -> PhaseIssue:
    issue = PhaseIssue(
        issue_key="flaky_login_test",
        category="test_failure",
        severity=Severity.MINOR,
        effective_severity=Severity.MINOR,
        source="test",
        task_category="feature_scaffolding",
        complexity=Complexity.MEDIUM,
        is_expected=False,
        status=IssueStatus.OPEN,
        occurrence_count=2,
        first_seen_run="run-000",
        last_seen_run="run-001",
        first_seen_at=NOON,
        last_seen_at=NOON,
        evidence_refs=["tests/test_login.py:12"],
        description="Sometimes it fails.",
    )
    return issue.model_copy(update=changes)


def make_backlog_entry(issue_key: str = "flaky_login_test", **changes: Any) -> BacklogEntryAnswer:
    entry = BacklogEntryAnswer(
        issue_key=issue_key,
        category="test_failure",
        base_severity=Severity.MINOR,
        status=BacklogStatus.OPEN,
        age_in_runs=1,
        age_in_tiers=1,
        total_occurrences=1,
        first_seen_run="run-001",
        last_seen_run="run-001",
        last_seen_at=NOON,
        tiers=["T1"],
    )
    return entry.model_copy(update=changes)
