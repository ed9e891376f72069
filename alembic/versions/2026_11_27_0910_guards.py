"""guards

Triggers instead of checks for the closed sets and the counts of runs, tiers and phases. Postgres parses every
check of a table for each statement that writes to it, but a trigger's condition only if its column is
set (docs/decisions/guards.md). The trigger that counts runs is told its columns for the same reason.
"""

from __future__ import annotations

from alembic import op

revision = "guards"
down_revision = "webhook_counts"
branch_labels = None
depends_on = None

SETS = {
    "runs": {
        "state": "'PLAN_BOOTSTRAP', 'RUN_CREATED', 'PHASE_QUEUEING', 'PHASE_EXECUTION', 'GATE',"
        " 'CI_RUNNING', 'SNAPSHOT_CREATED', 'DONE_SUCCESS', 'DONE_FAILED_BUDGET_EXHAUSTED',"
        " 'DONE_FAILED_POLICY_VIOLATION', 'DONE_FAILED_REQUIRES_HUMAN_REVIEW',"
        " 'DONE_FAILED_ENVIRONMENT'",
        "safety_profile": "'normal', 'safety_critical'",
        "run_scope": "'single_tier', 'incremental', 'multi_tier'",
        "debt_status": "'clean', 'has_minor_issues', 'excess_minor_issues', 'has_major_issues'",
        "failure_code": "'token_cap', 'cost_cap', 'duration_cap', 'minor_issue_cap',"
        " 'branch_moved', 'ci_did_not_run', 'agents_unavailable', 'cancelled', 'phase_failed',"
        " 'tier_not_clean', 'major_issue'",
        "closed_as": "'merged', 'dismissed', 'continued'",
    },
    "tiers": {
        "state": "'PENDING', 'IN_PROGRESS', 'COMPLETE', 'FAILED', 'SKIPPED'",
        "cleanliness": "'clean', 'not_clean'",
    },
    "phases": {
        "state": "'QUEUED', 'EXECUTING', 'GATE', 'CI_RUNNING', 'COMPLETE', 'FAILED', 'SKIPPED'",
        "complexity": "'low', 'medium', 'high'",
        "ci_profile": "'normal', 'strict'",
        "verdict": "'green', 'red', 'did_not_run'",
        "sandbox": "'bubblewrap', 'none', 'external'",
        "completed_by": "'rules', 'hand'",
        "independence": "'none', 'agent', 'key', 'model'",
        "lease_role": "'builder', 'auditor'",
    },
}
COUNTS = {
    "runs": (
        *("token_cap", "tokens_used", "tokens_reserved", "minor_issues_count"),
        *("major_issues_count", "mirrored_revision", "event_sequence"),
    ),
    "tiers": ("tokens_used", "ci_runs_count", "minor_issues_count", "major_issues_count"),
    "phases": (
        *("builder_attempts_used", "auditor_attempts_used", "tokens_used", "fence"),
        *("minor_issues_count", "major_issues_count"),
    ),
}
# What the counts of runs are made of (run_counts); `it` is OLD or NEW.
RUN = """{it}.state, {it}.failure_code, {one}, CASE {it}.state
         WHEN 'DONE_FAILED_BUDGET_EXHAUSTED'
         THEN {one} * {it}.tokens_used::numeric / greatest({it}.token_cap, 1) ELSE 0 END"""
MOVED = "OLD.state <> NEW.state OR OLD.failure_code IS DISTINCT FROM NEW.failure_code"
SPENT = "NEW.state = 'DONE_FAILED_BUDGET_EXHAUSTED'"


def upgrade() -> None:
    op.execute(
        "CREATE OR REPLACE FUNCTION refuse_value() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN\n"
        'RAISE EXCEPTION \'new row for relation "%" violates check "%"\', TG_TABLE_NAME, TG_NAME\n'
        "USING ERRCODE = 'check_violation', CONSTRAINT = TG_NAME,"
        " TABLE = TG_TABLE_NAME, SCHEMA = TG_TABLE_SCHEMA;\n"
        "END $$"
    )
    for table in SETS:
        for name, column, condition in _guards(table):
            op.replace_guard(table, name, column, condition)
        # Only now, so that there is always one that refuses.
        drops = (f"DROP CONSTRAINT IF EXISTS {name}" for name, *_ in _guards(table))
        op.alone(f"ALTER TABLE {table} {', '.join(drops)}")
    _count_runs(
        "IF TG_OP = 'UPDATE' THEN\n"
        f"  INSERT INTO run_counts VALUES ({_of('OLD', -1)}), ({_of('NEW', 1)});\n"
        "ELSIF TG_OP = 'DELETE' THEN\n"
        f"  INSERT INTO run_counts VALUES ({_of('OLD', -1)});\n"
        "ELSIF TG_OP = 'INSERT' THEN\n"
        f"  INSERT INTO run_counts VALUES ({_of('NEW', 1)});\n"
        "END IF;\n"
    )
    _trigger("count_runs_on_update", "UPDATE OF state, failure_code", MOVED)
    _trigger(
        "count_runs_on_spending", "UPDATE OF tokens_used, token_cap", f"{SPENT} AND NOT ({MOVED})"
    )


def downgrade() -> None:
    for table in SETS:
        for name, _, condition in _guards(table):
            op.replace_check(table, name, condition)
        for name, *_ in _guards(table):
            op.alone(f"DROP TRIGGER IF EXISTS {name} ON {table}")
    op.execute("DROP FUNCTION IF EXISTS refuse_value()")
    _count_runs(
        "IF TG_OP IN ('DELETE', 'UPDATE') THEN\n"
        f"  INSERT INTO run_counts VALUES ({_of('OLD', -1)});\n"
        "END IF;\n"
        "IF TG_OP IN ('INSERT', 'UPDATE') THEN\n"
        f"  INSERT INTO run_counts VALUES ({_of('NEW', 1)});\n"
        "END IF;\n"
    )
    op.execute("DROP TRIGGER IF EXISTS count_runs_on_spending ON runs")
    _trigger(
        "count_runs_on_update",
        "UPDATE",
        f"{MOVED} OR {SPENT} AND (OLD.tokens_used, OLD.token_cap) <> (NEW.tokens_used, NEW.token_cap)",
    )


def _guards(table: str) -> list[tuple[str, str, str]]:
    """Return the name, the column and the condition of each guard of a table."""
    known = [
        (f"ck_{table}_{column}_known", column, f"{column} IN ({values})")
        for column, values in SETS[table].items()
    ]
    counts = COUNTS[table]
    return known + [(f"ck_{table}_{each}_not_negative", each, f"{each} >= 0") for each in counts]


def _of(row: str, one: int) -> str:
    return RUN.format(it=row, one=one)


def _count_runs(steps: str) -> None:
    op.execute(
        "CREATE OR REPLACE FUNCTION count_runs() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN\n"
        "IF TG_OP = 'TRUNCATE' THEN\n"
        "  LOCK TABLE run_counts IN EXCLUSIVE MODE;\n"  # waits for a transaction that adds up
        "  DELETE FROM run_counts;\n"
        "END IF;\n"
        f"{steps}RETURN NULL; END $$"
    )


def _trigger(name: str, when: str, condition: str) -> None:
    op.execute(
        f"CREATE OR REPLACE TRIGGER {name} AFTER {when} ON runs FOR EACH ROW"
        f" WHEN ({condition}) EXECUTE FUNCTION count_runs()"
    )
