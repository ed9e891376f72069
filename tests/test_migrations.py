"""Migrations beside a running service: what they lock, what interrupts them, what is checked."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
import structlog
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Engine, event, text
from tests.test_database import OLDEST_TO_GO_BACK_TO, _insert, migrate_to

from autopack import migrating
from autopack.database import make_engine
from autopack.migrating import DatabaseError, all_steps, migrate, pending_steps
from autopack.models import Base

# No released version is at a revision before this one, so that these only ran on empty databases.
NEVER_ON_LIVE_DATA = {
    *("first", "job_engine", "run_counts", "run_record", "pulses", "event_feed", "ci_logs"),
    *("signatures", "known_codes"),
}


class KilledError(Exception):
    """Stands for the end of the process, which Postgres sees as the end of the session."""


@pytest.fixture
def engine(empty_database_url: str) -> Iterator[Engine]:
    engine = make_engine(empty_database_url.replace("postgresql:", "postgresql+psycopg2:"), 15)
    yield engine
    engine.dispose()


def _fill(engine: Engine) -> None:
    """Add rows that the migrations since the first version with users change."""
    with engine.begin() as connection:
        connection.execute(text("SET session_replication_role = replica"))
        for pk in (1, 2, 3):
            _insert(connection, "runs", run_id=f"run-{pk}", state="DONE_SUCCESS")
            _insert(connection, "tiers", run_pk=pk, state="COMPLETE", tier_index=pk)
            _insert(
                connection,
                "phases",
                run_pk=pk,
                tier_pk=pk,
                state="COMPLETE",
                commit="b",
                start_commit=f"a{pk}",
            )
            _insert(connection, "patches", status="discarded", position=pk)
            sandbox = ("none: no bwrap", "bubblewrap", None)[pk - 1]
            _insert(
                connection,
                "ci_runs",
                run_pk=pk,
                phase_pk=pk,
                profile="normal",
                verdict="green",
                sandbox=sandbox,
            )
            _insert(
                connection,
                "backlog",
                issue_key=f"key-{pk}",
                base_severity="minor",
                status="resolved",
                resolved_at=datetime.now(UTC),
            )


def _seen(engine: Engine) -> list[Any]:
    with engine.connect() as connection:
        return [
            connection.execute(text(query)).all()
            for query in (
                "SELECT run_pk, sandbox FROM ci_runs ORDER BY id",
                "SELECT before_commit FROM phases ORDER BY id",
                "SELECT status FROM patches ORDER BY position",
                "SELECT backlog_pk, kind FROM issue_events ORDER BY backlog_pk",
                "SELECT run_id, is_counted FROM runs ORDER BY id",
                "SELECT indexrelid::regclass::text FROM pg_index WHERE NOT indisvalid",
                "SELECT conname FROM pg_constraint WHERE NOT convalidated",
            )
        ]


AFTER = [
    [(1, "none"), (2, "bubblewrap"), (3, "external")],
    [("a1",), ("a2",), ("a3",)],
    [("pending",)] * 3,
    [(1, "resolved"), (2, "resolved"), (3, "resolved")],
    [(f"run-{pk}", False) for pk in (1, 2, 3)],
    [],
    [],
]


@pytest.mark.unit
def test_no_migration_holds_a_long_lock_on_a_table_that_grows_with_the_runs() -> None:
    """docs/how-to-add.md says how the same is done beside a running service."""
    faults = {
        step.revision: step.faults.long_locks
        for step in all_steps()
        if step.faults.long_locks and step.revision not in NEVER_ON_LIVE_DATA
    }
    assert faults == {}


@pytest.mark.unit
def test_a_migration_that_breaks_an_older_service_says_so() -> None:
    unsaid = {
        step.revision: step.faults.contracts
        for step in all_steps()
        if step.faults.contracts and not step.stop_first and step.revision not in NEVER_ON_LIVE_DATA
    }
    assert unsaid == {}


@pytest.mark.integration
@pytest.mark.parametrize("every", [6, pytest.param(1, marks=pytest.mark.campaigns)])
def test_an_upgrade_that_is_killed_after_any_of_its_commits_is_finished_by_the_next(
    engine: Engine, every: int
) -> None:
    """After each of them, or each sixth one."""
    migrate_to(engine, OLDEST_TO_GO_BACK_TO)
    _fill(engine)
    committed: set[str] = set()
    kills = 0

    @event.listens_for(engine, "after_cursor_execute")
    def stop(_: object, cursor: Any, statement: str, *_rest: object) -> None:
        if cursor.connection.autocommit and statement not in committed:
            committed.add(statement)
            if len(committed) % every == 0:
                raise KilledError

    while True:
        try:
            migrate(engine)
            break
        except KilledError:
            kills += 1
    assert kills > 20 // every
    assert _seen(engine) == AFTER
    with engine.connect() as connection:
        ours = {"include_name": lambda name, *_: not (name or "").startswith("procrastinate_")}
        context = MigrationContext.configure(connection, opts={**ours, "compare_type": True})
        assert compare_metadata(context, Base.metadata) == []


@pytest.mark.integration
def test_a_migration_lets_requests_pass_while_it_waits_for_a_table(engine: Engine) -> None:
    migrate_to(engine, OLDEST_TO_GO_BACK_TO)
    _fill(engine)
    failed: list[BaseException] = []

    def upgrade() -> None:
        try:
            migrate(engine)
        except BaseException as error:
            failed.append(error)

    upgrading = threading.Thread(target=upgrade)
    with structlog.testing.capture_logs() as logged, engine.connect() as holder:
        holder.execute(text("SELECT count(*) FROM runs"))  # an open transaction: a lock
        upgrading.start()
        while not any(entry["event"] == "migration_waits" for entry in logged):
            # A reader that came after the migration waits behind it, until that gives up.
            with engine.connect() as reader:
                assert reader.scalar(text("SELECT count(*) FROM runs")) == 3
            assert upgrading.is_alive()
        holder.rollback()
        upgrading.join()
    assert failed == []
    assert _seen(engine) == AFTER


@pytest.mark.integration
def test_a_table_that_is_never_free_ends_the_upgrade_with_who_holds_it(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    migrate_to(engine, OLDEST_TO_GO_BACK_TO)
    monkeypatch.setattr(migrating, "GIVE_UP_SECONDS", 0)
    with engine.connect() as holder:
        pid = holder.scalar(text("SELECT pg_backend_pid() FROM runs RIGHT JOIN pg_class ON true"))
        with pytest.raises(
            DatabaseError, match=rf"tables are free: ALTER TABLE runs .*pid {pid} \(autopack\)"
        ):
            migrate(engine)


@pytest.mark.integration
def test_what_is_pending_is_listed_with_what_a_running_service_notices(engine: Engine) -> None:
    migrate_to(engine, OLDEST_TO_GO_BACK_TO)
    steps = pending_steps(engine)
    assert [step.revision for step in steps][:3] == [
        "verdict_sandbox",
        "capacity_and_cost",
        "unread_columns",
    ]
    assert [step.is_safe for step in steps][:3] == [False, True, False]
    assert "is_sandbox_required" in (steps[0].stop_first or "")
    migrate(engine)
    assert pending_steps(engine) == []
