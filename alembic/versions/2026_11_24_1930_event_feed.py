"""event feed

Notify listeners of new events, and show until when events with lower ids may still appear.
"""

from __future__ import annotations

from alembic import op

revision = "event_feed"
down_revision = "pulses"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # It fires before the first id is assigned. The lock's two numbers contain the id before that.
    op.execute(
        "CREATE FUNCTION announce_events() RETURNS trigger LANGUAGE plpgsql AS $$\n"
        "DECLARE newest bigint;\n"
        "BEGIN\n"
        "  SELECT last_value - (NOT is_called)::int INTO newest FROM events_id_seq;\n"
        "  PERFORM pg_advisory_xact_lock_shared(\n"
        "    (1635087000 + (newest >> 31))::int, (newest & 2147483647)::int);\n"
        "  PERFORM pg_notify('autopack_events', '');\n"
        "  RETURN NULL;\n"
        "END $$"
    )
    op.execute(
        "CREATE TRIGGER announce_events BEFORE INSERT ON events"
        " FOR EACH STATEMENT EXECUTE FUNCTION announce_events()"
    )


def downgrade() -> None:
    op.execute("DROP TRIGGER announce_events ON events")
    op.execute("DROP FUNCTION announce_events()")
