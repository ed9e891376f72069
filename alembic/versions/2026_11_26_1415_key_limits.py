"""key limits

A key may have limits of its own; keys that exist have those of the settings. Only adds.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "key_limits"
down_revision = "actors"
branch_labels = None
depends_on = None


def upgrade() -> None:
    kind = postgresql.JSONB(astext_type=sa.Text())
    op.add_column(
        "api_keys", sa.Column("limits", kind, nullable=False, server_default=sa.text("'{}'"))
    )


def downgrade() -> None:
    op.drop_column("api_keys", "limits")
