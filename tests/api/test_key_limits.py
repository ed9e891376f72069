"""Limits of one key: requests a minute, open streams, leases held."""

from __future__ import annotations

import json
import threading
from typing import TYPE_CHECKING

import httpx
import pytest
from tests.api.test_keys import AGENT, Asked, Team, api, call_tool, live, team  # noqa: F401
from tests.waiting import wait_until

from autopack.domain.access import AccessRole
from autopack.domain.limits import KeyLimits

if TYPE_CHECKING:
    from tests.api.conftest import Api

pytestmark = pytest.mark.integration


def test_a_key_at_its_rate_is_told_when_to_come_back_and_others_go_on(
    team: Team,  # noqa: F811 - the fixture
    api: Api,  # noqa: F811 - the fixture
) -> None:
    team.make("busy", AccessRole.VIEWER, limits=KeyLimits(requests_per_minute=3))
    for path in ("/runs", "/whoami", "/nothing"):
        assert team.ask("GET", path, "busy").status_code != 429
    for method, path in (("GET", "/runs"), ("POST", "/mcp"), ("POST", "/runs/start")):
        response = team.ask(method, path, "busy")
        api.refused(response, 429, "too_many_requests", "3 requests a minute")
        assert 1 <= int(response.headers["retry-after"]) <= 120
    assert team.ask("GET", "/runs", "viewer").status_code == 200
    rotated = team.ask("POST", "/keys/busy/rotate", "operator").json()["api_key"]
    api.refused(team.ask("GET", "/runs", rotated), 429)  # a new secret is the same key
    assert team.ask("GET", "/health/live", "busy").status_code == 200


def test_a_key_holds_so_many_leases_at_a_time(
    team: Team,  # noqa: F811 - the fixture
    api: Api,  # noqa: F811 - the fixture
) -> None:
    team.make("codex", AccessRole.BUILDER, limits=KeyLimits(claims=2))
    team.make("codex_3", AccessRole.BUILDER)  # whose name only begins alike
    for number in range(2, 6):
        plan = api.plan(f"run-00{number}")
        assert team.ask("POST", "/runs/start", "operator", json=plan).status_code == 201
    assert team.ask("POST", "/claim", "codex_3", json=AGENT).status_code == 200
    first = team.ask("POST", "/claim", "codex", json=AGENT).json()
    assert team.ask("POST", "/claim", "codex", json=AGENT).status_code == 200
    for path in ("/claim", "/runs/run-005/claim"):
        response = team.ask("POST", path, "codex", json=AGENT)
        api.refused(response, 429, "too_many_claims", "holds 2 leases")
        assert response.headers["retry-after"] == "5"
    refused = call_tool(team, "codex", "claim_work", AGENT)["structuredContent"]
    assert (refused["status"], refused["retry_after"]) == (429, 5)
    assert api_events(team, "run-005") == ["RunStarted"]  # a refused claim changes nothing
    where = f"/runs/{first['run_id']}/phases/{first['phase_id']}"
    lease = {"lease_token": first["lease"]["token"]}
    assert team.ask("POST", f"{where}/release", "codex", json=lease).status_code == 200
    assert team.ask("POST", "/claim", "codex", json=AGENT).status_code == 200


def test_a_claim_that_is_sent_again_holds_no_second_lease(
    team: Team,  # noqa: F811 - the fixture
    api: Api,  # noqa: F811 - the fixture
) -> None:
    team.make("codex", AccessRole.BUILDER, limits=KeyLimits(claims=1))
    assert team.ask("POST", "/runs/start", "operator", json=api.plan("run-002")).status_code == 201
    one, two = ({"Idempotency-Key": key} for key in ("one", "two"))
    for repeated in (None, "true"):
        given = team.ask("POST", "/claim", "codex", json=AGENT, headers=one)
        assert given.status_code == 200, given.text
        assert given.headers.get("idempotency-replayed") == repeated
    refused = team.ask("POST", "/claim", "codex", json=AGENT, headers=two)
    api.refused(refused, 429, "too_many_claims", "holds 1 leases")
    lease = {"lease_token": given.json()["lease"]["token"]}
    path = "/runs/run-001/phases/P0.0/release"
    assert team.ask("POST", path, "codex", json=lease).status_code == 200
    given = team.ask("POST", "/claim", "codex", json=AGENT, headers=two)
    assert given.status_code == 200, "a refusal does not use a claim's key"


@pytest.mark.parametrize("path", ["/claim", "/runs/run-001/claim"])
def test_a_lease_is_given_again_to_its_holder_alone(
    team: Team,  # noqa: F811 - the fixture
    api: Api,  # noqa: F811 - the fixture
    path: str,
) -> None:
    team.make("codex", AccessRole.BUILDER)
    team.make("thief", AccessRole.BUILDER)
    key = {"Idempotency-Key": "one"}
    given = team.ask("POST", path, "codex", json=AGENT, headers=key)
    assert given.status_code == 200, given.text
    refused = team.ask("POST", path, "thief", json=AGENT, headers=key)
    api.refused(refused, 422, "idempotency_key_reused", "one")
    rotated = team.ask("POST", "/keys/codex/rotate", "operator").json()["api_key"]
    again = team.ask("POST", path, rotated, json=AGENT, headers=key)
    assert again.status_code == 200, "a new secret is the same holder"


def api_events(team: Team, run_id: str) -> list[str]:  # noqa: F811 - the type
    events = team.ask("GET", f"/runs/{run_id}/events", "viewer").json()["events"]
    return [event["kind"] for event in events]


def test_claims_at_once_do_not_pass_the_limit_together(
    team: Team,  # noqa: F811 - the fixture
    api: Api,  # noqa: F811 - the fixture
) -> None:
    team.make("codex", AccessRole.BUILDER, limits=KeyLimits(claims=2))
    for number in range(2, 8):
        team.ask("POST", "/runs/start", "operator", json=api.plan(f"run-00{number}"))
    statuses: list[int] = []

    def claim() -> None:
        statuses.append(team.ask("POST", "/claim", "codex", json=AGENT).status_code)

    threads = [threading.Thread(target=claim) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(statuses) == [200, 200, 429, 429, 429, 429]


@pytest.mark.e2e
def test_a_key_has_so_many_streams_open_at_a_time(
    live: Asked,  # noqa: F811 - the fixture
    team: Team,  # noqa: F811 - the fixture
    api: Api,  # noqa: F811 - the fixture
) -> None:
    team.make("watcher", AccessRole.VIEWER, limits=KeyLimits(streams=1))
    headers = {"X-API-Key": team.secrets["watcher"], "Accept": "text/event-stream"}
    with httpx.Client(base_url=live.url, headers=headers, timeout=60, trust_env=False) as client:
        with client.stream("GET", "/events/stream?after=0") as first:
            assert first.status_code == 200
            lines = first.iter_lines()  # which would close the stream if it were dropped
            next(lines)
            for path in ("/events/stream", "/runs/run-001/events"):
                with client.stream("GET", path) as second:
                    assert second.status_code == 429
                    assert second.headers["retry-after"]
                    assert json.loads(second.read())["code"] == "too_many_key_streams"

        def may_open() -> bool:
            with client.stream("GET", "/runs/run-001/events") as third:
                return third.status_code == 200

        wait_until(may_open)  # until the service notices that the first one is closed


def test_whoami_and_the_list_tell_the_limits(
    team: Team,  # noqa: F811 - the fixture
    api: Api,  # noqa: F811 - the fixture
) -> None:
    wanted = {"name": "x", "roles": ["viewer"], "limits": {"claims": 7}}
    made = team.ask("POST", "/keys", "operator", json=wanted).json()
    assert made["key"]["limits"] == {"requests_per_minute": None, "streams": None, "claims": 7}
    limits = team.ask("GET", "/whoami", made["api_key"]).json()["limits"]
    assert limits == {"requests_per_minute": 1_200, "streams": 50, "claims": 7}
    for wrong in ({"claims": 0}, {"claims": "7"}, {"tokens": 1}):
        body = {"name": "y", "roles": ["viewer"], "limits": wrong}
        api.refused(team.ask("POST", "/keys", "operator", json=body), 422)
