"""`/mcp`: the same doorkeeper, arguments and refusals as HTTP, and nothing of its own."""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from starlette.testclient import TestClient

from autopack.config import Settings

if TYPE_CHECKING:
    from fastapi import FastAPI
    from httpx2 import Response
    from tests.api.conftest import Api, Json

pytestmark = pytest.mark.integration

RUN = {"run_id": "run-001"}
PHASE = {**RUN, "phase_id": "P0.0"}
PHASE_PATH = "/runs/run-001/phases/P0.0"
ISSUE = {"issue_key": "k", "source": "test", "category": "tests"}
CONFLICT = (
    "diff --git a/src/app.py b/src/app.py\n--- a/src/app.py\n+++ b/src/app.py\n"
    "@@ -1 +1 @@\n-VALUE = 7\n+VALUE = 8\n"
)


@dataclass
class Agent:
    """Speaks MCP as the clients of today do, one JSON-RPC message a request."""

    client: TestClient

    def __post_init__(self) -> None:
        self.ids = count(1)

    def send(self, method: str, **params: Any) -> Response:
        message = {"jsonrpc": "2.0", "id": next(self.ids), "method": method, "params": params}
        return self.post(json.dumps(message))

    def post(self, content: str | bytes, **headers: str) -> Response:
        return self.client.post(
            "/mcp",
            content=content,
            headers={
                "Content-Type": "application/json",
                "Accept": "application/json, text/event-stream",
                **{name.replace("_", "-"): value for name, value in headers.items()},
            },
        )

    def result(self, method: str, **params: Any) -> Json:
        response = self.send(method, **params)
        assert response.status_code == 200, response.text
        result: Json = response.json()["result"]
        return result

    def call(self, tool: str, arguments: Json) -> Json:
        """Call a tool that does what it is asked to."""
        result = self.result("tools/call", name=tool, arguments=arguments)
        assert not result["isError"], result
        assert json.loads(result["content"][0]["text"]) == result["structuredContent"]
        content: Json = result["structuredContent"]
        return content

    def refused(self, tool: str, arguments: Json) -> Json:
        result = self.result("tools/call", name=tool, arguments=arguments)
        assert result["isError"], result
        problem: Json = result["structuredContent"]
        assert json.loads(result["content"][0]["text"]) == problem
        return problem


@pytest.fixture
def agent(client: TestClient) -> Agent:
    return Agent(client)


class TestTheDoor:
    def test_is_closed_to_whom_http_is_closed(self, app: FastAPI, agent: Agent, api: Api) -> None:
        started = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/list"})
        for headers, status, code in (
            ({"Host": "evil.example"}, 421, "unknown_host"),
            ({"Host": "localhost.evil.example"}, 421, "unknown_host"),
            ({"Origin": "https://evil.example"}, 403, "foreign_origin"),
            ({"Origin": "null"}, 403, "foreign_origin"),
            ({"X_Forwarded_For": "127.0.0.1"}, 401, "not_local"),
            ({"Forwarded": "for=127.0.0.1"}, 401, "not_local"),
        ):
            api.refused(agent.post(started, **headers), status, code)
        stranger = TestClient(app, base_url="http://localhost", client=("10.0.0.7", 50_000))
        api.refused(Agent(stranger).post(started), 401, "not_local")
        own = {"Host": "LOCALHOST:8000", "Origin": "http://localhost:8000"}
        assert agent.post(started, **own).status_code == 200

    def test_refuses_every_body_that_http_refuses(
        self, agent: Agent, api: Api, settings: Settings
    ) -> None:
        deep = "[" * settings.max_json_depth + "]" * settings.max_json_depth
        for content, status, code, words in (
            (b" " * (settings.max_body_bytes + 1), 413, "too_large", "AUTOPACK_MAX_BODY_BYTES"),
            (f'{{"jsonrpc": {deep}}}', 422, "invalid_body", "deeper"),
            ("[" * 1_000_000, 422, "invalid_body", "deeper"),
            ("{", 422, "invalid_body", "not JSON"),
            (b"\xff", 422, "invalid_body", "UTF-8"),
            ('{"id": 1, "id": 2}', 422, "invalid_body", "twice"),
            ('{"id": NaN}', 422, "invalid_body", "NaN"),
        ):
            api.refused(agent.post(content), status, code, words)
        api.refused(agent.post("{}", Content_Type="text/plain"), 415)

    def test_lets_in_nothing_but_a_message(self, agent: Agent, api: Api) -> None:
        for version in ("2025-11-25", "2026-07-28", "1999-01-01"):
            for content in (
                "{}",
                "[]",
                '"text"',
                "7",
                '[{"jsonrpc": "2.0", "id": 1, "method": "ping"}]',
                '{"jsonrpc": "1.0", "id": 1, "method": "ping"}',
                '{"jsonrpc": "2.0", "id": 1, "method": "\\ud800"}',
            ):
                response = agent.post(content, MCP_Protocol_Version=version)
                assert response.status_code == 400, response.text
        for method in ("GET", "DELETE", "PUT"):
            api.refused(api.client.request(method, "/mcp"), 405)
        api.refused(api.client.post("/mcp/other"), 404)


class TestTools:
    def test_have_the_arguments_of_http_by_the_same_names(self, agent: Agent, api: Api) -> None:
        schema = api.client.get("/openapi.json").json()
        tools = {tool["name"]: tool for tool in agent.result("tools/list")["tools"]}
        assert tools["claim_work"]["title"] == "Claim work"
        phase = "/runs/{run_id}/phases/{phase_id}"
        for tool, method, path in (
            ("claim_work", "post", "/runs/{run_id}/claim"),
            ("heartbeat", "post", f"{phase}/heartbeat"),
            ("release_work", "post", f"{phase}/release"),
            ("check_patch", "post", "/runs/{run_id}/patch_check"),
            ("submit_builder_result", "post", f"{phase}/builder_result"),
            ("submit_auditor_result", "post", f"{phase}/auditor_result"),
            ("record_issue", "post", f"{phase}/record_issue"),
            ("get_run", "get", "/runs/{run_id}"),
            ("get_backlog", "get", "/project/issues/backlog"),
            ("get_attention", "get", "/attention"),
        ):
            operation = schema["paths"][path][method]
            wanted = {
                parameter["name"].lower().replace("-", "_")
                for parameter in operation.get("parameters", [])
            }
            if "requestBody" in operation:
                body = operation["requestBody"]["content"]["application/json"]["schema"]["$ref"]
                wanted |= schema["components"]["schemas"][body.rsplit("/", 1)[1]][
                    "properties"
                ].keys()
            taken = tools.pop(tool)["inputSchema"]
            assert taken["properties"].keys() == wanted, tool
            assert taken["additionalProperties"] is False
        assert not tools

    def test_refuse_with_the_very_problem_of_http(self, agent: Agent, api: Api) -> None:
        api.start(phases=2)
        claim = {"role": "builder", "agent": "ada"}
        patch_check = "/runs/run-001/patch_check"
        for tool, place, arguments, path in (
            ("claim_work", RUN, {**claim, "role": "boss"}, "/runs/run-001/claim"),
            ("claim_work", {"run_id": "nobody"}, claim, "/runs/nobody/claim"),
            ("claim_work", {}, {**claim, "lease_second": 5}, "/claim"),
            ("heartbeat", PHASE, {"lease_token": "x", "tokens_used": 1.5}, "heartbeat"),
            ("heartbeat", {**RUN, "phase_id": "P9"}, {"lease_token": "x"}, "../P9/heartbeat"),
            ("release_work", PHASE, {"lease_token": "x", "retry_at": "soon"}, "release"),
            ("release_work", PHASE, {"lease_token": "x"}, "release"),
            ("check_patch", RUN, {}, patch_check),
            ("check_patch", RUN, {"patch_content": "x", "base_commit": "y"}, patch_check),
            ("submit_builder_result", PHASE, {"status": "done"}, "builder_result"),
            (
                "submit_builder_result",
                PHASE,
                {"status": "success", "patch_content": CONFLICT},
                "builder_result",
            ),
            ("submit_auditor_result", PHASE, {"recommendation": "approve"}, "auditor_result"),
            ("record_issue", PHASE, {**ISSUE, "severity": "huge"}, "record_issue"),
            ("record_issue", PHASE, {**ISSUE, "evidence_refs": ["\0"]}, "record_issue"),
        ):
            by_mcp = agent.refused(tool, {**place, **arguments})
            url = path if path.startswith("/") else f"{PHASE_PATH}/{path}"
            by_http = api.client.post(url, json=arguments)
            assert by_http.status_code == by_mcp["status"]
            problem = by_http.json()
            if problem["code"] == "patch_conflict":  # each way in has used a try
                assert "tries used: 1 of 3; left: 2." in by_mcp.pop("detail")
                assert "tries used: 2 of 3; left: 0." in problem.pop("detail")  # twice the same
            assert problem == by_mcp, tool
        problem = agent.refused("get_run", {"run_id": "../x"})
        assert problem["detail"].startswith("run_id: '../x' is not an identifier")
        assert agent.refused("get_backlog", {"cursor": "?"})["code"] == "invalid_cursor"
        assert api.phase()["builder_attempts_used"] == 2  # the conflict, by each way in

    def test_have_one_effect_for_one_key_by_whichever_way_in(self, agent: Agent, api: Api) -> None:
        api.start()
        first = api.issue(key="one", issue_key="k", source="test", category="tests")
        arguments = {**PHASE, **ISSUE, "idempotency_key": "one"}
        again = agent.result("tools/call", name="record_issue", arguments=arguments)
        assert again["structuredContent"] == first.json()
        assert again["_meta"]["idempotency_replayed"] is True
        other = agent.refused("record_issue", {**arguments, "category": "other"})
        assert other["code"] == "idempotency_key_reused"
        conflict = {**PHASE, "status": "success", "patch_content": CONFLICT}
        refusals = [
            agent.result("tools/call", name="submit_builder_result", arguments=conflict)
            for _ in range(2)
        ]
        assert [bool(refusal.get("_meta")) for refusal in refusals] == [False, True]
        assert refusals[0]["structuredContent"] == refusals[1]["structuredContent"]
        assert refusals[0]["structuredContent"]["files"][0]["hunks"]
        assert api.phase()["builder_attempts_used"] == 1

    @pytest.mark.parametrize(("place", "path"), [(RUN, "/runs/run-001/claim"), ({}, "/claim")])
    def test_give_a_claims_lease_again_by_whichever_way_in(
        self, agent: Agent, api: Api, place: Json, path: str
    ) -> None:
        api.start()
        claim = {"role": "builder", "agent": "ada"}
        first = api.client.post(path, json=claim, headers={"Idempotency-Key": "one"}).json()
        arguments = {**place, **claim, "idempotency_key": "one"}
        again = agent.result("tools/call", name="claim_work", arguments=arguments)
        assert again["_meta"]["idempotency_replayed"] is True
        work = again["structuredContent"]["work"]
        assert work["lease"]["fence"] == first["lease"]["fence"]
        for lease in (first["lease"], work["lease"]):
            told = agent.call("heartbeat", {**PHASE, "lease_token": lease["token"]})
            assert told["directive"] == "continue"
        other = agent.refused("claim_work", {**arguments, "model": "m"})
        assert other["code"] == "idempotency_key_reused"
        api.status("QUEUED")
        assert agent.refused("claim_work", arguments)["code"] == "lease_lost"

    def test_show_an_unexpected_error_only_by_its_id(
        self, agent: Agent, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(*_: object, **__: object) -> None:
            raise RuntimeError("the password is hunter2")

        monkeypatch.setattr("autopack.services.runs.get_run", fail)
        problem = agent.refused("get_run", RUN)
        assert (problem["status"], problem["code"]) == (500, "internal_error")
        response = agent.send("prompts/get", name="builder", arguments=RUN)
        assert response.json()["error"]["data"]["code"] == "internal_error"
        assert "hunter2" not in f"{problem} {response.text}"

        def be_away(*_: object, **__: object) -> None:
            raise PoolTimeoutError

        monkeypatch.setattr("autopack.services.runs.get_run", be_away)
        problem = agent.refused("get_run", RUN)
        assert (problem["status"], problem["code"]) == (503, "database_unavailable")


def test_what_does_not_exist_is_refused_with_what_does(agent: Agent, api: Api) -> None:
    api.start()
    for method, params, words in (
        ("tools/call", {"name": "merge"}, "claim_work"),
        ("prompts/get", {"name": "boss", "arguments": RUN}, "auditor"),
        ("prompts/get", {"name": "builder"}, "run_id: Field required"),
        ("prompts/get", {"name": "builder", "arguments": {"run_id": "x"}}, "there is no run 'x'"),
        ("resources/read", {"uri": "file:///etc/passwd"}, "autopack://runs/{run_id}/diff"),
        ("resources/read", {"uri": "autopack://runs/%2e%2e/diff"}, "not an identifier"),
        ("resources/read", {"uri": "autopack://runs/x/summary"}, "there is no run 'x'"),
        ("resources/list", {"cursor": "?"}, "next_cursor"),
    ):
        response = agent.send(method, **params)
        error = response.json()["error"]
        assert error["code"] == -32602
        assert words in json.dumps(error), error


def test_an_agent_learns_that_its_money_is_used_up(agent: Agent, api: Api) -> None:
    api.start(cost_cap_usd="1")
    claimed = agent.call("claim_work", {**RUN, "role": "builder", "agent": "a"})
    lease = {**PHASE, "lease_token": claimed["work"]["lease"]["token"]}
    assert agent.call("heartbeat", {**lease, "cost_usd": "1"})["directive"] == "continue"
    told = agent.call("heartbeat", {**lease, "cost_usd": "1.01"})
    assert told["directive"] == "stop"
    assert told["reason"] == "run cost_cap_usd 1.000000 would be passed"
