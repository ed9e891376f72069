"""new dependencies of a phase

A phase lists the dependencies that it adds or changes, and a run knows whether they need a review. Of
phases that are there already nothing is listed: their patches were not read for it.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "dependencies"
down_revision = "figures_by_hand"
branch_labels = None
depends_on = None

_LISTS = ("dependencies", "pending_dependencies")


def upgrade() -> None:
    for name in _LISTS:
        op.add_columns(
            "phases", sa.Column(name, postgresql.JSONB(), nullable=False, server_default="[]")
        )
    op.add_column(
        "runs",
        sa.Column(
            "dependencies_need_review", sa.Boolean(), nullable=False, server_default=sa.false()
        ),
    )


def downgrade() -> None:
    op.drop_column("runs", "dependencies_need_review")
    for name in _LISTS:
        op.drop_column("phases", name)
