"""How the time of each phase was spent, from the events of its run.

A phase waits, is built, is reviewed, and is judged by CI, one after the other and any number of
times. (rules §2)
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from typing import Any, Final

from . import events as kinds
from .events import Event
from .terms import Role


class SegmentKind(StrEnum):
    WAIT = "wait"
    BUILD = "build"
    REVIEW = "review"
    CI = "ci"


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """A part of a phase's time; `ended_at` is None while it lasts.

    `role` is who works or is waited for, None: CI. `outcome` is what came of the work: what the
    service did with a result, a recommendation, a verdict, `lapsed` or `unavailable`. Then `tokens`
    and `cost_usd` are what an agent without a result had reported.
    """

    kind: SegmentKind
    role: Role | None = None
    agent: str | None = None
    started_at: datetime
    ended_at: datetime | None = None
    outcome: str | None = None
    submission_id: int | None = None
    ci_run_id: int | None = None
    tokens: int | None = None
    cost_usd: Decimal | None = None


# Events that begin or end the wait of another phase.
FRAME_KINDS: Final = frozenset(
    {"RunStarted", "RunEnded", "PhaseCompleted", "PhaseFailed", "PhaseSkipped"}
)
SEGMENT_KINDS: Final = FRAME_KINDS | {
    *("PhaseQueued", "PhaseStarted", "PhaseGated", "PhaseCiStarted", "LeaseGranted"),
    *("LeaseLapsed", "AuditLapsed", "AgentUnavailable", "BuilderResultReceived", "PatchApplied"),
    *("PatchHeld", "PatchRefused", "ReviewOpened", "AuditorResultReceived", "ReviewRefused"),
    *("CiRequested", "CiStarted", "CiVerdictReceived"),
}

_FINAL = kinds.PhaseCompleted | kinds.PhaseFailed | kinds.PhaseSkipped
# What the service did with a result, which is told after the result.
_FATES: Final = {
    kinds.PatchApplied: "applied",
    kinds.PatchHeld: "held",
    kinds.PatchRefused: "refused",
    kinds.ReviewRefused: "refused",
}


def segments_of(phase_ids: Sequence[str], events: Iterable[Event]) -> dict[str, list[Segment]]:
    """Return the segments of a run's phases, which are named in the order in which they run.

    Events are those of SEGMENT_KINDS in their order; of a phase whose segments are not wanted,
    those of FRAME_KINDS are enough.
    """
    lanes = {phase_id: _Lane() for phase_id in phase_ids}
    waiting = list(phase_ids)
    for event in events:
        match event:
            case kinds.RunStarted():
                _let_wait(lanes, waiting, event.at)
            case kinds.RunEnded():
                for lane in lanes.values():
                    lane.close(event.at)
            case kinds.PhaseEvent() if event.phase_id in lanes:
                lanes[event.phase_id].take(event)
                if isinstance(event, _FINAL):
                    if event.phase_id in waiting:
                        waiting.remove(event.phase_id)
                    _let_wait(lanes, waiting, event.at)
            case _:
                pass
    return {phase_id: lane.all() for phase_id, lane in lanes.items()}


def _let_wait(lanes: dict[str, _Lane], waiting: Sequence[str], at: datetime) -> None:
    """Let the first phase that has not ended wait for a Builder, unless it is under way."""
    if waiting and lanes[waiting[0]].open is None:
        lanes[waiting[0]].wait(at, Role.BUILDER)


class _Lane:
    """The segments of one phase; at most the last one is open."""

    def __init__(self) -> None:
        self.open: Segment | None = None
        self._closed: list[Segment] = []

    def all(self) -> list[Segment]:
        return [*self._closed, self.open] if self.open else self._closed

    def wait(self, at: datetime, role: Role | None) -> None:
        if self.open is None or self.open.kind is not SegmentKind.WAIT or self.open.role != role:
            self._begin(Segment(kind=SegmentKind.WAIT, role=role, started_at=at))

    def _begin(self, segment: Segment) -> Segment:
        self.close(segment.started_at)
        self.open = segment
        return segment

    def close(self, at: datetime, **found: Any) -> None:
        """End the open segment; a wait that took no time is left out."""
        if self.open is not None and (
            self.open.kind is not SegmentKind.WAIT or self.open.started_at < at
        ):
            self._closed.append(replace(self.open, ended_at=at, **found))
        self.open = None

    def _work(self, kind: SegmentKind, role: Role | None, at: datetime) -> Segment:
        """Return the open work of a kind; without one it began now."""
        if self.open is None or self.open.kind is not kind:
            return self._begin(Segment(kind=kind, role=role, started_at=at))
        return self.open

    def take(self, event: kinds.PhaseEvent) -> None:
        """Change the segments by an event of the phase."""
        if isinstance(event, kinds.PhaseMoved):
            self._move(event)
        elif isinstance(event, kinds.CiRequested | kinds.CiStarted | kinds.CiVerdictReceived):
            self._judge(event)
        else:
            self._act(event)

    def _move(self, event: kinds.PhaseMoved) -> None:
        match event:
            case kinds.PhaseQueued():
                self.wait(event.at, Role.BUILDER)
            case kinds.PhaseStarted():
                self._work(SegmentKind.BUILD, Role.BUILDER, event.at)
            case kinds.PhaseGated():
                self.wait(event.at, Role.AUDITOR)
            case kinds.PhaseCiStarted():
                self.wait(event.at, None)
            case _:
                self.close(event.at)

    def _act(self, event: kinds.PhaseEvent) -> None:
        at = event.at
        match event:
            case kinds.LeaseGranted():
                is_builder = event.role is Role.BUILDER
                kind = SegmentKind.BUILD if is_builder else SegmentKind.REVIEW
                self.open = replace(self._work(kind, event.role, at), agent=event.agent)
            case kinds.LeaseLapsed() | kinds.AuditLapsed():
                self.close(
                    at,
                    outcome="lapsed",
                    tokens=event.tokens_reported,
                    cost_usd=event.cost_reported_usd,
                )
                if isinstance(event, kinds.AuditLapsed):
                    self.wait(at, Role.AUDITOR)
            case kinds.AgentUnavailable():
                self.close(at, outcome="unavailable", tokens=event.tokens, cost_usd=event.cost_usd)
                self.wait(at, event.role)
            case kinds.BuilderResultReceived():
                self._work(SegmentKind.BUILD, Role.BUILDER, at)
                self.close(at, outcome=str(event.status), submission_id=event.submission_id)
            case kinds.AuditorResultReceived():
                self._work(SegmentKind.REVIEW, Role.AUDITOR, at)
                outcome = str(event.recommendation)
                self.close(at, outcome=outcome, submission_id=event.submission_id)
            case kinds.ReviewOpened():
                self.wait(at, Role.AUDITOR)
            case _:
                self._decide_fate(event)

    def _decide_fate(self, event: kinds.PhaseEvent) -> None:
        fate = _FATES.get(type(event))
        submission = getattr(event, "submission_id", None)
        for place, segment in enumerate(self._closed):
            if fate is not None and segment.submission_id == submission:
                # An approval that put a patch on the branch stays an approval.
                is_build = segment.kind is SegmentKind.BUILD
                if is_build or fate == "refused":
                    self._closed[place] = replace(segment, outcome=fate)

    def _judge(self, event: kinds.CiRequested | kinds.CiStarted | kinds.CiVerdictReceived) -> None:
        at = event.at
        match event:
            case kinds.CiRequested():
                self.wait(at, None)
            case kinds.CiStarted():
                self.open = replace(self._work(SegmentKind.CI, None, at), ci_run_id=event.ci_run_id)
            case kinds.CiVerdictReceived():
                if self.open is not None and self.open.kind is SegmentKind.WAIT:
                    # A CI elsewhere does not tell when it began.
                    self.open = replace(self.open, kind=SegmentKind.CI)
                self._work(SegmentKind.CI, None, at)
                self.close(at, outcome=str(event.verdict), ci_run_id=event.ci_run_id)
                if event.is_repeated:
                    self.wait(at, None)
