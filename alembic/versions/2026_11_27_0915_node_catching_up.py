"""node catching up

A node notes which runs it has still to look at, and up to which event its files show a run, so that it answers while it
catches up and writes only the files of what has changed. Without these values an older service's rows mean: look at
every event, write every file.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "node_catching_up"
down_revision = "guards"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_columns("nodes", sa.Column("unseen_before", sa.BigInteger(), nullable=True))
    op.add_columns("node_runs", sa.Column("event_sequence", sa.BigInteger(), nullable=True))


def downgrade() -> None:
    # An older service looks at all events, and so at the runs that are still to be looked at.
    op.execute("UPDATE nodes SET position = 0 WHERE unseen_before IS NOT NULL")
    op.drop_columns("node_runs", "event_sequence")
    op.drop_columns("nodes", "unseen_before")
