"""evidence

A CI run and a phase keep what the verdict rests on, and a phase what its verdict must rest on. Earlier ones rest on the
command alone, and nothing more was asked of them. Outcomes of the command are kept by what they depend on.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "evidence"
down_revision = "rebased_runs"
branch_labels = None
depends_on = None

_LISTS = (("ci_runs", "evidence"), ("phases", "evidence"), ("phases", "evidence_required"))


def upgrade() -> None:
    for table, name in _LISTS:
        op.add_columns(
            table, sa.Column(name, postgresql.JSONB(), nullable=False, server_default="[]")
        )
    op.create_table(
        "measurements",
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("compressed", sa.LargeBinary(), nullable=False),
        sa.Column("measured_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_measurements")),
    )
    op.create_index(op.f("ix_measurements_measured_at"), "measurements", ["measured_at"])


def downgrade() -> None:
    op.drop_table("measurements")
    for table, name in _LISTS:
        op.drop_column(table, name)
