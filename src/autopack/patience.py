"""How long a call to Postgres waits for an answer.

The server ends statements that take too long, and TCP notices a machine that is gone. Neither helps
against a server that lives and says nothing (stopped, swapped out, behind a full proxy): psycopg2
then waits for ever, and with it a thread of the service. So it waits by a callback of ours, which
gives up. It then closes the connection, which SQLAlchemy takes for a database that is away.
"""

from __future__ import annotations

import select
import time
from typing import ClassVar, Final

import psycopg2
from psycopg2 import extensions
from sqlalchemy import Connection
from sqlalchemy.engine import Dialect
from sqlalchemy.engine.interfaces import DBAPIConnection

# Once a server has kept a caller waiting in vain, others wait for it so long, until it answers one.
SILENT_SECONDS: Final = 1.0
_MADE: Final = (extensions.STATUS_READY, extensions.STATUS_BEGIN, extensions.STATUS_PREPARED)


class DatabaseSilentError(psycopg2.OperationalError):
    """Postgres did not answer in time."""


class PatientConnection(extensions.connection):
    """A connection that waits so long to be made, and for each answer; None: for ever."""

    connect_seconds: float = 5.0
    answer_seconds: float | None = None
    is_server_silent: ClassVar[bool] = False


def ping_within(dialect: Dialect, seconds: float) -> None:
    """Let the look at a pooled connection, before it is used, wait no longer than that."""
    ping = dialect.do_ping

    def ping_impatiently(connection: DBAPIConnection) -> bool:
        if not isinstance(connection, PatientConnection):
            return ping(connection)
        usual, connection.answer_seconds = connection.answer_seconds, seconds
        try:
            return ping(connection)
        finally:
            connection.answer_seconds = usual

    # The one hook that there is: no event takes the place of a ping.
    dialect.do_ping = ping_impatiently  # type: ignore[method-assign, assignment]


def wait_forever(connection: Connection) -> None:
    """Wait for each answer of this connection until it comes. For good: close it afterwards."""
    raw: object = connection.connection.dbapi_connection
    if isinstance(raw, PatientConnection):
        raw.answer_seconds = None


def _wait(connection: extensions.connection) -> None:
    """Wait until libpq has its answer, as psycopg2 asks of a wait callback."""
    patience = _patience(connection)
    deadline = None if patience is None else time.monotonic() + patience
    server = type(connection)
    while (state := connection.poll()) != extensions.POLL_OK:
        waiting = select.poll()
        events = select.POLLIN if state == extensions.POLL_READ else select.POLLOUT
        waiting.register(connection.fileno(), events)
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        if not waiting.poll(None if left is None else left * 1_000):
            # What patience is measured for is a PatientConnection, which has this field.
            server.is_server_silent = True  # type: ignore[attr-defined]
            raise DatabaseSilentError(f"no answer within {patience:g} seconds")
    # The field of a PatientConnection again: a plain one has no patience.
    if patience is not None and server.is_server_silent:  # type: ignore[attr-defined]
        server.is_server_silent = False  # type: ignore[attr-defined]


def _patience(connection: extensions.connection) -> float | None:
    if not isinstance(connection, PatientConnection):
        return None
    is_made = connection.status in _MADE
    seconds = connection.answer_seconds if is_made else connection.connect_seconds
    if seconds is not None and connection.is_server_silent:
        return min(seconds, SILENT_SECONDS)
    return seconds


# For the whole process: psycopg2 knows no other way. A plain connection waits as it always did.
extensions.set_wait_callback(_wait)
