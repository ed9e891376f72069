"""Runs on their way, driven decision by decision as the services drive them, without any of I/O."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

from autopack.domain import (
    building,
    claiming,
    consequences,
    deadlines,
    deciding,
    issue_rules,
    judging,
    operating,
    reviewing,
)
from autopack.domain.building import BuilderResult, PatchAction
from autopack.domain.deciding import Undone
from autopack.domain.decision import Decision
from autopack.domain.events import SUPERVISOR, Event, IssueResolved
from autopack.domain.evidence import Evidence
from autopack.domain.evolve import fold
from autopack.domain.issue_rules import IssueSeen, IssuesSeen
from autopack.domain.judging import CiVerdict
from autopack.domain.money import ZERO_USD
from autopack.domain.order import after_it, to_undo
from autopack.domain.patches import AppliedPatch, PendingPatch, RefusedPatch
from autopack.domain.reviewing import RefusedReview, Review
from autopack.domain.run import FailureCode, PhaseState, RunState, TierState
from autopack.domain.sightings import Cause
from autopack.domain.states import PhaseStatus, RunStatus, TierStatus
from autopack.domain.terms import (
    BuilderStatus,
    CiProfile,
    Recommendation,
    Role,
    RunScope,
    Severity,
    Verdict,
)

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)

PHASE: Mapping[str, Any] = {
    "state": PhaseStatus.QUEUED,
    "ci_profile": CiProfile.NORMAL,
    "has_ci": False,
    "ci_timeout_seconds": 1_800,
    "max_builder_attempts": 3,
    "max_auditor_attempts": 2,
    "incident_token_cap": 1_000,
    "auto_apply": True,
    "is_high_risk": False,
    "allow_empty": False,
}
RUN: Mapping[str, Any] = {
    "run_id": "run-1",
    "state": RunStatus.RUN_CREATED,
    "run_scope": RunScope.INCREMENTAL,
    "token_cap": 10_000,
    "max_duration_minutes": 120,
    "attempt_minutes": 60,
    "audit_minutes": 60,
    "minor_cap_ends_run": False,
    "any_failure_stops": False,
    "high_risk_needs_review": False,
    "head_commit": "0" * 40,
}


@dataclass
class Drive:
    """A run, the time, and what happened: each call is one decision, concluded before the next."""

    run: RunState
    now: datetime = NOON
    events: list[Event] = field(default_factory=list)
    commits: int = 0
    submissions: int = 0

    def phase(self, phase_id: str) -> PhaseState:
        return next(phase for phase in self.run.phases if phase.phase_id == phase_id)

    def tier(self, tier_id: str) -> TierState:
        return next(tier for tier in self.run.tiers if tier.tier_id == tier_id)

    def decide(self, step: Callable[[Decision], object], actor: str = SUPERVISOR) -> RunState:
        """Take one decision and conclude it; an exception leaves everything as it was."""
        before = self.run
        decision = Decision(before, self.now, actor)
        step(decision)
        if before.is_parallel:
            self._undo(decision, before)
        consequences.conclude(decision, before)
        assert fold(before, decision.events) == decision.state, "the events make the state"
        self.run = decision.state
        self.events += decision.events
        return self.run

    def _undo(self, decision: Decision, before: RunState) -> None:
        """Take commits off the branch as the service does; every patch applies again."""
        for phase in to_undo(before, decision.state):
            now = decision.phase(phase.phase_id)
            if decision.state.is_over and not now.state.is_final:
                continue
            if now.before_commit is None:
                continue
            again = [
                (other.phase_id, self._commit(self.submissions))
                for other in after_it(decision.state, now)
            ]
            self.commits += 1
            undone = Undone(
                phase_id=phase.phase_id,
                commit=f"{self.commits:040x}",
                tree=f"tree-{self.commits}",
                again=tuple(again),
            )
            decided = deciding.decide(decision.state, undone, self.now)
            decision.state = decided.state
            decision.events += decided.events

    def start_phase(self, phase_id: str) -> PhaseState:
        self.decide(lambda decision: building.open_attempt(decision, phase_id))
        return self.phase(phase_id)

    def build(
        self,
        phase_id: str = "P1",
        status: BuilderStatus = BuilderStatus.SUCCESS,
        *,
        tokens: int = 0,
        cost: Decimal = ZERO_USD,
        has_patch: bool = True,
        patch: str | None = None,
        conflict: str | None = None,
        minors: int = 0,
        actor: str = SUPERVISOR,
        model: str | None = None,
    ) -> PhaseState:
        """Post a Builder's result; `patch` names the patch, `conflict` one that git refuses.

        `minors` is how many minor issues the result suggests.
        """

        def step(decision: Decision) -> None:
            submission_id = self.submissions + 1
            result = BuilderResult(
                phase_id=phase_id,
                submission_id=submission_id,
                attempt=submission_id,
                status=status,
                tokens=tokens,
                cost=cost,
                patch_sha256=(patch or conflict or f"{submission_id}") if has_patch else None,
                model=model,
                issues=tuple(minor_issue(f"seen-{number}") for number in range(minors)),
            )
            action = building.weigh_result(Decision(decision.state, decision.now, actor), result)
            self.submissions = submission_id
            if action is PatchAction.NOTHING:
                building.accept_result(decision, result)
            elif conflict is not None:
                refused = RefusedPatch("it conflicts")
                building.accept_result(decision, replace(result, patch=refused))
            elif action is PatchAction.APPLY:
                applied = self._commit(submission_id)
                building.accept_result(decision, replace(result, patch=applied))
            else:
                building.accept_result(decision, replace(result, patch=PendingPatch()))

        self.decide(step, actor)
        return self.phase(phase_id)

    def fail(self, phase_id: str = "P1") -> PhaseState:
        return self.build(phase_id, BuilderStatus.FAILED, has_patch=False)

    def review(
        self,
        recommendation: str,
        phase_id: str = "P1",
        *,
        tokens: int = 0,
        own_patches: int = 0,
        pending_applies: bool = True,
        own_apply: bool = True,
        actor: str = SUPERVISOR,
        model: str | None = None,
    ) -> PhaseState:
        """Post an Auditor's result."""

        def step(decision: Decision) -> None:
            phase = decision.phase(phase_id)
            pending = phase.pending_submission_id if recommendation == "approve" else None
            is_pending = pending is not None
            submission_id = self.submissions + 1
            review = Review(
                phase_id=phase_id,
                submission_id=submission_id,
                attempt=submission_id,
                recommendation=Recommendation(recommendation),
                tokens=tokens,
                notes="hopeless" if recommendation == "escalate" else "do it again",
                model=model,
                patch_sha256s=tuple(f"{number}" for number in range(own_patches)),
            )
            weighed = reviewing.weigh_review(Decision(decision.state, decision.now, actor), review)
            self.submissions = submission_id
            patches: tuple[AppliedPatch, ...] | RefusedReview | None = None
            if weighed.is_wanted and is_pending and not pending_applies:
                patches = RefusedReview("it no longer applies", is_pending=True)
            elif weighed.is_wanted and not own_apply:
                patches = RefusedReview("the fix-up conflicts", is_pending=False)
            elif weighed.is_wanted:
                senders = [pending] if pending is not None else []
                senders += [submission_id] * own_patches
                patches = tuple(map(self._commit, senders))
            reviewing.accept_review(decision, replace(review, patches=patches))

        self.decide(step, actor)
        return self.phase(phase_id)

    def set_status(self, wanted: PhaseStatus, phase_id: str = "P1") -> PhaseState:
        given = operating.StatusByHand(phase_id=phase_id, wanted=wanted)
        self.decide(lambda decision: operating.set_status(decision, given))
        return self.phase(phase_id)

    def cancel(self, reason: str = "") -> RunState:
        given = operating.Cancel(reason)
        return self.decide(lambda decision: operating.cancel(decision, given))

    def end_failed(self, code: FailureCode, reason: str) -> RunState:
        return self.decide(lambda decision: consequences.end_failed(decision, code, reason))

    def claim(
        self, role: Role = Role.BUILDER, seconds: int = 900, account: str | None = None
    ) -> PhaseState | None:
        """Claim as the service does; the phase that was given, None when there is none."""
        asked = claiming.WorkAsked(role, account)
        if not self.run.is_over:
            self.decide(lambda decision: claiming.ask_for_work(decision, asked))
        found = claiming.find_claimable(self.run, asked, self.now)
        if found is None:
            return None
        claimed = claiming.PhaseClaim(
            phase_id=found.phase.phase_id,
            role=role,
            agent="codex",
            lease_id=1 + sum(event.kind == "LeaseGranted" for event in self.events),
            account=account,
            deadline_at=claiming.lease_end(self.run, self.now, seconds),
        )
        self.decide(lambda decision: claiming.accept_claim(decision, claimed))
        return self.phase(claimed.phase_id)

    def ask_for_review(self, phase_id: str = "P1") -> RunState:
        wish = reviewing.ReviewWish(phase_id)
        return self.decide(lambda decision: reviewing.ask_for_review(decision, wish))

    def count_issues(self, phase_id: str = "P1", *, minors: int = 0, majors: int = 0) -> RunState:
        """Report and resolve issues until these are the open ones of the phase."""

        def step(decision: Decision) -> None:
            wanted = [*(minor_issue(f"minor-{number}") for number in range(minors))]
            wanted += [major_issue(f"major-{number}") for number in range(majors)]
            keys = {issue.issue_key for issue in wanted}
            for issue in decision.state.issues.values():
                if issue.phase_id == phase_id and issue.is_open and issue.issue_key not in keys:
                    decision.record(
                        IssueResolved(
                            phase_id=phase_id, issue_key=issue.issue_key, cause=Cause.AUDITOR
                        )
                    )
            seen = IssuesSeen(phase_id=phase_id, issues=tuple(wanted))
            issue_rules.accept_issues(decision, seen)

        return self.decide(step)

    def wait(self, **time: float) -> RunState:
        """Let time pass, as the background job does."""
        self.now += timedelta(**time)
        return self.decide(lambda decision: deadlines.pass_time(decision, deadlines.Tick()))

    def judge(
        self,
        verdict: Verdict,
        phase_id: str = "P1",
        checks: str = "test_a",
        evidence: tuple[Evidence, ...] = (),
    ) -> PhaseState:
        """Let CI give its verdict on the phase's commit."""

        def step(decision: Decision) -> None:
            given = CiVerdict(
                phase_id=phase_id,
                ci_run_id=1,
                commit=decision.phase(phase_id).commit or decision.state.head_commit or "",
                verdict=verdict,
                reason="as it is",
                failing_checks=(checks,) if verdict is Verdict.RED else (),
                evidence=evidence,
            )
            judging.accept_verdict(decision, given)

        self.decide(step)
        return self.phase(phase_id)

    def red(self, phase_id: str = "P1", checks: str = "test_a") -> PhaseState:
        """Let CI find fault."""
        return self.judge(Verdict.RED, phase_id, checks)

    def green(self, phase_id: str = "P1") -> PhaseState:
        """Let CI find none."""
        return self.judge(Verdict.GREEN, phase_id)

    def _commit(self, submission_id: int) -> AppliedPatch:
        self.commits += 1
        return AppliedPatch(
            submission_id=submission_id,
            patch_sha256=f"{submission_id}",
            commit=f"{self.commits:040x}",
            tree=f"tree-{self.commits}",
            parent=self.run.head_commit or "",
        )


def minor_issue(key: str) -> IssueSeen:
    return _issue(key, Severity.MINOR)


def major_issue(key: str) -> IssueSeen:
    return _issue(key, Severity.MAJOR)


def _issue(key: str, severity: Severity) -> IssueSeen:
    return IssueSeen(
        issue_key=key,
        category="test_failure",
        reported_severity=severity,
        severity=severity,
        effective_severity=severity,
        source="test",
        is_expected=False,
    )


Start = Callable[..., Drive]


def start(
    tiers: Mapping[str, tuple[str, ...]] | None = None,
    *,
    phase: Mapping[str, Any] | None = None,
    tier: Mapping[str, Any] | None = None,
    **run: Any,
) -> Drive:
    """Start a run; `phase` and `tier` hold fields of every phase and tier, `run` those of the run.

    By default it has one tier, T1, with one phase, P1, that is applied at once and has no CI.
    """
    tiers = tiers or {"T1": ("P1",)}
    of_phases: dict[str, Any] = {**PHASE, **(phase or {})}
    phases = tuple(
        PhaseState(
            phase_id=phase_id,
            phase_index=phase_index,
            tier_id=tier_id,
            tier_index=tier_index,
            **of_phases,
        )
        for tier_index, (tier_id, members) in enumerate(tiers.items())
        for phase_index, phase_id in enumerate(members)
    )
    of_run: dict[str, Any] = {**RUN, "max_minor_issues_total": 3 * len(phases), **run}
    return Drive(
        RunState(
            deadline_at=NOON + timedelta(minutes=of_run["max_duration_minutes"]),
            phases=phases,
            tiers=tuple(
                _tier(tier_id, tier_index, len(members), dict(tier or {}))
                for tier_index, (tier_id, members) in enumerate(tiers.items())
            ),
            **of_run,
        )
    )


def _tier(tier_id: str, tier_index: int, size: int, given: dict[str, Any]) -> TierState:
    fields: dict[str, Any] = {
        "state": TierStatus.PENDING if size else TierStatus.SKIPPED,
        "token_cap": 3_000 * size,
        "ci_run_cap": 2 * size,
        "minors_tolerated": 2 * size,
        "majors_tolerated": 0,
    }
    return TierState(tier_id=tier_id, tier_index=tier_index, **fields | given)


@pytest.fixture(name="start", scope="session")
def start_fixture() -> Start:
    return start
