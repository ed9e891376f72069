"""fields of lists

A lease keeps when its agent was last heard from; leases of before this version do not know it. Runs are found by when they
ended, and the eligible ones among many.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "fields_of_lists"
down_revision = "figures"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.build_index("ix_runs_ended_at", "runs (ended_at) WHERE ended_at IS NOT NULL")
    op.build_index(
        "ix_runs_eligible_created_at_id",
        "runs (created_at, id) WHERE promotion_eligible_to_main",
    )
    op.add_column("leases", sa.Column("heartbeat_at", sa.DateTime(timezone=True), nullable=True))


def downgrade() -> None:
    op.drop_index("ix_runs_eligible_created_at_id", table_name="runs")
    op.drop_index("ix_runs_ended_at", table_name="runs")
    op.drop_column("leases", "heartbeat_at")
