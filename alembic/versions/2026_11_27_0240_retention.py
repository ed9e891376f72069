"""retention

The details of an old run can be removed: `details_removed_at` says since when, and its patches have
no bytes then. The indexes find runs that have their details, and runs that build on a run.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "retention"
down_revision = "measured"
branch_labels = None
depends_on = None

PARTIAL = {
    "ix_runs_detailed_ended_at": (
        ["ended_at", "id"],
        "ended_at IS NOT NULL AND details_removed_at IS NULL",
    ),
    "ix_runs_continues": (["continues"], "continues IS NOT NULL"),
    "ix_runs_rebases": (["rebases"], "rebases IS NOT NULL"),
}


def upgrade() -> None:
    op.add_columns("runs", sa.Column("details_removed_at", sa.DateTime(timezone=True)))
    op.alone("ALTER TABLE patches ALTER COLUMN content DROP NOT NULL")
    for name, (columns, condition) in PARTIAL.items():
        op.build_index(name, f"runs ({', '.join(columns)}) WHERE {condition}")


def downgrade() -> None:
    for name in PARTIAL:
        op.drop_index(name, "runs")
    # An older service would take the bytes for an empty patch; it never applies one of such a run.
    op.execute("UPDATE patches SET content = '' WHERE content IS NULL")
    op.alter_column("patches", "content", nullable=False)
    op.drop_column("runs", "details_removed_at")
