"""webhook_counts

What monitoring shows: the tries of each webhook by their result, as the list of deliveries does not
keep them for long, and how far the removal of details is.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "webhook_counts"
down_revision = "node_removed"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "retention",
        sa.Column("id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("beaten_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("removed", sa.BigInteger(), nullable=False),
        sa.Column("due", sa.BigInteger(), nullable=False),
        sa.Column("failed", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("id = 1", name=op.f("ck_retention_is_alone")),
        sa.CheckConstraint("removed >= 0", name=op.f("ck_retention_removed_not_negative")),
        sa.CheckConstraint("due >= 0", name=op.f("ck_retention_due_not_negative")),
        sa.CheckConstraint("failed >= 0", name=op.f("ck_retention_failed_not_negative")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_retention")),
        if_not_exists=True,
    )
    for name in ("delivered_count", "failed_count"):
        op.add_column(
            "webhooks", sa.Column(name, sa.BigInteger(), server_default="0", nullable=False)
        )
        op.create_check_constraint(f"ck_webhooks_{name}_not_negative", "webhooks", f"{name} >= 0")


def downgrade() -> None:
    for name in ("delivered_count", "failed_count"):
        op.drop_column("webhooks", name)
    op.drop_table("retention")
