"""signatures of statements

A run keeps the signatures of the statement in its record, so that its files can be written again of
the database alone. Runs that ended before have no statement.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "statements"
down_revision = "base_problem"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("runs", sa.Column("statement_signatures", postgresql.JSONB(), nullable=True))


def downgrade() -> None:
    op.drop_column("runs", "statement_signatures")
