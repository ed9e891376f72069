"""Answers about events: the document that is hashed, and its hash."""

from __future__ import annotations

from typing import Any

from ..domain.states import RunStatus
from . import Shape, WireTime


class EventAnswer(Shape):
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


class StreamedEvent(EventAnswer):
    """An event in a stream; its hash is over the other fields without `run_id`."""

    run_id: str


class EndOfRun(Shape):
    """The data of the event `end`, the last one of a run's stream."""

    run_id: str
    state: RunStatus


class EventPage(Shape):
    run_id: str
    events: list[EventAnswer]
    next_cursor: str | None = None
