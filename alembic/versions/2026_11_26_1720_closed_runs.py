"""closed runs

A run that is over needs a person until its branch is merged or an operator dismisses it. Runs of before this version are
not closed; `GET /attention` lists those of the last thirty days. The audit log names dismissals.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "closed_runs"
down_revision = "unread_claims"
branch_labels = None
depends_on = None

BEFORE = "action IN ('key_created', 'key_revoked', 'key_rotated', 'ruleset_replaced')"
SINCE = "action IN ('key_created', 'key_revoked', 'key_rotated', 'ruleset_replaced', 'attention_dismissed')"


def upgrade() -> None:
    op.add_columns(
        "runs",
        sa.Column("closed_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("closed_by", sa.Text(), nullable=True),
        sa.Column("closed_as", sa.String(length=64), nullable=True),
    )
    op.replace_check("runs", "ck_runs_closed_as_known", "closed_as IN ('merged', 'dismissed')")
    op.build_index(
        "ix_runs_unclosed_ended_at",
        "runs (ended_at) WHERE ended_at IS NOT NULL AND closed_at IS NULL"
        " AND failure_code IS DISTINCT FROM 'cancelled'",
    )
    op.replace_check("audit_log", "ck_audit_log_action_known", SINCE)


def downgrade() -> None:
    # The older version does not know the action. Its entries stay in the chain of hashes, so the
    # constraint is not checked for them.
    op.drop_constraint("ck_audit_log_action_known", "audit_log")
    op.execute(
        f"ALTER TABLE audit_log ADD CONSTRAINT ck_audit_log_action_known CHECK ({BEFORE}) NOT VALID"
    )
    op.drop_index("ix_runs_unclosed_ended_at", table_name="runs")
    op.drop_constraint("ck_runs_closed_as_known", "runs")
    op.drop_column("runs", "closed_as")
    op.drop_column("runs", "closed_by")
    op.drop_column("runs", "closed_at")
