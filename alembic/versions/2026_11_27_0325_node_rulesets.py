"""node rulesets

A node notes which ruleset its file is of, so that a file that another node has made old is told from one that the
operator edited.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "node_rulesets"
down_revision = "imported_runs"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("nodes", sa.Column("ruleset_sha256", sa.Text(), nullable=True))


def downgrade() -> None:
    op.drop_column("nodes", "ruleset_sha256")
