"""The clock may be set back: events stay in order, and nothing ends before it began."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import Engine, event
from sqlalchemy.exc import OperationalError

from autopack import database
from autopack.database import CLOCK_SECONDS, DatabaseClock

if TYPE_CHECKING:
    from fastapi import FastAPI
    from tests.api.conftest import Api, Json

STEP = timedelta(seconds=30)


class Falling:
    """A clock that is set back by 30 seconds at each look."""

    def __init__(self) -> None:
        self.now = datetime.now(UTC)

    def __call__(self) -> datetime:
        self.now -= STEP
        return self.now


@pytest.fixture
def falling(app: FastAPI, api: Api) -> Falling:
    clock = Falling()
    app.state.context = replace(app.state.context, now=clock)
    return clock


def moments(things: list[Json], name: str) -> list[datetime]:
    return [datetime.fromisoformat(thing[name]) for thing in things if thing.get(name)]


def test_a_run_goes_its_whole_way_while_the_clock_is_set_back_at_each_look(
    api: Api, falling: Falling
) -> None:
    api.start(phases=2)
    claim = {"role": "builder", "agent": "codex", "lease_seconds": 600}
    item = api.client.post("/runs/run-001/claim", json=claim).json()
    lease = item["lease"]
    path = f"/runs/run-001/phases/{item['phase_id']}"
    beat = api.client.post(f"{path}/heartbeat", json={"lease_token": lease["token"]}).json()
    assert beat["directive"] == "continue"
    assert moments([beat, lease], "expires_at")[0] >= moments([lease], "expires_at")[0]
    assert api.result(lease_token=lease["token"]).status_code == 200
    assert api.issue(phase_id="P0.1").status_code == 201
    assert api.result(phase_id="P0.1").status_code == 200

    run = api.run()
    assert run["state"].startswith("DONE_SUCCESS")
    events = api.client.get("/runs/run-001/events?limit=1000").json()["events"]
    told = moments(events, "at")
    assert told == sorted(told)
    things = [run, *run["tiers"], *(phase for tier in run["tiers"] for phase in tier["phases"])]
    for thing in things:
        if thing.get("started_at") and thing.get("ended_at"):
            assert thing["started_at"] <= thing["ended_at"]
    metrics = api.client.get("/metrics/runs").json()["runs"][0]
    assert metrics["duration_minutes"] >= 0


def test_an_issue_that_was_resolved_by_a_clock_that_is_behind_is_not_seen_again(
    api: Api, falling: Falling
) -> None:
    api.start()
    api.issue()
    api.client.post("/project/issues/a_failing_test/resolve").raise_for_status()
    issue = api.client.get("/project/issues/a_failing_test").json()
    assert issue["resolved_at"] > issue["last_seen_at"]
    assert [each["kind"] for each in issue["life"]] == ["resolved"]


def test_the_lease_of_an_agent_lasts_its_time_when_the_clock_is_set_back(
    api: Api, app: FastAPI
) -> None:
    api.start()
    claim = {"role": "builder", "agent": "codex", "lease_seconds": 60}
    lease = api.client.post("/runs/run-001/claim", json=claim).json()["lease"]
    context = app.state.context
    app.state.context = replace(context, now=lambda: context.now() - timedelta(days=1))
    assert api.result(lease_token=lease["token"]).status_code == 200


@pytest.fixture
def uptime(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds since the machine's start, as a test sets them."""
    seconds = [1_000.0]
    monkeypatch.setattr(database, "_uptime", lambda: seconds[0])
    return seconds


def test_time_is_the_databases_and_asked_for_every_few_seconds_alone(
    app: FastAPI, api: Api, uptime: list[float]
) -> None:
    engine: Engine = app.state.context.engine
    asked: list[str] = []
    clock = DatabaseClock(engine)
    first = clock()
    event.listen(engine, "before_cursor_execute", lambda _c, _u, sql, *_: asked.append(sql))
    uptime[0] += CLOCK_SECONDS - 1
    assert (clock() - first).total_seconds() == CLOCK_SECONDS - 1
    assert not asked
    uptime[0] += 1_000
    assert clock() - first < timedelta(seconds=600)  # it was asked again, and knows of no such leap
    assert asked == ["SELECT clock_timestamp()"]


def test_time_goes_on_while_the_database_is_away(
    app: FastAPI, api: Api, uptime: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = DatabaseClock(app.state.context.engine)
    first = clock()

    def away() -> tuple[float, datetime]:
        raise OperationalError("SELECT", {}, Exception("away"))

    monkeypatch.setattr(clock, "_ask", away)
    uptime[0] += 25
    assert (clock() - first).total_seconds() == 25
    uptime[0] += 5
    assert (clock() - first).total_seconds() == 30
