"""The incident pack: what a person needs to understand a failed run. (rules §2.3)"""

from __future__ import annotations

from ..domain.run import FailureCode
from ..domain.states import PhaseStatus, RunStatus
from ..domain.terms import Severity
from ..domain.values import Usd
from . import Shape, WireTime
from .results import AttemptDetail


class IncidentBudget(Shape):
    """A cap and the figure reached; a cap may be reached, not passed."""

    name: str
    cap: int | Usd
    used: int | Usd
    is_passed: bool


class TroubledPhase(Shape):
    """A phase that failed, or was active when the run ended."""

    phase_id: str
    tier_id: str
    name: str
    state: PhaseStatus
    failure_reason: str | None
    attempts_count: int
    last_attempts: list[AttemptDetail]


class IncidentIssue(Shape):
    """An issue that is open in a phase; `severity` is the effective one."""

    issue_key: str
    phase_id: str
    severity: Severity
    source: str
    occurrence_count: int
    description: str | None


class IncidentPack(Shape):
    run_id: str
    revision: int
    state: RunStatus
    failure_code: FailureCode
    failure_reason: str
    ended_at: WireTime
    branch: str
    base_branch: str
    base_commit: str
    head_commit: str
    last_snapshot: str | None
    phases: list[TroubledPhase]
    budgets: list[IncidentBudget]
    open_issues: list[IncidentIssue]
    next_steps: list[str]
