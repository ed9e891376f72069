"""The embedded Postgres, the migrations, and connections that heal."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from procrastinate.schema import SchemaManager
from sqlalchemy import Connection, Engine, MetaData, create_engine, insert, inspect, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session
from tests.test_models import add_phase, add_run, add_tier, one_of_each

from autopack.config import Settings
from autopack.database import init_db, make_engine, open_database
from autopack.embedded_postgres import EmbeddedPostgres, EmbeddedPostgresError
from autopack.migrating import (
    DatabaseError,
    alembic_config,
    known_revisions,
    migrate,
    newest_revision,
)
from autopack.models import Base
from autopack.store import runs, submissions
from autopack.store.session import RowSession

pytestmark = pytest.mark.integration

SOURCES = str(Path(__file__).resolve().parents[1] / "src")


# The head of the first version that has users: its schema, filled, comes to today's and back.
OLDEST_TO_GO_BACK_TO = "known_codes"


@pytest.fixture
def empty_engine(empty_database_url: str) -> Iterator[Engine]:
    engine = make_engine(_psycopg2(empty_database_url), 15)
    yield engine
    engine.dispose()


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A place for a server, which no longer runs when the test is over."""
    folder = tmp_path / "postgres"
    yield folder
    _kill_postgres_in(folder)


def _rows(session: Session) -> dict[str, list[dict[str, Any]]]:
    """Return every row of every table of ours."""
    return {
        table.name: [dict(row) for row in session.execute(table.select()).mappings()]
        for table in Base.metadata.sorted_tables
    }


class TestMigrations:
    def test_an_empty_database_is_migrated_to_the_models_schema(self, empty_engine: Engine) -> None:
        migrate(empty_engine)
        with empty_engine.connect() as connection:
            context = MigrationContext.configure(
                connection,
                opts={
                    "compare_server_default": True,
                    "compare_type": True,
                    "include_name": lambda name, *_: not (name or "").startswith("procrastinate_"),
                },
            )
            assert compare_metadata(context, Base.metadata) == []

    def test_the_job_engine_that_is_installed_finds_the_tables_it_was_made_for(self) -> None:
        """If not, its schema needs a migration: procrastinate/sql/migrations says what changed."""
        assert hashlib.sha256(SchemaManager.get_schema().encode()).hexdigest() == (
            "c70ec4b400a60ad9592787653aae5ae77ae41bf801d56b5bd2712751a07f2009"
        )

    def test_init_db_migrates_the_database_of_its_settings_and_may_be_called_again(
        self, empty_database_url: str
    ) -> None:
        settings = Settings(_env_file=None, database_url=empty_database_url)
        init_db(settings)
        init_db(settings)
        assert "runs" in _tables(empty_database_url)

    def test_every_migration_can_be_downgraded(self, empty_engine: Engine) -> None:
        migrate(empty_engine)
        with empty_engine.begin() as connection:
            config = alembic_config()
            config.attributes["connection"] = connection
            command.downgrade(config, "base")
        with empty_engine.connect() as connection:
            assert inspect(connection).get_table_names() == ["alembic_version"]
        migrate(empty_engine)

    def test_verdicts_of_earlier_versions_say_where_they_were_made(
        self, empty_engine: Engine
    ) -> None:
        config = alembic_config()
        with empty_engine.begin() as connection:
            config.attributes["connection"] = connection
            command.upgrade(config, "known_codes")
            # Other columns and keys do not matter here.
            connection.execute(text("SET session_replication_role = replica"))
            for id, sandbox, verdict, started in (
                (1, "bubblewrap", "green", "now()"),
                (2, "none: bwrap is not installed", "red", "now()"),
                (3, None, "green", "NULL"),
                (4, None, None, "NULL"),
            ):
                connection.execute(
                    text(
                        "INSERT INTO ci_runs (run_pk, phase_pk, commit_sha, profile, attempt,"
                        " is_flaky, sandbox, verdict, requested_at, started_at)"
                        f" VALUES (1, 1, :sha, 'normal', 1, false, :sandbox, :verdict, now(),"
                        f" {started})"
                    ),
                    {"sha": str(id), "sandbox": sandbox, "verdict": verdict},
                )
            command.upgrade(config, "head")
            found = connection.scalars(text("SELECT sandbox FROM ci_runs ORDER BY commit_sha"))
            assert list(found) == ["bubblewrap", "none", "external", None]
            command.downgrade(config, "known_codes")

    def test_runs_of_an_earlier_release_are_kept_on_the_way_up_and_down(
        self, empty_engine: Engine
    ) -> None:
        """Up: what was not counted then is zero or unknown. Down: no new word is left behind."""
        migrate_to(empty_engine, "known_codes")
        with empty_engine.begin() as connection:
            _insert(connection, "runs", run_id="old", state="DONE_SUCCESS")
            _insert(connection, "tiers", run_pk=1, state="COMPLETE")
            _insert(connection, "phases", run_pk=1, tier_pk=1, state="COMPLETE")
            _insert(connection, "submissions", run_pk=1, phase_pk=1, tokens_used=5)
        migrate(empty_engine)
        with RowSession(empty_engine) as session:
            state = runs.read_state(runs.get_run(session, "old"))
            assert state.cost_usd == 0
            assert state.cost_cap_usd is None
            assert state.phases[0].unavailable_reason is None
            ((attempt, files, commits),), _ = submissions.list_attempts_and_issues(session, [1])
            assert (files, commits) == ([], [])
            assert (attempt.tokens_used, attempt.cost_usd) == (5, None)
            assert (attempt.is_measured, attempt.reasoning_tokens) == (False, None)
            assert (state.tokens_measured, state.phases[0].tokens_measured) == (0, 0)
        with empty_engine.begin() as connection:
            connection.execute(text("UPDATE runs SET failure_code = 'agents_unavailable'"))
            connection.execute(text("UPDATE submissions SET outcome = 'unavailable'"))
        migrate_to(empty_engine, "known_codes")
        with empty_engine.connect() as connection:
            assert connection.scalar(text("SELECT failure_code FROM runs")) == "ci_did_not_run"
            assert connection.scalar(text("SELECT outcome FROM submissions")) == "failed"

    def test_a_dropped_patch_of_an_early_version_is_pending_as_it_would_be_now(
        self, empty_engine: Engine
    ) -> None:
        migrate_to(empty_engine, "continued_runs")
        with empty_engine.begin() as connection:
            connection.execute(text("SET session_replication_role = replica"))
            _insert(connection, "phases", state="COMPLETE", builder_attempts_claimed=3)
            for position, status in enumerate(("applied", "discarded", "refused")):
                _insert(connection, "patches", position=position, status=status)
        migrate(empty_engine)
        with empty_engine.connect() as connection:
            found = connection.scalars(text("SELECT status FROM patches ORDER BY position"))
            assert list(found) == ["applied", "pending", "refused"]
            assert connection.scalar(text("SELECT state FROM phases")) == "COMPLETE"
        migrate_to(empty_engine, "continued_runs")
        migrate(empty_engine)

    def test_figures_without_the_tokens_of_operators_are_added_up_again(
        self, empty_engine: Engine
    ) -> None:
        migrate_to(empty_engine, "github_webhooks")
        with empty_engine.begin() as connection:
            _insert(connection, "runs", run_id="old", state="DONE_SUCCESS", is_counted=True)
            connection.execute(text("SET session_replication_role = replica"))
            _insert(connection, "figures", day="2026-03-01", last_run_id="old")
        migrate(empty_engine)
        with empty_engine.connect() as connection:
            assert connection.scalar(text("SELECT count(*) FROM figures")) == 0
            assert connection.scalar(text("SELECT is_counted FROM runs")) is False

    def test_rows_survive_a_downgrade_and_an_upgrade(self, empty_engine: Engine) -> None:
        """An operator who goes back to the version before, and forward again, loses no run."""
        migrate(empty_engine)
        with Session(empty_engine) as session:
            one_of_each(session, add_phase(session, add_tier(session, add_run(session))))
            session.commit()
            before = _rows(session)
        migrate_to(empty_engine, OLDEST_TO_GO_BACK_TO)
        migrate(empty_engine)
        with Session(empty_engine) as session:
            assert _rows(session) == before

    def test_processes_that_start_at_once_migrate_once(self, empty_engine: Engine) -> None:
        errors: list[BaseException] = []

        def start() -> None:
            try:
                migrate(empty_engine)
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=start) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert errors == []

    def test_a_database_of_a_newer_autopack_is_refused(self, empty_engine: Engine) -> None:
        migrate(empty_engine)
        with empty_engine.begin() as connection:
            connection.execute(text("UPDATE alembic_version SET version_num = 'from_the_future'"))
        with pytest.raises(DatabaseError, match=r"from_the_future.*Update Autopack"):
            migrate(empty_engine)

    def test_an_unreachable_database_is_named_in_one_line_without_its_password(self) -> None:
        settings = Settings(_env_file=None, database_url="postgresql://me:secret@127.0.0.1:1/some")
        with pytest.raises(DatabaseError) as caught:
            init_db(settings)
        message = str(caught.value)
        assert "127.0.0.1:1/some" in message
        assert "secret" not in message
        assert "\n" not in message


def test_the_revisions_are_those_that_alembic_knows() -> None:
    scripts = ScriptDirectory.from_config(alembic_config())
    assert newest_revision() == scripts.get_current_head()
    assert known_revisions() == {script.revision for script in scripts.walk_revisions()}


def migrate_to(engine: Engine, revision: str) -> None:
    with engine.begin() as connection:
        config = alembic_config()
        config.attributes["connection"] = connection
        heads = [script.revision for script in ScriptDirectory.from_config(config).walk_revisions()]
        context = MigrationContext.configure(connection)
        current = context.get_current_revision()
        is_up = current is None or heads.index(revision) < heads.index(current)
        (command.upgrade if is_up else command.downgrade)(config, revision)


# What a column holds that must hold something, in tables of any revision.
_LIKELY = {
    "safety_profile": "normal",
    "run_scope": "incremental",
    "ci_profile": "normal",
    "complexity": "low",
    "role": "builder",
    "outcome": "applied",
    "debt_status": "clean",
    "cleanliness": "clean",
}


def _insert(connection: Connection, table: str, **given: object) -> None:
    """Add a row to a table as it is at this revision."""
    rows = MetaData()
    rows.reflect(connection, only=[table], resolve_fks=False)
    values: dict[str, object] = {}
    for column in rows.tables[table].columns:
        if column.name in given:
            values[column.name] = given[column.name]
        elif not column.nullable and column.server_default is None and column.identity is None:
            kind = column.type.python_type
            likely = {
                **{str: "x", bytes: b"x", int: 1, bool: False, object: []},
                datetime: datetime.now(UTC),
            }
            values[column.name] = _LIKELY.get(column.name, likely[kind])
    connection.execute(insert(rows.tables[table]).values(values))


class TestConnections:
    def test_a_statement_past_its_time_is_ended(self, database_url: str) -> None:
        engine = make_engine(_psycopg2(database_url), 1)
        with engine.connect() as connection, pytest.raises(OperationalError, match="timeout"):
            connection.execute(text("SELECT pg_sleep(30)"))
        engine.dispose()

    def test_options_of_the_address_are_kept(self, database_url: str) -> None:
        separator = "&" if "?" in database_url else "?"
        engine = make_engine(f"{_psycopg2(database_url)}{separator}options=-c%20work_mem%3D5MB", 15)
        with engine.connect() as connection:
            assert connection.scalar(text("SHOW work_mem")) == "5MB"
            assert connection.scalar(text("SHOW statement_timeout")) == "15s"
            assert connection.scalar(text("SHOW timezone")) == "UTC"
            assert connection.scalar(text("SHOW application_name")) == "autopack"
        engine.dispose()

    def test_a_process_that_is_gone_without_a_word_does_not_hold_its_locks_for_good(
        self, database_url: str
    ) -> None:
        """A machine without power ends no connection; a frozen process answers for TCP."""
        engine = make_engine(_psycopg2(database_url), 15)
        # Of a Unix socket, Postgres shows the TCP settings as they would be after a reset.
        query = text("SELECT reset_val::int FROM pg_settings WHERE name = :name")
        with engine.connect() as connection:

            def setting(name: str) -> int:
                found: int = connection.execute(query, {"name": name}).scalar_one()
                return found

            assert setting("idle_in_transaction_session_timeout") == 300_000
            probing = setting("tcp_keepalives_interval") * setting("tcp_keepalives_count")
            assert setting("tcp_keepalives_idle") + probing == 30
            assert setting("tcp_user_timeout") == 30_000
        engine.dispose()

    def test_a_connection_that_died_while_idle_is_replaced(self, database_url: str) -> None:
        engine = make_engine(_psycopg2(database_url), 15)
        with engine.connect() as connection:
            backend = connection.scalar(text("SELECT pg_backend_pid()"))
        killer = create_engine(_psycopg2(database_url))
        with killer.begin() as connection:
            connection.execute(text("SELECT pg_terminate_backend(:pid, 5000)"), {"pid": backend})
        with engine.connect() as connection:
            assert connection.scalar(text("SELECT 1")) == 1
        engine.dispose()
        killer.dispose()


@pytest.fixture(scope="module")
def laid_out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose server was started once and stopped: to lay one out takes half a second."""
    folder = tmp_path_factory.mktemp("laid-out") / "postgres"
    with EmbeddedPostgres(folder):
        pass
    return folder


@pytest.fixture
def used(folder: Path, laid_out: Path) -> Path:
    """A folder that had a server before."""
    subprocess.run(["cp", "-a", str(laid_out), str(folder)], check=True)
    return folder


class TestEmbeddedPostgres:
    def test_data_survive_a_stop(self, folder: Path) -> None:
        with EmbeddedPostgres(folder) as server:
            _write(server, "kept")
        assert _postgres_in(folder) == []
        with EmbeddedPostgres(folder) as server:
            assert _read(server) == ["kept"]

    def test_it_is_durable_and_only_this_user_can_connect(self, used: Path) -> None:
        with EmbeddedPostgres(used) as server:
            assert _ask(server, "SHOW fsync") == "on"
            assert _ask(server, "SHOW listen_addresses") == ""
            socket = server.socket_folder / ".s.PGSQL.5432"
            assert stat.S_IMODE(socket.stat().st_mode) == 0o700
            assert stat.S_IMODE(server.socket_folder.stat().st_mode) == 0o700

    @pytest.mark.parametrize(
        "name",
        ["with a space", "quote'comma,\"$(touch hacked)", "Ümläut", "long" * 25],
        ids=str.split,
    )
    def test_any_folder_will_do(self, folder: Path, name: str) -> None:
        with EmbeddedPostgres(folder / name) as server:
            assert _ask(server, "SELECT 1") == 1

    def test_the_last_one_to_leave_stops_it(self, used: Path) -> None:
        first, second = EmbeddedPostgres(used), EmbeddedPostgres(used)
        first.start()
        second.start()
        first.stop()
        assert _ask(second, "SELECT 1") == 1
        second.stop()
        assert _postgres_in(used) == []

    def test_an_owner_killed_outright_leaves_a_server_that_the_next_one_uses_and_stops(
        self, used: Path
    ) -> None:
        owner = _start_owner(used)
        before = [process.pid for process in _postgres_in(used)]
        owner.kill()
        owner.wait()
        with EmbeddedPostgres(used) as server:
            assert _ask(server, "SELECT 1") == 1
            assert set(before) & {process.pid for process in _postgres_in(used)}
        assert _postgres_in(used) == []

    @pytest.mark.parametrize(("program", "place"), [("pg_ctl", "data"), ("initdb", "data.new")])
    def test_a_program_that_a_killed_owner_left_is_waited_for(
        self, used: Path, program: str, place: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It would start a second server, or write beside a second one that lays out the folder."""
        (used / place).mkdir(exist_ok=True)
        stand_in = shutil.copy(shutil.which("sleep") or "", used / program)
        with subprocess.Popen([stand_in, "600"], cwd=used / place) as left:
            try:
                with monkeypatch.context() as patch:
                    patch.setattr("autopack.embedded_postgres.START_SECONDS", 0)
                    with pytest.raises(EmbeddedPostgresError, match="Processes of an earlier"):
                        EmbeddedPostgres(used).start()
            finally:
                left.kill()
        with EmbeddedPostgres(used) as server:
            assert _ask(server, "SELECT 1") == 1

    @pytest.mark.parametrize("pid", [1, 2**22 - 7, "of this test", "nonsense"])
    def test_a_stale_pid_file_is_not_believed(self, used: Path, pid: int | str) -> None:
        with EmbeddedPostgres(used) as server:
            _write(server, "kept")
        shown = os.getpid() if pid == "of this test" else pid
        (used / "data" / "postmaster.pid").write_text(f"{shown}\n{used}/data\n1\n5432\n")
        with EmbeddedPostgres(used) as server:
            assert _read(server) == ["kept"]

    def test_a_killed_server_is_revived_by_the_next_connection(self, tmp_path: Path) -> None:
        settings = Settings(_env_file=None, home=tmp_path / "home", repo_path=tmp_path)
        with open_database(settings) as database:
            database.migrate()
            _kill_postgres_in(settings.home / "postgres")
            deadline = time.monotonic() + 60
            while True:
                try:
                    with database.engine.connect() as connection:
                        assert connection.scalar(text("SELECT count(*) FROM runs")) == 0
                    break
                except OperationalError:  # killed under our hands
                    assert time.monotonic() < deadline
        assert _postgres_in(settings.home / "postgres") == []
        assert (settings.home / ".gitignore").read_text() == "*\n"

    def test_a_server_that_cannot_be_revived_is_away_as_any_other(self, tmp_path: Path) -> None:
        settings = Settings(_env_file=None, home=tmp_path)
        with open_database(settings) as database, EmbeddedPostgres(tmp_path / "postgres") as server:
            database.engine.dispose()
            server._shut_down()
            version = server.data / "PG_VERSION"
            found = version.read_text()
            version.write_text("1\n")
            with pytest.raises(OperationalError), database.engine.connect():
                pass
            version.write_text(found)
            with database.engine.connect() as connection:
                assert connection.scalar(text("SELECT 1")) == 1

    def test_a_folder_of_another_version_is_named(self, folder: Path) -> None:
        (folder / "data").mkdir(parents=True)
        (folder / "data" / "PG_VERSION").write_text("9\n")
        with pytest.raises(EmbeddedPostgresError, match="Postgres 9"):
            EmbeddedPostgres(folder).start()

    def test_a_folder_that_cannot_be_made_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(EmbeddedPostgresError, match=r"cannot work in .*file"):
            EmbeddedPostgres(tmp_path / "file" / "postgres").start()

    def test_folders_that_are_closed_to_others_stay_closed(self, tmp_path: Path) -> None:
        closed = tmp_path / "closed"
        closed.mkdir(mode=0o700)
        with EmbeddedPostgres(closed / "postgres") as server:
            assert _ask(server, "SELECT 1") == 1
        assert stat.S_IMODE(closed.stat().st_mode) & stat.S_IRWXO == 0


def _psycopg2(url: str) -> str:
    return url.replace("postgresql://", "postgresql+psycopg2://")


def _tables(url: str) -> list[str]:
    engine = create_engine(_psycopg2(url))
    try:
        return inspect(engine).get_table_names()
    finally:
        engine.dispose()


def _ask(server: EmbeddedPostgres, question: str) -> object:
    engine = create_engine(server.url)
    try:
        with engine.connect() as connection:
            return connection.scalar(text(question))
    finally:
        engine.dispose()


def _write(server: EmbeddedPostgres, word: str) -> None:
    engine = create_engine(server.url)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE words (word text)"))
        connection.execute(text("INSERT INTO words VALUES (:word)"), {"word": word})
    engine.dispose()


def _read(server: EmbeddedPostgres) -> list[str]:
    engine = create_engine(server.url)
    try:
        with engine.connect() as connection:
            return list(connection.scalars(text("SELECT word FROM words")))
    finally:
        engine.dispose()


def _start_owner(folder: Path) -> subprocess.Popen[str]:
    """Start another process that owns the server, and wait until it does."""
    program = (
        "import sys, pathlib, time; sys.path.insert(0, sys.argv[1])\n"
        "from autopack.embedded_postgres import EmbeddedPostgres\n"
        "EmbeddedPostgres(pathlib.Path(sys.argv[2])).start(); print('ready', flush=True)\n"
        "time.sleep(600)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, SOURCES, str(folder)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    while "ready" not in process.stdout.readline():
        assert process.poll() is None
    process.stdout.close()
    return process


def _kill_postgres_in(folder: Path) -> None:
    for process in _postgres_in(folder):
        with suppress(psutil.NoSuchProcess):  # it has ended with its server
            process.kill()


def _postgres_in(folder: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.name() == "postgres" and Path(process.cwd()) == folder / "data":
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found
