"""the life of an issue

An issue of the backlog keeps what happened to it: when it aged, which cleanup phases closed it or did
not, and by which checks, and what operators did. What is known of issues that are there already is
taken over: since when they need cleanup, and when they were resolved.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "issue_events"
down_revision = "statements"
branch_labels = None
depends_on = None

_KINDS = ("aged", "closed", "not_closed", "resolved", "reopened")


def upgrade() -> None:
    op.create_table(
        "issue_events",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("backlog_pk", sa.BigInteger(), nullable=False),
        sa.Column(
            "kind",
            sa.Enum(*_KINDS, name="lifekind", native_enum=False, length=64),
            nullable=False,
        ),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("run_id", sa.Text(), nullable=True),
        sa.Column("phase_id", sa.Text(), nullable=True),
        sa.Column("actor", sa.Text(), nullable=True),
        sa.Column("checks", postgresql.JSONB(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.CheckConstraint(f"kind IN {_KINDS}", name=op.f("ck_issue_events_kind_known")),
        sa.ForeignKeyConstraint(
            ["backlog_pk"],
            ["backlog.id"],
            name=op.f("fk_issue_events_backlog_pk_backlog"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_issue_events")),
        if_not_exists=True,
    )
    op.create_index(
        "ix_issue_events_backlog_pk_id", "issue_events", ["backlog_pk", "id"], if_not_exists=True
    )
    for kind, column in (("aged", "needs_cleanup_at"), ("resolved", "resolved_at")):
        op.alone(
            "INSERT INTO issue_events (backlog_pk, kind, at, checks)"
            f" SELECT id, '{kind}', {column}, '[]' FROM backlog WHERE {column} IS NOT NULL"
            " AND NOT EXISTS (SELECT 1 FROM issue_events done"
            f" WHERE done.backlog_pk = backlog.id AND done.kind = '{kind}')"
            " ORDER BY id"
        )
    op.build_index("ix_phases_issue_key", "phases (issue_key) WHERE issue_key IS NOT NULL")


def downgrade() -> None:
    op.drop_index("ix_phases_issue_key", table_name="phases")
    op.drop_table("issue_events")
