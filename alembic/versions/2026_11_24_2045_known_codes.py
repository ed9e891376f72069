"""known codes

An unusable repository does not end a run, which waits for it; a lapse is not a submission.
"""

from __future__ import annotations

from alembic import op

revision = "known_codes"
down_revision = "signatures"
branch_labels = None
depends_on = None

_FAILURES = (
    "'token_cap', 'duration_cap', 'minor_issue_cap', 'branch_moved', 'ci_did_not_run',"
    " 'cancelled', 'phase_failed', 'tier_not_clean', 'major_issue'"
)
_OUTCOMES = (
    "'applied', 'held', 'empty', 'failed', 'conflict', 'refused', 'over_budget', 'approved',"
    " 'revised', 'escalated', 'advisory'"
)


def upgrade() -> None:
    _know("runs", "failure_code", _FAILURES)
    _know("submissions", "outcome", _OUTCOMES)


def downgrade() -> None:
    _know("runs", "failure_code", f"{_FAILURES}, 'repository_unusable'")
    _know("submissions", "outcome", f"{_OUTCOMES}, 'lapsed'")


def _know(table: str, column: str, codes: str) -> None:
    op.replace_check(table, f"ck_{table}_{column}_known", f"{column} IN ({codes})")
