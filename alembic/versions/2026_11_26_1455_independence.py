"""independence

A phase keeps by what its Auditor must differ from its Builder; phases that started before keep no such rule.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "independence"
down_revision = "key_limits"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_columns(
        "phases",
        sa.Column("independence", sa.String(length=64), nullable=False, server_default="none"),
    )
    op.replace_check(
        "phases", "ck_phases_independence_known", "independence IN ('none', 'agent', 'key')"
    )


def downgrade() -> None:
    op.drop_constraint(op.f("ck_phases_independence_known"), "phases")
    op.drop_column("phases", "independence")
