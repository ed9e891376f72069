"""What a backup reads of a database of any revision, and how a restore empties one.

A backup is made before an upgrade too, so it names only columns that every revision has.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from sqlalchemy import Connection, Engine, inspect, text

from ..models import metadata

_ENGINE_PREFIX: Final = "procrastinate_"  # the tables, types and functions of the job engine
_REVISION: Final = "alembic_version"
# A database with one of these rows has been used.
_WORK: Final = ("runs", "api_keys", "audit_log", "webhooks", "backlog")


@dataclass(frozen=True, slots=True)
class KnownRun:
    """What the refs of a run should be; `is_moved`: another process moved its branch."""

    run_id: str
    base_branch: str
    base_commit: str
    head_commit: str
    is_moved: bool


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One moment of the database, which other connections can see by its name."""

    connection: Connection
    name: str

    def server_major(self) -> int:
        query = "SELECT current_setting('server_version_num')::int / 10000"
        return int(self.connection.execute(text(query)).scalar_one())

    def schema(self) -> str:
        """Return the schema that has Autopack's tables."""
        query = text("SELECT current_schema()")
        return str(self.connection.execute(query).scalar_one())

    def revision(self) -> str | None:
        if not inspect(self.connection).has_table(_REVISION):
            return None
        query = text(f"SELECT version_num FROM {_REVISION}")  # noqa: S608 - a fixed name
        return self.connection.execute(query).scalar_one_or_none()

    def runs(self) -> list[KnownRun]:
        query = text(
            "SELECT run_id, base_branch, base_commit, head_commit,"
            " coalesce(failure_code = 'branch_moved', false) FROM runs ORDER BY id"
        )
        return [KnownRun(*row) for row in self.connection.execute(query)]

    def tags(self) -> list[tuple[str, str]]:
        """Return the snapshots of phases: the tag's name and its object."""
        query = text(
            "SELECT p.snapshot_tag, p.snapshot_oid FROM phases p JOIN runs r ON r.id = p.run_pk"
            " WHERE p.snapshot_tag IS NOT NULL AND p.snapshot_oid IS NOT NULL"
            " AND r.failure_code IS DISTINCT FROM 'branch_moved'"
        )
        return [(tag, oid) for tag, oid in self.connection.execute(query)]


@contextmanager
def open_snapshot(engine: Engine) -> Iterator[Snapshot]:
    """Hold one moment of the database for this and for other connections."""
    with engine.connect() as connection:
        held = connection.execution_options(
            isolation_level="REPEATABLE READ", postgresql_readonly=True
        )
        held.execute(text("SET LOCAL idle_in_transaction_session_timeout = 0"))
        name = held.execute(text("SELECT pg_export_snapshot()")).scalar_one()
        yield Snapshot(held, name)


def is_being_restored(connection: Connection) -> bool:
    """Say whether a pg_restore works on this database: it outlives a restore that is killed."""
    query = text(
        "SELECT EXISTS (SELECT FROM pg_stat_activity"
        " WHERE datname = current_database() AND application_name = 'pg_restore')"
    )
    return bool(connection.execute(query).scalar_one())


def work_in(connection: Connection) -> str | None:
    """Return what of a service's work the database has, for people; None for an unused one."""
    tables = set(inspect(connection).get_table_names())
    for table in _WORK:
        if table in tables:
            query = text(f"SELECT count(*) FROM {table}")  # noqa: S608 - a fixed name
            if found := connection.execute(query).scalar_one():
                return f"{found} rows in {table}"
    return None


def remove_everything(connection: Connection) -> None:
    """Remove Autopack's tables, functions and types, and nothing of another program."""
    preparer = connection.dialect.identifier_preparer
    tables = [
        name
        for name in inspect(connection).get_table_names()
        if name in metadata.tables or name == _REVISION or name.startswith(_ENGINE_PREFIX)
    ]
    functions = text("""
        SELECT DISTINCT p.oid::regprocedure::text FROM pg_proc p
        LEFT JOIN pg_trigger t ON t.tgfoid = p.oid AND NOT t.tgisinternal
        LEFT JOIN pg_class c ON c.oid = t.tgrelid
        WHERE p.pronamespace = current_schema()::regnamespace
            AND (starts_with(p.proname, :prefix) OR c.relname = ANY(:tables))""")
    values = {"prefix": _ENGINE_PREFIX, "tables": tables}
    named = connection.execute(functions, values).scalars().all()
    if tables:
        names = ", ".join(preparer.quote_identifier(name) for name in tables)
        connection.execute(text(f"DROP TABLE {names} CASCADE"))
    for function in named:
        connection.execute(text(f"DROP ROUTINE IF EXISTS {function} CASCADE"))
    types = text("""
        SELECT t.oid::regtype::text FROM pg_type t LEFT JOIN pg_class c ON c.oid = t.typrelid
        WHERE t.typnamespace = current_schema()::regnamespace AND starts_with(t.typname, :prefix)
            AND (t.typtype = 'e' OR c.relkind = 'c')""")
    for kind in connection.execute(types, {"prefix": _ENGINE_PREFIX}).scalars().all():
        connection.execute(text(f"DROP TYPE IF EXISTS {kind} CASCADE"))


def server_major(connection: Connection) -> int:
    """Return the major version of the server."""
    query = text("SELECT current_setting('server_version_num')::int / 10000")
    return int(connection.execute(query).scalar_one())
