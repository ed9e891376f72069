"""claims again

A claim may have an Idempotency-Key. The claim that is sent again gets its lease again, with a further token, since of
tokens only hashes are stored. A key of a claim over all runs is looked for in the answers of all runs. An older service
ignores the keys of claims, and does not know the further tokens: it refuses them as lost.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "claims_again"
down_revision = "node_catching_up"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_columns(
        "leases",
        sa.Column(
            "further_sha256", sa.ARRAY(sa.Text()), server_default=sa.text("'{}'"), nullable=False
        ),
    )
    op.build_index("ix_replies_of_all_runs", "replies (scope) WHERE starts_with(scope, 'any:')")


def downgrade() -> None:
    op.drop_index("ix_replies_of_all_runs", table_name="replies")
    op.drop_columns("leases", "further_sha256")
