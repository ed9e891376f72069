"""One sentence for people about each event, and how it turned out.

The sentence does not name the phase or the tier, which every reader shows before it. Agents' words
in it are cut, not escaped: that is for the page, the terminal or the file.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Final

from . import events as kinds
from .events import Event, EventError, EventRecord, from_record
from .money import short_usd
from .run import CompletedBy, FailureCode
from .sightings import Cause
from .states import Cleanliness, RunStatus, TierStatus
from .terms import BuilderStatus, EvidenceResult, Recommendation, Role, Severity, Verdict

MAX_REASON: Final = 300
MAX_CHECKS: Final = 3
_SHA: Final = 10


class EventOutcome(StrEnum):
    """How an event turned out, in the groups by which pages colour states."""

    GOOD = "good"
    WORKING = "working"
    WAITING = "waiting"
    BAD = "bad"
    NEUTRAL = "neutral"


Told = tuple[str, EventOutcome]


def tell(record: EventRecord) -> Told:
    """Return a sentence about a stored event, and its outcome.

    An event that cannot be read, as from a later version, is told by its kind.
    """
    try:
        return _tell(from_record(record))
    except EventError:
        return _because(f"{record.kind}", record.reason), EventOutcome.NEUTRAL


def _tell(event: Event) -> Told:
    if isinstance(event, kinds.PhaseMoved):
        return _of_move(event)
    if isinstance(event, kinds.PhaseEvent):
        return _of_review(event) or _of_work(event)
    return _of_run(event)


def _of_run(event: Event) -> Told:
    match event:
        case kinds.RunStarted():
            at = event.base_commit[:_SHA]
            return f"The run started from {event.base_branch} at {at}.", EventOutcome.NEUTRAL
        case kinds.RunEnded(to_state=RunStatus.DONE_SUCCESS):
            return _because("The run succeeded", event.reason), EventOutcome.GOOD
        case kinds.RunEnded(failure_code=FailureCode.CANCELLED):
            # The reason says already that the run was cancelled, and by whom.
            return _sentence(_cut(event.reason or "cancelled")), EventOutcome.NEUTRAL
        case kinds.RunEnded():
            code = f" ({event.failure_code})" if event.failure_code else ""
            return _because(f"The run failed{code}", event.reason), EventOutcome.BAD
        case kinds.BaselineMeasured():
            return _of_base(event)
        case kinds.RunRolledBack():
            what = f"The branch is back at the snapshot of phase '{event.phase_id}'"
            return _because(what, event.reason), EventOutcome.WAITING
        case kinds.RunStateChanged():
            return f"The run is {event.to_state}.", EventOutcome.NEUTRAL
        case kinds.TierStateChanged(from_state=TierStatus.IN_PROGRESS, to_state=TierStatus.SKIPPED):
            return "The tier ended early: phases of it were skipped.", EventOutcome.NEUTRAL
        case kinds.TierStateChanged():
            words = {
                TierStatus.COMPLETE: ("The tier is complete.", EventOutcome.GOOD),
                TierStatus.FAILED: ("The tier failed.", EventOutcome.BAD),
                TierStatus.SKIPPED: ("The tier was skipped.", EventOutcome.NEUTRAL),
            }
            return words.get(event.to_state, ("Work on the tier began.", EventOutcome.NEUTRAL))
        case kinds.TierCleanlinessChanged(to_state=Cleanliness.CLEAN):
            return "The tier is clean again.", EventOutcome.GOOD
        case kinds.TierCleanlinessChanged():
            return _because("The tier is not clean", event.reason), EventOutcome.BAD
        case _:
            return f"{event.kind}.", EventOutcome.NEUTRAL


def _of_move(event: kinds.PhaseMoved) -> Told:
    match event:
        case kinds.PhaseQueued():
            return _because("Waits for a Builder", event.reason), EventOutcome.WAITING
        case kinds.PhaseStarted():
            return _because("Building began", event.reason), EventOutcome.WORKING
        case kinds.PhaseGated():
            return _because("Came to the gate", event.reason), EventOutcome.WAITING
        case kinds.PhaseCiStarted():
            return _because("Went to CI", event.reason), EventOutcome.WORKING
        case kinds.PhaseCompleted():
            how = " by hand" if event.completed_by is CompletedBy.HAND else ""
            return _because(f"Complete{how}", event.reason), EventOutcome.GOOD
        case kinds.PhaseFailed():
            return _because("Failed", event.reason), EventOutcome.BAD
        case _:
            return _because("Skipped", event.reason), EventOutcome.NEUTRAL


def _of_work(event: kinds.PhaseEvent) -> Told:
    match event:
        case kinds.LeaseGranted():
            held = f"{event.agent} has it as {_name(event.role)}, with"
            tokens = f"{event.tokens_reserved:,} tokens reserved."
            return f"{_cut(held)} {tokens}", EventOutcome.WORKING
        case kinds.LeaseLapsed():
            return "The Builder sent no result in time: one try is lost.", EventOutcome.BAD
        case kinds.AgentUnavailable():
            what = f"The {_name(event.role)} could not work and lost no try"
            return _because(what, event.reason), EventOutcome.WAITING
        case kinds.CapacityAwaited():
            until = f" until {event.retry_at:%Y-%m-%d %H:%M} UTC" if event.retry_at else ""
            return f"Waits for an agent's capacity{until}.", EventOutcome.WAITING
        case kinds.TokensCounted():
            cost = f" and {short_usd(event.cost_usd)}" if event.cost_usd else ""
            return f"{event.tokens:,} tokens{cost} were counted.", EventOutcome.NEUTRAL
        case kinds.BuilderResultReceived():
            is_success = event.status is BuilderStatus.SUCCESS
            what = f"Result {event.attempt} of the Builder: {event.status}"
            outcome = EventOutcome.NEUTRAL if is_success else EventOutcome.BAD
            return f"{what}, {event.tokens_used:,} tokens.", outcome
        case kinds.AttemptFailed():
            what = f"The {_name(event.role)}'s try failed"
            return _because(what, event.reason), EventOutcome.BAD
        case kinds.TryReturned():
            return _because("The Builder's try does not count", event.reason), EventOutcome.NEUTRAL
        case kinds.BuilderTriesSpent():
            return _because("No Builder try is left", event.reason), EventOutcome.BAD
        case kinds.PatchApplied():
            again = " again" if event.is_again else ""
            return f"The patch is commit {event.commit[:_SHA]}{again}.", EventOutcome.GOOD
        case kinds.PatchReplayed():
            what = f"Commit {event.original[:_SHA]} of phase {event.from_phase} is made again"
            return f"{what} as {event.commit[:_SHA]}.", EventOutcome.GOOD
        case kinds.PatchHeld():
            return "The patch applies, and is pending until a review.", EventOutcome.WAITING
        case kinds.PatchRefused():
            return _because("The patch was refused", event.reason), EventOutcome.BAD
        case kinds.PhaseUndone():
            what = f"What the phase had changed was undone by commit {event.commit[:_SHA]}"
            after = ", ".join(event.taken_off)
            also = f"; the patches of {after} follow again" if after else ""
            return f"{what}{also}.", EventOutcome.NEUTRAL
        case _:
            return _of_checks(event)


def _of_review(event: kinds.PhaseEvent) -> Told | None:
    match event:
        case kinds.ReviewRequested():
            return _because("A review was requested", event.reason), EventOutcome.WAITING
        case kinds.ReviewOpened():
            return _because("Waits for an Auditor", event.reason), EventOutcome.WAITING
        case kinds.AuditLapsed():
            return "The review took too long: one Auditor try is lost.", EventOutcome.BAD
        case kinds.AuditorResultReceived():
            what = f"Result {event.attempt} of the Auditor: {event.recommendation}"
            is_good = event.recommendation is Recommendation.APPROVE
            outcome = EventOutcome.GOOD if is_good else EventOutcome.WAITING
            return f"{what}, {event.tokens_used:,} tokens.", outcome
        case kinds.ReviewRefused():
            return _because("The review was refused", event.reason), EventOutcome.BAD
        case kinds.ReviewFailed():
            return _because("The review had no result", event.reason), EventOutcome.BAD
        case kinds.PendingPatchDiscarded():
            return _because("The pending patch was discarded", event.reason), EventOutcome.BAD
        case kinds.PhaseApproved():
            count = len(event.commits)
            with_commits = f", with {count} commit{'s' * (count != 1)}" if count else ""
            return f"The Auditor approved it{with_commits}.", EventOutcome.GOOD
        case kinds.ApprovalGiven():
            return "An Auditor approved it; it needs another's approval too.", EventOutcome.GOOD
        case kinds.RevisionRequested():
            return _because("The Auditor sent it back", event.reason), EventOutcome.WAITING
        case _:
            return None


def _of_checks(event: kinds.PhaseEvent) -> Told:
    match event:
        case kinds.CiRequested():
            return f"CI run {event.attempt} was requested.", EventOutcome.WORKING
        case kinds.CiStarted():
            return "CI runs.", EventOutcome.WORKING
        case kinds.CiVerdictReceived():
            return _of_verdict(event)
        case kinds.IssueRecorded():
            is_major = event.effective_severity is Severity.MAJOR
            what = f"A {event.effective_severity} issue was reported: {event.issue_key}"
            outcome = EventOutcome.BAD if is_major else EventOutcome.NEUTRAL
            return _sentence(_cut(f"{what} ({event.category})")), outcome
        case kinds.IssueResolved():
            by = {Cause.AUDITOR: " by the Auditor", Cause.GREEN_VERDICT: " by a green CI run"}
            how = by[event.cause] if event.cause else ""
            return _sentence(_cut(f"Issue {event.issue_key} is resolved{how}")), EventOutcome.GOOD
        case _:
            return _because(event.kind, event.reason), EventOutcome.NEUTRAL


def _of_base(event: kinds.BaselineMeasured) -> Told:
    what = f"CI ({event.profile}) on the base commit {event.commit[:_SHA]}"
    if event.verdict is Verdict.GREEN:
        return f"{what} is green.", EventOutcome.GOOD
    if event.verdict is Verdict.RED:
        return _because(f"{what} is red{_checks(event.failing_checks)}", event.reason), (
            EventOutcome.NEUTRAL
        )
    return _because(f"{what} does not run", event.reason), EventOutcome.BAD


def _of_verdict(event: kinds.CiVerdictReceived) -> Told:
    at = event.commit[:_SHA]
    if event.verdict is Verdict.GREEN:
        flaky = ", but flaky" if event.flaky else ""
        what = f"CI is green on commit {at}{flaky}"
        told = [each.text for each in event.evidence if each.result is EvidenceResult.WARNED]
        return _because(what, "; ".join(told) or None), EventOutcome.GOOD
    again = "; it runs again" if event.is_repeated else ""
    if event.verdict is Verdict.RED:
        what = f"CI is red on commit {at}{again}{_checks(event.failing_checks)}"
        return _because(what, event.reason), EventOutcome.BAD
    return _because(f"CI could not run on commit {at}{again}", event.reason), EventOutcome.BAD


def _checks(failing: Sequence[str]) -> str:
    if not failing:
        return ""
    more = f" and {len(failing) - MAX_CHECKS} more" if len(failing) > MAX_CHECKS else ""
    return f" ({_cut(', '.join(failing[:MAX_CHECKS]))}{more})"


def _name(role: Role) -> str:
    return role.capitalize()


def _because(what: str, reason: str | None) -> str:
    return _sentence(f"{what}: {_cut(reason)}" if reason else what)


def _cut(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= MAX_REASON else f"{text[:MAX_REASON]}…"


def _sentence(text: str) -> str:
    text = text[:1].upper() + text[1:]
    return text if text.endswith((".", "!", "?", "…")) else f"{text}."
