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

stop_first = "an older version does not write is_sandbox_required, and writes a reason into sandbox"

_KNOWN = "sandbox IN ('bubblewrap', 'none', 'external')"


def upgrade() -> None:
    op.add_columns(
        "runs",
        sa.Column("is_sandbox_required", sa.Boolean(), nullable=False, server_default=sa.false()),
    )
    op.alone("ALTER TABLE runs ALTER COLUMN is_sandbox_required DROP DEFAULT")
    op.add_columns("phases", sa.Column("sandbox", sa.String(length=64), nullable=True))
    # Another type would rewrite the table under a lock, so a new column takes the old one's place.
    op.add_columns("ci_runs", sa.Column("sandbox_word", sa.String(length=64)))
    op.backfill(
        "ci_runs",
        values="sandbox_word = split_part(sandbox, ':', 1)",
        where="sandbox IS NOT NULL AND sandbox_word IS NULL",
    )
    # A verdict from outside has no stored log, and never waited for a worker.
    op.backfill(
        "ci_runs",
        values="sandbox_word = 'external'",
        where="sandbox_word IS NULL AND verdict IS NOT NULL AND started_at IS NULL AND NOT EXISTS"
        " (SELECT 1 FROM ci_logs WHERE ci_logs.ci_run_pk = ci_runs.id)",
    )
    op.replace_check("phases", "ck_phases_sandbox_known", _KNOWN)
    op.replace_check("ci_runs", "ck_ci_runs_sandbox_known", f"sandbox_word {_KNOWN[8:]}")
    op.drop_column("ci_runs", "sandbox")
    op.alter_column("ci_runs", "sandbox_word", new_column_name="sandbox")


def downgrade() -> None:
    for table in ("phases", "ci_runs"):
        op.drop_constraint(op.f(f"ck_{table}_sandbox_known"), table)
    op.alter_column("ci_runs", "sandbox", type_=sa.Text())
    op.execute("UPDATE ci_runs SET sandbox = NULL WHERE sandbox = 'external'")
    op.drop_column("phases", "sandbox")
    op.drop_column("runs", "is_sandbox_required")
