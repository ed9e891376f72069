"""All runs' events as one sequence that only grows at its end.

Ids are assigned before the commit, so an event may become visible after one with a higher id.
Therefore the trigger `announce_events` takes a lock whose number is the last id before its
transaction's events; it ends with the transaction. Up to the lowest of these numbers no further
event can appear: that is the horizon.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import psycopg2
from sqlalchemy import Engine, Row, Select, select, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from ..advisory_locks import FIRST_FEED_NUMBER, LAST_FEED_NUMBER
from ..domain.events import EventRecord
from ..domain.states import RunStatus
from ..models import EventRow, Run
from .rows import read_off
from .session import RowSession

PAGE: Final = 500
# Tells listeners of new events. Not in the transaction that adds them: it holds a lock of all
# databases until its commit is on the disk, so that changes would wait for each other there.
ANNOUNCE: Final = "NOTIFY autopack_events"

# The newest id first: a transaction without a lock at the second query writes only after that id.
_NEWEST = text("SELECT last_value - (NOT is_called)::int FROM events_id_seq")
_LOCKED = text(
    "SELECT min((classid::bigint - :first) << 31 | objid::bigint) FROM pg_locks"
    " WHERE locktype = 'advisory' AND objsubid = 2"
    " AND classid::bigint BETWEEN :first AND :last"
    " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
).bindparams(first=FIRST_FEED_NUMBER, last=LAST_FEED_NUMBER)
_EVENTS = select(
    EventRow.id,
    EventRow.run_pk,
    Run.run_id,
    EventRow.sequence,
    EventRow.previous_hash,
    EventRow.hash,
    EventRow.at,
    EventRow.actor,
    EventRow.kind,
    EventRow.phase_id,
    EventRow.tier_id,
    EventRow.from_state,
    EventRow.to_state,
    EventRow.reason,
    EventRow.data,
).join(Run, Run.id == EventRow.run_pk)


@dataclass(frozen=True, slots=True)
class FeedEvent:
    """An event with its place among those of its run, and among those of all runs."""

    position: int
    run_pk: int
    run_id: str
    sequence: int
    event: EventRecord
    previous_hash: str
    hash: str

    @classmethod
    def of(cls, row: Row[*tuple[Any, ...]]) -> FeedEvent:
        """Return the event of a selected row."""
        return cls(
            position=row.id,
            run_pk=row.run_pk,
            run_id=row.run_id,
            sequence=row.sequence,
            event=read_off(EventRecord, row),
            previous_hash=row.previous_hash,
            hash=row.hash,
        )


def announce(session: RowSession) -> None:
    """Tell the readers of the feed of events that were committed."""
    session.gather_unsynced((ANNOUNCE, ()))
    session.send()


def find_horizon(session: Session) -> tuple[int, bool]:
    """Return up to which position all events are visible, and whether that is the newest id."""
    newest: int = session.execute(_NEWEST).scalar_one()
    locked: int | None = session.execute(_LOCKED).scalar_one()
    horizon = newest if locked is None else min(newest, locked)
    return horizon, horizon == newest


def list_after(session: Session, position: int, horizon: int) -> list[FeedEvent]:
    """Return a page of all runs' events after a position."""
    query = events_between(position, horizon)
    return [FeedEvent.of(row) for row in session.execute(query.limit(PAGE))]


def events_between(position: int, horizon: int) -> Select[*tuple[Any, ...]]:
    """Select all runs' events after a position up to another one, in their order."""
    return _EVENTS.where(EventRow.id > position, EventRow.id <= horizon).order_by(EventRow.id)


def list_of_run(session: Session, run_pk: int, sequence: int) -> list[FeedEvent]:
    """Return a page of a run's events after a sequence number."""
    query = _EVENTS.where(EventRow.run_pk == run_pk, EventRow.sequence > sequence)
    query = query.order_by(EventRow.sequence).limit(PAGE)
    return [FeedEvent.of(row) for row in session.execute(query)]


def find_end(session: Session, run_pk: int) -> tuple[RunStatus, int] | None:
    """Return the final state of a run and its last sequence number; None while it is live."""
    query = select(Run.state, Run.event_sequence).where(Run.id == run_pk, Run.ended_at.is_not(None))
    row = session.execute(query).one_or_none()
    return row and (row.state, row.event_sequence)


@dataclass(frozen=True, slots=True)
class News:
    """Events after a position, and the position up to which they are complete."""

    events: list[FeedEvent]
    position: int
    is_more: bool  # stored already
    is_newest: bool  # the horizon is the newest id: no open transaction has a lower one


class Listener:
    """A separate connection that listens for new events, and reads them."""

    def __init__(self, engine: Engine) -> None:
        connection = engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        raw: Any = connection.connection.dbapi_connection
        self.file_number: int = raw.fileno()  # not available after the connection is closed
        self._raw = raw
        connection.detach()
        self._connection = connection
        connection.execute(text("SET application_name = 'autopack events'"))
        connection.execute(text("LISTEN autopack_events"))

    def read(self, position: int | None) -> News:
        """Return a page of events after a position; for None, only the position to start from."""
        with Session(self._connection) as session:
            horizon, is_newest = find_horizon(session)
            events = [] if position is None else list_after(session, position, horizon)
        is_more = len(events) == PAGE
        return News(events, events[-1].position if is_more else horizon, is_more, is_newest)

    def has_heard(self) -> bool:
        """Return whether a notification has arrived, also together with a query's answer."""
        try:
            self._raw.poll()
        except psycopg2.Error as error:
            raise OperationalError("LISTEN", None, error) from error
        heard = bool(self._raw.notifies)
        self._raw.notifies.clear()
        return heard

    def close(self) -> None:
        self._connection.close()
