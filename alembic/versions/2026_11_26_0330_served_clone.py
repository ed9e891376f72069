"""served clone

Store which clone the database belongs to, so that a service on another one is refused. Only adds.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "served_clone"
down_revision = "unread_columns"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "served_clone",
        sa.Column("id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("clone", sa.Text(), nullable=False),
        sa.Column("place", sa.Text(), nullable=False),
        sa.Column("root_commits", sa.ARRAY(sa.Text()), nullable=False),
        sa.Column("since", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("id = 1", name=op.f("ck_served_clone_is_alone")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_served_clone")),
    )


def downgrade() -> None:
    op.drop_table("served_clone")
