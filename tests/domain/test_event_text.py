"""Each event has a sentence for people, and an outcome."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest

from autopack.domain import events
from autopack.domain.event_text import MAX_REASON, EventOutcome, tell
from autopack.domain.events import Event, EventRecord, to_record
from autopack.domain.run import CompletedBy, FailureCode
from autopack.domain.sightings import Cause
from autopack.domain.states import Cleanliness, PhaseStatus, RunStatus, TierStatus
from autopack.domain.terms import BuilderStatus, Recommendation, Role, Severity, Verdict

pytestmark = pytest.mark.unit

SHA = "0123456789" * 4
AT = datetime(2026, 11, 26, 9, 30, tzinfo=UTC)


def of(kind: type[Event], **fields: Any) -> Event:
    if issubclass(kind, events.PhaseEvent):
        fields = {"phase_id": "P1", "tier_id": "T1", **fields}
    if issubclass(kind, events.PhaseMoved):
        fields = {"from_state": PhaseStatus.EXECUTING, **fields}
    return kind(at=AT, actor="local:codex", **fields)


def lease(kind: type[Event], **fields: Any) -> Event:
    return of(kind, lease_id=1, tokens_reported=5, **fields)


def verdict(given: Verdict, *checks: str, **fields: Any) -> Event:
    fields = {"flaky": False, "failing_checks": checks, **fields}
    return of(events.CiVerdictReceived, ci_run_id=1, commit=SHA, verdict=given, **fields)


GOOD, BAD, WAITING = EventOutcome.GOOD, EventOutcome.BAD, EventOutcome.WAITING
WORKING, NEUTRAL = EventOutcome.WORKING, EventOutcome.NEUTRAL
RUN = {"from_state": RunStatus.GATE}
TIER = {"tier_id": "T1", "from_state": TierStatus.IN_PROGRESS}
RESULT = {"submission_id": 7, "attempt": 2, "tokens_used": 1200}
ISSUE = {
    **{"issue_key": "auth__missing", "category": "auth", "reported_severity": None},
    **{"severity": Severity.MINOR, "source": "ci", "is_expected": False},
}
PATCH = {"submission_id": 7, "patch_sha256": SHA, "commit": SHA, "tree": SHA, "parent": SHA}

TOLD: list[tuple[Event, str, EventOutcome]] = [
    (
        of(
            events.RunStarted,
            **{"plan_sha256": SHA, "base_branch": "main", "base_commit": SHA},
            strategy_version=1,
        ),
        "The run started from main at 0123456789.",
        NEUTRAL,
    ),
    (
        of(events.RunStateChanged, **RUN, to_state=RunStatus.CI_RUNNING),
        "The run is CI_RUNNING.",
        NEUTRAL,
    ),
    (
        of(events.RunEnded, **RUN, to_state=RunStatus.DONE_SUCCESS, reason="every phase has ended"),
        "The run succeeded: every phase has ended.",
        GOOD,
    ),
    (
        of(
            events.RunEnded,
            **RUN,
            to_state=RunStatus.DONE_FAILED_REQUIRES_HUMAN_REVIEW,
            reason="phase 'P1' failed",
            failure_code=FailureCode.PHASE_FAILED,
        ),
        "The run failed (phase_failed): phase 'P1' failed.",
        BAD,
    ),
    (
        of(
            events.RunEnded,
            **RUN,
            to_state=RunStatus.DONE_FAILED_REQUIRES_HUMAN_REVIEW,
            reason="cancelled by operator: enough",
            failure_code=FailureCode.CANCELLED,
        ),
        "Cancelled by operator: enough.",
        NEUTRAL,
    ),
    (
        of(events.RunRolledBack, phase_id="P1", reason="a bad idea", commit=SHA),
        "The branch is back at the snapshot of phase 'P1': a bad idea.",
        WAITING,
    ),
    (
        of(events.BaselineMeasured, profile="strict", commit=SHA, verdict=Verdict.GREEN),
        f"CI (strict) on the base commit {SHA[:10]} is green.",
        GOOD,
    ),
    (
        of(
            events.BaselineMeasured,
            profile="strict",
            commit=SHA,
            verdict=Verdict.DID_NOT_RUN,
            reason="not found",
        ),
        f"CI (strict) on the base commit {SHA[:10]} does not run: not found.",
        BAD,
    ),
    (
        of(events.TierStateChanged, **TIER, to_state=TierStatus.COMPLETE),
        "The tier is complete.",
        GOOD,
    ),
    (
        of(events.TierStateChanged, **TIER, to_state=TierStatus.SKIPPED),
        "The tier ended early: phases of it were skipped.",
        NEUTRAL,
    ),
    (
        of(
            events.TierStateChanged,
            tier_id="T2",
            from_state=TierStatus.PENDING,
            to_state=TierStatus.SKIPPED,
        ),
        "The tier was skipped.",
        NEUTRAL,
    ),
    (of(events.TierStateChanged, **TIER, to_state=TierStatus.FAILED), "The tier failed.", BAD),
    (
        of(
            events.TierCleanlinessChanged,
            tier_id="T1",
            from_state=Cleanliness.CLEAN,
            to_state=Cleanliness.NOT_CLEAN,
            reason="1 major issue",
        ),
        "The tier is not clean: 1 major issue.",
        BAD,
    ),
    (
        of(events.PhaseQueued, reason="CI is red"),
        "Waits for a Builder: CI is red.",
        WAITING,
    ),
    (
        of(events.PhaseStarted, reason="claimed by codex"),
        "Building began: claimed by codex.",
        WORKING,
    ),
    (
        of(events.PhaseGated, reason="the patch is pending"),
        "Came to the gate: the patch is pending.",
        WAITING,
    ),
    (of(events.PhaseCiStarted), "Went to CI.", WORKING),
    (of(events.PhaseCompleted, completed_by=CompletedBy.RULES), "Complete.", GOOD),
    (
        of(events.PhaseCompleted, completed_by=CompletedBy.HAND, reason="ended by hand"),
        "Complete by hand: ended by hand.",
        GOOD,
    ),
    (of(events.PhaseFailed, reason="no try is left"), "Failed: no try is left.", BAD),
    (of(events.PhaseSkipped, reason="the run ended"), "Skipped: the run ended.", NEUTRAL),
    (
        of(events.PhaseUndone, commit=SHA, tree=SHA),
        "What the phase had changed was undone by commit 0123456789.",
        NEUTRAL,
    ),
    (
        of(
            events.LeaseGranted,
            **{"lease_id": 1, "role": Role.AUDITOR, "agent": "claude", "fence": 2},
            tokens_reserved=200_000,
        ),
        "claude has it as Auditor, with 200,000 tokens reserved.",
        WORKING,
    ),
    (
        lease(events.LeaseLapsed),
        "The Builder sent no result in time: one try is lost.",
        BAD,
    ),
    (
        lease(events.AuditLapsed),
        "The review took too long: one Auditor try is lost.",
        BAD,
    ),
    (
        of(
            events.AgentUnavailable,
            **{"role": Role.BUILDER, "lease_id": 1, "retry_at": None, "account": None},
            **{"tokens": 0, "cost_usd": Decimal(0), "reason": "rate limit"},
        ),
        "The Builder could not work and lost no try: rate limit.",
        WAITING,
    ),
    (
        of(events.CapacityAwaited, retry_at=AT),
        "Waits for an agent's capacity until 2026-11-26 09:30 UTC.",
        WAITING,
    ),
    (
        of(events.TokensCounted, tokens=1200, cost_usd=Decimal("0.5")),
        "1,200 tokens and $0.5000 were counted.",
        NEUTRAL,
    ),
    (
        of(
            events.BuilderResultReceived,
            **RESULT,
            status=BuilderStatus.SUCCESS,
            patch_sha256=None,
        ),
        "Result 2 of the Builder: success, 1,200 tokens.",
        NEUTRAL,
    ),
    (
        of(events.AttemptFailed, role=Role.BUILDER, reason="the patch conflicts"),
        "The Builder's try failed: the patch conflicts.",
        BAD,
    ),
    (
        of(events.TryReturned, reason="the branch has changed"),
        "The Builder's try does not count: the branch has changed.",
        NEUTRAL,
    ),
    (
        of(events.BuilderTriesSpent, reason="incident_token_cap passed"),
        "No Builder try is left: incident_token_cap passed.",
        BAD,
    ),
    (of(events.PatchApplied, **PATCH), "The patch is commit 0123456789.", GOOD),
    (
        of(
            events.PatchReplayed,
            **{"original": SHA, "from_phase": "P1.2", "commit": SHA, "tree": SHA, "parent": SHA},
        ),
        "Commit 0123456789 of phase P1.2 is made again as 0123456789.",
        GOOD,
    ),
    (
        of(events.PatchHeld, submission_id=7),
        "The patch applies, and is pending until a review.",
        WAITING,
    ),
    (
        of(events.PatchRefused, submission_id=7, reason="it conflicts"),
        "The patch was refused: it conflicts.",
        BAD,
    ),
    (of(events.ReviewRequested), "A review was requested.", WAITING),
    (of(events.ReviewOpened), "Waits for an Auditor.", WAITING),
    (
        of(
            events.AuditorResultReceived,
            **RESULT,
            recommendation=Recommendation.REVISE,
            patch_sha256s=(),
        ),
        "Result 2 of the Auditor: revise, 1,200 tokens.",
        WAITING,
    ),
    (
        of(events.ReviewRefused, submission_id=7, reason="its patch conflicts"),
        "The review was refused: its patch conflicts.",
        BAD,
    ),
    (of(events.ReviewFailed, reason="it lapsed"), "The review had no result: it lapsed.", BAD),
    (
        of(events.PendingPatchDiscarded, reason="it conflicts"),
        "The pending patch was discarded: it conflicts.",
        BAD,
    ),
    (of(events.ApprovalGiven), "An Auditor approved it; it needs another's approval too.", GOOD),
    (of(events.PhaseApproved, commits=()), "The Auditor approved it.", GOOD),
    (
        of(events.PhaseApproved, commits=(SHA, SHA)),
        "The Auditor approved it, with 2 commits.",
        GOOD,
    ),
    (
        of(events.RevisionRequested, reason="no test"),
        "The Auditor sent it back: no test.",
        WAITING,
    ),
    (of(events.CiRequested, ci_run_id=1, attempt=2), "CI run 2 was requested.", WORKING),
    (of(events.CiStarted, ci_run_id=1), "CI runs.", WORKING),
    (verdict(Verdict.GREEN), "CI is green on commit 0123456789.", GOOD),
    (verdict(Verdict.GREEN, flaky=True), "CI is green on commit 0123456789, but flaky.", GOOD),
    (
        verdict(Verdict.RED, "a", "b", "c", "d", is_repeated=True, reason="4 failed"),
        "CI is red on commit 0123456789; it runs again (a, b, c and 1 more): 4 failed.",
        BAD,
    ),
    (
        verdict(Verdict.DID_NOT_RUN, reason="exit 127"),
        "CI could not run on commit 0123456789: exit 127.",
        BAD,
    ),
    (
        of(events.IssueRecorded, **ISSUE, effective_severity=Severity.MAJOR),
        "A major issue was reported: auth__missing (auth).",
        BAD,
    ),
    (
        of(events.IssueResolved, issue_key="auth__missing", cause=Cause.GREEN_VERDICT),
        "Issue auth__missing is resolved by a green CI run.",
        GOOD,
    ),
    (
        of(events.IssueResolved, issue_key="auth__missing"),
        "Issue auth__missing is resolved.",
        GOOD,
    ),
]


@pytest.mark.parametrize(("event", "sentence", "outcome"), TOLD)
def test_an_event_is_told(event: Event, sentence: str, outcome: EventOutcome) -> None:
    assert tell(to_record(event)) == (sentence, outcome)


def test_every_kind_is_told() -> None:
    def below(kind: type[Event]) -> set[str]:
        subclasses = kind.__subclasses__()
        return {each.__name__ for each in subclasses}.union(*map(below, subclasses))

    groups = {"PhaseEvent", "PhaseMoved"}
    assert {event.kind for event, _, _ in TOLD} == below(Event) - groups


def test_an_event_of_a_later_version_is_told_by_its_kind() -> None:
    record = EventRecord(kind="MoonRose", actor="a", at=AT, reason="it was night")
    assert tell(record) == ("MoonRose: it was night.", NEUTRAL)


def test_long_words_of_agents_are_cut_to_one_line() -> None:
    event = of(events.PhaseFailed, reason="no\n\nroom " + "x" * 5_000)
    sentence, _ = tell(to_record(event))
    assert sentence.startswith("Failed: no room xxx")
    assert len(sentence) < MAX_REASON + 20
    assert "\n" not in sentence
    assert tell(to_record(of(events.PhaseFailed, reason="why?")))[0] == "Failed: why?"
