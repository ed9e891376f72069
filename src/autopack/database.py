"""The service's Postgres: engines, sessions, the clock. Migrations are in `migrating`."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from threading import Lock
from typing import TYPE_CHECKING, Any, Final, Protocol

import structlog
from psycopg2.extensions import TRANSACTION_STATUS_IDLE, TRANSACTION_STATUS_UNKNOWN
from pydantic_core import from_json
from sqlalchemy import URL, Engine, create_engine, event, make_url, text
from sqlalchemy.engine import Dialect
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy.pool import PoolResetState

from .config import Settings, load_settings
from .migrating import (
    DatabaseError,
    Step,
    migrate,
    newest_revision,
    one_line_errors,
    pending_steps,
    revision_of,
)
from .patience import (
    CONNECT_SECONDS,
    GONE_AFTER,
    KEEPALIVES,
    DatabaseSilentError,
    PatientConnection,
    ping_within,
)

if TYPE_CHECKING:
    from .embedded_postgres import EmbeddedPostgres

logger = structlog.get_logger(__name__)

Sessions = sessionmaker[Session]

# Idle connections that are kept, and those beyond: together 80, below Postgres' default of 100.
# The server answers on at most 40 threads. Each holds one connection in autocommit, and the few
# that change a run may want a second one; reports and work outside of runs open transactions.
POOL: Final = (5, 25)
AUTOCOMMIT_POOL: Final = (20, 30)
# For each project beside the default one, together 20. What an idle one keeps, it takes from all.
FURTHER_POOL: Final = (1, 5)
FURTHER_AUTOCOMMIT_POOL: Final = (1, 13)
POOL_WAIT_SECONDS: Final = 10
# A server that stops a statement answers with an error. Without an answer for so much longer, the
# server counts as unavailable.
GRACE_SECONDS: Final = 2
# A process that is frozen, or whose machine has vanished, must not hold its locks for good. The
# server ends its transaction after the first, and its session after 30 seconds without an answer.
IDLE_TRANSACTION_SECONDS: Final = 300
_GONE_MILLISECONDS: Final = 30_000
# A change of the database's clock is followed within this time.
CLOCK_SECONDS: Final = 10
_UPTIME: Final[int] = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


@dataclass(frozen=True, slots=True)
class DatabaseStatus:
    """The schema's revision and the one that this code needs; `now` is the server's clock."""

    revision: str | None
    head: str | None
    server_version: str
    size_bytes: int
    now: datetime

    @property
    def is_current(self) -> bool:
        return self.revision == self.head


@dataclass(frozen=True, slots=True)
class Database:
    """An open database. Close it when done: it may own a running Postgres."""

    engine: Engine
    autocommit: Engine
    sessions: Sessions
    embedded: EmbeddedPostgres | None = None

    def migrate(self) -> None:
        """Bring the schema to head. Raises DatabaseError."""
        migrate(self.engine)

    def pending_steps(self) -> list[Step]:
        """Return the migrations that `migrate` would run. Raises DatabaseError."""
        return pending_steps(self.engine)

    def status(self) -> DatabaseStatus:
        """Read the database's status without changing it. Raises DatabaseError."""
        head = newest_revision()
        with one_line_errors(self.engine), self.engine.connect() as connection:
            version, size, now = connection.execute(
                text(
                    "SELECT current_setting('server_version'),"
                    " pg_database_size(current_database()), clock_timestamp()"
                )
            ).one()
            return DatabaseStatus(revision_of(connection), head, version, size, now)

    def close(self) -> None:
        """Close every idle connection and release the embedded Postgres."""
        self.engine.dispose()
        self.autocommit.dispose()
        if self.embedded is not None:
            self.embedded.stop()

    def __enter__(self) -> Database:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class DatabaseClock:
    """The database's time, which all services share, without a query for each call.

    Between two queries it adds the seconds since the last one. So a step of this machine's clock
    has no effect, and a step of the database's has one after CLOCK_SECONDS. Any number of threads
    may call it.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._asking = Lock()
        self._look = self._ask()  # the time of the query by `_uptime`, and the database's answer

    def __call__(self) -> datetime:
        if _uptime() - self._look[0] > CLOCK_SECONDS and self._asking.acquire(blocking=False):
            try:
                self._look = self._ask()
            except (DBAPIError, PoolTimeoutError) as error:
                logger.warning("database_clock_not_read", why=type(error).__name__)
                self._look = _uptime(), self._now()
            finally:
                self._asking.release()
        return self._now()

    def _now(self) -> datetime:
        asked_at, answer = self._look
        return answer + timedelta(seconds=_uptime() - asked_at)

    def _ask(self) -> tuple[float, datetime]:
        with self._engine.connect() as connection:
            before = _uptime()
            answer: datetime = connection.execute(text("SELECT clock_timestamp()")).scalar_one()
            return (before + _uptime()) / 2, answer


def _uptime() -> float:
    """Return monotonic seconds, including a machine's sleep where the system supports it."""
    return time.clock_gettime(_UPTIME)


def open_database(settings: Settings, *, is_further: bool = False) -> Database:
    """Open DATABASE_URL, or start the embedded Postgres in AUTOPACK_HOME.

    Connects to DATABASE_URL at first use only. `is_further`: the database of a project beside the
    default one, with smaller pools. Raises DatabaseError.
    """
    if settings.database_url is not None:
        engine, autocommit = (
            make_engine(
                settings.database_url,
                settings.sql_timeout_seconds,
                is_autocommit=is_autocommit,
                is_further=is_further,
            )
            for is_autocommit in (False, True)
        )
        return Database(engine, autocommit, make_sessions(engine))
    try:
        # Imported here, as only a service without a DATABASE_URL needs it, and not every system has
        # it.
        from .embedded_postgres import EmbeddedPostgres, EmbeddedPostgresError
    except ImportError as error:
        raise DatabaseError(
            f"The embedded Postgres does not work on this system ({error}): set DATABASE_URL."
        ) from error
    embedded = EmbeddedPostgres(settings.home / "postgres")
    try:
        settings.home.mkdir(parents=True, exist_ok=True)
        (settings.home / ".gitignore").write_text("*\n")  # the user's `git status` stays clean
        url = embedded.start()
    except (OSError, EmbeddedPostgresError) as error:
        raise DatabaseError(str(error)) from error
    engine, autocommit = (
        make_engine(url, settings.sql_timeout_seconds, is_autocommit=is_autocommit)
        for is_autocommit in (False, True)
    )
    for each in (engine, autocommit):
        _revive_on_connect(each, embedded)
    return Database(engine, autocommit, make_sessions(engine), embedded)


def make_engine(
    url: str | URL,
    statement_seconds: int,
    *,
    is_autocommit: bool = False,
    is_further: bool = False,
) -> Engine:
    """Return an engine whose every statement ends within `statement_seconds`, in UTC.

    In autocommit each statement is a transaction, unless a BEGIN was sent.
    """
    address = make_url(url)
    settings = {
        "statement_timeout": statement_seconds * 1000,
        "timezone": "UTC",
        "idle_in_transaction_session_timeout": IDLE_TRANSACTION_SECONDS * 1000,
        # What is prepared looks up keys. Postgres would plan one with a list of keys each time.
        "plan_cache_mode": "force_generic_plan",
        "tcp_user_timeout": _GONE_MILLISECONDS,
        **{f"tcp_keepalives_{name}": value for name, value in GONE_AFTER.items()},
    }
    options = " ".join(f"-c {name}={value}" for name, value in settings.items())
    given = address.query.get("options")
    if isinstance(given, str):
        options = f"{given} {options}"
    patient = type(
        "PatientConnection",
        (PatientConnection,),
        {"answer_seconds": statement_seconds + GRACE_SECONDS},
    )
    pools = (FURTHER_POOL, FURTHER_AUTOCOMMIT_POOL) if is_further else (POOL, AUTOCOMMIT_POOL)
    pool_size, max_overflow = pools[is_autocommit]
    engine = create_engine(
        address,
        pool_size=pool_size,
        max_overflow=max_overflow,
        pool_timeout=POOL_WAIT_SECONDS,
        # 30 µs of CPU a request; without it some requests fail after a restart of Postgres.
        pool_pre_ping=True,
        use_native_hstore=False,  # no table has it; looking for it costs a new connection a trip
        json_deserializer=from_json,  # a run has some hundred JSON values: half of the time
        isolation_level="AUTOCOMMIT" if is_autocommit else "READ COMMITTED",
        connect_args={
            "options": options,
            "application_name": "autopack",
            "connect_timeout": CONNECT_SECONDS,
            **KEEPALIVES,
            "connection_factory": patient,
        },
    )
    ping_within(engine.dialect, CONNECT_SECONDS)
    event.listen(engine, "reset", _restore_settings)
    if is_autocommit:
        event.listen(engine, "reset", _end_transaction)
    return engine


class _PoolRecord(Protocol):
    finalize_callback: deque[Callable[[DBAPIConnection], None]]


def _restore_settings(
    connection: DBAPIConnection, record: _PoolRecord | None, _state: PoolResetState
) -> None:
    """Reset a session's isolation level while the pool still handles failures.

    SQLAlchemy would reset it a moment later. There a lost connection raises psycopg2's own error,
    and its place in the pool is never free again. Here the pool replaces the connection. One that
    has left the pool has no record, and is closed next.
    """
    if record is None:
        return
    if record.finalize_callback:
        connection.rollback()  # free where no transaction is open
    while record.finalize_callback:
        record.finalize_callback.pop()(connection)


def _end_transaction(
    connection: DBAPIConnection, _record: _PoolRecord, _state: PoolResetState
) -> None:
    """End a transaction that a statement began: psycopg2's own rollback knows of none.

    Sessions end theirs. If one does not, its locks must not stay behind on an idle connection.
    """
    assert isinstance(connection, PatientConnection)  # noqa: S101 - for the type checker
    ended = (TRANSACTION_STATUS_IDLE, TRANSACTION_STATUS_UNKNOWN)
    if connection.info.transaction_status not in ended:
        logger.error("transaction_left_open")
        with connection.cursor() as cursor:
            cursor.execute("ROLLBACK")


def make_sessions(engine: Engine) -> Sessions:
    """Return a factory of sessions whose objects stay readable after a commit."""
    return sessionmaker(engine, expire_on_commit=False)


def init_db(settings: Settings | None = None) -> None:
    """Migrate DATABASE_URL, or the embedded Postgres, to head. Raises DatabaseError."""
    with open_database(settings or load_settings()) as database:
        database.migrate()


def _revive_on_connect(engine: Engine, embedded: EmbeddedPostgres) -> None:
    """Start the embedded Postgres again when it has stopped, as no service manager does."""
    from .embedded_postgres import EmbeddedPostgresError

    @event.listens_for(engine, "do_connect")
    def connect(
        dialect: Dialect, _entry: object, arguments: list[Any], parameters: dict[str, Any]
    ) -> DBAPIConnection:
        try:
            return dialect.connect(*arguments, **parameters)
        except DatabaseSilentError:
            raise  # it runs, so starting it would only wait for a minute
        except dialect.loaded_dbapi.OperationalError as error:
            try:
                embedded.start()
            except EmbeddedPostgresError as failure:
                logger.error("embedded_postgres_not_revived", reason=str(failure))
                raise error from failure  # the database is unavailable, as with any other server
            logger.warning("embedded_postgres_revived", folder=str(embedded.folder))
            return dialect.connect(*arguments, **parameters)
