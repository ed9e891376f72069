"""figures of tokens that an operator counted

Figures left out the tokens that an operator counts by `update_status`. They are sums, so all of
them are added up again, by the periodic upkeep; until then, readers count the runs directly.
"""

from __future__ import annotations

from alembic import op

revision = "figures_by_hand"
down_revision = "github_webhooks"
branch_labels = None
depends_on = None


def upgrade() -> None:
    _count_again()


def downgrade() -> None:
    _count_again()


def _count_again() -> None:
    op.execute("DELETE FROM figures")
    op.execute("UPDATE runs SET is_counted = false WHERE is_counted")
