"""portable names

A run keeps whether its patches may make names that not every system can hold; runs that started before
are judged by the default, as their strategies say nothing else.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "portable_names"
down_revision = "served_clone"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "runs", sa.Column("portable_names", sa.Boolean(), nullable=False, server_default=sa.true())
    )
    op.alter_column("runs", "portable_names", server_default=None)


def downgrade() -> None:
    op.drop_column("runs", "portable_names")
