"""job engine

Revision: job_engine, after first, 2026-11-24 19:00:00+00:00

The tables of procrastinate 3.10, as that release creates them: pyproject.toml pins it, and a test
detects other tables. A newer release with others gets a migration of its own.
"""

from __future__ import annotations

from alembic import op
from procrastinate.schema import SchemaManager

revision = "job_engine"
down_revision = "first"
branch_labels = None
depends_on = None

DROP_FUNCTIONS = """
DO $$
DECLARE
    function regprocedure;
BEGIN
    FOR function IN
        SELECT oid::regprocedure FROM pg_proc
        WHERE starts_with(proname, 'procrastinate_') AND pronamespace = current_schema::regnamespace
    LOOP
        EXECUTE format('DROP FUNCTION %s', function);
    END LOOP;
END $$
"""


def upgrade() -> None:
    op.execute(SchemaManager.get_schema().replace(":", r"\:"))  # a colon begins no parameter here


def downgrade() -> None:
    op.execute(
        "DROP TABLE procrastinate_events, procrastinate_periodic_defers, procrastinate_jobs, "
        "procrastinate_workers CASCADE"
    )
    op.execute(DROP_FUNCTIONS)
    op.execute(
        "DROP TYPE procrastinate_job_to_defer_v1, procrastinate_job_status, "
        "procrastinate_job_event_type"
    )
