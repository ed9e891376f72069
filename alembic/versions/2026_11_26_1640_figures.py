"""figures

Figures of runs that are over are added up by day. Those of runs that ended before are added by the
periodic upkeep, some at a time; until then, readers count them directly.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "figures"
down_revision = "independence"
branch_labels = None
depends_on = None

TEXTS = ("project_id", "subject", "category", "agent", "model", "outcome", "name")


def upgrade() -> None:
    op.create_table(
        "figures",
        sa.Column("digest", sa.Text, primary_key=True),
        sa.Column("day", sa.Date, nullable=False),
        *(sa.Column(name, sa.Text, nullable=False) for name in TEXTS),
        sa.Column("step", sa.BigInteger, nullable=False),
        *(
            sa.Column(name, sa.BigInteger, nullable=False)
            for name in ("number", "phases", "tickets", "repairs", "tokens", "unpriced")
        ),
        sa.Column("cost_usd", sa.Numeric(20, 6), nullable=False, server_default=sa.text("0")),
        sa.Column("last_run_id", sa.Text, nullable=False),
        if_not_exists=True,
    )
    op.create_index("ix_figures_day", "figures", ["day"], if_not_exists=True)
    op.add_column(
        "runs",
        sa.Column("is_counted", sa.Boolean, nullable=False, server_default=sa.false()),
        if_not_exists=True,
    )
    op.build_index("ix_runs_uncounted_ended_at", "runs (ended_at) WHERE NOT is_counted")


def downgrade() -> None:
    op.drop_index("ix_runs_uncounted_ended_at", "runs")
    op.drop_column("runs", "is_counted")
    op.drop_table("figures")
