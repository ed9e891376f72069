"""webhooks that start a workflow on GitHub"""

from __future__ import annotations

from alembic import op

revision = "github_webhooks"
down_revision = "webhooks"
branch_labels = None
depends_on = None

NAME = "ck_webhooks_format_known"


def upgrade() -> None:
    op.drop_constraint(NAME, "webhooks")
    op.create_check_constraint(
        op.f(NAME), "webhooks", "format IN ('cloudevents', 'slack', 'github')"
    )


def downgrade() -> None:
    op.execute("DELETE FROM webhooks WHERE format = 'github'")
    op.drop_constraint(NAME, "webhooks")
    op.create_check_constraint(op.f(NAME), "webhooks", "format IN ('cloudevents', 'slack')")
