"""base problem

A run says why CI's command does not run on the commit that it started from. Of earlier runs that was not measured.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "base_problem"
down_revision = "evidence"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("runs", sa.Column("base_problem", sa.Text(), nullable=True))


def downgrade() -> None:
    op.drop_column("runs", "base_problem")
