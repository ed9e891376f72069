"""Alembic's environment: the service passes its connection, the command line opens one.

It adds operations to Alembic's, for tables that a service reads and writes at the same time:
`op.add_columns`, `op.drop_columns`, `op.backfill`, `op.replace_check`, `op.replace_guard`,
`op.build_index` and `op.alone`. On a live database each of them
ends the transaction before it and uses its own, so that no lock is held while rows are read or
changed. A migration that was interrupted after one of them starts again from its beginning, so what
stands before the last of them must be repeatable (`if_not_exists=True`). On an empty database, and
on the command line, they are part of the migration's transaction.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from alembic import context
from alembic.operations import MigrateOperation, Operations
from sqlalchemy import Column, Connection, MetaData, text

# A batch locks its rows for some ten milliseconds.
BATCH_ROWS = 2_000


def run(connection: Connection, metadata: MetaData | None = None) -> None:
    context.configure(
        connection=connection,
        target_metadata=metadata,
        compare_server_default=True,
        include_name=is_ours,
        transaction_per_migration=is_live(),
    )
    with context.begin_transaction():
        context.run_migrations()


def is_ours(name: str | None, _kind: str, _parents: object) -> bool:
    """Return whether to compare a table with the models: not those of the job engine."""
    return name is None or not name.startswith("procrastinate_")


def is_live() -> bool:
    """Return whether a service may use the database meanwhile; the caller says so."""
    return bool(context.config.attributes.get("is_live"))


def run_from_the_command_line() -> None:
    """Run migrations for commands such as `alembic check` and `alembic revision --autogenerate`."""
    from autopack.config import load_settings
    from autopack.database import open_database
    from autopack.models.base import Base

    with open_database(load_settings()) as database, database.engine.begin() as connection:
        run(connection, Base.metadata)


def print_statements() -> None:
    context.configure(
        dialect_name="postgresql", literal_binds=True, transaction_per_migration=is_live()
    )
    with context.begin_transaction():
        context.run_migrations()


@contextmanager
def _apart(operations: Operations) -> Iterator[bool]:
    """Leave the migration's transaction on a live database; give whether it is one."""
    if not is_live():
        yield False
        return
    with operations.migration_context.autocommit_block():
        yield True


def _patiently(step: Callable[[], None]) -> None:
    """Run one statement; on a live database until its table is free, as the caller decides."""
    again: Callable[[Callable[[], None]], None] | None = context.config.attributes.get("again")
    if again is None or context.is_offline_mode():
        step()
    else:
        again(step)


def _execute(operations: Operations, statement: str) -> None:
    _patiently(lambda: operations.execute(statement))


@Operations.register_operation("add_columns")
class AddColumns(MigrateOperation):
    """Lock one table for the time of a change of the catalog, and no other table meanwhile."""

    def __init__(self, table: str, columns: tuple[Column[Any], ...]) -> None:
        self.table, self.columns = table, columns

    @classmethod
    def add_columns(cls, operations: Operations, table: str, *columns: Column[Any]) -> None:
        """Add columns that are not there yet."""
        operations.invoke(cls(table, columns))


@Operations.implementation_for(AddColumns)
def _add_columns(operations: Operations, it: AddColumns) -> None:
    with _apart(operations):
        for column in it.columns:
            _patiently(partial(operations.add_column, it.table, column, if_not_exists=True))


@Operations.register_operation("drop_columns")
class DropColumns(MigrateOperation):
    """Lock one table for the time of a change of the catalog, and no other table meanwhile."""

    def __init__(self, table: str, names: tuple[str, ...]) -> None:
        self.table, self.names = table, names

    @classmethod
    def drop_columns(cls, operations: Operations, table: str, *names: str) -> None:
        """Drop columns that are still there."""
        operations.invoke(cls(table, names))


@Operations.implementation_for(DropColumns)
def _drop_columns(operations: Operations, it: DropColumns) -> None:
    with _apart(operations):
        for name in it.names:
            _patiently(partial(operations.drop_column, it.table, name, if_exists=True))


@Operations.register_operation("backfill")
class Backfill(MigrateOperation):
    """Change rows in batches, each in a transaction of its own."""

    def __init__(self, table: str, values: str, where: str) -> None:
        self.table, self.values, self.where = table, values, where

    @classmethod
    def backfill(cls, operations: Operations, table: str, *, values: str, where: str) -> None:
        """Set `values` in the rows of `where`, which must not match a row that is done."""
        operations.invoke(cls(table, values, where))


@Operations.implementation_for(Backfill)
def _backfill(operations: Operations, it: Backfill) -> None:
    change = f"UPDATE {it.table} SET {it.values} WHERE "  # noqa: S608 - from the migration
    with _apart(operations) as is_apart:
        if not is_apart:
            _execute(operations, f"{change}{it.where}")
            return
        batch = f"/* batch */ {change}id > {{after}} AND id <= {{upto}} AND ({it.where})"
        if operations.migration_context.as_sql:
            _execute(operations, batch.format(after=0, upto=BATCH_ROWS))
            return
        connection = operations.get_bind()
        newest = f"SELECT coalesce(max(id), 0) FROM {it.table}"  # noqa: S608 - a migration's own
        last: int = connection.execute(text(newest)).scalar_one()
        for after in range(0, last, BATCH_ROWS):
            _execute(operations, batch.format(after=after, upto=after + BATCH_ROWS))


@Operations.register_operation("replace_check")
class ReplaceCheck(MigrateOperation):
    """Add or replace a check: new rows obey it at once, then the old ones are read."""

    def __init__(self, table: str, name: str, condition: str) -> None:
        self.table, self.name, self.condition = table, name, condition

    @classmethod
    def replace_check(cls, operations: Operations, table: str, name: str, condition: str) -> None:
        """Give the table a constraint of this name and condition, which all its rows obey."""
        operations.invoke(cls(table, name, condition))


@Operations.implementation_for(ReplaceCheck)
def _replace_check(operations: Operations, it: ReplaceCheck) -> None:
    with _apart(operations):
        _execute(
            operations,
            f"ALTER TABLE {it.table} DROP CONSTRAINT IF EXISTS {it.name},"
            f" ADD CONSTRAINT {it.name} CHECK ({it.condition}) NOT VALID",
        )
        _execute(operations, f"ALTER TABLE {it.table} VALIDATE CONSTRAINT {it.name}")


@Operations.register_operation("replace_guard")
class ReplaceGuard(MigrateOperation):
    """Add or replace a guard of a column (`models.base.guarded`); no row is read."""

    def __init__(self, table: str, name: str, column: str, condition: str) -> None:
        self.table, self.name, self.column, self.condition = table, name, column, condition

    @classmethod
    def replace_guard(
        cls, operations: Operations, table: str, name: str, column: str, condition: str
    ) -> None:
        """Refuse new values of a column; the condition for the others begins with its name."""
        operations.invoke(cls(table, name, column, condition))


@Operations.implementation_for(ReplaceGuard)
def _replace_guard(operations: Operations, it: ReplaceGuard) -> None:
    with _apart(operations):
        _execute(
            operations,
            f"CREATE OR REPLACE TRIGGER {it.name} AFTER INSERT OR UPDATE OF {it.column}"
            f" ON {it.table} FOR EACH ROW WHEN (NOT (NEW.{it.condition}))"
            " EXECUTE FUNCTION refuse_value()",
        )


@Operations.register_operation("build_index")
class BuildIndex(MigrateOperation):
    """Make an index while the table is written."""

    def __init__(self, name: str, on: str) -> None:
        self.name, self.on = name, on

    @classmethod
    def build_index(cls, operations: Operations, name: str, on: str) -> None:
        """Make the index `name`; `on` is its SQL: table (columns) WHERE condition."""
        operations.invoke(cls(name, on))


@Operations.implementation_for(BuildIndex)
def _build_index(operations: Operations, it: BuildIndex) -> None:
    with _apart(operations) as is_apart:
        if not is_apart:
            _execute(operations, f"CREATE INDEX {it.name} ON {it.on}")
            return
        if not operations.migration_context.as_sql:
            # What an interrupted build left behind is not used for reading, and costs each write.
            left = "SELECT NOT indisvalid FROM pg_index WHERE indexrelid = to_regclass(:name)"
            if operations.get_bind().execute(text(left), {"name": it.name}).scalar():
                _execute(operations, f"DROP INDEX CONCURRENTLY {it.name}")
        _execute(operations, f"CREATE INDEX CONCURRENTLY IF NOT EXISTS {it.name} ON {it.on}")


@Operations.register_operation("alone")
class Alone(MigrateOperation):
    """Run one statement in a transaction of its own."""

    def __init__(self, statement: str) -> None:
        self.statement = statement

    @classmethod
    def alone(cls, operations: Operations, statement: str) -> None:
        """Run a statement that may be run again and changes no row that a request waits for."""
        operations.invoke(cls(statement))


@Operations.implementation_for(Alone)
def _alone(operations: Operations, it: Alone) -> None:
    with _apart(operations):
        _execute(operations, it.statement)


# The package is not imported on this path, as its name may be `src.autopack` here.
given = context.config.attributes.get("connection")
if context.is_offline_mode():
    print_statements()
elif given is not None:
    run(given)
else:
    run_from_the_command_line()
