"""actors

Who started a run, sent each lease's claim and each submission, and who built, reviewed and judged each
phase. Only adds; of what was there before it is unknown.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "actors"
down_revision = "api_keys"
branch_labels = None
depends_on = None

COLUMNS = (
    ("runs", "started_by"),
    ("leases", "actor"),
    ("submissions", "actor"),
    ("phases", "built_by"),
    ("phases", "reviewed_by"),
    ("phases", "judged_by"),
)


def upgrade() -> None:
    for table, column in COLUMNS:
        op.add_columns(table, sa.Column(column, sa.Text(), nullable=True))


def downgrade() -> None:
    for table, column in reversed(COLUMNS):
        op.drop_column(table, column)
