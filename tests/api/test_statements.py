"""How many SQL statements a request costs: a number that no plan's size changes.

A failure here is no defect by itself. It says that a request became dearer or cheaper than it was:
look whether that was meant, then write the new number down.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import Engine, event

if TYPE_CHECKING:
    from fastapi import FastAPI
    from httpx2 import Response
    from tests.api.conftest import Api

pytestmark = pytest.mark.integration

BUDGETS = {
    "start": 15,
    "start again": 5,
    "read": 3,
    "list": 1,
    "update_status": 12,
    "record_issue, new": 23,
    "record_issue, known": 19,
    "issue index": 4,
    "backlog": 1,
    "builder_result, refused": 19,
    "builder_result, applied": 24,
    "builder_result, replayed": 6,
}


@contextmanager
def statements(engine: Engine) -> Iterator[list[str]]:
    """Collect what any thread but the one of upkeep sends to the database."""
    seen: list[str] = []

    def note(_connection: object, _cursor: object, statement: str, *_: Any) -> None:
        if threading.current_thread().name != "upkeep":
            seen.append(" ".join(statement.split())[:100])

    event.listen(engine, "before_cursor_execute", note)
    try:
        yield seen
    finally:
        event.remove(engine, "before_cursor_execute", note)


@pytest.mark.parametrize(("tiers", "phases"), [(1, 2), (3, 20)])
def test_each_request_keeps_its_budget_whatever_the_size_of_the_plan(
    api: Api, app: FastAPI, tiers: int, phases: int
) -> None:
    engine = app.state.house.engine
    plan = api.plan(tiers=tiers, phases=phases, max_phases=60)
    requests: dict[str, Callable[[], Response]] = {
        "start": lambda: api.client.post("/runs/start", json=plan),
        "start again": lambda: api.client.post("/runs/start", json=plan),
        "read": lambda: api.client.get("/runs/run-001"),
        "list": lambda: api.client.get("/runs"),
        "update_status": lambda: api.status("EXECUTING"),
        "record_issue, new": api.issue,
        "record_issue, known": api.issue,
        "issue index": lambda: api.client.get("/runs/run-001/issues/index"),
        "backlog": lambda: api.client.get("/project/issues/backlog"),
        "builder_result, refused": lambda: api.result(patch="no patch"),
        "builder_result, applied": lambda: api.result(tokens_used=100),
        "builder_result, replayed": lambda: api.result(tokens_used=100),
    }
    costs = {}
    for name, send in requests.items():
        with statements(engine) as seen:
            response = send()
        assert response.status_code in (200, 201) or name.endswith("refused"), response.text
        costs[name] = len(seen)
    assert costs == BUDGETS
