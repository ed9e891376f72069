"""run record

Store the last commit of a run's work apart from the commit of the run's record.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "run_record"
down_revision = "run_counts"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("runs", sa.Column("work_commit", sa.Text(), nullable=True))
    op.execute("UPDATE runs SET work_commit = head_commit")  # until now there were no records
    op.alter_column("runs", "work_commit", nullable=False)


def downgrade() -> None:
    op.drop_column("runs", "work_commit")
