"""imported runs

A run of another service can be put beside this one's, to be read alone.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "imported_runs"
down_revision = "nodes"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_columns(
        "runs",
        sa.Column("imported_at", sa.DateTime(timezone=True)),
        sa.Column("imported_by", sa.Text()),
    )


def downgrade() -> None:
    op.drop_columns("runs", "imported_at", "imported_by")
