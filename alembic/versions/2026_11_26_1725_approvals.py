"""approvals

A phase keeps how many Auditors must approve it and who did, whose patches it has and by which models. Phases that
started before need one approval; of their patches on the branch the last Builder is the author.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "approvals"
down_revision = "closed_as_continued"
branch_labels = None
depends_on = None

_LISTS = ("builders", "builder_models", "approved_by")


def _know(words: str) -> None:
    op.replace_check("phases", "ck_phases_independence_known", f"independence IN ({words})")


def upgrade() -> None:
    op.add_columns(
        "phases",
        sa.Column("approvals_needed", sa.BigInteger(), nullable=False, server_default="1"),
        sa.Column("built_with", sa.Text(), nullable=True),
        *(
            sa.Column(name, postgresql.JSONB(), nullable=False, server_default="[]")
            for name in _LISTS
        ),
    )
    _know("'none', 'agent', 'key', 'model'")
    op.backfill(
        "phases",
        values="builders = jsonb_build_array(built_by)",
        where="ended_at IS NULL AND commit IS NOT NULL AND built_by IS NOT NULL"
        " AND builders = '[]'",
    )
    op.add_column("leases", sa.Column("model", sa.Text(), nullable=True))


def downgrade() -> None:
    op.execute("UPDATE phases SET independence = 'agent' WHERE independence = 'model'")
    _know("'none', 'agent', 'key'")
    op.drop_column("leases", "model")
    for name in (*_LISTS, "built_with", "approvals_needed"):
        op.drop_column("phases", name)
