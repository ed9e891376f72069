"""Answers about what needs a person."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from ..domain.attention import AttentionKind, ClosedAs, Urgency
from . import Shape, WireTime


class ActionAnswer(Shape):
    """What to do: a request of this API, and the command that does the same.

    `body` is what to send; a value in capitals is yours to fill in.
    """

    label: str
    method: Literal["GET", "POST"]
    path: str
    body: dict[str, Any] | None
    command: str


class AttentionItem(Shape):
    """Something that needs a person; the same cause has the same `id` each time.

    `since` is null where nothing tells when it began. `text` goes on after the run's name, if there
    is one. `evidence` is a path of this API. `is_dismissible`: an operator may dismiss it.
    """

    id: str
    kind: AttentionKind
    severity: Urgency
    since: WireTime | None
    run_id: str | None
    phase_id: str | None
    text: str
    evidence: str
    is_dismissible: bool
    action: ActionAnswer


class AttentionAnswer(Shape):
    """The most urgent first, then the newest; `is_complete`: there are no more."""

    csv_rows: ClassVar[str] = "items"

    count: int
    is_complete: bool
    items: list[AttentionItem]


class DismissalAnswer(Shape):
    """Since when a run needs no person any more, by whom, and why."""

    run_id: str
    closed_at: WireTime
    closed_by: str
    closed_as: ClosedAs
