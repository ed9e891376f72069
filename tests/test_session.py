"""What a session of plain rows promises: what is written, when, in which order, and what is not."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from psycopg2.extensions import TRANSACTION_STATUS_IDLE
from sqlalchemy import Connection, event
from sqlalchemy.exc import DBAPIError, IntegrityError

from autopack.config import Settings
from autopack.database import make_engine
from autopack.domain.terms import CiProfile, Role
from autopack.models import CiRun, Phase, Run, Tier
from autopack.store.ci_runs import CI_RUNS
from autopack.store.issues import ISSUES
from autopack.store.leases import LEASES, add_lease, end_leases
from autopack.store.rows import Part, PreparedParts, PreparedSelect, derived, differences
from autopack.store.runs import PHASES, RUNS, TIERS, add_run, attach, mark_mirrored
from autopack.store.session import RowSession

from .test_models import NOON, PHASE, RUN, SHA, TIER

pytestmark = pytest.mark.integration


@pytest.fixture
def connection(database_url: str) -> Iterator[Connection]:
    """A connection as a request has one: each statement is a transaction, unless it begins one."""
    address = Settings(_env_file=None, database_url=database_url).database_url or ""
    engine = make_engine(address, 15, is_autocommit=True)
    with engine.connect() as connection:
        yield connection
    engine.dispose()


@pytest.fixture
def session(connection: Connection) -> Iterator[RowSession]:
    """A session with one run of one tier and one phase in the database."""
    with RowSession(connection) as session:
        session.begin_change()
        run = RUNS.new(**RUN)
        attach(run, [TIERS.new(**TIER)], [PHASES.new(**PHASE)])
        add_run(session, run)
        session.commit()
        yield session


@pytest.fixture
def sent(connection: Connection, session: RowSession) -> list[str]:
    """What goes to Postgres from here on, a text for each round trip."""
    texts: list[str] = []

    def note(_connection: object, _cursor: object, text: str, *_: object) -> None:
        texts.append(text)

    event.listen(connection, "before_cursor_execute", note)
    return texts


def rows_of(session: RowSession) -> tuple[Run, Tier, Phase]:
    """Begin a change, and read the one run, tier and phase."""
    session.begin_change()
    run, tier = session.row(RUNS, ""), session.row(TIERS, "")
    phase = session.row(PHASES, "")
    assert run is not None
    assert tier is not None
    assert phase is not None
    return run, tier, phase


def read(connection: Connection, statement: str) -> list[tuple[Any, ...]]:
    """Read in a session of its own, which has changed nothing."""
    with RowSession(connection) as other:
        return other.fetch(statement)


def test_what_is_changed_in_a_row_goes_to_postgres_once_and_no_other_column_does(
    session: RowSession, sent: list[str]
) -> None:
    run, _, _ = rows_of(session)
    run.tokens_used = 7
    run.base_branch = "main"  # as it was
    session.send()
    session.commit()
    updates = [text for text in sent if "UPDATE" in text]
    assert len(updates) == 1
    assert 'UPDATE runs SET "tokens_used" = $1 WHERE id = $2' in updates[0]
    assert session.fetch("SELECT tokens_used FROM runs") == [(7,)]


def test_a_row_that_is_changed_back_after_it_was_sent_is_written_again(
    session: RowSession,
) -> None:
    run, _, _ = rows_of(session)
    run.tokens_used = 7
    session.send()
    run.tokens_used = 0
    session.commit()
    assert session.fetch("SELECT tokens_used FROM runs") == [(0,)]


def test_an_added_row_is_written_as_it_is_at_the_commit(
    session: RowSession, sent: list[str]
) -> None:
    session.begin_change()
    run = RUNS.new(**RUN | {"run_id": "run-2"})
    attach(run, [TIERS.new(**TIER)], [])
    add_run(session, run)
    run.tokens_used = 1
    session.send()
    run.tokens_used = run.tiers[0].tokens_used = 2
    session.commit()
    both = "SELECT r.tokens_used, t.tokens_used FROM runs r JOIN tiers t ON t.run_pk = r.id"
    assert session.fetch(f"{both} WHERE run_id = 'run-2'") == [(2, 2)]


def test_a_rollback_leaves_nothing_of_a_change(session: RowSession, connection: Connection) -> None:
    """Neither statements, nor added rows, nor changes of rows come with a later change."""
    run, _, _ = rows_of(session)
    run.tokens_used = 7
    session.put(TIERS, TIERS.new(**TIER | {"run_pk": run.id, "tier_id": "T2", "tier_index": 1}))
    session.gather("UPDATE phases SET tokens_used = 7")
    session.rollback()
    session.begin_change()
    session.commit()
    assert read(connection, "SELECT tokens_used FROM runs") == [(0,)]
    assert read(connection, "SELECT tier_id FROM tiers") == [("T1",)]
    assert read(connection, "SELECT tokens_used FROM phases") == [(0,)]


def test_a_rollback_drops_statements_that_were_not_sent(
    session: RowSession, connection: Connection, sent: list[str]
) -> None:
    session.gather("UPDATE phases SET tokens_used = 7")
    session.rollback()
    session.begin_change()
    session.gather("UPDATE runs SET tokens_used = 7")
    session.rollback()
    session.commit()
    assert read(connection, "SELECT tokens_used FROM runs") == [(0,)]
    assert read(connection, "SELECT tokens_used FROM phases") == [(0,)]
    assert "UPDATE" not in "; ".join(sent)


def test_a_rollback_takes_back_what_was_sent(session: RowSession, connection: Connection) -> None:
    run, _, _ = rows_of(session)
    run.tokens_used = 7
    session.send()
    session.rollback()
    assert read(connection, "SELECT tokens_used FROM runs") == [(0,)]


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_a_row_is_written_by_the_change_that_read_it_and_by_no_later_one(
    session: RowSession, connection: Connection, end: str
) -> None:
    run, _, _ = rows_of(session)
    getattr(session, end)()
    run.tokens_used = 7
    session.begin_change()
    session.commit()
    assert read(connection, "SELECT tokens_used FROM runs") == [(0,)]


def test_a_row_that_is_read_outside_of_a_change_is_not_written(
    session: RowSession, connection: Connection
) -> None:
    run = session.row(RUNS, "")
    assert run is not None
    run.tokens_used = 7
    session.begin_change()
    session.commit()
    assert read(connection, "SELECT tokens_used FROM runs") == [(0,)]


def test_rows_that_change_alike_share_a_statement_within_their_table(
    session: RowSession, connection: Connection, sent: list[str]
) -> None:
    session.begin_change()
    (tier,) = session.rows(TIERS, "")
    second = TIERS.new(**TIER | {"run_pk": tier.run_pk, "tier_id": "T2", "tier_index": 1})
    second.id = session.next_id(TIERS)
    session.put(TIERS, second)
    session.send()
    (phase,) = session.rows(PHASES, "")
    tier.tokens_used = second.tokens_used = phase.tokens_used = 7
    session.commit()
    assert read(connection, "SELECT tokens_used FROM tiers") == [(7,), (7,)]
    assert read(connection, "SELECT tokens_used FROM phases") == [(7,)]
    assert "; ".join(sent).count("UPDATE tiers") == 1


def test_added_rows_go_in_their_order_before_changed_ones_and_after_statements(
    session: RowSession, sent: list[str]
) -> None:
    run, _, _ = rows_of(session)
    run.tokens_used = 7
    tier = TIERS.new(**TIER | {"run_pk": run.id, "tier_id": "T2", "tier_index": 1})
    tier.id = session.next_id(TIERS)
    phase = PHASES.new(**PHASE | {"run_pk": run.id, "tier_pk": tier.id, "phase_id": "P2"})
    session.put(TIERS, tier)
    session.put(PHASES, phase)
    session.gather("DELETE FROM tiers")
    session.commit()
    words = ["DELETE FROM tiers", "insert_tiers", "insert_phases", "update_runs", "COMMIT"]
    places = [sent[-1].index(word) for word in words]
    assert places == sorted(places)
    assert session.fetch("SELECT tier_id FROM tiers") == [("T2",)]


def test_added_rows_get_their_ids_from_the_sequence_before_they_are_sent(
    session: RowSession,
) -> None:
    ((*keys,),) = session.next_ids((TIERS, 3))
    assert len({*keys, session.next_id(TIERS)}) == 4
    ((run_pk,),) = session.fetch("SELECT id FROM runs")
    session.begin_change()
    for number, key in enumerate(keys, 1):
        fields = {"id": key, "run_pk": run_pk, "tier_id": f"T{key}", "tier_index": number}
        session.put(TIERS, TIERS.new(**TIER | fields))
    session.commit()
    found = session.fetch("SELECT id, tier_id FROM tiers WHERE tier_index > 0 ORDER BY tier_index")
    assert found == [(key, f"T{key}") for key in keys]


def test_rows_of_two_tables_come_in_one_trip_and_what_is_changed_in_them_is_written(
    session: RowSession, sent: list[str]
) -> None:
    session.begin_change()
    (tier,) = session.rows(TIERS, "")
    fields = {"run_pk": tier.run_pk, "tier_pk": tier.id, "phase_id": "P2", "phase_index": 1}
    session.put(PHASES, PHASES.new(**PHASE | fields))
    session.send()
    sent.clear()
    both = PreparedParts(
        "both",
        Part(TIERS.column_list, "tiers WHERE id = %s"),
        Part(("count(*)::bigint",), "runs"),
        Part(PHASES.column_list, "phases WHERE tier_pk = %s"),
    )
    tiers, counts, phases = session.fetch_parts(both, (tier.id, tier.id))
    assert len(sent) == 1
    (again,) = session.read(TIERS, tiers)
    assert again is tier
    assert counts == [(1,)]
    assert {phase.phase_id for phase in session.read(PHASES, phases)} == {"P1", "P2"}
    again.tokens_used = 7
    session.commit()
    assert session.fetch("SELECT tokens_used FROM tiers") == [(7,)]


def test_rows_with_equal_values_share_what_is_made_of_them_until_one_is_changed(
    session: RowSession,
) -> None:
    made: list[str] = []

    def shout(tier: Tier) -> str:
        made.append(tier.name)
        return tier.name.upper()

    (first,) = session.rows(TIERS, "")
    (second,) = session.rows(TIERS, "")
    assert first is not second
    assert derived(first, shout) is derived(second, shout)
    assert len(made) == 1
    second.name = "another"
    assert [derived(second, shout), derived(second, shout)] == ["ANOTHER"] * 2
    assert len(made) == 2
    assert derived(first, shout) == first.name.upper()


def test_a_select_is_prepared_once_for_a_connection_also_if_its_change_is_rolled_back(
    session: RowSession, sent: list[str]
) -> None:
    by_name = PreparedSelect(TIERS, "WHERE tier_id = %s")
    session.begin_change()
    assert session.rows_by(by_name, ("T1",))
    session.rollback()
    assert session.rows_by(by_name, ("none",)) == []
    assert len(sent) == 3
    assert "PREPARE" in sent[0]
    assert sent[2].startswith("EXECUTE")


def test_a_select_that_failed_when_it_was_prepared_is_prepared_again(session: RowSession) -> None:
    halved = PreparedSelect(TIERS, "WHERE id / %s > 0")
    with pytest.raises(DBAPIError, match="division by zero"):
        session.rows_by(halved, (0,))
    assert session.rows_by(halved, (1,))


def test_a_change_of_the_same_columns_is_prepared_once_also_where_postgres_refused_it(
    session: RowSession, sent: list[str]
) -> None:
    for tokens, is_refused in ((-1, True), (5, False), (6, False)):
        session.begin_change()
        (row,) = session.rows(TIERS, "")
        row.tokens_used = tokens
        if is_refused:
            with pytest.raises(IntegrityError):
                session.commit()
            session.rollback()
        else:
            session.commit()
    updates = [text for text in sent if "update_tiers" in text]
    assert ["PREPARE" in text for text in updates] == [True, True, False]
    assert session.fetch("SELECT tokens_used FROM tiers") == [(6,)]


def test_a_prepared_select_goes_on_after_a_migration_of_its_table(session: RowSession) -> None:
    """Postgres refuses a prepared statement whose result would have other types than before."""
    by_name = PreparedSelect(TIERS, "WHERE tier_id = %s")
    (before,) = session.rows_by(by_name, ("T1",))
    session.begin_change()
    session.gather(
        "ALTER TABLE tiers ALTER name TYPE varchar(999), ALTER token_cap TYPE numeric,"
        " ALTER cost_usd TYPE numeric(30, 12), ALTER tier_id TYPE text, ADD one_more bigint"
    )
    (after,) = session.rows_by(by_name, ("T1",))
    session.rollback()  # other tests use the table
    assert after.__dict__ == before.__dict__


def test_a_column_of_json_without_a_value_is_null(
    session: RowSession, connection: Connection
) -> None:
    _, _, phase = rows_of(session)
    fields = {"commit_sha": SHA, "profile": CiProfile.NORMAL, "attempt": 1, "requested_at": NOON}
    run: CiRun = CI_RUNS.new(run_pk=phase.run_pk, phase_pk=phase.id, **fields)
    assert run.tests is None
    session.put(CI_RUNS, run)
    session.commit()
    assert read(connection, "SELECT tests IS NULL FROM ci_runs") == [(True,)]
    with session.no_autoflush:
        session.begin_change()
        (run,) = session.rows(CI_RUNS, "")
        run.tests = {"total": 1}
        session.send()
        run.tests = None
        session.commit()
    assert read(connection, "SELECT tests IS NULL FROM ci_runs") == [(True,)]


def test_files_that_show_a_later_revision_are_not_said_to_show_an_earlier_one(
    session: RowSession, connection: Connection
) -> None:
    session.begin_change()
    session.gather("UPDATE runs SET revision = 9, mirrored_revision = 0, mirrored_by = 'me'")
    session.commit()
    (run,) = session.rows(RUNS, "")
    for revision in (5, 3):
        run.revision = revision
        mark_mirrored(session, run, "me")
        session.commit()
    assert read(connection, "SELECT mirrored_revision FROM runs") == [(5,)]


def test_a_lease_that_has_ended_keeps_the_time_of_its_end(
    session: RowSession, connection: Connection
) -> None:
    _, _, phase = rows_of(session)
    held = {"role": Role.BUILDER, "agent": "a", "fence": 1, "token_sha256": "a", "seconds": 900}
    lease = LEASES.new(run_pk=phase.run_pk, phase_pk=phase.id, expires_at=NOON, **held)
    key = add_lease(session, lease).id
    end_leases(session, [], NOON - timedelta(minutes=1))
    session.commit()
    assert read(connection, "SELECT ended_at FROM leases") == [(None,)]
    for minutes in (1, 2):
        session.begin_change()
        end_leases(session, [key], NOON + timedelta(minutes=minutes))
        session.commit()
    assert read(connection, "SELECT ended_at FROM leases") == [(NOON + timedelta(minutes=1),)]


def test_new_rows_share_no_default(session: RowSession) -> None:
    one, other = CI_RUNS.new(), CI_RUNS.new()
    one.failing_checks.append("a check")
    assert other.failing_checks == []
    assert ISSUES.new().id is None


def test_a_row_differs_by_value_in_the_columns_that_were_read() -> None:
    tier = TIERS.new(**TIER)
    loaded = dict(tier.__dict__)
    tier.cleanliness_reasons = list(tier.cleanliness_reasons)
    tier.phases = []  # is no column
    assert differences(tier, loaded) == {}
    tier.tokens_used = 7
    assert differences(tier, loaded) == {"tokens_used": 7}


def test_a_lost_connection_is_told_and_not_used_again(
    session: RowSession, connection: Connection
) -> None:
    ((pid,),) = session.fetch("SELECT pg_backend_pid()")
    with connection.engine.connect() as other:
        other.exec_driver_sql("SELECT pg_terminate_backend(%s, 5000)", (pid,))
    with pytest.raises(DBAPIError) as lost:
        session.fetch("SELECT 1")
    assert lost.value.connection_invalidated
    assert connection.invalidated
    session.rollback()
    with connection.engine.connect() as fresh, RowSession(fresh) as again:
        assert again.fetch("SELECT pg_backend_pid()") != [(pid,)]


def test_an_error_of_a_statement_keeps_the_connection(
    session: RowSession, connection: Connection
) -> None:
    session.begin_change()
    with pytest.raises(DBAPIError) as refused:
        session.fetch("SELECT 1 FROM no_such_table")
    assert not refused.value.connection_invalidated
    assert not connection.invalidated
    session.rollback()
    assert session.fetch("SELECT count(*) FROM runs") == [(1,)]


def test_a_row_that_is_read_twice_in_a_change_is_one_object_and_keeps_what_was_changed(
    session: RowSession,
) -> None:
    """Of two copies the later one would be written over the first."""
    session.begin_change()
    first = session.row(TIERS, "")
    assert first is not None
    first.name = "changed here"
    session.gather("UPDATE tiers SET description = 'changed there'")
    again = session.row(TIERS, "")
    assert again is first
    assert (first.name, first.description) == ("changed here", "changed there")
    session.commit()
    assert session.fetch("SELECT name, description FROM tiers") == [
        ("changed here", "changed there")
    ]


def test_a_session_that_is_closed_in_a_change_leaves_no_transaction_on_its_connection(
    database_url: str,
) -> None:
    """The pool would hand it to the next request, with its locks."""
    address = Settings(_env_file=None, database_url=database_url).database_url or ""
    engine = make_engine(address, 15, is_autocommit=True)

    def status() -> Any:
        with engine.connect() as connection:
            driver: Any = connection.connection.driver_connection
            return driver.info.transaction_status

    with RowSession(engine) as session:
        session.begin_change()
        session.fetch("SELECT 1")
    assert status() == TRANSACTION_STATUS_IDLE
    with engine.connect() as connection:  # as code would that forgets to end what it began
        connection.connection.cursor().execute("BEGIN")
    assert status() == TRANSACTION_STATUS_IDLE, "the pool ends it"
    engine.dispose()


def test_an_error_shows_the_beginning_of_a_statement_alone(session: RowSession) -> None:
    with pytest.raises(DBAPIError) as caught:
        session.fetch("SELECT 1 / 0, %s", ("x" * 100_000,))
    assert "SELECT 1 / 0" in str(caught.value)
    assert len(str(caught.value)) < 2_000
