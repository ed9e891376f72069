"""ci logs

Store the output of CI runs, and the checks that failed in them.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "ci_logs"
down_revision = "event_feed"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "ci_logs",
        sa.Column("ci_run_pk", sa.BigInteger(), nullable=False),
        sa.Column("compressed", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(
            ["ci_run_pk"],
            ["ci_runs.id"],
            name=op.f("fk_ci_logs_ci_run_pk_ci_runs"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("ci_run_pk", name=op.f("pk_ci_logs")),
    )
    op.add_column(
        "ci_runs",
        sa.Column(
            "failing_checks",
            postgresql.JSONB(),
            server_default=sa.text("'[]'"),
            nullable=False,
        ),
    )
    op.add_column("ci_runs", sa.Column("log_tail", sa.Text(), nullable=True))
    op.drop_column("ci_runs", "log_path")


def downgrade() -> None:
    op.add_column("ci_runs", sa.Column("log_path", sa.Text(), nullable=True))
    op.drop_column("ci_runs", "log_tail")
    op.drop_column("ci_runs", "failing_checks")
    op.drop_table("ci_logs")
