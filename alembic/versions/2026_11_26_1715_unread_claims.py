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

stop_first = "an older version writes the columns and the status that are dropped"

_COLUMNS = ("builder_attempts_claimed", "minor_issues_claimed", "major_issues_claimed")


def upgrade() -> None:
    op.backfill("patches", values="status = 'pending'", where="status = 'discarded'")
    _allow("'applied', 'pending', 'refused'")
    for name in _COLUMNS:
        op.drop_column("phases", name)


def downgrade() -> None:
    for name in _COLUMNS:
        op.add_column("phases", sa.Column(name, sa.BigInteger(), nullable=True))
    _allow("'applied', 'pending', 'discarded', 'refused'")


def _allow(statuses: str) -> None:
    op.replace_check("patches", "ck_patches_status_known", f"status IN ({statuses})")
