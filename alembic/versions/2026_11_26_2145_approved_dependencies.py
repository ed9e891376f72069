"""approved dependencies

A phase keeps which of its new dependencies an Auditor has approved, so that a later try does not need
the same review again. Of phases that are there already none counts as approved.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "approved_dependencies"
down_revision = "side_by_side"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "phases",
        sa.Column("approved_dependencies", postgresql.JSONB(), nullable=False, server_default="[]"),
    )


def downgrade() -> None:
    op.drop_column("phases", "approved_dependencies")
