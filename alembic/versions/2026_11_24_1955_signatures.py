"""signatures

Store the signatures of records and snapshots, so that lost objects are rebuilt with the same ids.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "signatures"
down_revision = "ci_logs"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_columns("commits", sa.Column("signature", sa.Text(), nullable=True))
    op.add_columns("phases", sa.Column("snapshot_signature", sa.Text(), nullable=True))


def downgrade() -> None:
    op.drop_column("phases", "snapshot_signature")
    op.drop_column("commits", "signature")
