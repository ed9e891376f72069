"""What a request costs in statements, processes and files: no plan's size changes that.

A failure here is no defect by itself. It says that a request became dearer or cheaper than it was:
look whether that was meant, then write the new number down.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import event

from autopack.gitrepo.process import GitRunner
from autopack.mirror.files import NewFile, OpenFolder, replace_files
from autopack.services.context import utc_now

if TYPE_CHECKING:
    from fastapi import FastAPI
    from httpx2 import Response
    from starlette.testclient import TestClient
    from tests.api.conftest import Api

pytestmark = pytest.mark.integration


@dataclass(frozen=True)
class Cost:
    """What a request sends to Postgres, and how often, starts of git, and writes as files."""

    trips: int
    statements: int
    processes: int = 0
    files: int = 0


# Several statements go in one round trip, with "; " between them. What a connection prepares at its
# first use is counted where it is executed.
_STATEMENT = re.compile(
    r"(?:^|; )(?:WITH|SELECT|EXECUTE|INSERT|UPDATE|DELETE|SET|BEGIN|COMMIT|ROLLBACK)\b"
)

BUDGETS = {
    "start": Cost(7, 18),
    "start again": Cost(2, 5),
    "read": Cost(1, 1),
    "list": Cost(3, 3),
    "update_status": Cost(4, 14, files=3),
    "record_issue, new": Cost(7, 20, files=6),
    "record_issue, known": Cost(7, 18, files=6),
    "issue index": Cost(2, 2),
    "backlog": Cost(2, 2),
    "backlog issue": Cost(4, 4),
    "next_phase": Cost(4, 4),
    "claim": Cost(10, 17, files=3),
    "claim, none": Cost(3, 5),
    "heartbeat": Cost(3, 6),
    "builder_result, refused": Cost(7, 20, files=3),
    "claim with a key": Cost(13, 22, files=3),
    "claim with a key, again": Cost(11, 14),
    "builder_result, applied": Cost(7, 21, processes=1, files=3),
    "builder_result, again": Cost(4, 6),
    "phase": Cost(6, 6),
    "timeline": Cost(2, 2),
    "end": Cost(13, 24, processes=1),
}


@pytest.fixture
def counted(app: FastAPI, client: TestClient, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Count what the application does from here on."""
    counts: Counter[str] = Counter()

    def count(what: str, number: int = 1) -> None:
        counts[what] += number

    start, write = GitRunner.start, replace_files

    def start_counted(*args: Any, **kwargs: Any) -> Any:
        count("processes")
        return start(*args, **kwargs)

    def write_counted(top: OpenFolder, files: Sequence[NewFile]) -> None:
        count("files", len(files))
        write(top, files)

    monkeypatch.setattr(GitRunner, "start", start_counted)
    monkeypatch.setattr("autopack.mirror.mirror.replace_files", write_counted)
    # The service's own asks the database every few seconds.
    app.state.context = replace(app.state.context, now=utc_now)

    def sent(_connection: object, _cursor: object, text: str, *_: object) -> None:
        count("trips")
        count("statements", len(_STATEMENT.findall(text)))

    for engine in (app.state.context.engine, app.state.context.autocommit):
        event.listen(engine, "before_cursor_execute", sent)
    return counts


@pytest.mark.parametrize(("tiers", "phases"), [(1, 2), (3, 20)])
def test_each_request_keeps_its_budget_whatever_the_size_of_the_plan(
    api: Api, counted: Counter[str], tiers: int, phases: int
) -> None:
    plan = api.plan(tiers=tiers, phases=phases, max_phases=60)
    agent = {"role": "builder", "agent": "codex"}
    key = {"Idempotency-Key": "one"}
    phase = "/runs/run-001/phases/P0.0"
    token: list[str] = []
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
        "backlog issue": lambda: api.client.get("/project/issues/a_failing_test"),
        "next_phase": lambda: api.client.get("/runs/run-001/next_phase"),
        "claim": lambda: api.client.post("/claim", json=agent),
        "claim, none": lambda: api.client.post("/runs/run-001/claim", json=agent),
        "heartbeat": lambda: api.client.post(f"{phase}/heartbeat", json={"lease_token": token[0]}),
        "builder_result, refused": lambda: api.result(patch="no patch", lease_token=token[0]),
        "claim with a key": lambda: api.client.post("/claim", json=agent, headers=key),
        "claim with a key, again": lambda: api.client.post("/claim", json=agent, headers=key),
        "builder_result, applied": lambda: api.result(tokens_used=100),
        "builder_result, again": lambda: api.result(tokens_used=100),
        "phase": lambda: api.client.get(phase),
        "timeline": lambda: api.client.get("/runs/run-001/timeline"),
        "end": lambda: api.client.post("/runs/run-001/cancel", json={"reason": "enough"}),
    }
    costs = {}
    for name, send in requests.items():
        counted.clear()
        response = send()
        is_refused = name.endswith(("refused", "none"))
        assert response.status_code in (200, 201) or is_refused, response.text
        if name in ("start", "end"):
            del counted["files"]  # some for each tier and phase
        costs[name] = Cost(**counted)
        if name == "claim":
            token.append(response.json()["lease"]["token"])
        if name == "update_status":
            api.status("QUEUED")  # so that the phase can be claimed
        if name == "claim with a key, again":  # so that the phase can be built without a lease
            held = {"lease_token": response.json()["lease"]["token"]}
            assert api.client.post(f"{phase}/release", json=held).status_code == 200
    assert costs == BUDGETS
