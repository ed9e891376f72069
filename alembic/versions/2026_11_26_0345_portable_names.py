"""portable names

Store for each run whether its patches may add names that not every system allows; earlier runs get
the default, as their strategies have no other value.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "portable_names"
down_revision = "served_clone"
branch_labels = None
depends_on = None

stop_first = "an older version does not write portable_names"


def upgrade() -> None:
    op.add_column(
        "runs", sa.Column("portable_names", sa.Boolean(), nullable=False, server_default=sa.true())
    )
    op.alter_column("runs", "portable_names", server_default=None)


def downgrade() -> None:
    op.drop_column("runs", "portable_names")
