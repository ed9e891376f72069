"""Bring a database's schema to this code's, beside services that use it (docs/operations.md).

Each migration is a transaction of its own, or several (alembic/env.py). One that waits for a lock
makes requests wait behind it, so it gives up after LOCK_SECONDS, lets them pass, and tries again.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import structlog
from psycopg2 import errorcodes
from sqlalchemy import Connection, Engine, event, text
from sqlalchemy.exc import DBAPIError, OperationalError, ProgrammingError

from .advisory_locks import MIGRATION
from .domain.schema_steps import StepFaults, find_faults
from .patience import wait_forever

if TYPE_CHECKING:
    from alembic.config import Config
    from alembic.script import Script, ScriptDirectory

logger = structlog.get_logger(__name__)

# One migration's transaction waits for its locks no longer than this, all its statements together.
LOCK_SECONDS: Final = 0.5
# So long it is tried again. A backup or an open psql may hold a lock for minutes.
GIVE_UP_SECONDS: Final = 600
_SHORTEST_PAUSE_SECONDS: Final = 0.2
_LONGEST_PAUSE_SECONDS: Final = 5.0
_LOOK_SECONDS: Final = 0.2  # how often one looks whether another process has migrated
_BUSY: Final = {errorcodes.LOCK_NOT_AVAILABLE, errorcodes.DEADLOCK_DETECTED}
_IDENTIFIERS: Final = re.compile(r"^((?:down_)?revision)\b[^=\n]*=(.*)$", re.MULTILINE)
# They wait by a lock that no reader and writer waits behind, and may wait for a long transaction.
_PATIENT: Final = (" CONCURRENTLY ", " VALIDATE CONSTRAINT ")
# Postgres ends an autovacuum that is in the way when the wait is as long as deadlock_timeout, which
# is a second: longer than LOCK_SECONDS. Only a superuser may change it; others wait for the end.
_YIELDING_AUTOVACUUM: Final = (
    "DO $$ BEGIN SET deadlock_timeout = '100ms';"
    " EXCEPTION WHEN insufficient_privilege THEN NULL; END $$"
)


class DatabaseError(Exception):
    """The database cannot be used. The message is one line that says what to do."""


@dataclass(frozen=True, slots=True)
class Step:
    """A migration that has not run. `stop_first`: why older services must stop before it."""

    revision: str
    title: str
    faults: StepFaults
    stop_first: str | None

    @property
    def is_safe(self) -> bool:
        """Return whether it may run while services of the version before answer requests."""
        return self.stop_first is None and not self.faults.long_locks


def migrate(engine: Engine) -> None:
    """Bring the schema to head, once even if many processes start together.

    An empty database is filled in one transaction. On any other one, each migration is committed
    by itself, and one that was interrupted is done again. Raises DatabaseError.
    """
    head = newest_revision()
    with one_line_errors(engine):
        with engine.connect() as connection:
            if revision_of(connection) == head:
                return
        # Imported here, as most starts find the schema at head: a seventh of a second.
        from alembic import command

        config = alembic_config()
        scripts = _scripts(config)
        with _alone(engine) as connection:
            was = revision_of(connection)
            connection.commit()
            if was == head:
                return
            _pending(scripts, was)  # refuses a revision that this code does not know
            config.attributes["connection"] = connection
            if was is None:
                with connection.begin():
                    command.upgrade(config, "head")
            else:
                config.attributes["is_live"] = True
                _limit_lock_waits(connection)
                patience = _Patience(connection)
                config.attributes["again"] = patience
                patience(partial(command.upgrade, config, "head"))
    logger.info("database_migrated", revision=head, was=was)


def pending_steps(engine: Engine) -> list[Step]:
    """Return the migrations that `migrate` would run, the first one first. Raises DatabaseError."""
    config = alembic_config()
    scripts = _scripts(config)
    with one_line_errors(engine), engine.connect() as connection:
        was = revision_of(connection)
    pending = _pending(scripts, was)
    return _judged(config, was or "base", pending) if pending else []


def all_steps() -> list[Step]:
    """Return every migration of this code, judged as on a live database."""
    config = alembic_config()
    return _judged(config, "base", _pending(_scripts(config), None))


def newest_revision() -> str:
    """Return the revision that this code needs: the one that no other migration follows.

    Raises DatabaseError.
    """
    revisions, followed = _revisions()
    newest = sorted(revisions - followed)
    if len(newest) != 1:
        raise DatabaseError(f"The migrations have no single end: {', '.join(newest)}.")
    return newest[0]


def known_revisions() -> frozenset[str]:
    """Return the revisions of the schema that this Autopack can upgrade from.

    Raises DatabaseError.
    """
    return frozenset(_revisions()[0])


def _revisions() -> tuple[set[str], set[str]]:
    """Return all revisions, and those that another one follows.

    Read from the text of the migrations, since a start must not wait for Alembic to execute them.
    """
    revisions: set[str] = set()
    followed: set[str] = set()
    for file in (_migrations() / "versions").glob("*.py"):
        for name, value in _IDENTIFIERS.findall(file.read_text(encoding="utf-8")):
            (revisions if name == "revision" else followed).update(re.findall(r'"(.*?)"', value))
    return revisions, followed


def revision_of(connection: Connection) -> str | None:
    """Return the revision of the schema; None: it is empty."""
    if connection.execute(text("SELECT to_regclass('alembic_version')")).scalar_one() is None:
        return None
    found = connection.execute(text("SELECT version_num FROM alembic_version"))
    revision: str | None = found.scalar_one_or_none()
    return revision


def alembic_config() -> Config:
    """Return Alembic's configuration for the migrations that belong to this code."""
    from alembic.config import Config

    config = Config()
    # The value is interpolated, so percent signs are doubled.
    config.set_main_option("script_location", str(_migrations()).replace("%", "%%"))
    return config


def _migrations() -> Path:
    """Return their folder: `alembic/` of a checkout, `autopack/migrations` of an installed package.

    Raises DatabaseError.
    """
    package = Path(__file__).resolve().parent
    for folder in (package / "migrations", package.parents[1] / "alembic"):
        if (folder / "env.py").is_file():
            return folder
    raise DatabaseError(f"No migrations beside {package}: this Autopack is incomplete.")


@contextlib.contextmanager
def one_line_errors(engine: Engine) -> Iterator[None]:
    """Turn errors of a wrong address, password or permission into one line that names the cause."""
    try:
        yield
    except (OperationalError, ProgrammingError) as error:
        reason = " ".join(str(error.orig).split())
        address = engine.url.render_as_string(hide_password=True)
        raise DatabaseError(f"The database {address} cannot be used: {reason}") from error


def _scripts(config: Config) -> ScriptDirectory:
    from alembic.script import ScriptDirectory

    return ScriptDirectory.from_config(config)


def _pending(scripts: ScriptDirectory, was: str | None) -> list[Script]:
    known = list(scripts.walk_revisions())
    if was is not None and was not in {script.revision for script in known}:
        raise DatabaseError(
            f"The database is at revision {was}, which this Autopack does not know: "
            "it was migrated by a newer one. Update Autopack."
        )
    newest_first = []
    for script in known:
        if script.revision == was:
            break
        newest_first.append(script)
    return newest_first[::-1]


@contextlib.contextmanager
def _alone(engine: Engine) -> Iterator[Connection]:
    """Give a connection that holds the lock of migrations; it is closed afterwards.

    The lock is asked for again and again: a process that waited in Postgres would have a
    transaction open, and CREATE INDEX CONCURRENTLY waits for the end of each.
    """
    with engine.connect() as connection:
        wait_forever(connection)
        # A migration may take long. Its waits for locks have their own limit.
        connection.execute(text("SET statement_timeout = 0"))
        connection.execute(text(_YIELDING_AUTOVACUUM))
        is_waiting = False
        ask = text(f"SELECT pg_try_advisory_lock({MIGRATION})")
        while not connection.scalar(ask):
            connection.commit()
            if not is_waiting:
                logger.info("another_process_migrates")
            is_waiting = True
            time.sleep(_LOOK_SECONDS)
        connection.commit()
        try:
            yield connection
        finally:
            connection.invalidate()  # ends the session, and with it the lock and the settings


def _limit_lock_waits(connection: Connection) -> None:
    """Give the statements of each transaction LOCK_SECONDS in all to get their locks."""
    deadline: float | None = None

    @event.listens_for(connection, "begin")
    def begin(_connection: Connection) -> None:
        nonlocal deadline
        deadline = None

    @event.listens_for(connection, "before_cursor_execute")
    def limit(_: Connection, cursor: Any, statement: str, *_rest: object) -> None:
        nonlocal deadline
        now = time.monotonic()
        deadline = deadline or now + LOCK_SECONDS
        is_patient = any(words in statement for words in _PATIENT)
        left = LOCK_SECONDS if cursor.connection.autocommit else deadline - now
        # Zero would be no limit.
        limit_ms = 0 if is_patient else max(1, round(left * 1_000))
        cursor.execute(f"SET lock_timeout = {limit_ms}")


class _Patience:
    """Repeats what found its tables in use, with longer and longer pauses."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def __call__(self, step: Callable[[], None]) -> None:
        """Run a step that leaves nothing behind when it fails, until it gets its locks.

        Raises DatabaseError when it has not within GIVE_UP_SECONDS.
        """
        started, pause = time.monotonic(), _SHORTEST_PAUSE_SECONDS
        while True:
            try:
                step()
            except DBAPIError as error:
                if getattr(error.orig, "pgcode", None) not in _BUSY:
                    raise
                self._look(error, started)
                time.sleep(pause)
                pause = min(_LONGEST_PAUSE_SECONDS, pause * 2)
            else:
                return

    def _look(self, error: DBAPIError, started: float) -> None:
        if not self._is_apart():
            self._connection.rollback()
        holders = _old_transactions(self._connection)
        statement = " ".join((error.statement or "").split())[:120]
        if time.monotonic() - started > GIVE_UP_SECONDS:
            raise DatabaseError(
                f"The migration found no moment in which its tables are free: {statement}. "
                f"Open transactions: {holders}. End them, and start again."
            ) from error
        logger.warning("migration_waits", statement=statement, transactions=holders)
        if not self._is_apart():
            self._connection.commit()

    def _is_apart(self) -> bool:
        """Return whether each statement is a transaction, so that there is nothing to undo."""
        raw: Any = self._connection.connection.dbapi_connection
        return bool(raw.autocommit)


def _old_transactions(connection: Connection) -> str:
    """Return which sessions have had a transaction open since before the last wait for a lock."""
    found = connection.execute(
        text(
            "SELECT pid, application_name, round(extract(epoch FROM now() - xact_start))"
            " FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
            " AND xact_start < now() - make_interval(secs => :seconds) ORDER BY xact_start LIMIT 5"
        ),
        {"seconds": LOCK_SECONDS},
    ).all()
    return ", ".join(f"pid {pid} ({name}) for {age} s" for pid, name, age in found) or "none now"


class _Statements(list[str]):
    """What Alembic writes its SQL to: one statement a call."""

    def write(self, statement: str) -> None:
        self.append(statement.strip())

    def flush(self) -> None:
        pass


def _judged(config: Config, since: str, pending: list[Script]) -> list[Step]:
    """Return the steps with their faults, from the SQL that they would run."""
    from alembic import command

    written = _Statements()
    # Alembic only calls `write`, though it declares a whole text file.
    config.output_buffer = written  # type: ignore[assignment]
    config.attributes["is_live"] = True
    command.upgrade(config, f"{since}:{pending[-1].revision}", sql=True)
    by_revision: dict[str, list[list[str]]] = {}
    transactions: list[list[str]] = []
    is_apart = False  # outside of BEGIN and COMMIT each statement is a transaction
    for statement in written:
        if statement.startswith("-- Running upgrade"):
            revision = statement.split(" -> ")[1].split()[0].rstrip(";,")
            transactions = by_revision.setdefault(revision, [[]])
        elif statement.startswith(("COMMIT", "BEGIN")):
            transactions.append([])
            is_apart = statement.startswith("COMMIT")
        elif "alembic_version" not in statement:
            transactions.append([statement]) if is_apart else transactions[-1].append(statement)
    return [
        Step(
            script.revision,
            (script.doc or "").split("\n")[0],
            find_faults(by_revision.get(script.revision, [])),
            getattr(script.module, "stop_first", None),
        )
        for script in pending
    ]
