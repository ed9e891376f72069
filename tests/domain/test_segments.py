"""How a phase's time was spent, from its events."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

from autopack.domain import events as kinds
from autopack.domain.events import Event
from autopack.domain.run import CompletedBy
from autopack.domain.segments import FRAME_KINDS, SEGMENT_KINDS, segments_of
from autopack.domain.states import RunStatus
from autopack.domain.terms import BuilderStatus, Recommendation, Role, Verdict

pytestmark = pytest.mark.unit

BEGIN = datetime(2026, 11, 26, 9, tzinfo=UTC)
SHA = "a" * 40
Piece = tuple[str, str, int, int | None, str | None]


class Story:
    """Events of one run, a minute after each other unless they happen at the same moment."""

    def __init__(self) -> None:
        self.minute = 0
        self.events: list[Event] = []
        self.at_once(
            kinds.RunStarted,
            plan_sha256=SHA,
            base_branch="main",
            base_commit=SHA,
            strategy_version=1,
        )

    def at_once(self, kind: type[Event], **fields: Any) -> Story:
        """Add an event at the same moment as the one before."""
        if issubclass(kind, kinds.PhaseEvent):
            fields = {"phase_id": "P1", **fields}
        self.events.append(kind(at=BEGIN + timedelta(minutes=self.minute), **fields))
        return self

    def then(self, kind: type[Event], **fields: Any) -> Story:
        self.minute += 1
        return self.at_once(kind, **fields)

    def claimed(self, role: Role = Role.BUILDER, **fields: Any) -> Story:
        if role is Role.BUILDER:
            self.then(kinds.PhaseStarted, **fields)
        else:
            self.minute += 1
        lease = {"lease_id": 1, "role": role, "agent": f"the {role}", "fence": 1}
        return self.at_once(kinds.LeaseGranted, **lease, tokens_reserved=1, **fields)

    def built(self, submission_id: int = 1, **fields: Any) -> Story:
        result = {"submission_id": submission_id, "attempt": 1, "tokens_used": 1}
        return self.then(
            kinds.BuilderResultReceived,
            **{**result, "status": BuilderStatus.SUCCESS, "patch_sha256": None, **fields},
        )

    def reviewed(self, recommendation: Recommendation, submission_id: int = 2) -> Story:
        result = {"submission_id": submission_id, "attempt": 1, "tokens_used": 1}
        return self.then(
            kinds.AuditorResultReceived,
            **result,
            recommendation=recommendation,
            patch_sha256s=(),
        )

    def judged(self, verdict: Verdict, **fields: Any) -> Story:
        return self.then(
            kinds.CiVerdictReceived,
            **{"ci_run_id": 4, "commit": SHA, "failing_checks": (), "flaky": False, **fields},
            verdict=verdict,
        )

    def complete(self, **fields: Any) -> Story:
        return self.at_once(kinds.PhaseCompleted, completed_by=CompletedBy.RULES, **fields)

    def pieces(self, phase_id: str = "P1") -> list[Piece]:
        """Return the segments: kind, who, first and last minute, outcome."""
        wanted = [event for event in self.events if event.kind in SEGMENT_KINDS]
        return [
            (
                str(each.kind),
                each.agent or str(each.role or "ci"),
                _minute(each.started_at),
                None if each.ended_at is None else _minute(each.ended_at),
                each.outcome,
            )
            for each in segments_of(["P1", "P2"], wanted)[phase_id]
        ]


def _minute(moment: datetime) -> int:
    return int((moment - BEGIN).total_seconds() // 60)


APPLIED = {"submission_id": 1, "patch_sha256": SHA, "commit": SHA, "tree": SHA, "parent": SHA}


def test_a_phase_waits_is_built_reviewed_and_judged() -> None:
    story = Story().claimed().built()
    story.at_once(kinds.PatchHeld, submission_id=1).at_once(kinds.PhaseGated)
    story.at_once(kinds.ReviewOpened)
    story.claimed(Role.AUDITOR).reviewed(Recommendation.APPROVE)
    story.at_once(kinds.PatchApplied, **APPLIED | {"submission_id": 2})
    story.at_once(kinds.PhaseCiStarted).at_once(kinds.CiRequested, ci_run_id=4, attempt=1)
    story.then(kinds.CiStarted, ci_run_id=4).judged(Verdict.GREEN).complete()
    assert story.pieces() == [
        ("wait", "builder", 0, 1, None),
        ("build", "the builder", 1, 2, "held"),
        ("wait", "auditor", 2, 3, None),
        ("review", "the auditor", 3, 4, "approve"),
        ("wait", "ci", 4, 5, None),
        ("ci", "ci", 5, 6, "green"),
    ]
    assert story.pieces("P2") == [("wait", "builder", 6, None, None)]


def test_a_red_verdict_returns_it_to_the_queue() -> None:
    story = Story().claimed().built().at_once(kinds.PatchApplied, **APPLIED)
    story.at_once(kinds.PhaseCiStarted).at_once(kinds.CiRequested, ci_run_id=4, attempt=1)
    story.judged(Verdict.RED, is_repeated=True).judged(Verdict.RED).at_once(kinds.PhaseQueued)
    assert story.pieces()[1:] == [
        ("build", "the builder", 1, 2, "applied"),
        # A CI elsewhere does not say when it began.
        ("ci", "ci", 2, 3, "red"),
        ("ci", "ci", 3, 4, "red"),
        ("wait", "builder", 4, None, None),
    ]


@pytest.mark.parametrize(
    ("role", "kind", "kept"),
    [(Role.BUILDER, kinds.LeaseLapsed, "build"), (Role.AUDITOR, kinds.AuditLapsed, "review")],
)
def test_a_lapse_keeps_what_the_agent_had_reported(
    role: Role, kind: type[Event], kept: str
) -> None:
    story = Story()
    if role is Role.AUDITOR:
        story.at_once(kinds.PhaseGated)
    story.claimed(role)
    story.then(kind, lease_id=1, tokens_reported=70, cost_reported_usd=Decimal("0.2"))
    if role is Role.BUILDER:
        story.at_once(kinds.PhaseQueued)
    _, lapsed, waits = segments_of(["P1"], story.events)["P1"]
    assert (lapsed.kind, lapsed.outcome, lapsed.tokens) == (kept, "lapsed", 70)
    assert lapsed.cost_usd == Decimal("0.2")
    assert (waits.kind, waits.role, waits.ended_at) == ("wait", role, None)


def test_an_unavailable_agent_leaves_the_phase_waiting() -> None:
    story = Story().claimed()
    gone = {"role": Role.BUILDER, "lease_id": 1, "retry_at": None, "account": None}
    story.then(kinds.AgentUnavailable, **gone, tokens=5, cost_usd=Decimal(0))
    story.at_once(kinds.PhaseQueued).claimed()
    assert story.pieces()[1:] == [
        ("build", "the builder", 1, 2, "unavailable"),
        ("wait", "builder", 2, 3, None),
        ("build", "the builder", 3, None, None),
    ]


def test_a_refused_patch_is_the_outcome_of_its_own_attempt() -> None:
    story = Story().claimed().built(1).at_once(kinds.PatchRefused, submission_id=1)
    story.at_once(kinds.PhaseQueued).claimed().built(2)
    story.at_once(kinds.PatchApplied, **APPLIED | {"submission_id": 2})
    outcomes = [outcome for kind, *_, outcome in story.pieces() if kind == "build"]
    assert outcomes == ["refused", "applied"]


def test_a_result_that_was_not_claimed_takes_no_time() -> None:
    story = Story().then(kinds.PhaseStarted)
    story.minute -= 1
    story.built().at_once(kinds.PatchApplied, **APPLIED).complete()
    assert story.pieces()[-1] == ("build", "builder", 1, 1, "applied")


def test_the_end_of_the_run_ends_every_segment() -> None:
    story = Story().claimed().then(kinds.PhaseSkipped).at_once(kinds.PhaseSkipped, phase_id="P2")
    ended = {"from_state": RunStatus.PHASE_EXECUTION, "to_state": RunStatus.DONE_SUCCESS}
    story.at_once(kinds.RunEnded, **ended)
    assert story.pieces() == [
        ("wait", "builder", 0, 1, None),
        ("build", "the builder", 1, 2, None),
    ]
    assert story.pieces("P2") == []


def test_other_phases_need_only_the_events_that_frame_them() -> None:
    story = Story().claimed().built().at_once(kinds.PatchApplied, **APPLIED).complete()
    story.claimed(phase_id="P2")
    framed = [
        event
        for event in story.events
        if event.kind in FRAME_KINDS or getattr(event, "phase_id", None) == "P2"
    ]
    assert segments_of(["P1", "P2"], framed)["P2"] == segments_of(["P1", "P2"], story.events)["P2"]
