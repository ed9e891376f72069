"""job engine

Revision: job_engine, after first, 2026-11-24 19:00:00+00:00

The tables of procrastinate 3.10, as that release lays them out. They are kept here, not asked of the
package: a database that is migrated later must not get other tables than one that was migrated
today. A newer procrastinate with other tables gets a migration of its own.
"""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa
from alembic import op

revision = "job_engine"
down_revision = "first"
branch_labels = None
depends_on = None

SCHEMA = Path(__file__).parents[1] / "sql" / "procrastinate_3_10.sql"

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
    op.execute(sa.text(SCHEMA.read_text()))


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
