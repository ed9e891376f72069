"""A run's rows as JSON of Postgres itself, out of one database and into another."""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, Final

from sqlalchemy import Column, DateTime, Integer, Numeric, Text

from ..domain.money import MAX_USD
from ..domain.values import MAX_COUNT
from ..models import metadata
from .session import RowSession

_OF_SUBMISSIONS: Final = "submission_pk IN (SELECT id FROM submissions WHERE run_pk = %s)"
_OF_CI_RUNS: Final = "ci_run_pk IN (SELECT id FROM ci_runs WHERE run_pk = %s)"
# In an order in which each row comes after those that it names. Leases, replies, pushes and the
# backlog are this service's own.
TABLES: Final = {
    "runs": "id = %s",
    "tiers": "run_pk = %s",
    "phases": "run_pk = %s",
    "submissions": "run_pk = %s",
    "patches": _OF_SUBMISSIONS,
    "commits": "run_pk = %s",
    "audits": "run_pk = %s",
    "ci_runs": "run_pk = %s",
    "ci_logs": _OF_CI_RUNS,
    "events": "run_pk = %s",
    "issues": "run_pk = %s",
}
# Which table a column's number belongs to.
_NAMED: Final = {
    "run_pk": "runs",
    "tier_pk": "tiers",
    "phase_pk": "phases",
    "submission_pk": "submissions",
    "patch_pk": "patches",
    "ci_run_pk": "ci_runs",
}
# The columns that name an object of git.
_OBJECTS: Final = re.compile(r"(.+_)?(commit|oid|sha|tree|parent)")
_OBJECT: Final = re.compile(r"[0-9a-f]{40}", re.ASCII)
_TIMES: Final = (datetime(2000, 1, 1, tzinfo=UTC), datetime(9000, 1, 1, tzinfo=UTC))
MOST_TRIES: Final = 10_000  # of one phase; a ruleset allows a hundred
_BATCH: Final = 200


def read_rows(session: RowSession, run_pk: int) -> Iterator[tuple[str, str]]:
    """Yield the rows of a run: the table's name, and the row as JSON."""
    for table, condition in TABLES.items():
        key = "ci_run_pk" if table == "ci_logs" else "id"
        after = -1
        while True:
            # Table, key and condition are names and literals of this module.
            query = (
                f"SELECT {key}, to_jsonb(t)::text FROM {table} t WHERE {condition}"  # noqa: S608
                f" AND {key} > %s ORDER BY {key} LIMIT %s"
            )
            rows = session.fetch(query, (run_pk, after, _BATCH))
            yield from ((table, row) for _, row in rows)
            if len(rows) < _BATCH:
                break
            after = rows[-1][0]


class RowImport:
    """Puts the rows of one run into this database, each under a number of its own."""

    def __init__(self, session: RowSession) -> None:
        self._session = session
        self._numbers: dict[tuple[str, int], int] = {}

    def put(self, table: str, text: str, row: dict[str, Any], given: dict[str, Any]) -> None:
        """Insert a row; `given` replaces its values. Raises KeyError, TypeError or ValueError for a
        row that names one that did not come before it, or a column that there is not.
        """
        columns = metadata.tables[table].columns
        unknown = sorted(row.keys() - columns.keys())
        if unknown:
            raise ValueError(f"{table} has no column {unknown[0]}")
        for name, value in row.items():
            if value is not None and not _is_sane(columns[name], value):
                raise ValueError(f"{table} has a {name} that no service writes")
        changes = dict(given)
        for name in row:
            if name in _NAMED and row[name] is not None:
                changes[name] = self._numbers[_NAMED[name], row[name]]
        if "id" in columns:
            number = int(row["id"])
            if (table, number) in self._numbers:
                raise ValueError(f"{table} has two rows with the number {number}")
            query = f"SELECT nextval(pg_get_serial_sequence('{table}', 'id'))"
            ((changes["id"],),) = self._session.fetch(query)
            self._numbers[table, number] = changes["id"]
        for column in columns:  # of a row of an older version
            is_missing = column.name not in row and not column.nullable
            if is_missing and column.server_default is None and column.default is not None:
                # Models have plain defaults, whose type is that of any kind of default.
                value = column.default.arg  # type: ignore[attr-defined]
                changes.setdefault(column.name, [] if callable(value) else value)
        names = ", ".join(f'"{name}"' for name in {**row, **changes})
        self._session.fetch(
            f"INSERT INTO {table} ({names}) OVERRIDING SYSTEM VALUE"  # noqa: S608 - known names
            f" SELECT {names} FROM jsonb_populate_record(NULL::{table}, %s::jsonb || %s::jsonb)"
            " RETURNING 1",
            (text, json.dumps(changes)),
        )


def _is_sane(column: Column[Any], value: Any) -> bool:
    """Say whether a value that is not null is one that Postgres and every reader can hold."""
    kind = column.type
    if isinstance(kind, DateTime):
        return _TIMES[0] <= datetime.fromisoformat(value) <= _TIMES[1]
    if isinstance(kind, Integer):
        most = MOST_TRIES if "attempt" in column.name else MAX_COUNT
        return isinstance(value, int) and 0 <= value <= most
    if isinstance(kind, Numeric):
        return isinstance(value, int | float) and 0 <= value <= MAX_USD
    if isinstance(kind, Text) and _OBJECTS.fullmatch(column.name):
        return _OBJECT.fullmatch(value) is not None
    return True


def has_small_logs(session: RowSession, run_pk: int, most: int) -> bool:
    """Say whether each log of a run can be unpacked, to no more than so many bytes."""
    query = f"SELECT ci_run_pk FROM ci_logs WHERE {_OF_CI_RUNS}"  # noqa: S608 - a literal of this module
    keys = session.fetch(query, (run_pk,))
    for (key,) in keys:
        query = "SELECT compressed FROM ci_logs WHERE ci_run_pk = %s"
        ((compressed,),) = session.fetch(query, (key,))
        inflater = zlib.decompressobj()
        try:
            inflater.decompress(compressed, most)
        except zlib.error:
            return False
        if not inflater.eof:
            return False
    return True


def leave_counts(session: RowSession, run_pk: int) -> None:
    """Take an imported run out of the counts to which its insertion added it."""
    session.gather(
        "INSERT INTO run_counts (state, failure_code, runs, token_shares)"
        " SELECT state, failure_code, -1, CASE state WHEN 'DONE_FAILED_BUDGET_EXHAUSTED'"
        " THEN -tokens_used::numeric / greatest(token_cap, 1) ELSE 0 END FROM runs WHERE id = %s",
        (run_pk,),
    )
