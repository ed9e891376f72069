"""Events as they are answered: the document that the hash is taken over, and the hash."""

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
    """An event as streams tell it, whose hash is taken over the rest without `run_id`."""

    run_id: str


class EndOfRun(Shape):
    """The data of the event `end`, the last one of a run's stream."""

    run_id: str
    state: RunStatus


class EventPage(Shape):
    run_id: str
    events: list[EventAnswer]
    next_cursor: str | None = None
