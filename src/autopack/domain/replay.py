"""A recorded run judged again, under another strategy. (02: every rule can be replayed)

What came from outside is taken from the events: results, issues, an operator's hand, the clock.
What git said of a patch stays as it was. All else is decided anew, by the very functions that
decided it the first time.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from decimal import Decimal
from itertools import groupby

from .building import (
    BuilderAction,
    BuilderResult,
    BuilderStatus,
    PatchRefusal,
    open_attempt,
    take_result,
)
from .capacity import Unavailable, take_unavailable
from .claiming import LeaseLostError, find_claimable, take_claim
from .course import Course
from .errors import AutopackError
from .events import Event
from .judging import (
    Judgement,
    begin_run,
    request_run,
    require_judged_commit,
    take_verdict,
)
from .reviewing import (
    Recommendation,
    Review,
    ReviewRefusal,
    request_review,
    require_reviewable,
    take_review,
)
from .run import FailureCode, RunState, Sandbox, Verdict
from .sightings import Sighting, count_open, resolved_by_event, sight
from .states import PhaseStatus, RunStatus
from .steering import CANCELLED, cancel, lapse, pass_time, roll_back, set_status
from .values import Role, Severity

OPERATOR = "operator"


@dataclass(frozen=True, slots=True, kw_only=True)
class Parting:
    """Where the replay first goes another way than the record."""

    sequence: int
    at: datetime
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """How a run would have gone."""

    run: RunState
    parting: Parting | None
    skipped_inputs: int
    assumed_patches: int


@dataclass(slots=True)
class _Record:
    """The states that the events tell of, as far as they have been read."""

    run: str
    phases: dict[str, str]

    def read(self, events: Iterable[Event]) -> None:
        for event in events:
            if event.to_state is None:
                continue
            if event.phase_id is not None:
                self.phases[event.phase_id] = event.to_state
            elif event.kind in ("RunStateChanged", "RunEnded"):
                self.run = event.to_state


@dataclass(slots=True)
class _Replayer:
    run: RunState
    major_categories: Collection[str]
    issues: dict[tuple[str, str], Sighting] = field(default_factory=dict)
    skipped_inputs: int = 0
    assumed_patches: int = 0

    def feed(self, events: Sequence[Event]) -> None:
        """Let time pass, then take what one transaction took from outside."""
        now = events[0].at
        ticking = Course(self.run, now)
        pass_time(ticking)
        if ticking.events:
            self.run, _ = ticking.finish()
        course = Course(self.run, now, events[0].actor)
        try:
            self._take(course, events)
        except AutopackError:
            self.skipped_inputs += 1  # under these rules it would have been refused
            return
        _take_ci_runs(course, events)
        self.run, _ = course.finish()

    def _take(self, course: Course, events: Sequence[Event]) -> None:
        by_kind = {event.kind: event for event in reversed(events)}  # the first of each kind
        builder = by_kind.get("BuilderResultReceived")
        auditor = by_kind.get("AuditorResultReceived")
        if builder is not None:
            open_attempt(course, _phase_id(builder))
        if auditor is not None:
            require_reviewable(course, _phase_id(auditor))
        verdict = by_kind.get("CiVerdictReceived")
        if verdict is not None:
            _require_judged(course, verdict)
        self._take_issues(course, events)
        lapsed = by_kind.get("LeaseLapsed") or by_kind.get("AuditLapsed")
        if "LeaseGranted" in by_kind:
            _take_claim(course, by_kind["LeaseGranted"])
        elif lapsed is not None and lapsed.data.get("lease_id") is not None:
            _take_lapse(course, lapsed)
        elif "AgentUnavailable" in by_kind:
            _take_unavailable(course, by_kind["AgentUnavailable"])
        elif builder is not None:
            self._take_builder(course, builder, events)
        elif auditor is not None:
            self._take_auditor(course, auditor, events)
        elif verdict is not None:
            if not course.is_over:
                _take_verdict(course, verdict)
        elif "ReviewRequested" in by_kind:
            request_review(course, _phase_id(by_kind["ReviewRequested"]))
        elif "RunRolledBack" in by_kind:
            event = by_kind["RunRolledBack"]
            roll_back(course, event.data["commit"], _phase_id(event), event.reason or "")
        elif events[0].actor == OPERATOR:
            _take_by_hand(course, events)
        elif "RunEnded" in by_kind and not course.is_over:
            code = by_kind["RunEnded"].data.get("failure_code")
            if code == FailureCode.BRANCH_MOVED:
                course.end_failed(FailureCode.BRANCH_MOVED, by_kind["RunEnded"].reason or "")
            elif code in (
                FailureCode.TOKEN_CAP,
                FailureCode.COST_CAP,
            ):  # an agent asked, and nothing was left for it
                for role in Role:
                    find_claimable(course, role)

    def _take_issues(self, course: Course, events: Sequence[Event]) -> None:
        """Take what was reported and resolved; count after each batch, as it was done then."""
        is_review = any(event.kind == "AuditorResultReceived" for event in events)
        tier_of = {phase.phase_id: phase.tier_id for phase in course.run.phases}
        is_first = True
        for kind, batch in groupby(events, key=lambda event: event.kind):
            if kind == "IssueRecorded":
                for event in batch:
                    self._sight(event)
            elif kind == "IssueResolved":
                for event in batch:
                    self._resolve(event, is_review=is_review)
            else:
                continue
            if is_first:
                course.require_live()  # what follows in the batch is taken with it
                is_first = False
            course.set_issue_counts(count_open(tuple(self.issues.values()), tier_of))

    def _sight(self, event: Event) -> None:
        data = event.data
        was_aged = data["effective_severity"] != data["severity"]
        is_major = data["reported_severity"] == Severity.MAJOR or (
            data["reported_severity"] is None and data["category"] in self.major_categories
        )
        place = (_phase_id(event), data["issue_key"])
        severity = Severity.MAJOR if is_major else Severity.MINOR
        self.issues[place] = sight(
            self.issues.get(place),
            Sighting(
                phase_id=place[0],
                issue_key=place[1],
                source=data["source"],
                severity=severity,
                effective_severity=Severity.MAJOR if was_aged else severity,
                is_expected=data["is_expected"],
            ),
        )

    def _resolve(self, event: Event, *, is_review: bool) -> None:
        phase_id, known = _phase_id(event), tuple(self.issues.values())
        for each in resolved_by_event(known, phase_id, event.data, is_review=is_review):
            self.issues[each.phase_id, each.issue_key] = replace(each, is_open=False)

    def _take_builder(self, course: Course, event: Event, events: Sequence[Event]) -> None:
        submission_id = event.data["submission_id"]

        def put(action: BuilderAction) -> str | PatchRefusal | None:
            for other in events:
                if other.data.get("submission_id") != submission_id:
                    continue
                if other.kind == "PatchRefused":
                    return PatchRefusal(other.reason or "")
                if other.kind in ("PatchApplied", "PatchHeld"):
                    break
            else:
                self.assumed_patches += 1  # git was never asked; take it that the patch fits
            return None if action is BuilderAction.HOLD else f"replayed:{submission_id}"

        result = BuilderResult(
            submission_id=submission_id,
            status=BuilderStatus(event.data["status"]),
            tokens=event.data["tokens_used"],
            cost=_cost(event),
            patch_sha256=event.data["patch_sha256"],
        )
        take_result(course, _phase_id(event), result, put)

    def _take_auditor(self, course: Course, event: Event, events: Sequence[Event]) -> None:
        submission_id = event.data["submission_id"]

        def put() -> list[str] | ReviewRefusal:
            for other in events:
                if other.kind == "ReviewRefused":
                    kinds = {each.kind for each in events}
                    return ReviewRefusal(other.reason or "", "PendingPatchDiscarded" in kinds)
            return [f"replayed:{submission_id}:{sha}" for sha in event.data["patch_sha256s"]] or (
                [f"replayed:{submission_id}"]
                if course.phase(_phase_id(event)).pending_submission_id is not None
                else []
            )

        review = Review(
            submission_id=submission_id,
            recommendation=Recommendation(event.data["recommendation"]),
            tokens=event.data["tokens_used"],
            cost=_cost(event),
            notes="as recorded",
            own_patches=len(event.data["patch_sha256s"]),
        )
        take_review(course, _phase_id(event), review, put)


def replay(
    run: RunState, events: Sequence[tuple[int, Event]], major_categories: Collection[str]
) -> Replay:
    """Judge a recorded run again, from its starting state under another strategy.

    `events` are the record's, each with its sequence, in order.
    """
    replayer = _Replayer(run, major_categories)
    record = _Record(run.state, {phase.phase_id: phase.state for phase in run.phases})
    parting: Parting | None = None
    for at, group in groupby(events, key=lambda numbered: numbered[1].at):
        numbered = list(group)
        taken = [event for _, event in numbered if event.kind != "RunStarted"]
        if not taken:
            continue
        replayer.feed(taken)
        record.read(taken)
        detail = _difference(record, replayer.run)
        if detail is not None and parting is None:
            parting = Parting(sequence=numbered[0][0], at=at, detail=detail)
    return Replay(
        run=replayer.run,
        parting=parting,
        skipped_inputs=replayer.skipped_inputs,
        assumed_patches=replayer.assumed_patches,
    )


def _take_claim(course: Course, event: Event) -> None:
    """Take a claim; how long its lease held is taken from the record."""
    role = Role(event.data["role"])
    account = event.data.get("account")
    claimable = find_claimable(course, role, account)
    if claimable is None or claimable.phase.phase_id != event.phase_id:
        raise LeaseLostError("there is nothing to claim here")
    take_claim(course, claimable, role, event.data["agent"], event.data["lease_id"], None, account)


def _take_lapse(course: Course, event: Event) -> None:
    """Let a lease lapse, if it was granted under these rules too and is still held."""
    phase_id = _phase_id(event)
    if course.phase(phase_id).lease_id != event.data["lease_id"]:
        raise LeaseLostError("nobody holds that lease here")
    cost = Decimal(event.data.get("cost_reported_usd", 0))
    lapse(course, phase_id, event.data["tokens_reported"], cost)


def _take_unavailable(course: Course, event: Event) -> None:
    """Let an agent say that it could not work, if it holds the phase under these rules too."""
    phase_id, data = _phase_id(event), event.data
    if course.phase(phase_id).lease_id != data["lease_id"]:
        raise LeaseLostError("nobody holds that lease here")
    why = Unavailable(
        reason=event.reason or "",
        retry_at=datetime.fromisoformat(data["retry_at"]) if data["retry_at"] else None,
        account=data["account"],
    )
    cost = Decimal(data["cost_usd"])
    take_unavailable(course, phase_id, Role(data["role"]), why, tokens=data["tokens"], cost=cost)


def _require_judged(course: Course, event: Event) -> None:
    """See that the phase waits for a verdict; the commit is another in a replay."""
    phase = course.phase(_phase_id(event))
    commit = phase.commit or course.head_commit or ""
    require_judged_commit(course, phase.phase_id, commit, None)


def _take_verdict(course: Course, event: Event) -> None:
    """Take CI's verdict on what the phase waits to have judged."""
    phase_id = _phase_id(event)
    if event.data.get("is_repeated"):  # another one followed, whose verdict stands
        return
    judgement = Judgement(
        verdict=Verdict(event.data["verdict"]),
        reason=event.reason or "",
        failing_checks=event.data["failing_checks"],
        sandbox=Sandbox(made) if (made := event.data.get("sandbox")) else None,
    )
    take_verdict(course, phase_id, judgement)


def _take_ci_runs(course: Course, events: Sequence[Event]) -> None:
    """Let our own CI wait and begin where it did, if the phase is in CI under these rules too."""
    for event in events:
        if event.kind not in ("CiRequested", "CiStarted"):
            continue
        phase_id, ci_run_id = _phase_id(event), event.data["ci_run_id"]
        if course.phase(phase_id).state is not PhaseStatus.CI_RUNNING:
            continue
        if event.kind == "CiRequested":
            request_run(course, phase_id, ci_run_id, event.data["attempt"])
        else:
            begin_run(course, phase_id, ci_run_id)


def _take_by_hand(course: Course, events: Sequence[Event]) -> None:
    ended = next((event for event in events if event.kind == "RunEnded"), None)
    if ended is not None and ended.data.get("failure_code") == FailureCode.CANCELLED:
        # An earlier version wrote "cancelled: …".
        why = (ended.reason or "").removeprefix(CANCELLED).removeprefix("cancelled")
        cancel(course, why.removeprefix(": "))
        return
    for event in events:
        if event.kind == "TokensCounted":
            course.require_live()
            course.count_tokens(_phase_id(event), event.data["tokens"], _cost(event))
        elif event.phase_id is not None and event.to_state is not None:
            if not course.is_over:
                set_status(course, event.phase_id, PhaseStatus(event.to_state))
            return


def _difference(record: _Record, run: RunState) -> str | None:
    for phase in run.phases:
        recorded = record.phases[phase.phase_id]
        if recorded != phase.state:
            why = f" ({phase.failure_reason})" if phase.failure_reason else ""
            return f"phase '{phase.phase_id}' was {recorded} and would be {phase.state}{why}"
    if record.run != run.state and RunStatus(record.run).is_final != run.state.is_final:
        why = f" ({run.failure_reason})" if run.failure_reason else ""
        return f"the run was {record.run} and would be {run.state}{why}"
    return None


def _cost(event: Event) -> Decimal:
    """Read what an event says of money; records from before it was counted say nothing."""
    return Decimal(event.data.get("cost_usd", 0))


def _phase_id(event: Event) -> str:
    assert event.phase_id is not None  # noqa: S101 - for the type checker: its kind has one
    return event.phase_id
