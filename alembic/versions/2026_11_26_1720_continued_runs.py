"""continued runs

A run can continue a failed one. It names that run and the commit of its record, and the commit of
the base branch on which both stand. Runs that started before continue none.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "continued_runs"
down_revision = "browser_sessions"
branch_labels = None
depends_on = None

COLUMNS = ("continues", "continued_commit", "trunk_commit")


def upgrade() -> None:
    for name in COLUMNS:
        op.add_column("runs", sa.Column(name, sa.Text, nullable=True))


def downgrade() -> None:
    for name in COLUMNS:
        op.drop_column("runs", name)
