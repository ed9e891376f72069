"""How many there are: changes of a count, written by triggers and added up now and then.

Rows are only ever added, so changes of different runs never wait for each other; the count is the
sum over the few rows there are. See docs/decisions/counting-runs.md.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import BigInteger, Column, Numeric, Table, Text

from .base import metadata

# A delete marks rows and leaves them to be read past, so autovacuum comes often.
OFTEN: dict[str, Any] = {
    "autovacuum_vacuum_threshold": 500,
    "autovacuum_vacuum_scale_factor": 0,
    "autovacuum_vacuum_insert_threshold": -1,
}

run_counts = Table(
    "run_counts",
    metadata,
    Column("state", Text, nullable=False),
    Column("failure_code", Text),
    Column("runs", BigInteger, nullable=False),
    Column("token_shares", Numeric, nullable=False),  # used of cap, of runs that a budget ended
    postgresql_with=OFTEN,
)

backlog_counts = Table(
    "backlog_counts",
    metadata,
    Column("project_id", Text, nullable=False),
    Column("category", Text, nullable=False),
    Column("status", Text, nullable=False),
    Column("base_severity", Text, nullable=False),
    Column("entries", BigInteger, nullable=False),
    postgresql_with=OFTEN,
)
