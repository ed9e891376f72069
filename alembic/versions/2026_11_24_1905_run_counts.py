"""run counts

Count runs and the backlog's keys when they are added, changed and removed.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "run_counts"
down_revision = "job_engine"
branch_labels = None
depends_on = None

OFTEN = {
    "autovacuum_vacuum_threshold": 500,
    "autovacuum_vacuum_scale_factor": 0,
    "autovacuum_vacuum_insert_threshold": -1,
}

# The kinds under which a row is counted; `it` is OLD or NEW.
RUN = """{it}.state, {it}.failure_code, {one}, CASE {it}.state
         WHEN 'DONE_FAILED_BUDGET_EXHAUSTED'
         THEN {one} * {it}.tokens_used::numeric / greatest({it}.token_cap, 1) ELSE 0 END"""
KEY = "{it}.project_id, {it}.category, {it}.status, {it}.base_severity, {one}"

RUN_CHANGES = """OLD.state <> NEW.state OR OLD.failure_code IS DISTINCT FROM NEW.failure_code
    OR NEW.state = 'DONE_FAILED_BUDGET_EXHAUSTED'
    AND (OLD.tokens_used, OLD.token_cap) <> (NEW.tokens_used, NEW.token_cap)"""
KEY_CHANGES = """(OLD.project_id, OLD.category, OLD.status, OLD.base_severity)
    <> (NEW.project_id, NEW.category, NEW.status, NEW.base_severity)"""


def upgrade() -> None:
    op.create_table(
        "run_counts",
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("failure_code", sa.Text(), nullable=True),
        sa.Column("runs", sa.BigInteger(), nullable=False),
        sa.Column("token_shares", sa.Numeric(), nullable=False),
        postgresql_with=OFTEN,
    )
    op.create_table(
        "backlog_counts",
        sa.Column("project_id", sa.Text(), nullable=False),
        sa.Column("category", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("base_severity", sa.Text(), nullable=False),
        sa.Column("entries", sa.BigInteger(), nullable=False),
        postgresql_with=OFTEN,
    )
    _keep_count("runs", "run_counts", RUN, RUN_CHANGES)
    _keep_count("backlog", "backlog_counts", KEY, KEY_CHANGES)
    op.drop_index("ix_runs_budget_exhausted", table_name="runs")
    op.execute(
        "ALTER TABLE runs RESET"
        " (autovacuum_vacuum_scale_factor, autovacuum_vacuum_insert_scale_factor)"
    )


def _keep_count(table: str, counts: str, values: str, changes: str) -> None:
    """Write each change to the counts; the triggers' lock prevents that one is missed."""
    function = f"count_{table}"
    op.execute(
        f"CREATE FUNCTION {function}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN\n"
        "IF TG_OP = 'TRUNCATE' THEN\n"
        f"  LOCK TABLE {counts} IN EXCLUSIVE MODE;\n"  # waits for a transaction that adds up
        f"  DELETE FROM {counts};\n"
        "END IF;\n"
        "IF TG_OP IN ('DELETE', 'UPDATE') THEN\n"
        f"  INSERT INTO {counts} VALUES ({values.format(it='OLD', one='-1')});\n"
        "END IF;\n"
        "IF TG_OP IN ('INSERT', 'UPDATE') THEN\n"
        f"  INSERT INTO {counts} VALUES ({values.format(it='NEW', one='1')});\n"
        "END IF;\n"
        "RETURN NULL; END $$"
    )
    for when in (
        f"INSERT OR DELETE ON {table} FOR EACH ROW",
        f"UPDATE ON {table} FOR EACH ROW WHEN ({changes})",
        f"TRUNCATE ON {table} FOR EACH STATEMENT",
    ):
        name = f"{function}_on_{when.split()[0].lower()}"
        op.execute(f"CREATE TRIGGER {name} AFTER {when} EXECUTE FUNCTION {function}()")
    op.execute(f"INSERT INTO {counts} SELECT {values.format(it='it', one='1')} FROM {table} it")
    # One row for each; the first upkeep adds them up.


def downgrade() -> None:
    op.execute(
        "ALTER TABLE runs SET"
        " (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_insert_scale_factor = 0.02)"
    )
    op.create_index(
        "ix_runs_budget_exhausted",
        "runs",
        ["created_at", "id"],
        postgresql_include=["failure_code", "tokens_used", "token_cap"],
        postgresql_where=sa.text("state = 'DONE_FAILED_BUDGET_EXHAUSTED'"),
    )
    for table, counts in (("runs", "run_counts"), ("backlog", "backlog_counts")):
        op.execute(f"DROP FUNCTION count_{table}() CASCADE")  # and its triggers
        op.drop_table(counts)
