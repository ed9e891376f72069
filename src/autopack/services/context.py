"""What every use case works with; `main.py` puts it together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from threading import Event

from sqlalchemy import Engine
from sqlalchemy.orm import Session

from ..config import Settings
from ..gitrepo import Repository
from ..mirror import Mirror
from ..models import Run


def utc_now() -> datetime:
    """Return this machine's time; a service takes the database's instead."""
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class AppContext:
    settings: Settings
    engine: Engine
    repository: Repository
    mirror: Mirror
    now: Callable[[], datetime] = utc_now
    stopping: Event = field(default_factory=Event)  # set when the process is to end
    # Set while the database belongs to another clone: a service there came while it was away.
    superseded: Event = field(default_factory=Event)

    def now_in(self, run: Run) -> datetime:
        """Return a moment after the run's last change, even when the clock was set back since.

        So no event is older than its predecessor, nothing ends before it began, and a replay can
        tell one change from the next.
        """
        return max(self.now(), run.updated_at + timedelta(microseconds=1))

    def reading(self) -> Session:
        """Open a session for a use case that changes nothing.

        Each statement is a transaction of its own, which spares two round trips to Postgres.
        """
        engine = self.engine.execution_options(isolation_level="AUTOCOMMIT")
        return Session(engine, expire_on_commit=False)

    def writing(self) -> Session:
        """Open a session for a use case that changes no run; it has to commit."""
        return Session(self.engine, expire_on_commit=False)
