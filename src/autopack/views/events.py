"""Answers about events: the document that is hashed, its hash, and a sentence about it."""

from __future__ import annotations

from typing import Any

from ..domain.event_text import EventOutcome
from ..domain.states import RunStatus
from . import Shape, WireTime


class EventAnswer(Shape):
    """An event; its hash is over the fields up to `previous_hash`.

    `sentence` is for people, and does not name the phase or the tier.
    """

    sequence: int
    at: WireTime
    actor: str
    kind: str
    phase_id: str | None
    tier_id: str | None
    from_state: str | None
    to_state: str | None
    reason: str | None
    data: dict[str, Any]
    previous_hash: str
    hash: str
    sentence: str
    outcome: EventOutcome


class StreamedEvent(EventAnswer):
    """An event in a stream, with its run, over which the hash is not."""

    run_id: str


class EndOfRun(Shape):
    """The data of the event `end`, the last one of a run's stream."""

    run_id: str
    state: RunStatus


class EventPage(Shape):
    run_id: str
    events: list[EventAnswer]
    next_cursor: str | None = None
