"""browser sessions"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "browser_sessions"
down_revision = "fields_of_lists"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "browser_sessions",
        sa.Column("sha256", sa.Text, primary_key=True),
        sa.Column("key_sha256", sa.Text, nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
    )
    op.create_index("ix_browser_sessions_expires_at", "browser_sessions", ["expires_at"])


def downgrade() -> None:
    op.drop_table("browser_sessions")
