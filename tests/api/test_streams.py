"""Events as they happen, over real sockets: none lost, none twice, whatever breaks meanwhile."""

from __future__ import annotations

import errno
import json
import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from select import select
from typing import TYPE_CHECKING, Any

import httpx
import psycopg2
import pytest
from sqlalchemy import Engine, text
from sqlalchemy.orm import Session

from autopack.mirror import Mirror
from autopack.services.feed import Feed
from autopack.store.feed import Listener, find_horizon, list_after

from .conftest import Api

if TYPE_CHECKING:
    from fastapi import FastAPI
    from tests.conftest import ServedHere

pytestmark = [pytest.mark.integration, pytest.mark.safety_critical]

STREAM = {"Accept": "text/event-stream"}
RUNS = [f"run-{number}" for number in range(4)]
LAST = ("the-last", 1)
WRITERS = 20
ISSUES_EACH = 3


def read(
    client: httpx.Client, path: str, after: int | None = None, headers: dict[str, str] | None = None
) -> Iterator[tuple[int | None, str, dict[str, Any]]]:
    """Yield the events of one stream: id, name, data."""
    sent = STREAM | (headers or {}) | ({} if after is None else {"Last-Event-ID": str(after)})
    with client.stream("GET", path, headers=sent) as response:
        assert response.status_code == 200, response.read()
        assert response.headers["content-type"].startswith("text/event-stream")
        fields: dict[str, str] = {}
        for line in response.iter_lines():
            name, _, value = line.partition(": ")
            if name:
                fields[name] = value
            elif "data" in fields:
                number = int(fields["id"]) if "id" in fields else None
                yield number, fields.get("event", "message"), json.loads(fields["data"])
            if not line:
                fields = {}


@pytest.fixture
def caller(served_here: ServedHere) -> Iterator[httpx.Client]:
    limits = httpx.Limits(max_connections=60)
    with httpx.Client(
        base_url=served_here.url, trust_env=False, timeout=60, limits=limits
    ) as caller:
        yield caller


def terminate_listener(url: str) -> int:
    """End the service's connection that listens, and return how many there were."""
    with psycopg2.connect(url) as connection, connection.cursor() as cursor:
        cursor.execute(
            "SELECT count(pg_terminate_backend(pid, 5000)) FROM pg_stat_activity"
            " WHERE application_name = 'autopack events' AND datname = current_database()"
        )
        found = cursor.fetchone()
    assert found is not None
    count: int = found[0]
    return count


def test_five_readers_get_each_event_of_twenty_writers_exactly_once(
    caller: httpx.Client, database_url: str
) -> None:
    for run_id in RUNS:
        caller.post("/runs/start", json=Api.plan(run_id, phases=2)).raise_for_status()
    are_open = threading.Barrier(8)

    def follow_all(seed: int) -> list[tuple[str, int]]:
        """Come and go until a run starts after all the others."""
        chance = random.Random(seed)
        found: list[tuple[str, int]] = []
        last, is_new = 0, True
        while not found or found[-1] != LAST:
            patience = chance.randrange(1, 15)
            for number, _, event in read(caller, "/events/stream", last):
                assert number is not None
                assert number > last
                last = number
                found.append((event["run_id"], event["sequence"]))
                if is_new:
                    is_new = False
                    are_open.wait(60)
                patience -= 1
                if patience == 0 or found[-1] == LAST:
                    break
        return found

    def follow_one(run_id: str) -> list[tuple[int | None, str, str]]:
        found: list[tuple[int | None, str, str]] = []
        for number, name, event in read(caller, f"/runs/{run_id}/events?after=0"):
            if not found:
                are_open.wait(60)
            found.append((number, name, event["hash" if name == "message" else "state"]))
        return found

    def write(number: int) -> None:
        run_id = RUNS[number % len(RUNS)]
        for step in range(ISSUES_EACH):
            body = {"issue_key": f"i-{number}-{step}", "source": "test", "category": "flaky"}
            path = f"/runs/{run_id}/phases/P0.{step % 2}/record_issue"
            caller.post(path, json=body).raise_for_status()
            if (number, step) == (7, 1):
                assert terminate_listener(database_url) == 1

    with ThreadPoolExecutor(30) as pool:
        readers = [pool.submit(follow_all, seed) for seed in range(5)]
        of_runs = [pool.submit(follow_one, run_id) for run_id in RUNS[:2]]
        are_open.wait(60)
        list(pool.map(write, range(WRITERS)))
        for run_id in RUNS:
            caller.post(f"/runs/{run_id}/cancel", json={"reason": "enough"}).raise_for_status()
        caller.post("/runs/start", json=Api.plan(LAST[0])).raise_for_status()
        pages = {
            run_id: caller.get(f"/runs/{run_id}/events?limit=1000").json()["events"]
            for run_id in RUNS
        }
        expected = [(run_id, event["sequence"]) for run_id in RUNS for event in pages[run_id]]
        for reader in readers:
            assert sorted(reader.result(60)) == sorted([*expected, LAST])
        for run_id, of_run in zip(RUNS, of_runs, strict=False):
            *events, end = of_run.result(60)
            told = [(event["sequence"], "message", event["hash"]) for event in pages[run_id]]
            assert events == told
            assert end == (None, "end", "DONE_FAILED_REQUIRES_HUMAN_REVIEW")

    # A run that is over is told at once, from where the client was.
    numbers = [number for number, *_ in read(caller, f"/runs/{RUNS[0]}/events", 3)]
    assert numbers == [*range(4, len(pages[RUNS[0]]) + 1), None]

    # A browser that comes back sends the address it began with, and where it is: the latter wins.
    for asked, reached in ((0, 3), (5, 3)):
        for path in (f"/runs/{RUNS[0]}/events", "/events/stream"):
            assert next(read(caller, f"{path}?after={asked}", reached))[0] == reached + 1
            assert next(read(caller, f"{path}?after={asked}"))[0] == asked + 1

    # Before a stream begins, refusals are those of any request.
    assert caller.get("/runs/nobody/events", headers=STREAM).status_code == 404
    for headers in ({"Last-Event-ID": "x"}, {"Last-Event-ID": "-1"}):
        assert caller.get("/events/stream", headers=headers).status_code == 422
    foreign = {"Origin": "https://evil.example"}
    for path in (f"/runs/{RUNS[0]}/events", "/events/stream"):
        assert caller.get(path, headers=STREAM | foreign).status_code == 403
        assert caller.get(path, headers=STREAM | {"Host": "evil.example"}).status_code == 421


def test_what_is_committed_late_is_not_passed_by(api: Api, app: FastAPI) -> None:
    engine: Engine = app.state.context.engine
    for run_id in ("run-a", "run-b"):
        api.start(run_id)
    add = text(
        "INSERT INTO events OVERRIDING USER VALUE SELECT (jsonb_populate_record(e,"
        " '{\"sequence\": 2}')).* FROM events e JOIN runs r ON r.id = run_pk WHERE run_id = :run"
    )

    def look() -> tuple[int, bool, list[int]]:
        with Session(engine) as session:
            horizon, is_newest = find_horizon(session)
            return horizon, is_newest, [e.position for e in list_after(session, 0, horizon)]

    assert look() == (2, True, [1, 2])
    with engine.connect() as early:
        early.execute(add, {"run": "run-a"})
        with engine.begin() as late:
            late.execute(add, {"run": "run-b"})
        assert look() == (2, False, [1, 2])  # 4 is there, but 3 may come
        early.commit()
    assert look() == (4, True, [1, 2, 3, 4])
    with engine.connect() as failing:
        failing.execute(add, {"run": "nobody"})
        assert look()[:2] == (4, True)


@pytest.mark.parametrize("has_room", [True, False])
def test_readers_are_told_of_a_change_after_its_commit_and_its_files(
    api: Api, app: FastAPI, monkeypatch: pytest.MonkeyPatch, has_room: bool
) -> None:
    api.start()
    write = Mirror.write_run
    told_before: list[bool] = []
    with closing(Listener(app.state.context.engine)) as listener:

        def write_run(self: Mirror, *args: Any, **kwargs: Any) -> None:
            told_before.append(listener.has_heard())
            if not has_room:
                raise OSError(errno.ENOSPC, "no space left")
            write(self, *args, **kwargs)

        monkeypatch.setattr(Mirror, "write_run", write_run)
        assert api.issue().status_code == (201 if has_room else 503)
        assert told_before == [False]
        assert listener.has_heard() or select([listener.file_number], [], [], 60)[0]


def test_beyond_the_limit_a_stream_is_refused(api: Api, app: FastAPI) -> None:
    app.state.feed = Feed(app.state.context.engine, 0)
    api.start()
    for path in ("/runs/run-001/events", "/events/stream"):
        response = api.client.get(path, headers=STREAM)
        api.refused(response, 503, "too_many_streams", "AUTOPACK_MAX_STREAMS")
