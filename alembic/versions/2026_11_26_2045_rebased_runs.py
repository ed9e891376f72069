"""rebased runs

A run can make the commits of another one again on a newer base: it names that run and the commit of
its record, and its commits have a kind of their own.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "rebased_runs"
down_revision = "dependencies"
branch_labels = None
depends_on = None

COLUMNS = ("rebases", "rebased_commit")
NAME = "ck_commits_kind_known"


def upgrade() -> None:
    _limit("'patch', 'replay', 'undo', 'rollback', 'record'")
    for name in COLUMNS:
        op.add_column("runs", sa.Column(name, sa.Text, nullable=True))


def downgrade() -> None:
    # The older version knows no other kind of commit that has a difference of its own.
    op.execute("UPDATE commits SET kind = 'patch' WHERE kind = 'replay'")
    _limit("'patch', 'undo', 'rollback', 'record'")
    for name in COLUMNS:
        op.drop_column("runs", name)


def _limit(values: str) -> None:
    op.replace_check("commits", NAME, f"kind IN ({values})")
