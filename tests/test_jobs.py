"""Background work: what is queued with a change, and which worker does it."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from procrastinate.jobs import Job
from sqlalchemy import Engine, text
from sqlalchemy.orm import Session
from tests.api.conftest import with_remote
from tests.waiting import PATIENCE_SECONDS, wait_until

from autopack.config import Settings
from autopack.database import make_engine
from autopack.jobs.queue import TryAgainError, defer
from autopack.jobs.worker import Queue, Workers, _Retrying

if TYPE_CHECKING:
    from starlette.testclient import TestClient
    from tests.conftest import GitRepo
    from tests.processes import ForkServer

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def engine(settings: Settings) -> Iterator[Engine]:
    assert settings.database_url is not None
    engine = make_engine(settings.database_url, 15)
    yield engine
    engine.dispose()


class TestQueue:
    def test_a_job_is_queued_by_the_commit_of_the_change_or_not_at_all(
        self, engine: Engine
    ) -> None:
        with Session(engine) as session:
            defer(session, "work", queue="q", arguments={"number": 1})
            session.rollback()
            defer(session, "work", queue="q", arguments={"number": 2})
            assert _queued(engine) == []
            session.commit()
        assert _queued(engine) == [("work", {"number": 2}, None)]

    def test_a_job_that_waits_already_is_due_at_the_earlier_time(self, engine: Engine) -> None:
        soon = datetime.now(UTC) + timedelta(hours=1)
        late = soon + timedelta(hours=1)
        with Session(engine) as session:
            for at, due in [(late, late), (soon, soon), (late, soon), (None, None), (late, None)]:
                defer(session, "work", queue="q", arguments={}, queueing_lock="one", at=at)
                session.commit()
                assert _queued(engine) == [("work", {}, due)]

    def test_no_worker_takes_a_job_before_the_change_that_wants_it_again_is_there(
        self, engine: Engine
    ) -> None:
        with Session(engine) as session:
            for _ in range(2):
                session.commit()
                defer(session, "work", queue="q", arguments={}, queueing_lock="one")
            assert _fetch(engine) is None
            session.commit()
        assert _fetch(engine) == "work"


@pytest.fixture
def work(engine: Engine) -> Iterator[Callable[..., Workers]]:
    """Start workers on the queue `q`; none is left after the test."""
    with ExitStack() as stack:

        def start(task: Callable[..., None], concurrency: int = 1) -> Workers:
            look_after = {"look": (1, lambda: None)}
            queue = Queue(name="q", concurrency=concurrency, tasks={"work": task}, every=look_after)
            workers = Workers(engine, [queue], stalled_seconds=3)
            workers.start()
            stack.callback(workers.stop)
            return workers

        yield start


class TestWorkers:
    def test_any_number_of_workers_do_each_job_once(
        self, engine: Engine, work: Callable[..., Workers]
    ) -> None:
        done: list[int] = []
        for _ in range(3):
            work(lambda number: done.append(number), concurrency=2)
        for number in range(40):
            _defer(engine, number=number)
        wait_until(lambda: len(done) >= 40 and not _todo(engine))
        assert sorted(done) == list(range(40))

    @pytest.mark.safety_critical
    def test_the_jobs_of_a_killed_worker_are_done_by_another(
        self, engine: Engine, work: Callable[..., Workers], tmp_path: Path
    ) -> None:
        script = (
            "import sys, time\n"
            "from pathlib import Path\n"
            "from autopack.database import make_engine\n"
            "from autopack.jobs.worker import Queue, Workers\n"
            "def hang(name):\n"
            "    Path(sys.argv[2], name).touch()\n"
            "    time.sleep(600)\n"
            "queue = Queue(name='q', concurrency=2, tasks={'work': hang})\n"
            "Workers(make_engine(sys.argv[1], 15), [queue], stalled_seconds=3).start()\n"
            "time.sleep(600)\n"
        )
        url = engine.url.render_as_string(hide_password=False)
        with subprocess.Popen(
            [sys.executable, "-c", script, url, tmp_path],
            env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT / "src")},
        ) as process:
            again = {"lock": "one", "queueing_lock": "one", "name": "again"}
            _defer(engine, name="once")
            _defer(engine, **again)
            wait_until(lambda: {"once", "again"} <= {path.name for path in tmp_path.iterdir()})
            _defer(engine, **again)  # waits for the killed one's to be done, and then is that one
            process.kill()
        done: list[str] = []
        work(lambda name: done.append(name))
        wait_until(lambda: sorted(done) == ["again", "once"] and not _todo(engine))

    def test_a_job_that_is_stopped_or_fails_is_done_again(
        self, engine: Engine, work: Callable[..., Workers]
    ) -> None:
        tries: list[int] = []

        def fail_first(number: int) -> None:
            tries.append(number)
            if len(tries) == 1:
                raise ValueError("a defect")
            if len(tries) == 2:
                raise TryAgainError

        work(fail_first)
        _defer(engine, number=1)
        wait_until(lambda: tries == [1, 1, 1])

    def test_failing_jobs_are_done_ever_less_often_but_never_given_up(self) -> None:
        def wait(attempts: int) -> float:
            job = Job(id=1, queue="q", task_name="work", lock=None, queueing_lock=None)
            failed = job.evolve(attempts=attempts)
            decision = _Retrying().get_retry_decision(exception=ValueError(), job=failed)
            assert decision.retry_at is not None
            return round((decision.retry_at - datetime.now(UTC)).total_seconds())

        assert [wait(attempts) for attempts in (0, 1, 2, 20, 10**6)] == [2, 4, 8, 300, 300]

    def test_workers_go_on_when_their_connections_die(
        self, engine: Engine, work: Callable[..., Workers]
    ) -> None:
        done = threading.Semaphore(0)
        work(lambda: done.release())
        _defer(engine)
        assert done.acquire(timeout=PATIENCE_SECONDS)
        with engine.begin() as connection:
            connection.execute(
                text(
                    "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
                    " WHERE application_name = 'autopack jobs' AND datname = current_database()"
                )
            )
        _defer(engine)
        assert done.acquire(timeout=PATIENCE_SECONDS)


class TestInTheService:
    @pytest.fixture
    def settings(self, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Settings:
        monkeypatch.setattr("autopack.background.UPKEEP_SECONDS", 1)
        return settings.model_copy(update={"jobs": "inside"})

    def test_a_run_past_its_deadline_ends_without_a_request(
        self, client: TestClient, engine: Engine
    ) -> None:
        _start_overdue(client, engine)
        wait_until(lambda: _state(engine) == "DONE_FAILED_BUDGET_EXHAUSTED")


class TestInAProcessOfItsOwn:
    @pytest.fixture
    def settings(self, settings: Settings, tmp_path: Path) -> Settings:
        return with_remote(settings, tmp_path)

    @pytest.mark.e2e
    def test_the_service_leaves_upkeep_and_pushes_to_it_and_says_when_it_is_away(
        self,
        client: TestClient,
        engine: Engine,
        settings: Settings,
        git_repo: GitRepo,
        tmp_path: Path,
        fork_server: ForkServer,
    ) -> None:
        assert client.get("/health").json()["checks"]["jobs"]["status"] == "ok"
        with engine.begin() as connection:
            connection.execute(text("UPDATE pulses SET beaten_at = now() - interval '2 minutes'"))
        health = client.get("/health")
        assert health.status_code == 503
        assert "no job worker is running; start one: `autopack jobs`" in health.text
        _start_overdue(client, engine)
        log = tmp_path / "jobs.log"
        with log.open("w") as output:
            process = fork_server.start(
                "jobs", folder=git_repo.path, environment=_environment(settings), output=output
            )
        try:
            wait_until(lambda: _state(engine) == "DONE_FAILED_BUDGET_EXHAUSTED", log.read_text)
            head = git_repo.git("rev-parse", "refs/heads/autonomous/run-001")
            remote = f"{tmp_path}/remote.git"
            wait_until(lambda: head in git_repo.git("ls-remote", remote), log.read_text)
            assert client.get("/health").status_code == 200
        finally:
            process.terminate()
            assert process.wait(PATIENCE_SECONDS) == 0
        assert "works on upkeep, ci, webhooks, pushes" in log.read_text()
        assert "Traceback" not in log.read_text()


@pytest.mark.e2e
def test_a_queue_without_work_is_refused_in_one_line(
    settings: Settings, git_repo: GitRepo, fork_server: ForkServer
) -> None:
    result = fork_server.run(
        *("jobs", "--queue", "pushes"), folder=git_repo.path, environment=_environment(settings)
    )
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert "autopack: no work for the queue 'pushes'" in result.stderr


@pytest.mark.e2e
@pytest.mark.parametrize(
    "words", [["serve"], ["serve", "--processes", "2"], ["jobs"]], ids=" ".join
)
@pytest.mark.parametrize("name", ["AUTONOMOUS_RUNS_DIR", "AUTOPACK_HOME"])
def test_a_folder_that_cannot_be_written_is_named_in_one_line_at_the_start(
    settings: Settings, git_repo: GitRepo, fork_server: ForkServer, words: list[str], name: str
) -> None:
    """As on a disk that is mounted for reading alone."""
    file = settings.home.parent / "file"
    file.write_text("")
    environment = _environment(settings) | {name: str(file), "AUTOPACK_PORT": "0"}
    result = fork_server.run(*words, folder=git_repo.path, environment=environment)
    assert (result.returncode, result.stderr.count("\n")) == (2, 1), result.stderr
    assert f"{file} cannot be written: " in result.stderr
    assert "Traceback" not in result.stdout


def _environment(settings: Settings) -> dict[str, str]:
    remote = settings.git_remote
    return {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(ROOT / "src"),
        "DATABASE_URL": str(settings.database_url),
        "AUTOPACK_HOME": str(settings.home),
        "AUTOPACK_PROJECT_ID": settings.project_id,
        "AUTONOMOUS_RUNS_DIR": str(settings.autonomous_runs_dir),
        "AUTOPACK_GIT_REMOTE": remote.get_secret_value() if remote else "",
    }


def _start_overdue(client: TestClient, engine: Engine) -> None:
    plan = {
        "run": {"run_id": "run-001"},
        "tiers": [{"tier_id": "T0", "tier_index": 0, "name": "Tier"}],
        "phases": [{"phase_id": "P0", "phase_index": 0, "tier_id": "T0", "name": "Phase"}],
    }
    assert client.post("/runs/start", json=plan).status_code == 201
    with engine.begin() as connection:
        connection.execute(text("UPDATE runs SET deadline_at = now()"))


def _state(engine: Engine) -> str:
    with engine.connect() as connection:
        return str(connection.scalar(text("SELECT state FROM runs")))


def _defer(engine: Engine, **arguments: Any) -> None:
    locks = {name: arguments.pop(name) for name in ("lock", "queueing_lock") if name in arguments}
    with Session(engine) as session:
        defer(session, "work", queue="q", arguments=arguments, **locks)
        session.commit()


def _todo(engine: Engine) -> int:
    """Count the jobs that are not done."""
    with engine.connect() as connection:
        query = "SELECT count(*) FROM procrastinate_jobs WHERE task_name = 'work'"
        return int(connection.execute(text(query)).scalar_one())


def _queued(engine: Engine) -> list[tuple[Any, ...]]:
    with engine.connect() as connection:
        rows = connection.execute(
            text("SELECT task_name, args, scheduled_at FROM procrastinate_jobs")
        )
        return [tuple(row) for row in rows]


def _fetch(engine: Engine) -> str | None:
    """Take the next job, as a worker does."""
    with engine.connect() as connection:
        query = text("SELECT task_name FROM procrastinate_fetch_job_v2(ARRAY['q'], NULL)")
        name: str | None = connection.scalar(query)
        connection.commit()
        return name
