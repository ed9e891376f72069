"""phases side by side

A phase names those that it depends on, and a run knows whether its phases may be under way side by
side. Runs that are there already have phases one after the other. Their phases' commits are where
they were: `before_commit` of a phase with commits on the branch is where it started from.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "side_by_side"
down_revision = "issue_events"
branch_labels = None
depends_on = None

_PHASE = ("depends_on", "attempt_commit", "before_commit", "branch_place", "is_conflict_forgiven")


def upgrade() -> None:
    op.add_columns(
        "phases",
        sa.Column("depends_on", postgresql.JSONB(), nullable=True),
        sa.Column("attempt_commit", sa.Text(), nullable=True),
        sa.Column("before_commit", sa.Text(), nullable=True),
        sa.Column("branch_place", sa.BigInteger(), nullable=False, server_default="0"),
        sa.Column("is_conflict_forgiven", sa.Boolean(), nullable=False, server_default=sa.false()),
    )
    op.backfill(
        "phases",
        values="before_commit = start_commit",
        where="commit IS NOT NULL AND state NOT IN ('FAILED', 'SKIPPED')"
        " AND before_commit IS NULL AND start_commit IS NOT NULL",
    )
    op.add_column(
        "runs", sa.Column("is_parallel", sa.Boolean(), nullable=False, server_default=sa.false())
    )


def downgrade() -> None:
    op.drop_column("runs", "is_parallel")
    for name in reversed(_PHASE):
        op.drop_column("phases", name)
