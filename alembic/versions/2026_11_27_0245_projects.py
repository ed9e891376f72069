"""projects

The further projects of a service. Each has a database of its own with this same schema; the table has rows in the
default project's database alone. The audit log names what was done to them.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "projects"
down_revision = "retention"
branch_labels = None
depends_on = None

BEFORE = (
    "'key_created', 'key_revoked', 'key_rotated', 'ruleset_replaced', 'attention_dismissed',"
    " 'webhook_created', 'webhook_removed', 'webhook_enabled'"
)
NEW = "'project_created', 'project_changed', 'project_closed', 'project_reopened'"


def upgrade() -> None:
    op.create_table(
        "projects",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("repository", sa.Text(), nullable=False),
        sa.Column("git_dir", sa.Text(), nullable=False),
        sa.Column("base_branch", sa.Text(), nullable=True),
        sa.Column("git_remote", sa.Text(), nullable=True),
        sa.Column("database", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("created_by", sa.Text(), nullable=False),
        sa.Column("changed_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("closed_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_projects")),
        sa.UniqueConstraint("database", name=op.f("uq_projects_database")),
        if_not_exists=True,
    )
    op.create_index(
        "uq_projects_name_lower",
        "projects",
        [sa.text("lower(name)")],
        unique=True,
        if_not_exists=True,
    )
    op.create_index(
        "uq_projects_open_git_dir",
        "projects",
        ["git_dir"],
        unique=True,
        postgresql_where=sa.text("closed_at IS NULL"),
        if_not_exists=True,
    )
    op.replace_check("audit_log", "ck_audit_log_action_known", f"action IN ({BEFORE}, {NEW})")


def downgrade() -> None:
    op.drop_constraint("ck_audit_log_action_known", "audit_log")
    # Not valid: deeds that the older version does not know stay, as none may be taken from the chain.
    op.execute(
        f"ALTER TABLE audit_log ADD CONSTRAINT ck_audit_log_action_known CHECK (action IN ({BEFORE})) NOT VALID"
    )
    op.drop_table("projects")
