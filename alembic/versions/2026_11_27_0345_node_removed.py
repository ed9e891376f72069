"""node_removed

The audit log names the removal of a node from the list.
"""

from __future__ import annotations

from alembic import op

revision = "node_removed"
down_revision = "node_rulesets"
branch_labels = None
depends_on = None

BEFORE = (
    "'key_created', 'key_revoked', 'key_rotated', 'ruleset_replaced', 'attention_dismissed',"
    " 'webhook_created', 'webhook_removed', 'webhook_enabled',"
    " 'project_created', 'project_changed', 'project_closed', 'project_reopened'"
)


def upgrade() -> None:
    op.replace_check(
        "audit_log", "ck_audit_log_action_known", f"action IN ({BEFORE}, 'node_removed')"
    )


def downgrade() -> None:
    op.drop_constraint("ck_audit_log_action_known", "audit_log")
    # Not valid: deeds that the older version does not know stay, as none may be taken from the chain.
    op.execute(
        f"ALTER TABLE audit_log ADD CONSTRAINT ck_audit_log_action_known CHECK (action IN ({BEFORE})) NOT VALID"
    )
