"""Which statements of a migration make requests wait, or break a service of the version before."""

from __future__ import annotations

import pytest

from autopack.domain.schema_steps import find_faults

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("statement", "fault"),
    [
        ("CREATE INDEX ix ON runs (state)", "CREATE INDEX without CONCURRENTLY on runs"),
        ("CREATE UNIQUE INDEX IF NOT EXISTS ix ON public.runs (a)", "without CONCURRENTLY on runs"),
        ("ALTER TABLE runs ALTER COLUMN a TYPE BIGINT", "ALTER COLUMN TYPE on runs"),
        ("ALTER TABLE runs ALTER a SET DATA TYPE VARCHAR(9)", "ALTER COLUMN TYPE on runs"),
        ("ALTER TABLE runs ALTER COLUMN a SET NOT NULL", "SET NOT NULL without a validated check"),
        ("ALTER TABLE phases ADD CONSTRAINT c CHECK (a > 0)", "ADD CONSTRAINT without NOT VALID"),
        (
            "ALTER TABLE phases DROP CONSTRAINT c, ADD CONSTRAINT c CHECK (a IN (1, 2))",
            "ADD CONSTRAINT without NOT VALID",
        ),
        ("ALTER TABLE phases ADD UNIQUE (a)", "ADD CONSTRAINT without NOT VALID on phases"),
        (
            "ALTER TABLE phases ADD CONSTRAINT f FOREIGN KEY(a) REFERENCES runs (id)",
            "ADD CONSTRAINT without NOT VALID on phases",
        ),
        ("ALTER TABLE runs ADD COLUMN a UUID DEFAULT gen_random_uuid()", "a value of its own"),
        ("ALTER TABLE runs ADD a TIMESTAMPTZ DEFAULT clock_timestamp()", "a value of its own"),
        ("ALTER TABLE runs ADD COLUMN a BIGINT GENERATED ALWAYS AS (b) STORED", "of its own"),
        ("ALTER TABLE runs ADD COLUMN a TEXT NOT NULL", "NOT NULL and no DEFAULT on runs"),
        ("UPDATE runs SET a = b", "rows of runs are changed without batches"),
        ("DELETE FROM events WHERE id < 9", "rows of events are changed without batches"),
        ("LOCK TABLE runs", "no rule knows: LOCK TABLE runs"),
        ("VACUUM FULL runs", "no rule knows"),
        ("DO $$ BEGIN UPDATE runs SET a = 1; END $$", "no rule knows"),
        ("SELECT mend()", "no rule knows: SELECT mend()"),
        ("SELECT count(*) FROM events", "no rule knows"),
        ("CALL mend()", "no rule knows"),
    ],
)
def test_a_statement_that_holds_a_long_lock_is_named(statement: str, fault: str) -> None:
    (found,) = find_faults([[statement]]).long_locks
    assert fault in found


@pytest.mark.parametrize(
    "transactions",
    [
        [["CREATE INDEX CONCURRENTLY IF NOT EXISTS ix ON runs (state)"]],
        [["CREATE TABLE new (id BIGINT)", "CREATE INDEX ix ON new (id)", "UPDATE new SET id = 1"]],
        [["ALTER TABLE runs ADD COLUMN a TEXT"], ["ALTER TABLE phases ADD COLUMN a TEXT"]],
        [["ALTER TABLE runs ADD COLUMN a TEXT", "ALTER TABLE webhooks ADD COLUMN a TEXT"]],
        [["ALTER TABLE runs ADD COLUMN a BIGINT DEFAULT '0' NOT NULL"]],
        [["ALTER TABLE runs ADD COLUMN a TIMESTAMPTZ DEFAULT now()"]],
        [
            ["ALTER TABLE runs ADD CONSTRAINT c CHECK (a IS NOT NULL) NOT VALID"],
            ["ALTER TABLE runs VALIDATE CONSTRAINT c"],
            ["ALTER TABLE runs ALTER COLUMN a SET NOT NULL"],
        ],
        [["/* batch */ UPDATE runs SET a = b WHERE id > 0 AND id <= 2000 AND (a IS NULL)"]],
        [["ALTER TABLE webhooks ADD CONSTRAINT c CHECK (format IN ('a'))"]],
        [["TRUNCATE figures"]],
        # A comma within quotes ends no action.
        [["ALTER TABLE runs ADD COLUMN a TEXT DEFAULT 'x, ADD b INT NOT NULL'"]],
    ],
)
def test_what_only_changes_the_catalog_or_works_beside_requests_is_fine(
    transactions: list[list[str]],
) -> None:
    assert find_faults(transactions).long_locks == ()


@pytest.mark.parametrize(
    ("body", "fault"),
    [
        ("BEGIN UPDATE runs SET a = 1; END", "rows of runs are changed without batches"),
        ("BEGIN ALTER TABLE runs ALTER a TYPE BIGINT; END", "ALTER COLUMN TYPE on runs"),
        ("BEGIN EXECUTE 'CREATE INDEX i ON runs (a)'; END", "without CONCURRENTLY on runs"),
        (
            "BEGIN EXECUTE format('ALTER TABLE runs ADD CONSTRAINT %I CHECK (a)', 'c'); END",
            "ADD CONSTRAINT without NOT VALID on runs",
        ),
        ("DECLARE n int := (SELECT count(*) FROM events); BEGIN SET x = 1; END", "reads events"),
        ("BEGIN IF true THEN DELETE FROM runs; END IF; END", "no rule knows: IF true"),
        ("BEGIN PERFORM other(); END", "no rule knows: PERFORM"),
        ("BEGIN SELECT mend(); END", "no rule knows: SELECT mend()"),
        ("BEGIN EXECUTE statement; END", "no rule knows: EXECUTE"),
        ("SELECT 1", "no rule can look into: mend"),
    ],
)
@pytest.mark.parametrize("call", ["SELECT mend()", "UPDATE webhooks SET a = mend ()"])
def test_a_function_that_is_called_is_judged_by_what_it_does(
    body: str, fault: str, call: str
) -> None:
    make = f"CREATE FUNCTION mend() RETURNS int LANGUAGE plpgsql AS $$\n{body} $$"
    found, *_ = find_faults([[make, call, "DROP FUNCTION mend()"]]).long_locks
    assert fault in found
    assert find_faults([[make]]).long_locks == ()  # a trigger's, which nothing calls here


def test_a_function_may_do_what_its_migration_may() -> None:
    body = "DECLARE v text := (SELECT a FROM webhooks); BEGIN {}; END"
    add = "EXECUTE format('ALTER TABLE runs ADD COLUMN a text DEFAULT %L', v)"
    make = f"CREATE OR REPLACE FUNCTION mend() RETURNS void AS $$ {body.format(add)} $$"
    assert find_faults([[make, "SELECT mend();"]]).long_locks == ()
    assert find_faults(
        [[make, "ALTER TABLE phases ADD COLUMN a TEXT", "SELECT mend()"]]
    ).long_locks == ("one transaction locks phases and runs",)


def test_rows_are_not_read_or_changed_while_a_transaction_locks_their_table() -> None:
    add = "ALTER TABLE phases ADD CONSTRAINT c CHECK (a > 0) NOT VALID"
    validate = "ALTER TABLE phases VALIDATE CONSTRAINT c"
    assert find_faults([[add], [validate]]).long_locks == ()
    assert find_faults([[add, validate]]).long_locks == (
        "VALIDATE CONSTRAINT while the transaction locks phases",
    )
    copy = "INSERT INTO copies SELECT id FROM runs"
    assert find_faults([[copy]]).long_locks == ()
    assert find_faults([["ALTER TABLE runs ADD COLUMN a TEXT", copy]]).long_locks == (
        "rows of copies are changed while the transaction locks runs",
    )


@pytest.mark.parametrize(
    "first",
    [
        "ALTER TABLE phases ADD COLUMN a TEXT",
        "CREATE TABLE new (id BIGINT, FOREIGN KEY(id) REFERENCES phases (id) ON DELETE CASCADE)",
    ],
)
def test_a_transaction_locks_one_table_that_requests_write(first: str) -> None:
    """A request that holds the second one and asks for the first would wait for the migration."""
    assert find_faults([[first, "ALTER TABLE runs ADD COLUMN a TEXT"]]).long_locks == (
        "one transaction locks phases and runs",
    )


@pytest.mark.parametrize(
    ("statement", "contract"),
    [
        ("ALTER TABLE runs DROP COLUMN a", ("runs: drop column a",)),
        ("ALTER TABLE webhooks DROP COLUMN IF EXISTS a", ("webhooks: drop column a",)),
        ("ALTER TABLE runs RENAME a TO b", ("runs: rename a to b",)),
        ("ALTER TABLE runs ALTER COLUMN a DROP DEFAULT", ("runs: alter column a drop default",)),
        ("ALTER TABLE runs ALTER COLUMN a SET NOT NULL", ("runs: alter column a set not null",)),
        ("DROP TABLE runs", ("DROP TABLE runs",)),
        ("ALTER TABLE runs ADD COLUMN a TEXT", ()),
        ("ALTER TABLE runs DROP CONSTRAINT c", ()),
        ("ALTER TABLE runs DROP COLUMN a, ADD COLUMN a BIGINT DEFAULT 0 NOT NULL", ()),
    ],
)
def test_what_an_older_service_misses_afterwards_is_named(
    statement: str, contract: tuple[str, ...]
) -> None:
    assert tuple(each.lower() for each in find_faults([[statement]]).contracts) == tuple(
        each.lower() for each in contract
    )
