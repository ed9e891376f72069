"""webhooks

Addresses that are told of events and attention, what is to be delivered to them, and what of attention they were told.
The audit log names what was done to them.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "webhooks"
down_revision = "approvals"
branch_labels = None
depends_on = None

BEFORE = "'key_created', 'key_revoked', 'key_rotated', 'ruleset_replaced', 'attention_dismissed'"
NEW = "'webhook_created', 'webhook_removed', 'webhook_enabled'"


def upgrade() -> None:
    op.replace_check("audit_log", "ck_audit_log_action_known", f"action IN ({BEFORE}, {NEW})")
    op.create_table(
        "webhooks",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("kinds", sa.ARRAY(sa.Text()), nullable=False),
        sa.Column("format", sa.String(length=64), nullable=False),
        sa.Column("project_id", sa.Text(), nullable=True),
        sa.Column("secret", sa.Text(), nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("created_by", sa.Text(), nullable=False),
        sa.Column("off_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("off_reason", sa.Text(), nullable=True),
        sa.CheckConstraint(
            "format IN ('cloudevents', 'slack')", name=op.f("ck_webhooks_format_known")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_webhooks")),
        sa.UniqueConstraint("name", name=op.f("uq_webhooks_name")),
    )
    op.create_table(
        "deliveries",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("webhook_pk", sa.BigInteger(), nullable=False),
        sa.Column("message_id", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("wanted_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("attempts", sa.BigInteger(), nullable=False),
        sa.Column("next_try_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("delivered_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("status", sa.BigInteger(), nullable=True),
        sa.Column("answer", sa.Text(), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.CheckConstraint("attempts >= 0", name=op.f("ck_deliveries_attempts_not_negative")),
        sa.ForeignKeyConstraint(
            ["webhook_pk"],
            ["webhooks.id"],
            name=op.f("fk_deliveries_webhook_pk_webhooks"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_deliveries")),
        sa.UniqueConstraint("message_id", name=op.f("uq_deliveries_message_id")),
    )
    op.create_index("ix_deliveries_webhook_pk_id", "deliveries", ["webhook_pk", "id"])
    op.create_index(
        "ix_deliveries_pending_next_try_at",
        "deliveries",
        ["webhook_pk", "next_try_at"],
        postgresql_where=sa.text("next_try_at IS NOT NULL"),
    )
    op.create_table(
        "told_attention",
        sa.Column("webhook_pk", sa.BigInteger(), nullable=False),
        sa.Column("item", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["webhook_pk"],
            ["webhooks.id"],
            name=op.f("fk_told_attention_webhook_pk_webhooks"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("webhook_pk", "item", name=op.f("pk_told_attention")),
    )


def downgrade() -> None:
    op.drop_constraint("ck_audit_log_action_known", "audit_log")
    op.execute(
        f"ALTER TABLE audit_log ADD CONSTRAINT ck_audit_log_action_known CHECK (action IN ({BEFORE})) NOT VALID"
    )
    op.drop_table("told_attention")
    op.drop_table("deliveries")
    op.drop_table("webhooks")
