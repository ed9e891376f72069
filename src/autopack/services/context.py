"""The resources of every use case; `main.py` creates them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from threading import Event

from sqlalchemy import Engine

from ..config import Settings
from ..domain.access import SERVICE, Caller
from ..gitrepo import Repository
from ..mirror import Mirror
from ..models import Run
from ..store.session import RowSession


def utc_now() -> datetime:
    """Return this machine's time; a service uses the database's instead."""
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class AppContext:
    """What use cases work with. Each request has a copy, with its own `caller`.

    `engine` begins transactions by itself. On `autocommit` each statement is a transaction, unless
    a change begins one, which spares two round trips. Each has a pool of its own.
    """

    settings: Settings
    engine: Engine
    autocommit: Engine
    repository: Repository
    mirror: Mirror
    now: Callable[[], datetime] = utc_now
    stopping: Event = field(default_factory=Event)  # set when the process must end
    # Set when a service with a copy of this home has started: this one must not answer any more.
    superseded: Event = field(default_factory=Event)
    # Results of rehearsed merges, by the commits of both branches (attention.py).
    rehearsals: dict[tuple[str, ...], tuple[tuple[str, ...], bool]] = field(default_factory=dict)
    caller: Caller = SERVICE
    # Whether this is the project of the service's settings. Another one has keys for itself alone.
    is_default: bool = True
    node_id: str = ""  # whose branches and files these are (services/nodes.py)

    def for_caller(self, caller: Caller) -> AppContext:
        """Return the context of one request."""
        return replace(self, caller=caller)

    def now_in(self, run: Run) -> datetime:
        """Return a moment after the run's last change, even when the clock was set back since.

        So no event is older than its predecessor, nothing ends before it began, and a backtest can
        tell one change from the next.
        """
        return max(self.now(), run.updated_at + timedelta(microseconds=1))

    def reading(self) -> RowSession:
        """Open a session for a use case that changes nothing; each statement is a transaction."""
        return RowSession(self.autocommit)

    def autocommitting(self) -> RowSession:
        """Open a session that writes without an end of its own: each statement is a transaction.

        Or a few are one, between `begin_change` and `commit`; either spares round trips.
        """
        return RowSession(self.autocommit)

    def writing(self) -> RowSession:
        """Open a session for a use case that changes no run; the use case must commit."""
        return RowSession(self.engine, is_writing=True)
