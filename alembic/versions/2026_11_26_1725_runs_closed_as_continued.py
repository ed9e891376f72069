"""runs closed as continued

A failed run that another run continues needs no person any more.
"""

from __future__ import annotations

from alembic import op

revision = "closed_as_continued"
down_revision = "closed_runs"
branch_labels = None
depends_on = None

NAME = "ck_runs_closed_as_known"


def upgrade() -> None:
    _limit("'merged', 'dismissed', 'continued'")


def downgrade() -> None:
    op.execute("UPDATE runs SET closed_as = 'dismissed' WHERE closed_as = 'continued'")
    _limit("'merged', 'dismissed'")


def _limit(values: str) -> None:
    op.replace_check("runs", NAME, f"closed_as IN ({values})")
