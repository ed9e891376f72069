"""A decision while it is made: the events so far, and the state that they lead to.

The rule modules append events to a `Decision`; the state follows from the events alone (evolve.py).
Every rule goes through `record`, so no phase makes a move that the transition table does not
contain.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

from .errors import ConflictError
from .events import SUPERVISOR, Event, PhaseEvent, PhaseMoved, RunRolledBack
from .evolve import evolve
from .order import WaitCause, may_start, waits_of
from .run import PhaseState, RunState
from .states import check_phase_transition


class RunOverError(ConflictError):
    code = "run_over"


class PhaseNotNextError(ConflictError):
    code = "phase_not_next"


class WrongStateError(ConflictError):
    code = "wrong_state"


def require_live(run: RunState) -> None:
    """Refuse any input for a run that is over. Raises RunOverError."""
    if run.is_over:
        because = f": {run.failure_reason}" if run.failure_reason else ""
        raise RunOverError(
            f"run '{run.run_id}' is over ({run.state}{because}); it takes no more results"
        )


def require_next(run: RunState, phase_id: str) -> None:
    """Refuse a phase that may not start yet. Raises PhaseNotNextError."""
    waits = waits_of(run).get(phase_id, ())
    if waits:
        first = run.phase(waits[0].phase_id)
        why = "" if waits[0].cause is WaitCause.ORDER else " and may change the same paths"
        ready = [each.phase_id for each in may_start(run)]
        raise PhaseNotNextError(
            f"phase '{phase_id}' may not start before '{first.phase_id}', "
            f"which is {first.state}{why}",
            allowed=ready or [first.phase_id],
        )


@dataclass(slots=True)
class Decision:
    """The events of one decision, and the state after them."""

    state: RunState
    now: datetime
    actor: str = SUPERVISOR
    events: list[Event] = field(default_factory=list)

    def record(self, event: Event) -> None:
        """Append an event and update the state.

        The event gets its time, actor, tier and former state here, so that no rule can set a wrong
        one. Raises IllegalTransitionError for a move that the transition table does not contain.
        """
        known: dict[str, Any] = {"at": self.now, "actor": event.actor or self.actor}
        if isinstance(event, PhaseEvent | RunRolledBack):
            phase = self.phase(event.phase_id)
            known["tier_id"] = phase.tier_id
            if isinstance(event, PhaseMoved):
                check_phase_transition(event.phase_id, phase.state, event.STATE)
                known["from_state"] = phase.state
        event = replace(event, **known)
        self.state = evolve(self.state, event)
        self.events.append(event)

    def phase(self, phase_id: str) -> PhaseState:
        """Return the current state of a phase. Raises NotFoundError."""
        return self.state.phase(phase_id)

    def in_minutes(self, minutes: int) -> datetime:
        return self.now + timedelta(minutes=minutes)

    def in_seconds(self, seconds: int) -> datetime:
        return self.now + timedelta(seconds=seconds)

    # Guards

    def require_live(self) -> None:
        """Refuse any input for a run that is over. Raises RunOverError."""
        require_live(self.state)

    def require_next(self, phase_id: str) -> None:
        """Refuse a phase that may not start yet. Raises PhaseNotNextError."""
        require_next(self.state, phase_id)
