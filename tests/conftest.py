"""Fixtures of all tests: a real Postgres, a real git repository, the real application.

One Postgres per session, shared by all workers; one database per worker, copied from a migrated
template and emptied after each test. Services commit for real, so a rolled-back transaction around
a test would hide what they do. `AUTOPACK_TEST_DATABASE_URL` names another server to use (its role
must be allowed to create databases); DATABASE_URL is not used, as it may have real data.
"""

from __future__ import annotations

import functools
import gc
import json
import os
import shutil
import ssl
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import hypothesis
import psutil
import psycopg2
import pytest
import structlog
from sqlalchemy import Engine, make_url, text
from sqlalchemy.pool import QueuePool

from autopack import database
from autopack.cli.address import told_address
from autopack.config import Settings
from autopack.database import init_db, make_engine

from .processes import ForkedProcess, ForkServer, running_fork_server
from .waiting import wait_until

if TYPE_CHECKING:
    from fastapi import FastAPI
    from starlette.testclient import TestClient

# No example is judged by its time: the machine may stall, and is shared.
hypothesis.settings.register_profile(
    "autopack", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("autopack")

ROOT = Path(__file__).resolve().parents[1]
TEMPLATE_LOCK = 721_001
FORK_SERVER = "AUTOPACK_TEST_FORK_SERVER"  # names the one of all workers
MEMORY_NEEDED = 5 << 30  # of it, up to 2 GB for files
# Files whose tests take many seconds each: each worker begins with its share of them, so that at
# the end no worker runs one while the others have nothing to do.
LONG_STORIES = {
    f"tests/{name}.py"
    for name in (
        *("setup/test_first_minutes", "cli/test_up", "api/test_walks", "test_tutorial"),
        *("worker/test_end_to_end", "remote/test_service", "test_serve", "setup/test_whole_way"),
    )
}

# The environment of the caller must not change the tests. TESTING may be set or not.
for name in list(os.environ):
    if name in {"DATABASE_URL", "AUTONOMOUS_RUNS_DIR"} or (
        name.startswith(("AUTOPACK_", "GIT_")) and not name.startswith("AUTOPACK_TEST_")
    ):
        del os.environ[name]

# Made once, as to read the environment takes 4 ms; here, where no test has changed it yet.
USUAL_SETTINGS = Settings(_env_file=None, testing=True, jobs="outside")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Put temporary files into a folder of this session only, in memory where there is room.

    For several workers, start one fork server: it takes two seconds of CPU time to import.

    Every start of pytest closes pytest's usual folder to other users. For root, Postgres runs as
    another user and may need to traverse that folder at that moment.
    """
    if config.option.basetemp is None and "PYTEST_XDIST_WORKER" not in os.environ:
        memory = Path("/dev/shm")  # noqa: S108 - a folder of our own is made there
        is_in_memory = has_room_in_memory(memory)
        where = memory if is_in_memory else None
        folder = Path(tempfile.mkdtemp(prefix="autopack-tests-", dir=where))
        config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))
        config.option.basetemp = str(folder / "files")
        if is_in_memory:  # also what the product puts into the system's folder
            folder.chmod(0o711)
            os.environ["TMPDIR"] = tempfile.tempdir = str(folder / "tmp")
            Path(tempfile.tempdir).mkdir()
    if getattr(config.option, "numprocesses", None):
        server = ExitStack()
        config.add_cleanup(server.close)
        os.environ[FORK_SERVER] = server.enter_context(running_fork_server()).address


def has_room_in_memory(folder: Path) -> bool:
    """Return whether the tests' files may be in memory; TMPDIR names another place.

    On a disk, each of some 200,000 small files is written, synced and deleted: a quarter of all CPU
    time. All tests together have less than 2 GB at a time, as a test that passed leaves no files.
    """
    if "TMPDIR" in os.environ or not os.access(folder, os.W_OK | os.X_OK):
        return False
    room = os.statvfs(folder)
    limits = [psutil.virtual_memory().available, room.f_bavail * room.f_frsize]
    for file in ("memory.max", "memory/memory.limit_in_bytes"):  # of a container
        with suppress(OSError, ValueError):
            limits.append(int(Path("/sys/fs/cgroup", file).read_text()))
    return min(limits) >= MEMORY_NEEDED and not room.f_flag & getattr(os, "ST_NOEXEC", 0)


def pytest_collection() -> None:
    """Collect no garbage while the tests are imported: what is made there stays."""
    gc.disable()


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put long stories first in each worker's part, which xdist cuts off in this order."""
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    long = [item for item in items if item.nodeid.partition("::")[0] in LONG_STORIES]
    others = [item for item in items if item.nodeid.partition("::")[0] not in LONG_STORIES]
    total = len(items)
    items.clear()
    for worker in range(workers):
        share = long[worker::workers]
        rest = (total - len(items)) // (workers - worker) - len(share)
        items += [*share, *others[: max(0, rest)]]
        del others[: max(0, rest)]


def pytest_collection_finish() -> None:
    """Collect garbage less often, and never again what exists before the first test."""
    gc.freeze()
    gc.enable()
    gc.set_threshold(20_000, 20, 50)


@dataclass
class GitRepo:
    """A real repository with a fixed identity and its own clock, so that ids are reproducible."""

    path: Path
    _commits: int = 0

    def git(self, *arguments: str, stdin: str | bytes | None = None) -> str:
        """Run git here and return its output, without the last line's end."""
        result = subprocess.run(
            ["git", *arguments],
            cwd=self.path,
            env=self._environment(),
            input=stdin.encode() if isinstance(stdin, str) else stdin,
            capture_output=True,
            check=False,
        )
        if result.returncode != 0:
            raise AssertionError(f"git {' '.join(arguments)}: {result.stderr.decode()}")
        return result.stdout.decode(errors="surrogateescape").removesuffix("\n")

    def commit(self, files: dict[str, str | bytes | None], message: str = "Change files") -> str:
        """Write files (None: delete), commit them on the branch checked out, return the sha."""
        for name, content in files.items():
            path = self.path / name
            if content is None:
                path.unlink()
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content.encode() if isinstance(content, str) else content)
        self._commits += 1
        self.git("add", "--all", "--", *files)
        self.git("commit", "--quiet", "--allow-empty", "--message", message)
        return self._head()

    def put_commits(
        self, ref: str, *changes: Mapping[str, str | bytes | None], after: str | None = None
    ) -> list[str]:
        """Put a commit on a ref for each change of files (None: delete), after a commit or HEAD.

        One process makes all of them. It touches neither index nor work tree.
        """
        after = after or self._head()
        stream: list[bytes] = []
        for mark, files in enumerate(changes, 1):
            self._commits += 1
            who = f"Ada Example <ada@example.org> {self._date()}"
            about = f"commit {ref}\nmark :{mark}\ncommitter {who}\ndata 13\n"
            stream.append(
                f"{about}Change files\nfrom {after if mark == 1 else f':{mark - 1}'}\n".encode()
            )
            for name, content in files.items():
                if content is None:
                    stream.append(f"D {name}\n".encode())
                    continue
                data = content.encode() if isinstance(content, str) else content
                stream.append(f"M 100644 inline {name}\ndata {len(data)}\n".encode() + data + b"\n")
        stream += [f"get-mark :{mark}\n".encode() for mark in range(1, len(changes) + 1)]
        return self.git("fast-import", "--quiet", "--force", stdin=b"".join(stream)).split()

    def _date(self) -> str:
        """Return the time of the next commit: each is a second later."""
        return f"{1_767_268_800 + self._commits} +0000"

    def _head(self) -> str:
        """Return the commit of the branch checked out, which a new commit puts into a file."""
        folder = self.path / ".git"
        if not folder.is_dir():  # of a linked work tree, or none
            return self.git("rev-parse", "HEAD")
        head = (folder / "HEAD").read_text().strip()
        branch = head.removeprefix("ref: ")
        return head if branch == head else (folder / branch).read_text().strip()

    def _environment(self) -> dict[str, str]:
        date = self._date()
        return {
            "PATH": os.environ["PATH"],
            "HOME": "/nonexistent",
            "LC_ALL": "C.UTF-8",
            "GIT_CONFIG_GLOBAL": os.devnull,
            "GIT_CONFIG_SYSTEM": os.devnull,
            # Else each commit starts a process that finds nothing to do.
            "GIT_CONFIG_COUNT": "1",
            "GIT_CONFIG_KEY_0": "maintenance.auto",
            "GIT_CONFIG_VALUE_0": "false",
            "GIT_AUTHOR_NAME": "Ada Example",
            "GIT_AUTHOR_EMAIL": "ada@example.org",
            "GIT_AUTHOR_DATE": date,
            "GIT_COMMITTER_NAME": "Ada Example",
            "GIT_COMMITTER_EMAIL": "ada@example.org",
            "GIT_COMMITTER_DATE": date,
        }


def make_git_repo(path: Path) -> GitRepo:
    """Make a repository with one commit on `main`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for name, content in _sample():
        if content is None:
            os.mkdir(f"{path}{name}")
        else:
            with open(f"{path}{name}", "wb") as file:
                file.write(content)
    return GitRepo(path, _commits=1)


@functools.cache
def _sample() -> list[tuple[str, bytes | None]]:
    """Return the folders (None) and files of the repository that all are copies of.

    They are made by four runs of git, once. `shutil.copytree` takes five times as long as to write.
    """
    with tempfile.TemporaryDirectory(prefix="autopack-sample-") as folder:
        repo = GitRepo(Path(folder))
        repo.git("init", "--quiet", "--initial-branch=main", "--template=")
        repo.commit({"README.md": "# Sample\n", "src/app.py": "VALUE = 1\n"}, "Start the sample")
        return [("", None)] + [
            (str(each).removeprefix(folder), None if each.is_dir() else each.read_bytes())
            for each in sorted(repo.path.rglob("*"))
        ]


@pytest.fixture(autouse=True, scope="session")
def quiet_nodes() -> Iterator[None]:
    """Let the thread of an application in this process send no statement amid those of a test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("autopack.services.nodes.LOOK_SECONDS", 3_600)
        yield


@pytest.fixture(autouse=True, scope="session")
def certificates_loaded_once() -> Iterator[None]:
    """Let clients of HTTP share the certificates of a file, which each would load in 30 ms."""
    load = ssl.create_default_context
    load_once = functools.cache(load)

    def load_file_once(*purpose: ssl.Purpose, **where: Any) -> ssl.SSLContext:
        # Without a file's name, the environment names it, which tests change.
        return (load_once if where else load)(*purpose, **where)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ssl.create_default_context", load_file_once)
        yield


@pytest.fixture(autouse=True)
def logs_as_before() -> Iterator[None]:
    """Undo the log configuration of a test.

    An application and some commands configure structlog for the whole process. A command lets it
    write to the standard error of its test, which is a closed file for the tests after it.
    """
    before = structlog.get_config() if structlog.is_configured() else None
    yield
    structlog.reset_defaults()
    if before is not None:
        structlog.configure(**before)


@pytest.fixture
def git_repo(tmp_path: Path) -> GitRepo:
    return make_git_repo(tmp_path / "repo")


@pytest.fixture(scope="session")
def postgres_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a server on which the tests may create databases."""
    given = os.environ.get("AUTOPACK_TEST_DATABASE_URL")
    if given:
        yield make_url(given).set(drivername="postgresql").render_as_string(hide_password=False)
        return
    from autopack.embedded_postgres import EmbeddedPostgres

    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    with EmbeddedPostgres(shared / "postgres") as server:
        url = server.url.replace("+psycopg2", "")
        # The data are temporary: no test may depend on surviving a power cut.
        # They may be in memory, so the log is kept short.
        _execute(
            url,
            "ALTER SYSTEM SET fsync = off",
            "ALTER SYSTEM SET max_wal_size = '128MB'",
            "SELECT pg_reload_conf()",
        )
        yield url


@pytest.fixture(scope="session")
def template_database(postgres_url: str) -> str:
    """Name of a database at head, which the first worker creates."""
    name = f"autopack_test_template_{os.environ.get('PYTEST_XDIST_TESTRUNUID', os.getpid())}"
    connection = psycopg2.connect(postgres_url)
    connection.autocommit = True
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_lock(%s)", (TEMPLATE_LOCK,))
            cursor.execute("SELECT 1 FROM pg_database WHERE datname = %s", (name,))
            if cursor.fetchone() is None:
                cursor.execute(_creation(name, "template0"))
                init_db(_database_settings(_with_database(postgres_url, name)))
    finally:
        connection.close()
    return name


@pytest.fixture(scope="session")
def worker_database(
    postgres_url: str, template_database: str, worker_id: str
) -> Iterator[tuple[str, Engine]]:
    """One database for all tests of this worker, and an engine to empty it with."""
    # The worker comes first: names of projects' databases begin with the first part of this one.
    name = f"autopack_{worker_id}_{template_database.rpartition('_')[2]}"
    _execute(postgres_url, _creation(name, template_database))
    url = _with_database(postgres_url, name)
    address = Settings(_env_file=None, database_url=url).database_url or ""
    engine = make_engine(address, 120)  # a machine that stalls must fail no test's end
    engines = Engines(address)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(database, "make_engine", engines.make)
        yield url, engine
    engines.close()
    engine.dispose()
    _execute(postgres_url, f'DROP DATABASE "{name}" WITH (FORCE)')


@pytest.fixture
def database_url(worker_database: tuple[str, Engine]) -> Iterator[str]:
    """Address of a database at head without rows."""
    url, engine = worker_database
    yield url
    with engine.begin() as connection:
        # A test that left a transaction open must fail here, not hang the next one.
        connection.execute(text("SET LOCAL lock_timeout = '5s'"))
        connection.execute(text(EMPTY_ALL_TABLES))


@pytest.fixture
def dropped_projects(database_url: str, postgres_url: str) -> Iterator[None]:
    """Remove the databases of the projects that a test adds."""
    yield
    for name in _databases_of_projects(database_url):  # a test may have lost one
        _execute(postgres_url, f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')


@pytest.fixture
def copied_databases(
    dropped_projects: None, template_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Let this process give new projects a database at head, which their start migrates no more.

    The migrations take most of the time to add a project. Where a project is added by another
    process, they run (tests/recovery).
    """

    def copy(autocommit: Engine, name: str) -> None:
        with autocommit.connect() as connection:
            connection.exec_driver_sql(_creation(name, template_database))

    monkeypatch.setattr("autopack.store.projects.create_database", copy)


def _databases_of_projects(url: str) -> list[str]:
    connection = psycopg2.connect(url)
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT database FROM projects")
            return [name for (name,) in cursor.fetchall()]
    finally:
        connection.close()


@pytest.fixture
def empty_database_url(postgres_url: str, tmp_path: Path) -> Iterator[str]:
    """Address of a database without tables, for tests of migrations."""
    name = f"autopack_test_empty_{os.getpid()}_{time.monotonic_ns()}"
    _execute(postgres_url, _creation(name, "template0"))
    yield _with_database(postgres_url, name)
    _execute(postgres_url, f'DROP DATABASE "{name}" WITH (FORCE)')


@pytest.fixture
def spare_database_url(postgres_url: str, template_database: str) -> Iterator[str]:
    """Address of a database at head for this test alone, so that the test may migrate it."""
    name = f"autopack_test_spare_{os.getpid()}_{time.monotonic_ns()}"
    _execute(postgres_url, _creation(name, template_database))
    yield _with_database(postgres_url, name)
    _execute(postgres_url, f'DROP DATABASE "{name}" WITH (FORCE)')


Explain = Callable[..., str]


@pytest.fixture
def explain(spare_database_url: str) -> Iterator[Explain]:
    """Return Postgres' plan for a statement with its values, `without` some ways to scan or sort.

    What is executed `before` it is rolled back.

    In a database without statistics. What an automatic ANALYZE leaves in a worker's database
    depends on the tests before, and after one of empty tables all indexes cost the same.
    """
    engine = make_engine(_database_settings(spare_database_url).database_url or "", 60)

    def plan(
        statement: str, values: Any = None, *, without: Sequence[str], before: Sequence[str] = ()
    ) -> str:
        with engine.connect() as connection:
            for each in before:
                connection.exec_driver_sql(each)
            for way in without:
                connection.exec_driver_sql(f"SET LOCAL enable_{way} = off")
            found = connection.exec_driver_sql(f"EXPLAIN {statement}", values)
            return "\n".join(str(line) for (line,) in found)

    yield plan
    engine.dispose()


@pytest.fixture
def settings(tmp_path: Path, git_repo: GitRepo, database_url: str) -> Settings:
    """Settings of a new service: repository, folders, database. The schema is at head already.

    There is no background work, so that a test only sees the effects of requests.
    """
    update: dict[str, object] = {
        "database_url": database_url.replace("postgresql:", "postgresql+psycopg2:", 1),
        "repo_path": git_repo.path,
        "home": tmp_path / "home",
        "autonomous_runs_dir": tmp_path / "runs",
    }
    return USUAL_SETTINGS.model_copy(update=update)


@pytest.fixture(scope="session")
def described_once() -> Iterator[None]:
    """Make the OpenAPI document once for all applications of a worker.

    They share their routes, and to describe all of these takes most of a second.
    """
    from fastapi.openapi.utils import get_openapi

    # With its routes, so that no other route gets their ids.
    made: dict[tuple[object, ...], tuple[Sequence[Any], str]] = {}

    def describe_once(*, routes: Sequence[Any], **texts: Any) -> Any:
        shown = [route for route in routes if getattr(route, "include_in_schema", False)]
        key = (repr(texts), *map(id, shown))
        if key not in made:
            made[key] = shown, json.dumps(get_openapi(routes=routes, **texts))
        return json.loads(made[key][1])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fastapi.applications.get_openapi", describe_once)
        yield


@pytest.fixture
def app(settings: Settings, described_once: None) -> FastAPI:
    from autopack.main import create_app

    return create_app(settings)


@pytest.fixture
def client(app: FastAPI) -> Iterator[TestClient]:
    """A local caller, within the application's lifespan."""
    from starlette.testclient import TestClient

    with TestClient(
        app,
        base_url="http://localhost",
        client=("127.0.0.1", 50000),
        backend_options={"use_uvloop": True},
    ) as client:
        yield client


class InProcess(httpx.BaseTransport):
    """Passes requests to the application without a socket."""

    def __init__(self, client: TestClient) -> None:
        self._client = client

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        answer = self._client.request(
            request.method, str(request.url), content=request.read(), headers=dict(request.headers)
        )
        return httpx.Response(
            answer.status_code, headers=dict(answer.headers), content=answer.content
        )


@pytest.fixture
def in_process(client: TestClient) -> InProcess:
    """The transport by which `Autopack` calls the application."""
    return InProcess(client)


@dataclass
class LiveServer:
    """A service in another process, behind a real socket."""

    url: str
    process: ForkedProcess
    log: Path


@pytest.fixture(scope="session")
def fork_server() -> Iterator[ForkServer]:
    """What starts processes of the command line in a moment."""
    if FORK_SERVER in os.environ:
        yield ForkServer(os.environ[FORK_SERVER])
        return
    with running_fork_server() as server:
        yield server


@pytest.fixture
def live_server(
    settings: Settings, tmp_path: Path, fork_server: ForkServer
) -> Iterator[LiveServer]:
    """Start the service in a process of its own, and wait until it answers."""
    server = start_server(fork_server, settings, tmp_path / "server.log")
    yield server
    stop_server(server)


@dataclass
class ServedHere:
    """A service in a thread of this process, behind a real socket."""

    url: str
    stop: Callable[[], None]  # as a signal to stop does; returns when the service has ended


@contextmanager
def serve_here(app: FastAPI, settings: Settings) -> Iterator[ServedHere]:
    """Serve an application as a process does, without the seconds that its start takes."""
    import uvicorn

    from autopack.main import wire_protocol

    config = uvicorn.Config(
        app,
        port=0,
        http=wire_protocol(settings),
        ws="none",
        log_config=None,
        timeout_graceful_shutdown=10,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)

    def stop() -> None:
        server.should_exit = True
        thread.join()

    thread.start()
    while not server.started:
        assert thread.is_alive(), "the service did not start"
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield ServedHere(f"http://127.0.0.1:{port}", stop)
    finally:
        stop()


@pytest.fixture
def served_here(app: FastAPI, settings: Settings) -> Iterator[ServedHere]:
    with serve_here(app, settings) as server:
        yield server


def start_server(
    fork_server: ForkServer, settings: Settings, log: Path, port: int = 0
) -> LiveServer:
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": os.environ.get("HOME", "/"),
        "AUTOPACK_REPO_PATH": str(settings.repo_path),
        "AUTOPACK_HOME": str(settings.home),
        "AUTONOMOUS_RUNS_DIR": str(settings.autonomous_runs_dir),
        "AUTOPACK_PORT": str(port),
        "AUTOPACK_AUTH": settings.auth,
        "AUTOPACK_PROJECT_ID": settings.project_id,
    }
    if settings.database_url is not None:
        environment["DATABASE_URL"] = settings.database_url
    if settings.git_remote is not None:
        environment["AUTOPACK_GIT_REMOTE"] = settings.git_remote.get_secret_value()
    with log.open("w") as output:
        process = fork_server.start(
            "serve", folder=settings.repo_path, environment=environment, output=output
        )
    server = LiveServer("", process, log)

    def address() -> str | None:
        assert process.poll() is None, f"the server did not start:\n{log.read_text()}"
        return told_address(log.read_text())

    try:
        server.url = wait_until(address, log.read_text)
    except AssertionError:
        stop_server(server)
        raise
    return server


def stop_server(server: LiveServer) -> int:
    """End the server as a service manager would, and return its exit code."""
    server.process.terminate()
    try:
        return server.process.wait(timeout=60)
    except subprocess.TimeoutExpired:
        server.process.kill()
        server.process.wait()
        raise AssertionError(f"SIGTERM did not end it:\n{server.log.read_text()}") from None


# TRUNCATE costs the same for an empty table as for a full one, so empty ones are skipped.
EMPTY_ALL_TABLES = """
DO $$
DECLARE
    name regclass;
    has_rows boolean;
    dirty text[] := '{}';
BEGIN
    FOR name IN
        SELECT c.oid::regclass FROM pg_class c
        WHERE c.relkind = 'r' AND c.relnamespace = 'public'::regnamespace
          AND c.relname <> 'alembic_version' AND pg_relation_size(c.oid) > 0
    LOOP
        EXECUTE format('SELECT EXISTS (SELECT FROM %s)', name) INTO has_rows;
        IF has_rows THEN dirty := dirty || name::text; END IF;
    END LOOP;
    IF dirty = '{}' THEN
        RETURN;
    END IF;
    -- To delete takes 3 ms, to truncate 60. But foreign keys stop anyone except a superuser, and a
    -- transaction that a test left open and that only reads would not be noticed.
    IF current_setting('is_superuser') = 'off' OR EXISTS (
        SELECT FROM pg_stat_activity
        WHERE datname = current_database() AND state LIKE 'idle in transaction%'
    ) THEN
        EXECUTE format('TRUNCATE %s RESTART IDENTITY CASCADE', array_to_string(dirty, ', '));
        RETURN;
    END IF;
    SET LOCAL session_replication_role = replica;
    FOREACH name IN ARRAY dirty LOOP
        EXECUTE format('DELETE FROM %s', name);
    END LOOP;
    PERFORM setval(seqrelid::regclass, 1, false) FROM pg_sequence
    WHERE pg_sequence_last_value(seqrelid) IS NOT NULL;
END $$
"""


class Engines:
    """The engines of a worker's applications, which outlast each application.

    To compile an application's statements takes half of its start, and to open its connections half
    of Postgres' work. Each application's engine has its own listeners, and passes on its few
    connections; a test that needed many has them closed.
    """

    MOST_KEPT = 6

    def __init__(self, address: str) -> None:
        self._address = address
        self._engines: dict[object, Engine] = {}

    def make(self, url: str, *arguments: Any, **options: Any) -> Engine:
        if url != self._address:
            return make_engine(url, *arguments, **options)
        key = (arguments, tuple(options.items()))
        if key not in self._engines:
            self._engines[key] = make_engine(url, *arguments, **options)
        shared = self._engines[key]
        engine = shared.execution_options()

        def dispose(close: bool = True) -> None:
            pool = shared.pool
            assert isinstance(pool, QueuePool)
            if pool.checkedout() or pool.checkedin() > self.MOST_KEPT:
                shared.dispose(close)

        engine.dispose = dispose  # type: ignore[method-assign]
        return engine

    def close(self) -> None:
        for engine in self._engines.values():
            engine.dispose()


def _database_settings(url: str) -> Settings:
    return Settings(_env_file=None, database_url=url)


def _with_database(url: str, name: str) -> str:
    return make_url(url).set(database=name).render_as_string(hide_password=False)


def _creation(name: str, template: str) -> str:
    """Return the statement that copies a database, by its files.

    By the log, as is usual, to copy and to drop it takes Postgres more than twice the CPU time.
    """
    return f'CREATE DATABASE "{name}" TEMPLATE "{template}" STRATEGY file_copy'


def _execute(url: str, *statements: str) -> None:
    """Run statements that tolerate no transaction around them."""
    connection = psycopg2.connect(url)
    connection.autocommit = True
    try:
        with connection.cursor() as cursor:
            for statement in statements:
                cursor.execute(statement)
    finally:
        connection.close()
