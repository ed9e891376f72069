"""A body's limits are checked before it is built, and only few problems are reported."""

from __future__ import annotations

import gzip
import json
from typing import TYPE_CHECKING

import pytest
from pydantic import ValidationError

from autopack.config import Settings
from autopack.domain.plan import Plan, PlanPhase
from autopack.domain.values import MAX_PROBLEMS, Problems
from autopack.main import create_app

if TYPE_CHECKING:
    from tests.api.conftest import Api, Json

pytestmark = pytest.mark.integration

JSON = {"Content-Type": "application/json"}
PHASE = "/runs/run-001/phases/P0.0"
# Where a body goes, a body that is right, and the lists of it with the most items of each.
LISTS = {
    "/runs/start": {"tiers": 100, "phases": 500},
    f"{PHASE}/record_issue": {"evidence_refs": 100},
    f"{PHASE}/builder_result": {
        "suggested_issues": 200,
        "probe_results": 200,
        "files_changed": 2_000,
    },
    f"{PHASE}/auditor_result": {
        "issues_found": 200,
        "resolved_issues": 200,
        "suggested_patches": 200,
    },
    f"{PHASE}/ci_result": {"failing_checks": 200},
    "/strategy/dry_run": {"tiers": 100, "phases": 500},
    "/strategy/backtest": {"run_ids": 200},
}


def call(tool: str, arguments: Json) -> Json:
    params = {"name": tool, "arguments": arguments}
    return {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}


def test_a_list_with_an_item_too_many_is_422_and_names_list_and_setting(api: Api) -> None:
    for path, lists in LISTS.items():
        for name, most in lists.items():
            body: Json = {name: [{}] * (most + 1)}
            problem = api.refused(
                api.client.post(path, json=body), 422, "invalid_request", f"{most} items"
            )
            assert [each["loc"] for each in problem["errors"]] == [name]
            assert "AUTOPACK_MAX_" in problem["detail"]
            fits = api.client.post(path, json={name: [{}] * most}).json()
            assert "items" not in fits["detail"]  # it is wrong for other reasons


def test_lists_within_lists_and_unknown_ones_have_limits_too(api: Api) -> None:
    plan = api.plan(phase={"allowed_paths": ["a"] * 201})
    response = api.client.post("/runs/start", json=plan)
    problem = api.refused(response, 422, "invalid_request", "200 items")
    assert problem["errors"][0]["loc"] == "phases[0].allowed_paths"
    for body in ({"x": [0] * 201}, {"x": [[0] * 201]}, {f"n{i}": 0 for i in range(201)}):
        for path in (*LISTS, "/claim", f"{PHASE}/update_status", "/runs/run-001/cancel"):
            api.refused(api.client.post(path, json=body), 422, "invalid_request", "more than 200")
        response = api.client.put("/project/ruleset", json=body)
        api.refused(response, 422, "invalid_request", "more than 200")
        response = api.client.post("/mcp", json=call("claim_work", body))
        api.refused(response, 422, "invalid_request", "more than 200")


def test_the_operator_may_raise_a_limit(settings: Settings, api: Api) -> None:
    from starlette.testclient import TestClient

    raised = settings.model_copy(update={"max_evidence_refs": 150, "max_list_items": 300})
    with TestClient(
        create_app(raised), base_url="http://localhost", client=("127.0.0.1", 50_000)
    ) as client:
        assert client.post("/runs/start", json=api.plan()).status_code == 201
        report = {"issue_key": "k", "source": "s", "category": "c", "evidence_refs": ["r"] * 150}
        assert client.post(f"{PHASE}/record_issue", json=report).status_code == 201
        report["evidence_refs"] = ["r"] * 151
        refused = client.post(f"{PHASE}/record_issue", json=report)
        assert "more than 150 items" in refused.json()["detail"]


def test_at_most_twenty_problems_are_reported(api: Api) -> None:
    bodies: list[Json] = [
        {"phases": [{}] * 500},
        {f"unknown{index}": 0 for index in range(200)},
        {"phases": [{f"unknown{index}": 0 for index in range(190)}] * 400},
        {"phases": [{"allowed_paths": [1] * 200}] * 100},
    ]
    for body in bodies:
        response = api.client.post("/runs/start", json=body)
        assert len(api.refused(response, 422)["errors"]) == MAX_PROBLEMS
    plan = api.plan(phases=400, max_phases=500)
    for phase in plan["phases"]:
        phase["tier_id"] = "T9"
    problem = api.refused(api.client.post("/runs/start", json=plan), 422, "invalid_plan")
    assert len(problem["errors"]) == MAX_PROBLEMS
    categories = {f"c{index}": {"complexity": "huge"} for index in range(100)}
    response = api.client.put("/project/ruleset", json={"categories": categories})
    assert len(api.refused(response, 422)["errors"]) == MAX_PROBLEMS


@pytest.mark.parametrize(
    "phase",
    [{}, {f"unknown{index}": 0 for index in range(200)}, {"allowed_paths": [1] * 200}],
)
def test_few_more_problems_are_built_than_are_reported(phase: Json) -> None:
    with pytest.raises(ValidationError) as refusal:
        Plan.model_validate({"phases": [phase] * 500}, context=Problems())
    fields = len(PlanPhase.model_fields)
    assert MAX_PROBLEMS <= refusal.value.error_count() <= 2 * MAX_PROBLEMS + fields


def test_a_large_body_gets_the_answers_of_a_small_one(api: Api) -> None:
    blanks = b" " * 65_500 + b"\n"  # in pieces that are allowed
    padding = b"\n".join([b'"pad": "' + b"x" * 19_000 + b'",'] * 1)
    body = json.dumps(api.plan()).encode()
    started = api.client.post("/runs/start", content=body + blanks, headers=JSON)
    assert started.status_code == 201, started.text
    for wrong, word in (
        (b"{" + padding + b"}", "not JSON"),
        (b'{"run": 3}', "run"),
        (b'{"a": 1, "a": 2}', "'a' twice"),
        (b'{"a": NaN}', "NaN"),
        (b'"\xff"', "not UTF-8"),
    ):
        small = api.client.post("/runs/start", content=wrong, headers=JSON)
        large = api.client.post("/runs/start", content=wrong + blanks, headers=JSON)
        assert api.refused(small, 422, None, word) == api.refused(large, 422, None, word)


def test_a_compressed_body_is_refused_unread(api: Api) -> None:
    bomb = gzip.compress(json.dumps(api.plan()).encode())
    for path in (*LISTS, "/mcp"):
        response = api.client.post(path, content=bomb, headers={**JSON, "Content-Encoding": "gzip"})
        api.refused(response, 415, "unsupported_media_type", "Content-Encoding")


def test_no_document_of_policy_has_more_names_than_a_list_has_items(api: Api) -> None:
    ruleset = {"aliases": {f"alias{index}": "docs" for index in range(201)}}
    problem = api.refused(api.client.put("/project/ruleset", json=ruleset), 422)
    assert problem["errors"][0]["loc"] == "aliases"
