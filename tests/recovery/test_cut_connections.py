"""A connection to Postgres may be lost at each step of a request: that is 503, and never 500."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import psycopg2
import pytest
from sqlalchemy import Engine, event

from autopack.services.context import utc_now
from autopack.services.upkeep import keep_up

from .consistency import assert_consistent

if TYPE_CHECKING:
    from fastapi import FastAPI
    from starlette.testclient import TestClient

    from autopack.config import Settings

pytestmark = [pytest.mark.integration, pytest.mark.safety_critical]

Json = dict[str, Any]
PHASE = "/runs/run-001/phases/P0"
PLAN: Json = {
    "run": {"run_id": "run-001"},
    "tiers": [{"tier_id": "T1", "tier_index": 0, "name": "First tier"}],
    "phases": [{"phase_id": "P0", "phase_index": 0, "tier_id": "T1", "name": "Do it"}],
}
MAX_STEPS = 200


class Cutter:
    """Ends a connection right before the n-th thing that is done with any: also when it closes."""

    def __init__(self, engines: Iterable[Engine], database_url: str) -> None:
        self._killer = psycopg2.connect(database_url)
        self._killer.autocommit = True
        self._left = -1
        for engine in engines:
            event.listen(engine, "before_cursor_execute", lambda c, *_: self._pass(_raw(c)))
            for moment in ("commit", "rollback"):
                event.listen(engine, moment, lambda connection: self._pass(_raw(connection)))
            for moment in ("reset", "checkin"):
                event.listen(engine.pool, moment, lambda connection, *_: self._pass(connection))

    @contextmanager
    def cutting(self, step: int) -> Iterator[None]:
        self._left = step
        yield
        self.is_through = self._left >= 0
        self._left = -1

    def close(self) -> None:
        self._killer.close()

    def _pass(self, connection: Any) -> None:
        if self._left == 0 and connection is not None and not connection.closed:
            with self._killer.cursor() as cursor:
                cursor.execute(
                    "SELECT pg_terminate_backend(%s, 5000)", (connection.info.backend_pid,)
                )
        self._left = max(-1, self._left - 1)


def _raw(connection: Any) -> Any:
    is_lost = connection.invalidated or connection.closed
    return None if is_lost else connection.connection.dbapi_connection


@pytest.fixture
def cutter(app: FastAPI, client: TestClient, database_url: str) -> Iterator[Cutter]:
    app.state.context = replace(app.state.context, now=utc_now)  # the other asks in between
    context = app.state.context
    cutter = Cutter((context.engine, context.autocommit), database_url)
    yield cutter
    cutter.close()


def _new_file(name: str) -> str:
    return (
        f"diff --git a/{name} b/{name}\nnew file mode 100644\n--- /dev/null\n+++ b/{name}\n"
        "@@ -0,0 +1 @@\n+new\n"
    )


Request = Callable[["TestClient", int], Any]
REQUESTS: dict[str, Request] = {
    "run": lambda client, _: client.get("/runs/run-001"),
    "summary": lambda client, _: client.get("/reports/run_summary/run-001"),
    "metrics": lambda client, _: client.get("/metrics"),
    "events": lambda client, _: client.get("/runs/run-001/events"),
    "health": lambda client, _: client.get("/health"),
    "start": lambda client, step: client.post(
        "/runs/start", json={**PLAN, "run": {"run_id": f"run-{step}"}}
    ),
    "issue": lambda client, step: client.post(
        f"{PHASE}/record_issue",
        json={"issue_key": f"key_{step}", "source": "test", "category": "test_failure"},
    ),
    "result": lambda client, step: client.post(
        f"/runs/run-{step}/phases/P0/builder_result",
        json={"status": "success", "patch_content": _new_file(f"src/{step}.txt")},
    ),
    "ruleset": lambda client, step: client.put(
        "/project/ruleset", json={"project_id": "Autopack", "version": step + 2}
    ),
}


# A look and a change of the database, branch and files; all others are a campaign.
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in ("run", "result") else pytest.mark.campaigns)
        for name in REQUESTS
    ],
)
def test_a_connection_that_is_lost_at_any_step_of_a_request_is_503(
    app: FastAPI, client: TestClient, cutter: Cutter, settings: Settings, name: str
) -> None:
    assert client.post("/runs/start", json=PLAN).status_code == 201
    problems = []
    for step in range(MAX_STEPS):
        if name == "result":
            assert REQUESTS["start"](client, step).status_code == 201
        with cutter.cutting(step):
            answer = REQUESTS[name](client, step)
        if answer.status_code not in (200, 201, 503):
            problems.append((step, answer.status_code, answer.text[:300]))
        again = client.get("/runs/run-001")
        assert again.status_code == 200, again.text
        if cutter.is_through:
            break
    else:
        pytest.fail("the request has too many steps")
    assert not problems, problems
    keep_up(app.state.context)
    assert_consistent(settings)
