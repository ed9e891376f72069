"""A session that reads and writes plain rows, in few round trips.

All differences in the rows that a change has read, and all rows that it added, are sent to Postgres
together with the COMMIT. (docs/architecture.md, "One request")
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import closing, suppress
from itertools import count, groupby
from operator import itemgetter
from typing import Any, Final, cast

import psycopg2
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError, InvalidRequestError, PendingRollbackError
from sqlalchemy.orm import Session

from .rows import (
    Model,
    Prepared,
    PreparedParts,
    PreparedSelect,
    Rows,
    Values,
    differences,
)

# How much of a statement an error shows: a log must not contain whole patches.
_SHOWN_BYTES: Final = 1_000
_PREPARED_NAMES: Final = count(1)
# Each takes some 20 kB of Postgres' memory; a service has about a hundred.
_MOST_PREPARED: Final = 300
_NEXT_IDS: Final = (
    "ARRAY(SELECT nextval(pg_get_serial_sequence(%s, 'id')) FROM generate_series(1, %s))"
)


class RowSession(Session):
    """A session that also reads and writes plain rows.

    On an engine in AUTOCOMMIT, `begin_change` opens a transaction, which ends with the session's
    `commit`, `rollback` or `close`. Mapped objects may be used beside plain rows: gathered
    statements are sent before mapped objects are flushed or queried.
    """

    def __init__(self, bind: Engine | Connection, *, is_writing: bool = False) -> None:
        """`is_writing`: the engine opens transactions by itself, and changed rows are written."""
        super().__init__(bind=bind, expire_on_commit=False)
        self._engine = bind if isinstance(bind, Engine) else None
        self._is_writing = is_writing
        self._gathered: list[tuple[str, Values]] = []
        self._preparing: dict[str, str] = {}  # the names that gathered statements give
        # By table and id: the row, and how it was when it was read or last sent.
        self._followed: dict[tuple[Rows[Any], int], tuple[Any, dict[str, Any]]] = {}
        self._added: list[tuple[Rows[Any], Any]] = []
        self._is_begun = False
        self._connection = bind if isinstance(bind, Connection) else None

    # Reading

    def fetch(self, statement: str, values: Values = ()) -> list[tuple[Any, ...]]:
        """Return the result of a SELECT, in one round trip with the statements gathered before it.

        The SELECT does not see rows that were added or changed but not sent.
        """
        return self._send([(statement, values)], has_result=True)

    def fetch_by(self, prepared: Prepared, values: Sequence[Any]) -> list[tuple[Any, ...]]:
        """Return the result of a statement that the connection's first use prepares.

        It goes with the same round trip; otherwise as `fetch`.
        """
        return self.fetch(self._execute(prepared), values)

    def rows(self, rows: Rows[Model], condition: str, values: Values = ()) -> list[Model]:
        """Return the rows that a condition selects; in a change, edits of these rows are written.

        The condition follows `FROM table`. It is a literal in `store/`; values are bound.
        """
        statement = f"SELECT {rows.columns} FROM {rows.name} {condition}"  # noqa: S608 - see above
        return self.read(rows, self.fetch(statement, values))

    def rows_by(self, select: PreparedSelect[Model], values: Sequence[Any]) -> list[Model]:
        """Return the rows of a prepared SELECT; otherwise as `rows`."""
        return self.read(select.rows, self.fetch_by(select, values))

    def row(self, rows: Rows[Model], condition: str, values: Values = ()) -> Model | None:
        """Return the first row that a condition selects, or None."""
        found = self.rows(rows, condition, values)
        return found[0] if found else None

    def fetch_parts(
        self, parts: PreparedParts, values: Sequence[Any]
    ) -> list[list[tuple[Any, ...]]]:
        """Return the rows of each part of a statement."""
        found: list[list[tuple[Any, ...]]] = [[] for _ in parts.places]
        for row in self.fetch_by(parts, values):
            found[row[0]].append(row[parts.places[row[0]]])
        return found

    def read(self, rows: Rows[Model], found: Iterable[Sequence[Any]]) -> list[Model]:
        """Return fetched rows of a table; in a change, edits of these rows are written."""
        read = map(rows.read, found)
        if self._is_begun or self._is_writing:
            return [self.follow(rows, row) for row in read]
        return list(read)

    def next_id(self, rows: Rows[Any]) -> int:
        """Take an id for a row that is to be added."""
        ((key,),) = self.next_ids((rows, 1))
        return key

    def next_ids(self, *wanted: tuple[Rows[Any], int]) -> list[list[int]]:
        """Take so many ids of each table for rows that are to be added, in one round trip."""
        keys = ", ".join([_NEXT_IDS] * len(wanted))
        values = [value for rows, count in wanted for value in (rows.name, count)]
        (found,) = self.fetch(f"SELECT {keys}", values)
        return list(found)

    # Writing

    def begin_change(self) -> None:
        """Open a transaction, with the next statement."""
        self.gather("BEGIN")
        self._is_begun = True

    def gather(self, statement: str | Prepared, values: Values = ()) -> None:
        """Send a statement later, with the next one that has a result, or with the commit.

        Rows that were added or changed are sent after it, also those of before this call.
        """
        if isinstance(statement, Prepared):
            statement = self._execute(statement)
        self._gathered.append((statement, values))

    def gather_unsynced(self, *statements: tuple[str | Prepared, Values]) -> None:
        """Gather statements as a transaction of their own that a power cut may lose.

        Only outside of a change. Postgres does not wait for its disk.
        """
        self.gather("BEGIN; SET LOCAL synchronous_commit = off")
        for statement, values in statements:
            self.gather(statement, values)
        self.gather("COMMIT")

    def put(self, rows: Rows[Model], row: Model) -> Model:
        """Add a row with the values that it has when the session is sent."""
        self._added.append((rows, row))
        return row

    def follow(self, rows: Rows[Model], row: Model) -> Model:
        """Write what is changed in a row from now on; return the row.

        One that is followed already is the same object again, as one of two copies would be written
        over the other. It takes over what is new in the database, except what was changed here.
        """
        fresh = row.__dict__
        known = self._followed.get((rows, fresh["id"]))
        if known is None:
            self._followed[rows, fresh["id"]] = row, dict(fresh)
            return row
        first, loaded = known
        first.__dict__.update({**fresh, **differences(first, loaded)})
        loaded.update(fresh)
        return cast("Model", first)

    def send(self) -> None:
        """Send the gathered statements, and all rows that were added or changed."""
        self.gather_rows()
        if self._gathered:
            self._send([])

    def flush(self, objects: Sequence[Any] | None = None) -> None:
        self.send()
        super().flush(objects)

    def commit(self) -> None:
        """Send everything and commit, in one round trip if there is no mapped object to flush."""
        if self.new or self.dirty or self.deleted:
            self.flush()
        self.gather_rows()
        if self._is_begun:
            self._gathered.append(("COMMIT", ()))
        if self._gathered:
            self._send([])
        self._forget()
        if self.in_transaction():
            super().commit()

    def rollback(self) -> None:
        is_begun = self._is_begun
        self._gathered.clear()
        self._preparing.clear()
        self._added.clear()
        self._forget()
        if is_begun:
            # A connection that is lost has rolled back.
            with suppress(DBAPIError, InvalidRequestError):
                self._send([("ROLLBACK", ())])
        super().rollback()

    def close(self) -> None:
        if self._is_begun:  # the pool knows of no transaction that was begun by a statement
            self.rollback()
        super().close()
        if self._engine is not None and self._connection is not None:
            self._connection.close()
            self.bind, self._connection = self._engine, None

    def invalidate(self) -> None:
        """Close the connection for good: its state is not known."""
        if self._connection is not None:
            self._connection.invalidate()
        super().invalidate()

    def _forget(self) -> None:
        self._is_begun = False
        self._followed.clear()

    def gather_rows(self) -> None:
        """Gather the INSERTs of added rows in their order, then the UPDATEs of changed ones."""
        added, self._added = self._added, []
        for rows, group in groupby(added, key=itemgetter(0)):
            members = [row for _, row in group]
            self.gather(*rows.insert(members))
            for row in members:
                if row.__dict__.get("id") is not None:
                    self.follow(rows, row)
        changes: list[tuple[Rows[Any], dict[str, Any], list[int]]] = []
        for (rows, key), (row, loaded) in self._followed.items():
            changed = differences(row, loaded)
            if not changed:
                continue
            loaded.update(changed)
            # Rows that change alike, as phases that are skipped do, share a statement.
            if changes and changes[-1][:2] == (rows, changed):
                changes[-1][2].append(key)
            else:
                changes.append((rows, changed, [key]))
        for rows, changed, ids in changes:
            self.gather(*rows.update(ids, changed))

    def _execute(self, prepared: Prepared) -> str:
        """Return the statement that runs a prepared one; gather its preparation at its first use.

        What is prepared lasts as long as the connection, also after a rollback.
        """
        known: dict[str, str] = self._held().info.setdefault("prepared", {})
        name = known.get(prepared.text) or self._preparing.get(prepared.text)
        if name is None:
            if len(known) >= _MOST_PREPARED:
                return prepared.statement
            # A name is used once, as a failure does not tell whether it was given.
            name = self._preparing[prepared.text] = f"{prepared.name}_{next(_PREPARED_NAMES)}"
            self._gathered.append((f"PREPARE {name} AS {prepared.text}", ()))
        return prepared.execute(name)

    def _held(self) -> Connection:
        """Return the connection for plain statements, which is that of mapped objects too.

        Where no transaction of SQLAlchemy's is under way, the session holds the connection itself,
        which spares a read a tenth of its time. Raises PendingRollbackError once the connection was
        lost: another one would hold no lock.
        """
        if self._is_writing or (self._connection is None and self.in_transaction()):
            return self.connection()
        if self._connection is None:
            assert self._engine is not None  # noqa: S101 - for the type checker: it is one or other
            self.bind = self._connection = self._engine.connect()
        if self._connection.invalidated:
            raise PendingRollbackError("the connection to the database was lost")
        return self._connection

    def _send(
        self, more: Sequence[tuple[str, Values]], *, has_result: bool = False
    ) -> list[tuple[Any, ...]]:
        connection = self._held()
        gathered, self._gathered = [*self._gathered, *more], []
        preparing, self._preparing = self._preparing, {}
        text = b""
        with closing(connection.connection.cursor()) as cursor:
            try:
                text = b"; ".join(
                    cursor.mogrify(statement, values) if values else statement.encode()
                    for statement, values in gathered
                )
                for listener in connection.dispatch.before_cursor_execute:
                    listener(connection, cursor, text.decode(), (), None, False)
                cursor.execute(text)
                if preparing:
                    connection.info["prepared"].update(preparing)
                return list(cursor.fetchall()) if has_result else []
            except psycopg2.Error as error:
                raise _as_sqlalchemy(connection, text, error) from error


def _as_sqlalchemy(connection: Connection, text: bytes, error: psycopg2.Error) -> DBAPIError:
    """Return an error of psycopg2 as SQLAlchemy raises it; invalidate a lost connection."""
    driver: Any = error  # is one of the dialect's errors, which have no type of their own
    is_lost = connection.dialect.is_disconnect(driver, connection.connection.dbapi_connection, None)
    if is_lost:
        connection.invalidate(error)
    wrapped = DBAPIError.instance(
        text[:_SHOWN_BYTES].decode(errors="replace"),
        (),
        error,
        psycopg2.Error,
        connection_invalidated=is_lost,
    )
    assert isinstance(wrapped, DBAPIError)  # noqa: S101 - for the type checker: it was psycopg2's
    return wrapped
