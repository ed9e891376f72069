"""measured tokens

Whether a gateway counted the tokens of a result (`autopack work --meter`), and how many of those of
phases, tiers, runs and days it counted. Earlier results did not say so: none of theirs count as
measured. All columns have a constant default, so no table is rewritten.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "measured"
down_revision = "approved_dependencies"
branch_labels = None
depends_on = None

COUNTED = ("phases", "tiers", "runs", "figures")


def upgrade() -> None:
    op.add_columns(
        "submissions",
        sa.Column("reasoning_tokens", sa.BigInteger()),
        sa.Column("is_measured", sa.Boolean, nullable=False, server_default=sa.false()),
    )
    for table in COUNTED:
        op.add_columns(
            table,
            sa.Column(
                "tokens_measured", sa.BigInteger, nullable=False, server_default=sa.text("0")
            ),
        )


def downgrade() -> None:
    for table in reversed(COUNTED):
        op.drop_column(table, "tokens_measured")
    op.drop_column("submissions", "is_measured")
    op.drop_column("submissions", "reasoning_tokens")
