"""The incident pack: what a person needs who has to look after a failed run. (rules §2)"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal

from .issues import IssueStatus
from .reports import AttemptReport, IssueReportEntry, PhaseReport, RunReport
from .run import FailureCode
from .states import PhaseStatus, RunStatus
from .terms import Severity

LAST_ATTEMPTS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """A cap and the figure reached; a cap may be reached, not passed."""

    name: str
    cap: int | Decimal
    used: int | Decimal
    is_passed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class TroubledPhase:
    """A phase that failed, or was under way when the run ended."""

    phase_id: str
    tier_id: str
    name: str
    state: PhaseStatus
    failure_reason: str | None
    attempts_count: int
    last_attempts: tuple[AttemptReport, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenIssue:
    issue_key: str
    phase_id: str
    severity: str
    source: str
    occurrence_count: int
    description: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class IncidentPack:
    run_id: str
    revision: int
    state: RunStatus
    failure_code: FailureCode
    failure_reason: str
    ended_at: datetime
    branch: str
    base_branch: str
    base_commit: str
    head_commit: str
    last_snapshot: str | None
    phases: tuple[TroubledPhase, ...]
    budgets: tuple[Budget, ...]
    open_issues: tuple[OpenIssue, ...]
    next_steps: tuple[str, ...]


def incident_pack(run: RunReport) -> IncidentPack | None:
    """Gather what a failed run leaves behind; None for any other run.

    The report has to carry the attempts and issues of all its phases.
    """
    if run.failure_code is None or run.failure_reason is None or run.ended_at is None:
        return None
    phases = [phase for tier in run.tiers for phase in tier.phases]
    return IncidentPack(
        run_id=run.run_id,
        revision=run.revision,
        state=run.state,
        failure_code=run.failure_code,
        failure_reason=run.failure_reason,
        ended_at=run.ended_at,
        branch=run.branch,
        base_branch=run.base_branch,
        base_commit=run.base_commit,
        head_commit=run.head_commit,
        last_snapshot=run.last_snapshot,
        phases=tuple(_troubled(phase) for phase in phases if _is_troubled(phase)),
        budgets=_budgets(run),
        open_issues=tuple(
            _open_issue(phase, issue)
            for phase in phases
            for issue in sorted(phase.issues, key=_gravest_first)
            if issue.status is IssueStatus.OPEN and not issue.is_expected
        ),
        next_steps=_next_steps(run),
    )


def _is_troubled(phase: PhaseReport) -> bool:
    was_under_way = phase.state is PhaseStatus.SKIPPED and phase.started_at is not None
    return phase.state is PhaseStatus.FAILED or was_under_way


def _troubled(phase: PhaseReport) -> TroubledPhase:
    return TroubledPhase(
        phase_id=phase.phase_id,
        tier_id=phase.tier_id,
        name=phase.name,
        state=phase.state,
        failure_reason=phase.failure_reason,
        attempts_count=len(phase.attempts),
        last_attempts=phase.attempts[-LAST_ATTEMPTS:],
    )


def _gravest_first(issue: IssueReportEntry) -> tuple[bool, str]:
    return issue.effective_severity != Severity.MAJOR, issue.issue_key


def _open_issue(phase: PhaseReport, issue: IssueReportEntry) -> OpenIssue:
    return OpenIssue(
        issue_key=issue.issue_key,
        phase_id=phase.phase_id,
        severity=issue.effective_severity,
        source=issue.source,
        occurrence_count=issue.occurrence_count,
        description=issue.description,
    )


def _budgets(run: RunReport) -> tuple[Budget, ...]:
    """Every budget of the run and its tiers, and those of phases that were used up."""
    minutes = int(((run.ended_at or run.updated_at) - run.created_at).total_seconds() // 60)
    rows: list[tuple[str, int, int]] = [
        ("run token_cap", run.token_cap, run.tokens_used),
        ("run max_minor_issues_total", run.max_minor_issues_total, run.minor_issues_count),
    ]
    for tier in run.tiers:
        rows.append((f"tier {tier.tier_id} token_cap", tier.token_cap, tier.tokens_used))
        rows.append((f"tier {tier.tier_id} ci_run_cap", tier.ci_run_cap, tier.ci_runs_count))
        for phase in tier.phases:
            name = f"phase {phase.phase_id}"
            rows.append((f"{name} incident_token_cap", phase.incident_token_cap, phase.tokens_used))
    duration = Budget(
        name="run max_duration_minutes",
        cap=run.max_duration_minutes,
        used=minutes,
        is_passed=run.failure_code is FailureCode.DURATION_CAP,
    )
    budgets = [
        Budget(name=name, cap=cap, used=used, is_passed=used > cap) for name, cap, used in rows
    ]
    cost = (
        []
        if run.cost_cap_usd is None
        else [
            Budget(
                name="run cost_cap_usd",
                cap=run.cost_cap_usd,
                used=run.cost_usd,
                is_passed=run.cost_usd > run.cost_cap_usd,
            )
        ]
    )
    return tuple(
        budget
        for budget in (budgets[0], *cost, duration, *budgets[1:])
        if budget.is_passed or not budget.name.startswith("phase ")
    )


def _next_steps(run: RunReport) -> tuple[str, ...]:
    steps = {
        FailureCode.TOKEN_CAP: "Raise run.token_cap in the ruleset or the plan, or split the plan.",
        FailureCode.COST_CAP: "Raise run.cost_cap_usd in the ruleset or the plan, or "
        "split the plan.",
        FailureCode.DURATION_CAP: "Raise run.max_duration_minutes, or split the plan.",
        FailureCode.MINOR_ISSUE_CAP: "Resolve the open minor issues, or raise "
        "run.minor_issues_per_phase in the ruleset.",
        FailureCode.BRANCH_MOVED: f"Find out who moved {run.branch}; this run left it at "
        f"{run.head_commit} and will not touch it again.",
        FailureCode.CI_DID_NOT_RUN: "Make the CI command run again; the branch was not judged.",
        FailureCode.AGENTS_UNAVAILABLE: "Give the agents capacity again (quota, login, program), "
        "or name a second one: autopack work --fallback.",
        FailureCode.CANCELLED: "Nothing, unless what is on the branch should be kept.",
        FailureCode.PHASE_FAILED: "Read the last attempts below, then change the phase's task, "
        "its category or its budgets.",
        FailureCode.TIER_NOT_CLEAN: "Resolve what makes the tier unclean, or change what it "
        "tolerates in the ruleset.",
        FailureCode.MAJOR_ISSUE: "Resolve the open major issues; a safety_critical run takes none.",
    }
    assert run.failure_code is not None  # noqa: S101 - for the type checker: asked by the caller
    keep = (
        f"What was completed stands on {run.branch}, last snapshot {run.last_snapshot}."
        if run.last_snapshot
        else f"Nothing was completed on {run.branch}."
    )
    return (steps[run.failure_code], keep, "Start a new run under another run_id.")
