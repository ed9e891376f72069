"""Stored counts are right at every moment, also while transactions write and add up."""

from __future__ import annotations

import random
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import psycopg
import pytest
from sqlalchemy import Connection, Engine, text

from autopack.domain.run import FailureCode
from autopack.domain.states import RunStatus
from autopack.store.counts import UNFOLDED, fold_counts
from autopack.store.session import RowSession

if TYPE_CHECKING:
    from fastapi import FastAPI
    from tests.api.conftest import Api

pytestmark = pytest.mark.integration

COUNTED = """
    SELECT 'run', state, failure_code, count(*)::bigint, round(sum(CASE state
        WHEN 'DONE_FAILED_BUDGET_EXHAUSTED' THEN tokens_used::numeric / token_cap ELSE 0 END), 9)
    FROM runs GROUP BY state, failure_code
    UNION ALL SELECT category, status, base_severity, count(*), 0 FROM backlog GROUP BY 1, 2, 3
    ORDER BY 1, 2, 3"""
KEPT = """
    SELECT 'run', state, failure_code, sum(runs)::bigint, round(sum(token_shares), 9)
    FROM run_counts GROUP BY state, failure_code HAVING sum(runs) <> 0
    UNION ALL SELECT category, status, base_severity, sum(entries), 0
    FROM backlog_counts GROUP BY 1, 2, 3 HAVING sum(entries) <> 0
    ORDER BY 1, 2, 3"""
COPIES = """
    INSERT INTO {0} OVERRIDING SYSTEM VALUE
    SELECT (jsonb_populate_record(t, jsonb_build_object(
        'id', {1} + n, 'run_id', 'copy-' || {1} + n, 'issue_key', 'copy-' || {1} + n))).*
    FROM {0} t, generate_series(1, {2}) n WHERE t.id = 1"""


@pytest.fixture
def engine(app: FastAPI, api: Api) -> Engine:
    """The service's own connections, in a database with one run and one issue."""
    api.start()
    api.issue()
    engine: Engine = app.state.context.engine
    return engine


def run(connection: Connection, statement: str, **values: object) -> None:
    connection.execute(text(statement), values)


def are_right(engine: Engine) -> bool:
    with engine.connect() as connection:
        snapshot = connection.execution_options(isolation_level="REPEATABLE READ")
        counted = snapshot.execute(text(COUNTED)).all()
        return counted == snapshot.execute(text(KEPT)).all()


def fold(engine: Engine) -> None:
    with RowSession(engine, is_writing=True) as session:
        fold_counts(session)
        session.commit()


@pytest.mark.safety_critical
def test_counts_stay_right_with_twenty_writers_and_two_folds(engine: Engine) -> None:
    with engine.begin() as connection:
        for table in ("runs", "backlog"):
            run(connection, COPIES.format(table, 100, 200))
    is_over = threading.Event()

    def write(number: int) -> None:
        chance = random.Random(number)
        for step in range(15):
            with engine.connect() as connection:
                mine = 101 + number * 10 + chance.randrange(10)
                run(
                    connection,
                    "UPDATE runs SET state = :state, failure_code = :code, tokens_used = :tokens"
                    " WHERE id = :id",
                    state=chance.choice(list(RunStatus)),
                    code=chance.choice([None, *FailureCode]),
                    tokens=chance.randrange(9_000_000),
                    id=mine,
                )
                run(
                    connection,
                    "UPDATE backlog SET status = :status, category = :category WHERE id = :id",
                    status=chance.choice(["open", "needs_cleanup", "resolved"]),
                    category=chance.choice("abc"),
                    id=mine,
                )
                if step % 5 == 0:
                    for table in ("runs", "backlog"):
                        run(connection, f"DELETE FROM {table} WHERE id = :id", id=mine)
                        run(connection, COPIES.format(table, 1_000 + 20 * number + step, 2))
                if chance.random() < 0.8:
                    connection.commit()

    def look(_: int) -> bool:
        was_right = True
        while not is_over.is_set():
            fold(engine)
            was_right = was_right and are_right(engine)
        return was_right

    with ThreadPoolExecutor(22) as pool:
        looks = [pool.submit(look, number) for number in range(2)]
        writes = [pool.submit(write, number) for number in range(20)]
        try:
            for each in writes:
                each.result()
        finally:
            is_over.set()
        assert [each.result() for each in looks] == [True, True]
    fold(engine)
    assert are_right(engine)
    with engine.connect() as connection:
        for table in ("run_counts", "backlog_counts"):
            rows = connection.scalar(text(f"SELECT count(*) FROM {table}"))
            assert rows is not None
            assert 0 < rows <= UNFOLDED


def test_hands_and_bulk_loads_are_counted_too(engine: Engine) -> None:
    # By psycopg 3: the service's wait for answers leaves psycopg2 no COPY.
    address = engine.url.set(drivername="postgresql").render_as_string(hide_password=False)
    with engine.begin() as connection:
        run(connection, COPIES.format("runs", 100, 5))
    with psycopg.connect(address) as bulk:
        with bulk.cursor().copy("COPY runs TO STDOUT") as copied:
            rows = b"".join(bytes(block) for block in copied)
        bulk.execute("DELETE FROM runs")
    assert are_right(engine)
    with psycopg.connect(address) as bulk, bulk.cursor().copy("COPY runs FROM STDIN") as copied:
        copied.write(rows)
    assert are_right(engine)
    with engine.begin() as connection:
        run(connection, "TRUNCATE runs, backlog CASCADE")
    assert are_right(engine)
