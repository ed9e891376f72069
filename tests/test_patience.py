"""A Postgres that says nothing is away, and is there again when it speaks."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from sqlalchemy import Engine, make_url, text
from sqlalchemy.exc import OperationalError

from autopack.config import Settings
from autopack.database import make_engine
from autopack.jobs import connector
from autopack.jobs.worker import Queue, Workers
from autopack.patience import DatabaseSilentError, PatientConnection
from autopack.services.availability import as_unavailable

pytestmark = pytest.mark.integration


class Line:
    """A line to Postgres that can be held: bytes are taken, and not handed on."""

    def __init__(self, server: str) -> None:
        self._server = server
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._gates: list[threading.Event] = []
        self._renew()
        self._sockets = [self._listener]
        threading.Thread(target=self._accept, daemon=True).start()

    def hold(self, *, is_for_open: bool = False) -> None:
        """Hold what comes from now on; with `is_for_open` only at what is connected now."""
        self._gates[-1].clear()
        if is_for_open:
            self._renew()

    def release(self) -> None:
        for gate in self._gates:
            gate.set()

    def _renew(self) -> None:
        self._gates.append(threading.Event())
        self._gates[-1].set()

    def close(self) -> None:
        self.release()
        for each in self._sockets:
            each.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
                far = socket.socket(socket.AF_UNIX if "/" in self._server else socket.AF_INET)
                far.connect(self._server)
            except OSError:
                return
            self._sockets += near, far
            for one, other in ((near, far), (far, near)):
                carrying = (one, other, self._gates[-1])
                threading.Thread(target=self._carry, args=carrying, daemon=True).start()

    def _carry(self, one: socket.socket, other: socket.socket, gate: threading.Event) -> None:
        try:
            while data := one.recv(65_536):
                gate.wait()
                other.sendall(data)
        except OSError:
            pass
        finally:
            other.close()


@pytest.fixture(autouse=True)
def _little_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autopack.database.GRACE_SECONDS", 0.5)
    monkeypatch.setattr("autopack.patience.SILENT_SECONDS", 0.2)


@pytest.fixture
def line(database_url: str) -> Iterator[tuple[Line, Engine]]:
    url = make_url(Settings(_env_file=None, database_url=database_url).database_url or "")
    folder = str(url.query.get("host") or "")
    if not folder.startswith("/"):
        pytest.skip("the tests' Postgres has no socket of its own")
    line = Line(f"{folder}/.s.PGSQL.5432")
    engine = make_engine(url.set(host="127.0.0.1", port=line.port, query={}), 1)
    yield line, engine
    line.release()
    engine.dispose()
    line.close()


@contextmanager
def silent() -> Iterator[None]:
    with pytest.raises(OperationalError) as refusal:
        yield
    assert isinstance(refusal.value.orig, DatabaseSilentError)
    found = as_unavailable(refusal.value)
    assert found is not None
    assert found.code == "database_unavailable"


def test_every_kind_of_call_to_a_silent_postgres_gives_up_and_works_again_later(
    line: tuple[Line, Engine],
) -> None:
    wire, engine = line
    with engine.connect() as under_way, engine.connect() as pooled:
        assert pooled.scalar(text("SELECT 1")) == 1
        under_way.execute(text("CREATE TEMPORARY TABLE kept ON COMMIT DROP AS SELECT 1"))
        pooled.close()
        wire.hold()
        with silent():
            under_way.commit()
        with silent():
            engine.connect()  # a look at the pooled one, then a new one
        with silent():
            engine.connect()
    wire.release()
    with engine.connect() as again:
        assert again.scalar(text("SELECT 2")) == 2
        dbapi_connection: object = again.connection.dbapi_connection
        assert isinstance(dbapi_connection, PatientConnection)
        assert not dbapi_connection.is_server_silent


def test_a_slow_answer_that_the_server_allows_is_waited_for(database_url: str) -> None:
    engine = make_engine(Settings(_env_file=None, database_url=database_url).database_url or "", 1)
    with engine.connect() as connection:
        assert connection.scalar(text("SELECT 'done' FROM pg_sleep(0.5)")) == "done"
        with pytest.raises(OperationalError, match="statement timeout"):
            connection.execute(text("SELECT pg_sleep(30)"))
    engine.dispose()


def test_a_connection_that_left_the_pool_is_closed_without_an_error(
    database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    engine = make_engine(
        make_url(Settings(_env_file=None, database_url=database_url).database_url or ""), 1
    )
    connection = engine.connect().execution_options(isolation_level="AUTOCOMMIT")
    connection.detach()
    connection.close()
    engine.dispose()
    assert caplog.text == ""


class Ticks:
    """A queue's periodic task, which counts its calls."""

    def __init__(self) -> None:
        self._ticks = threading.Semaphore(0)

    def tick(self) -> None:
        self._ticks.release()

    def await_one(self) -> None:
        while self._ticks.acquire(blocking=False):
            pass
        assert self._ticks.acquire(timeout=60)


@pytest.fixture
def ticks(line: tuple[Line, Engine], monkeypatch: pytest.MonkeyPatch) -> Iterator[Ticks]:
    """A task that workers call each second over the line; they stop at the end of the test."""
    monkeypatch.setattr(connector, "ANSWER_SECONDS", 0.5)
    monkeypatch.setattr(connector, "POOL_WAIT_SECONDS", 0.5)
    ticks = Ticks()
    workers = Workers(
        line[1], [Queue(name="clock", concurrency=1, every={"tick": (1, ticks.tick)})]
    )
    workers.start()
    ticks.await_one()
    yield ticks
    stopping = threading.Thread(target=workers.stop, daemon=True)
    stopping.start()
    stopping.join(60)
    assert not stopping.is_alive()


@pytest.mark.campaigns  # psycopg waits for ten seconds for the end of each query
def test_workers_stop_while_postgres_is_silent(line: tuple[Line, Engine], ticks: Ticks) -> None:
    line[0].hold()


@pytest.mark.campaigns
def test_workers_work_on_over_new_connections_when_the_old_ones_are_silent_for_ever(
    line: tuple[Line, Engine], ticks: Ticks
) -> None:
    line[0].hold(is_for_open=True)
    ticks.await_one()
