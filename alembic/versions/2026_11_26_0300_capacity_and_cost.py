"""capacity and cost

Let phases wait for agents that could not work; count money beside tokens.

Only adds columns: existing rows have no known cost, and do not wait for capacity.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "capacity_and_cost"
down_revision = "verdict_sandbox"
branch_labels = None
depends_on = None

_COSTS = {
    "runs": ("cost_usd", "cost_reserved_usd"),
    "tiers": ("cost_usd",),
    "phases": ("cost_usd", "cost_reserved_usd", "cost_reported_usd"),
}
_MONEY = sa.Numeric(20, 6)
_OPTIONAL = {
    "runs": {"cost_cap_usd": _MONEY},
    "phases": {
        "unavailable_reason": sa.Text(),
        "retry_at": sa.DateTime(timezone=True),
        "retry_account": sa.Text(),
    },
    "leases": {"account": sa.Text()},
    "submissions": {
        "input_tokens": sa.BigInteger(),
        "output_tokens": sa.BigInteger(),
        "cached_tokens": sa.BigInteger(),
        "cost_usd": _MONEY,
        "price": sa.dialects.postgresql.JSONB(),
        "retry_at": sa.DateTime(timezone=True),
        "account": sa.Text(),
    },
}
_FAILURES = (
    "'token_cap', 'duration_cap', 'minor_issue_cap', 'branch_moved', 'ci_did_not_run',"
    " 'cancelled', 'phase_failed', 'tier_not_clean', 'major_issue'"
)
_OUTCOMES = (
    "'applied', 'held', 'empty', 'failed', 'conflict', 'refused', 'over_budget', 'approved',"
    " 'revised', 'escalated', 'advisory'"
)


def upgrade() -> None:
    for table, columns in _COSTS.items():
        for column in columns:
            op.add_columns(
                table, sa.Column(column, _MONEY, nullable=False, server_default=sa.text("0"))
            )
    for table, optional in _OPTIONAL.items():
        for column, kind in optional.items():
            op.add_columns(table, sa.Column(column, kind, nullable=True))
    _know("runs", "failure_code", f"{_FAILURES}, 'cost_cap', 'agents_unavailable'")
    _know("submissions", "outcome", f"{_OUTCOMES}, 'unavailable'")


def downgrade() -> None:
    # Values that the former release does not know become the nearest ones that it knows.
    op.execute("UPDATE runs SET failure_code = 'token_cap' WHERE failure_code = 'cost_cap'")
    op.execute(
        "UPDATE runs SET failure_code = 'ci_did_not_run' WHERE failure_code = 'agents_unavailable'"
    )
    op.execute("UPDATE submissions SET outcome = 'failed' WHERE outcome = 'unavailable'")
    _know("runs", "failure_code", _FAILURES)
    _know("submissions", "outcome", _OUTCOMES)
    for table, optional in _OPTIONAL.items():
        for column in optional:
            op.drop_column(table, column)
    for table, columns in _COSTS.items():
        for column in columns:
            op.drop_column(table, column)


def _know(table: str, column: str, codes: str) -> None:
    op.replace_check(table, f"ck_{table}_{column}_known", f"{column} IN ({codes})")
