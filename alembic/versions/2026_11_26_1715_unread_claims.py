"""unread claims

What a status set by hand said of attempts and issues was written and never read. A patch that was held and then dropped was
`discarded` in early versions; since then it stays `pending`, and no rule reads the difference.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "unread_claims"
down_revision = "continued_runs"
branch_labels = None
depends_on = None

_COLUMNS = ("builder_attempts_claimed", "minor_issues_claimed", "major_issues_claimed")


def upgrade() -> None:
    for name in _COLUMNS:
        op.drop_column("phases", name)
    op.execute("UPDATE patches SET status = 'pending' WHERE status = 'discarded'")
    _allow("'applied', 'pending', 'refused'")


def downgrade() -> None:
    for name in _COLUMNS:
        op.add_column("phases", sa.Column(name, sa.BigInteger(), nullable=True))
    _allow("'applied', 'pending', 'discarded', 'refused'")


def _allow(statuses: str) -> None:
    name = op.f("ck_patches_status_known")
    op.drop_constraint(name, "patches")
    op.create_check_constraint(name, "patches", f"status IN ({statuses})")
