"""figures of tokens that an operator counted

Figures left out the tokens that an operator counts by `update_status`. They are sums, so all of
them are added up again, by the periodic upkeep; until then, readers count the runs directly.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "figures_by_hand"
down_revision = "github_webhooks"
branch_labels = None
depends_on = None


def upgrade() -> None:
    _count_again()


def downgrade() -> None:
    _count_again()


def _count_again() -> None:
    # Only the catalog changes: to set the column in each row would lock all of them for seconds.
    op.drop_column("runs", "is_counted")  # its index goes with it
    op.add_column(
        "runs", sa.Column("is_counted", sa.Boolean, nullable=False, server_default=sa.false())
    )
    op.execute("TRUNCATE figures")
    op.build_index("ix_runs_uncounted_ended_at", "runs (ended_at) WHERE NOT is_counted")
