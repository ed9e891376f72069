"""Runs on their way, driven decision by decision as the services drive them, without any of I/O."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

from autopack.domain import building, reviewing, steering
from autopack.domain.building import (
    BuilderAction,
    BuilderResult,
    BuilderStatus,
    PatchRefusal,
)
from autopack.domain.course import Course
from autopack.domain.events import Event
from autopack.domain.money import ZERO_USD
from autopack.domain.reviewing import Recommendation, Review, ReviewRefusal
from autopack.domain.run import PhaseState, RunState, TierState, Verdict
from autopack.domain.sightings import Counts, OpenIssueCounts
from autopack.domain.states import PhaseStatus, RunStatus, TierStatus
from autopack.domain.values import CiProfile, RunScope

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
    """A run, the time, and what happened: each call is one decision, settled before the next."""

    run: RunState
    now: datetime = NOON
    events: list[Event] = field(default_factory=list)
    commits: int = 0
    submissions: int = 0

    def phase(self, phase_id: str) -> PhaseState:
        return next(phase for phase in self.run.phases if phase.phase_id == phase_id)

    def tier(self, tier_id: str) -> TierState:
        return next(tier for tier in self.run.tiers if tier.tier_id == tier_id)

    def decide(self, step: Callable[[Course], object]) -> RunState:
        """Take one decision; an exception leaves everything as it was."""
        course = Course(self.run, self.now)
        step(course)
        self.run, events = course.finish()
        self.events += events
        return self.run

    def start_phase(self, phase_id: str) -> PhaseState:
        self.decide(lambda course: building.open_attempt(course, phase_id))
        return self.phase(phase_id)

    def build(
        self,
        phase_id: str = "P1",
        status: BuilderStatus = BuilderStatus.SUCCESS,
        *,
        tokens: int = 0,
        cost: Decimal = ZERO_USD,
        has_patch: bool = True,
        conflict: str | None = None,
        minors: int = 0,
    ) -> PhaseState:
        """Post a Builder's result; `conflict` names a patch that git refuses.

        `minors` are the open minor issues of the run after those that the result suggests.
        """

        def put(action: BuilderAction) -> str | PatchRefusal | None:
            if conflict is not None:
                return PatchRefusal("it conflicts")
            return self._commit() if action is BuilderAction.APPLY else None

        def step(course: Course) -> None:
            building.open_attempt(course, phase_id)
            if minors:
                counts = Counts(minors)
                course.set_issue_counts(OpenIssueCounts(counts, {}, {phase_id: counts}))
            self.submissions += 1
            result = BuilderResult(
                submission_id=self.submissions,
                status=status,
                tokens=tokens,
                cost=cost,
                patch_sha256=(conflict or f"{self.submissions}") if has_patch else None,
            )
            building.take_result(course, phase_id, result, put)

        self.decide(step)
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
    ) -> PhaseState:
        """Post an Auditor's result."""

        def step(course: Course) -> None:
            phase = reviewing.require_reviewable(course, phase_id)
            is_held = phase.pending_submission_id is not None and recommendation == "approve"

            def put() -> list[str] | ReviewRefusal:
                if is_held and not pending_applies:
                    return ReviewRefusal("it no longer applies", is_pending=True)
                if not own_apply:
                    return ReviewRefusal("the fix-up conflicts", is_pending=False)
                return [self._commit() for _ in range(own_patches + is_held)]

            self.submissions += 1
            result = Review(
                submission_id=self.submissions,
                recommendation=Recommendation(recommendation),
                tokens=tokens,
                notes="hopeless" if recommendation == "escalate" else "do it again",
                own_patches=own_patches,
            )
            reviewing.take_review(course, phase_id, result, put)

        self.decide(step)
        return self.phase(phase_id)

    def set_status(self, wanted: PhaseStatus, phase_id: str = "P1") -> PhaseState:
        self.decide(lambda course: steering.set_status(course, phase_id, wanted))
        return self.phase(phase_id)

    def count_issues(self, phase_id: str = "P1", *, minors: int = 0, majors: int = 0) -> RunState:
        """Let these be the open issues of the run, all in one phase."""
        counts = Counts(minors, majors)
        tier_id = self.phase(phase_id).tier_id

        def step(course: Course) -> None:
            course.note("IssueRecorded", phase_id=phase_id)
            course.set_issue_counts(OpenIssueCounts(counts, {tier_id: counts}, {phase_id: counts}))

        return self.decide(step)

    def wait(self, **time: float) -> RunState:
        """Let time pass, as the background job does."""
        self.now += timedelta(**time)
        return self.decide(steering.pass_time)

    def red(self, phase_id: str = "P1", checks: str = "checks:test_a") -> PhaseState:
        """Let CI find fault."""

        def step(course: Course) -> None:
            course.change_phase(phase_id, verdict=Verdict.RED)
            building.fail_attempt(course, phase_id, "CI is red", signature=checks)

        self.decide(step)
        return self.phase(phase_id)

    def green(self, phase_id: str = "P1") -> PhaseState:
        """Let CI find none."""
        self.decide(
            lambda course: course.move_phase(
                phase_id, PhaseStatus.COMPLETE, "CI is green", verdict=Verdict.GREEN
            )
        )
        return self.phase(phase_id)

    def _commit(self) -> str:
        self.commits += 1
        return f"{self.commits:040x}"


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
