"""How long a call to Postgres waits for an answer.

The server stops statements that take too long, and TCP detects a machine that is down. Neither
helps against a server that runs but does not answer (stopped, swapped out, behind a full proxy):
psycopg2 then waits forever and blocks a thread of the service. So psycopg2 waits by a callback of
this module, which has a time limit. It then closes the connection, and SQLAlchemy reports that the
database is unavailable.
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

CONNECT_SECONDS: Final = 5
#: When TCP asks a silent peer whether it is there, and gives it up.
GONE_AFTER: Final = {"idle": 10, "interval": 5, "count": 4}
#: The same as parameters of a connection to a server, whose machine may vanish.
KEEPALIVES: Final = {f"keepalives_{name}": value for name, value in GONE_AFTER.items()}
# After one caller waited in vain, other callers wait only so long, until the server answers again.
SILENT_SECONDS: Final = 1.0
# A pooled connection that answered so lately is asked nothing before it is used.
ALIVE_SECONDS: Final = 1.0
_MADE: Final = (extensions.STATUS_READY, extensions.STATUS_BEGIN, extensions.STATUS_PREPARED)


class DatabaseSilentError(psycopg2.OperationalError):
    """Postgres did not answer in time."""


class PatientConnection(extensions.connection):
    """A connection with a time limit for connecting and for each answer; None: no limit."""

    connect_seconds: float = CONNECT_SECONDS
    answer_seconds: float | None = None
    is_server_silent: ClassVar[bool] = False
    answered_at: float = 0.0

    def is_surely_alive(self) -> bool:
        """Say whether it answered just now, and the server has not ended it since.

        A server that ends a connection says so and closes it, so there would be something to read.
        """
        if time.monotonic() - self.answered_at > ALIVE_SECONDS:
            return False
        looking = select.poll()
        looking.register(self.fileno(), select.POLLIN)
        return not looking.poll(0)


def ping_within(dialect: Dialect, seconds: float) -> None:
    """Limit the wait of the check of a pooled connection before its use."""
    ping = dialect.do_ping

    def ping_impatiently(connection: DBAPIConnection) -> bool:
        if not isinstance(connection, PatientConnection):
            return ping(connection)
        if connection.is_surely_alive():
            return True
        usual, connection.answer_seconds = connection.answer_seconds, seconds
        try:
            return ping(connection)
        finally:
            connection.answer_seconds = usual

    # The only hook: SQLAlchemy has no event for a ping.
    dialect.do_ping = ping_impatiently  # type: ignore[method-assign, assignment]


def wait_forever(connection: Connection) -> None:
    """Remove the time limit of this connection, permanently: close it afterwards."""
    raw: object = connection.connection.dbapi_connection
    if isinstance(raw, PatientConnection):
        raw.answer_seconds = None


def _wait(connection: extensions.connection) -> None:
    """Wait until libpq has its answer; psycopg2's interface of a wait callback."""
    patience = _patience(connection)
    deadline = None if patience is None else time.monotonic() + patience
    server = type(connection)
    while (state := connection.poll()) != extensions.POLL_OK:
        waiting = select.poll()
        events = select.POLLIN if state == extensions.POLL_READ else select.POLLOUT
        waiting.register(connection.fileno(), events)
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        if not waiting.poll(None if left is None else left * 1_000):
            # The connection is a PatientConnection, which has this field.
            server.is_server_silent = True  # type: ignore[attr-defined]
            raise DatabaseSilentError(f"no answer within {patience:g} seconds")
    if isinstance(connection, PatientConnection):
        connection.answered_at = time.monotonic()
    # The field of a PatientConnection; a plain connection has none.
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


# psycopg2 only has one callback for the whole process. A plain connection waits without a limit.
extensions.set_wait_callback(_wait)
