"""verdict sandbox

Each verdict has its sandbox, by one of three words. Earlier CI runs had the reason after a colon
("none: bwrap is not installed"), and no sandbox for a verdict from outside.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "verdict_sandbox"
down_revision = "known_codes"
branch_labels = None
depends_on = None

_KNOWN = "sandbox IN ('bubblewrap', 'none', 'external')"


def upgrade() -> None:
    op.add_column(
        "runs",
        sa.Column("is_sandbox_required", sa.Boolean(), nullable=False, server_default=sa.false()),
    )
    op.alter_column("runs", "is_sandbox_required", server_default=None)
    op.add_column("phases", sa.Column("sandbox", sa.String(length=64), nullable=True))
    op.execute("UPDATE ci_runs SET sandbox = split_part(sandbox, ':', 1)")
    # A verdict from outside has no stored log, and never waited for a worker.
    op.execute(
        "UPDATE ci_runs SET sandbox = 'external' WHERE sandbox IS NULL AND verdict IS NOT NULL"
        " AND started_at IS NULL AND NOT EXISTS"
        " (SELECT 1 FROM ci_logs WHERE ci_logs.ci_run_pk = ci_runs.id)"
    )
    op.alter_column("ci_runs", "sandbox", type_=sa.String(length=64))
    for table in ("phases", "ci_runs"):
        op.create_check_constraint(op.f(f"ck_{table}_sandbox_known"), table, _KNOWN)


def downgrade() -> None:
    for table in ("phases", "ci_runs"):
        op.drop_constraint(op.f(f"ck_{table}_sandbox_known"), table)
    op.alter_column("ci_runs", "sandbox", type_=sa.Text())
    op.execute("UPDATE ci_runs SET sandbox = NULL WHERE sandbox = 'external'")
    op.drop_column("phases", "sandbox")
    op.drop_column("runs", "is_sandbox_required")
