"""Counts of rows: changes of a count, written by triggers and added up periodically.

Rows are only inserted, so changes of different runs never wait for each other; the count is the sum
of the rows. See docs/decisions/counting-runs.md.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import BigInteger, Column, Numeric, Table, Text

from .base import metadata

# Deleted rows are still read until a vacuum, so autovacuum runs often.
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
