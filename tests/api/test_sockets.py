"""What only a real socket shows."""

from __future__ import annotations

import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import httpx
import pytest

from autopack.config import Settings

from .conftest import Api

if TYPE_CHECKING:
    from tests.conftest import ServedHere

pytestmark = pytest.mark.integration


def test_over_a_real_socket_limits_are_answered_and_many_callers_are_served(
    served_here: ServedHere, settings: Settings
) -> None:
    headers = {"Content-Type": "application/json"}
    limits = httpx.Limits(max_connections=30)
    with httpx.Client(
        base_url=served_here.url, trust_env=False, timeout=60, limits=limits
    ) as client:
        too_much = b" " * (settings.max_body_bytes + 1)
        announced = client.post("/runs/start", content=too_much, headers=headers)
        pieces = (too_much[:1_000_000] for _ in range(21))
        streamed = client.post("/runs/start", content=pieces, headers=headers)
        for response in (announced, streamed):
            assert response.status_code == 413
            assert response.json()["code"] == "too_large"

        # What is just as long as allowed is read.
        plan = json.dumps(Api.plan(phases=2)).encode()
        just_fits = plan + b" " * (settings.max_body_bytes - len(plan))
        pieces = (just_fits[at : at + 1_000_000] for at in range(0, len(just_fits), 1_000_000))
        started = client.post("/runs/start", content=pieces, headers=headers)
        assert started.status_code == 201
        again = client.post("/runs/start", content=just_fits, headers=headers)
        assert again.status_code == 200
        report = {"issue_key": "flaky", "source": "ci", "category": "timing"}
        path = "/runs/run-001/phases/P0.0/record_issue"
        with ThreadPoolExecutor(30) as pool:
            answers = list(pool.map(lambda _: client.post(path, json=report), range(30)))
        assert Counter(answer.status_code for answer in answers) == {201: 30}
        index = client.get("/runs/run-001/issues/index").json()["issues_by_key"]
        assert index["flaky"]["occurrence_count"] == 30

        odd = client.get("/runs/%ff%00")
        assert (odd.status_code, odd.json()["code"]) == (422, "invalid_request")
        assert client.get("/health", headers={"Host": "evil.example"}).status_code == 421
    assert (
        json.loads((settings.autonomous_runs_dir / "run-001" / "run_issue_index.json").read_text())[
            "issues_by_key"
        ]
        == index
    )
