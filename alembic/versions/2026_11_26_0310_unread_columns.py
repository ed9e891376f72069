"""unread columns

Drop columns that are written and never read: when a lease was granted (`expires_at` and `seconds`
tell it), which lease a submission came by, and the revision of the last push (`pushed_commit` tells
what was pushed).
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "unread_columns"
down_revision = "capacity_and_cost"
branch_labels = None
depends_on = None

stop_first = "an older version writes the columns that are dropped"

_PUSHES_CHECK = "ck_pushes_pushed_revision_not_negative"


def upgrade() -> None:
    op.drop_columns("leases", "granted_at")
    op.drop_columns("submissions", "lease_pk")
    op.drop_columns("pushes", "pushed_revision")  # its check goes with it


def downgrade() -> None:
    op.add_column("pushes", sa.Column("pushed_revision", sa.BigInteger()))
    op.execute(
        "UPDATE pushes SET pushed_revision ="
        " CASE WHEN next_try_at IS NULL AND pushed_at IS NOT NULL THEN wanted_revision ELSE 0 END"
    )
    op.alter_column("pushes", "pushed_revision", nullable=False)
    op.create_check_constraint(op.f(_PUSHES_CHECK), "pushes", "pushed_revision >= 0")
    op.add_column("submissions", sa.Column("lease_pk", sa.BigInteger()))
    op.create_foreign_key(
        op.f("fk_submissions_lease_pk_leases"), "submissions", "leases", ["lease_pk"], ["id"]
    )
    op.add_column("leases", sa.Column("granted_at", sa.DateTime(timezone=True)))
    op.execute("UPDATE leases SET granted_at = expires_at - make_interval(secs => seconds)")
    op.alter_column("leases", "granted_at", nullable=False)
