"""announced after files

The notification of new events is no longer part of the transaction that adds them: the service sends it when the files
show the change. A notification holds a lock of the whole server until its commit is on the disk, so changes of different
runs waited for each other. Live pages of a service of an older release, which does not send it, look every 15 seconds.
"""

from __future__ import annotations

from alembic import op

revision = "announced_after_files"
down_revision = "claims_again"
branch_labels = None
depends_on = None

FUNCTION = (
    "CREATE OR REPLACE FUNCTION announce_events() RETURNS trigger LANGUAGE plpgsql AS $$\n"
    "DECLARE newest bigint;\n"
    "BEGIN\n"
    "  SELECT last_value - (NOT is_called)::int INTO newest FROM events_id_seq;\n"
    "  PERFORM pg_advisory_xact_lock_shared(\n"
    "    (1635087000 + (newest >> 31))::int, (newest & 2147483647)::int);\n"
    "%s"
    "  RETURN NULL;\n"
    "END $$"
)


def upgrade() -> None:
    op.execute(FUNCTION % "")


def downgrade() -> None:
    op.execute(FUNCTION % "  PERFORM pg_notify('autopack_events', '');\n")
